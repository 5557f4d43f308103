/*
 * Kernels on 256-bit registers, included by avx2.c, avxvnni.c and avx512vl_vnni.c; what differs is how a dword of four
 * products becomes a sum:
 *
 *   VNNI   vpdpbusd, in its VEX or its EVEX form
 *   AVX2   vpmaddubsw + vpaddw: sums of pairs stay in int16, which only int4 allows (a pair is at most 2 * 15 * 8 =
 * 240, so 128 steps fit), and go to int32 in bulk; a third fewer instructions than the usual way of int8
 */
#if !defined(__AVX2__) || !defined(__F16C__)
#error "compile this file with the flags that flags.mk gives it"
#endif
#include <immintrin.h>
#include <string.h>

#include "../numeric.h"
#include "features.h"
#include "gemm.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define VNNI          1
#define COMBINE_WIDTH 32
#include "strassen_combine.h"
#endif

enum { MR = 6, VECTORS = 2, LANES = 8, NR = VECTORS * LANES, FLUSH_K8 = 64 };

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load(const void *p) {
  return _mm256_loadu_si256(p);
}
INLINE __m256i broadcast(const uint32_t *p) {
  return _mm256_set1_epi32((int32_t)*p);
}

/* The low nibbles of all bytes. */
INLINE __m256i low(__m256i words) {
  return _mm256_and_si256(words, _mm256_set1_epi8(15));
}
INLINE __m256i high(__m256i words) {
  return low(_mm256_srli_epi32(words, 4));
}

/* What XORed into words of this encoding makes nibbles value + 8. */
INLINE __m256i eights_of(uint32_t flip) {
  return _mm256_set1_epi32((int32_t)(flip ^ INT4MM_ENCODING_FLIP));
}

/* Nibbles value + 8 to signed bytes. */
INLINE __m256i sign(__m256i nibbles) {
  return _mm256_sub_epi8(nibbles, _mm256_set1_epi8(8));
}

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

#ifdef VNNI

INLINE __m256i dot(__m256i sum, __m256i b, __m256i a) {
#ifdef __AVX512VNNI__
  return _mm256_dpbusd_epi32(sum, b, a);
#else
  return _mm256_dpbusd_avx_epi32(sum, b, a);
#endif
}

/* One row of a against two vectors of b. By name, since gcc 12 reorders intrinsics into a slower loop. */
INLINE void rank_row(__m256i *acc0, __m256i *acc1, const uint32_t *a, __m256i b0, __m256i b1) {
#ifdef __AVX512VNNI__
#define DOT "vpdpbusd "
#else
#define DOT "%{vex%} vpdpbusd "
#endif
  __m256i x;
  __asm__("vpbroadcastd %3, %2\n\t" DOT "%2, %4, %0\n\t" DOT "%2, %5, %1"
          : "+x"(*acc0), "+x"(*acc1), "=&x"(x)
          : "m"(*a), "x"(b0), "x"(b1));
}

INLINE void put(int32_t *at, __m256i sum, int32_t sign_of_target) {
  if (sign_of_target > 0) sum = _mm256_add_epi32(load(at), sum);
  if (sign_of_target < 0) sum = _mm256_sub_epi32(load(at), sum);
  _mm256_storeu_si256((__m256i *)at, sum);
}

static void kernel_bytes(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *start,
                         const int4mm_target *targets, int32_t count, int64_t ldt, int4mm_ahead ahead) {
  __m256i acc[MR][VECTORS];
  UNROLL for (int r = 0; r < MR; r++) {
    UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = _mm256_set1_epi32(start[r]);
  }
  for (int64_t j = 0; j < k8; j++, a += 2 * MR, b += 2 * ldb, ahead.line += ahead.step) {
    __m256i b0 = load(b), b1 = load(b + LANES);
    _mm_prefetch(ahead.line, _MM_HINT_T1);
    UNROLL for (int r = 0; r < MR; r++) rank_row(&acc[r][0], &acc[r][1], a + r, b0, b1);
    b0 = load(b + ldb), b1 = load(b + ldb + LANES);
    UNROLL for (int r = 0; r < MR; r++) rank_row(&acc[r][0], &acc[r][1], a + MR + r, b0, b1);
  }
  for (int32_t i = 0; i < count; i++) {
    UNROLL for (int r = 0; r < MR; r++) {
      UNROLL for (int v = 0; v < VECTORS; v++) {
        put(targets[i].tile + r * ldt + LANES * v, acc[r][v], targets[i].sign);
      }
    }
  }
}

#else

/* One row of a against two vectors of b, in four registers besides the sums: gcc 12 spills most of them when it orders
 * these instructions itself. */
INLINE void rank_row(__m256i *acc0, __m256i *acc1, const uint32_t *a, __m256i b0, __m256i b1) {
  __m256i x, pairs;
  __asm__("vpbroadcastd %4, %2\n\t"
          "vpmaddubsw %2, %5, %3\n\t"
          "vpaddw %3, %0, %0\n\t"
          "vpmaddubsw %2, %6, %2\n\t"
          "vpaddw %2, %1, %1"
          : "+x"(*acc0), "+x"(*acc1), "=&x"(x), "=&x"(pairs)
          : "m"(*a), "x"(b0), "x"(b1));
}

/* At most FLUSH_K8 words deep, so that int16 holds the sums of pairs. */
INLINE void rank_flush(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, __m256i acc[MR][VECTORS]) {
  UNROLL for (int r = 0; r < MR; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  for (int64_t j = 0; j < k8; j++, a += 2 * MR, b += 2 * ldb) {
    __m256i b0 = load(b), b1 = load(b + LANES);
    UNROLL for (int r = 0; r < MR; r++) rank_row(&acc[r][0], &acc[r][1], a + r, b0, b1);
    b0 = load(b + ldb), b1 = load(b + ldb + LANES);
    UNROLL for (int r = 0; r < MR; r++) rank_row(&acc[r][0], &acc[r][1], a + MR + r, b0, b1);
  }
}

/* One target, stored or added to: there is no Strassen here, its operands would flush too often. */
static void kernel_bytes(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *start,
                         const int4mm_target *targets, int32_t count, int64_t ldt, int4mm_ahead ahead) {
  (void)count, (void)ahead;
  const __m256i ones = _mm256_set1_epi16(1);
  int32_t *tile = targets->tile;
  for (int r = 0; r < MR; r++) {
    for (int v = 0; v < VECTORS; v++) {
      __m256i *at = (__m256i *)(tile + r * ldt + LANES * v), first = _mm256_set1_epi32(start[r]);
      if (targets->sign) first = _mm256_add_epi32(first, load(at));
      _mm256_storeu_si256(at, first);
    }
  }
  for (int64_t j = 0; j < k8; j += FLUSH_K8) {
    __m256i acc[MR][VECTORS];
    rank_flush(int4mm_min64(FLUSH_K8, k8 - j), a + 2 * j * MR, b + 2 * j * ldb, ldb, acc);
    UNROLL for (int r = 0; r < MR; r++) {
      UNROLL for (int v = 0; v < VECTORS; v++) {
        __m256i *at = (__m256i *)(tile + r * ldt + LANES * v);
        _mm256_storeu_si256(at, _mm256_add_epi32(load(at), _mm256_madd_epi16(acc[r][v], ones)));
      }
    }
  }
}

#endif

/* ---- packing ---------------------------------------------------------------------------------------------------- */

INLINE __m256i add_bytes(__m256i sums, __m256i bytes) { /* four signed bytes of a dword into its sum */
  __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

/* Eight vectors of eight words become their transpose. */
INLINE void transpose8(__m256i x[8]) {
  __m256i y[8];
  UNROLL for (int i = 0; i < 8; i += 2) {
    y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
  }
  UNROLL for (int i = 0; i < 8; i += 4) {
    x[i] = _mm256_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm256_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm256_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm256_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  UNROLL for (int i = 0; i < 4; i++) {
    y[i] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x20);
    y[i + 4] = _mm256_permute2x128_si256(x[i], x[i + 4], 0x31);
  }
  UNROLL for (int i = 0; i < 8; i++) x[i] = y[i];
}

/* MR = 6 dwords. */
INLINE void store_dwords(uint32_t *panel, __m256i x) {
  _mm_storeu_si128((__m128i *)panel, _mm256_castsi256_si128(x));
  _mm_storel_epi64((__m128i *)(panel + 4), _mm256_extracti128_si256(x, 1));
}

/* `count` words of a row (at most 8), the rest as value 0. */
INLINE __m256i load_words(const uint32_t *a, int64_t count, __m256i eights) {
  if (count >= 8) return _mm256_xor_si256(load(a), eights);
  uint32_t words[8] = {0};
  memcpy(words, a, (size_t)count * 4);
  __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  return _mm256_blendv_epi8(_mm256_set1_epi32((int32_t)INT4MM_ENCODING_FLIP), _mm256_xor_si256(load(words), eights),
                            there);
}

static void pack_a(uint32_t *panel, int32_t *sums, const uint32_t *a, int64_t lda, int64_t rows, int64_t k8,
                   uint32_t flip) {
  const __m256i eights = eights_of(flip), zero = _mm256_set1_epi32((int32_t)INT4MM_ENCODING_FLIP);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < k8; j += 8, panel += 16 * MR) {
    __m256i x[8];
    UNROLL for (int r = 0; r < 8; r++) x[r] = r < MR && r < rows ? load_words(a + r * lda + j, k8 - j, eights) : zero;
    transpose8(x);
    UNROLL for (int i = 0; i < 8; i++) {
      if (i >= k8 - j) break;
      __m256i even = sign(low(x[i])), odd = sign(high(x[i]));
      sum = add_bytes(add_bytes(sum, even), odd);
      store_dwords(panel + 2 * MR * i, even);
      store_dwords(panel + 2 * MR * i + MR, odd);
    }
  }
  store_dwords((uint32_t *)sums, sum);
}

static int32_t expand(uint32_t *dwords, const uint32_t *a, int64_t k8, uint32_t flip) {
  const __m256i eights = eights_of(flip);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < k8; j += 8) {
    __m256i x = load_words(a + j, k8 - j, eights), even = sign(low(x)), odd = sign(high(x));
    uint32_t pairs[16]; /* the two dwords of a word lie side by side */
    __m256i first = _mm256_unpacklo_epi32(even, odd), second = _mm256_unpackhi_epi32(even, odd);
    _mm256_storeu_si256((__m256i *)pairs, _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_storeu_si256((__m256i *)(pairs + 8), _mm256_permute2x128_si256(first, second, 0x31));
    memcpy(dwords + 2 * j, pairs, (size_t)int4mm_min64(8, k8 - j) * 8);
    sum = add_bytes(add_bytes(sum, even), odd);
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static void pack_b(uint32_t *panel, const uint32_t *b, int64_t ldb, int64_t columns, int64_t k8, uint32_t flip,
                   int32_t offset) {
  const __m256i eights = eights_of(flip), rest = _mm256_set1_epi8((char)(offset - 8));
  for (int64_t j = 0; j < k8; j++, b += ldb, panel += 2 * NR) {
    __builtin_prefetch(b + 16 * ldb);
    UNROLL for (int v = 0; v < VECTORS; v++) {
      __m256i x = load_words(b + LANES * v, int4mm_max64(0, columns - LANES * v), eights);
      _mm256_storeu_si256((__m256i *)(panel + LANES * v), _mm256_add_epi8(low(x), rest));
      _mm256_storeu_si256((__m256i *)(panel + NR + LANES * v), _mm256_add_epi8(high(x), rest));
    }
  }
}

/* ---- small M ---------------------------------------------------------------------------------------------------- */

enum { DEPTH = 4 }; /* words of K at a time: eight registers of bytes */

/* sum + the products of DEPTH or fewer words, b as bytes, a as dwords broadcast. */
INLINE __m256i add_products(__m256i sum, int depth, const __m256i even[DEPTH], const __m256i odd[DEPTH],
                            const __m256i a[2 * DEPTH]) {
  __m256i first = _mm256_setzero_si256(), second = first; /* two chains */
#ifdef VNNI
  UNROLL for (int i = 0; i < depth; i++) {
    first = dot(first, even[i], a[2 * i]);
    second = dot(second, odd[i], a[2 * i + 1]);
  }
  return _mm256_add_epi32(sum, _mm256_add_epi32(first, second));
#else
  UNROLL for (int i = 0; i < depth; i++) { /* sums of pairs, at most 8 * 240 */
    first = _mm256_add_epi16(first, _mm256_maddubs_epi16(even[i], a[2 * i]));
    second = _mm256_add_epi16(second, _mm256_maddubs_epi16(odd[i], a[2 * i + 1]));
  }
  __m256i pairs = _mm256_add_epi16(first, second);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

INLINE void split_words(int depth, const uint32_t *b, int64_t ldb, __m256i eights, __m256i even[DEPTH],
                        __m256i odd[DEPTH]) {
  UNROLL for (int i = 0; i < depth; i++) {
    __m256i words = _mm256_xor_si256(load(b + i * ldb), eights);
    even[i] = low(words);
    odd[i] = high(words);
  }
}

/* `depth` words of K of eight columns, split once for all rows. */
INLINE void stream_step(int64_t rows, int depth, const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb,
                        __m256i eights, int32_t *acc, int64_t ldacc) {
  __m256i even[DEPTH], odd[DEPTH];
  split_words(depth, b, ldb, eights, even, odd);
  for (int64_t m = 0; m < rows; m++, a += lda, acc += ldacc) {
    __m256i x[2 * DEPTH];
    UNROLL for (int i = 0; i < 2 * depth; i++) x[i] = broadcast(a + i);
    _mm256_storeu_si256((__m256i *)acc, add_products(load(acc), depth, even, odd, x));
  }
}

/* One row: DEPTH words of A stay in registers along the columns. */
INLINE void stream_row(int64_t columns, const uint32_t *a, const uint32_t *b, int64_t ldb, __m256i eights,
                       int32_t *acc) {
  __m256i x[2 * DEPTH], even[DEPTH], odd[DEPTH];
  UNROLL for (int i = 0; i < 2 * DEPTH; i++) x[i] = broadcast(a + i);
  for (int64_t n = 0; n < columns; n += LANES) {
    UNROLL for (int i = 0; i < DEPTH; i++) _mm_prefetch((const char *)(b + (i + 2 * DEPTH) * ldb + n), _MM_HINT_T1);
    split_words(DEPTH, b + n, ldb, eights, even, odd);
    _mm256_storeu_si256((__m256i *)(acc + n), add_products(load(acc + n), DEPTH, even, odd, x));
  }
}

static void stream(int64_t rows, int64_t columns, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b,
                   int64_t ldb, uint32_t flip, int32_t *acc, int64_t ldacc) {
  const __m256i eights = eights_of(flip);
  int64_t j = 0;
  for (; j + DEPTH <= k8; j += DEPTH, a += 2 * DEPTH, b += DEPTH * ldb) {
    if (rows == 1) {
      stream_row(columns, a, b, ldb, eights, acc);
      continue;
    }
    for (int64_t n = 0; n < columns; n += LANES) stream_step(rows, DEPTH, a, lda, b + n, ldb, eights, acc + n, ldacc);
  }
  for (; j < k8; j++, a += 2, b += ldb) {
    for (int64_t n = 0; n < columns; n += LANES) stream_step(rows, 1, a, lda, b + n, ldb, eights, acc + n, ldacc);
  }
}

static void stream_panel(int64_t rows, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int32_t *acc,
                         int64_t ldacc) {
  stream(rows, INT4MM_PANEL, k8, a, lda, b, INT4MM_PANEL, 0, acc, ldacc);
}

/* ---- epilogue --------------------------------------------------------------------------------------------------- */

/* Eight outputs of one type. */
INLINE void store_vector(void *out, int32_t dtype, __m256 x) {
  __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q), one_nan = _mm256_castsi256_ps(_mm256_set1_epi32(INT4MM_NAN_BITS));
  x = _mm256_blendv_ps(x, one_nan, nan);
  if (dtype == INT4MM_FLOAT32) {
    _mm256_storeu_ps(out, x);
  } else if (dtype == INT4MM_FLOAT16) { /* NaN 0x7fffffff becomes 0x7fff */
    _mm_storeu_si128(out, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  } else {
    __m256i bits = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, bits, _mm256_castps_si256(nan)), 16);
    up = _mm256_permute4x64_epi64(_mm256_packus_epi32(up, up), 0x08);
    _mm_storeu_si128(out, _mm256_castsi256_si128(up));
  }
}

/* Up to eight columns of all rows; inlined once for each output type. */
INLINE void store_columns(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows, int64_t columns,
                          const int32_t *tile, int64_t ldt, int32_t dtype) {
  const int64_t size = dtype == INT4MM_FLOAT32 ? 4 : 2;
  float scales[LANES] = {0}, biases[LANES] = {0};
  memcpy(scales, p->scale_b + n, (size_t)columns * 4);
  if (p->bias) memcpy(biases, p->bias + n, (size_t)columns * 4);
  __m256 scale_b = _mm256_loadu_ps(scales), bias = _mm256_loadu_ps(biases);
  char *out = (char *)p->out + (m * p->ldo + n) * size, part[32];
  for (int64_t r = 0; r < rows; r++, out += p->ldo * size, tile += ldt) {
    __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(load(tile)), _mm256_set1_ps(p->scale_a[m + r]));
    x = _mm256_mul_ps(x, scale_b);
    if (p->bias) x = _mm256_add_ps(x, bias);
    if (columns == LANES) {
      store_vector(out, dtype, x);
    } else {
      store_vector(part, dtype, x);
      memcpy(out, part, (size_t)(columns * size));
    }
  }
}

#include "store_body.h"

/* ---- table ------------------------------------------------------------------------------------------------------ */

static const int4mm_kernels kernels = {
    .mr = MR,
    .nr = NR,
    .offset = 8,
    .bytes_b = true,
    .stream_rows = 16,
    .stream_shared = 16,
    .stream_width = LANES,
    .panel_rows = 8,
#ifdef VNNI
    .strassen = 2,
    .combine_a = combine_a,
    .combine_b = combine_b,
#endif
    .pack_a = pack_a,
    .pack_b = pack_b,
    .kernel = kernel_bytes,
    .kernel_bytes = kernel_bytes,
    .expand = expand,
    .stream = stream,
    .stream_panel = stream_panel,
    .store = store,
};

static int32_t matmul(const int4mm_problem *problem) {
  return int4mm_gemm(&kernels, problem);
}

static void plan(const int4mm_problem *problem, int4mm_plan *out) {
  int4mm_gemm_plan(&kernels, problem, out);
}
