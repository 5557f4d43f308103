/*
 * AVX512-VNNI: 16 columns of B by 8 k to a register, split into bytes in place.
 *
 * Needs -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni.
 */
#ifndef __AVX512VNNI__
#error "compile this file with the flags that flags.mk gives it"
#endif
#include <immintrin.h>

#define INT4MM_ROWS_TABLE int4mm_rows_avx512
#include "rows_body.h"

#include "features.h"
#include "gemm.h"

enum { MR = 8, VECTORS = 2, LANES = 16, NR = VECTORS * LANES };

#define UNROLL _Pragma("GCC unroll 16")

/* Low nibbles of all bytes, XORed with 8 where that turns two's complement into value + 8: one instruction. */
static inline __m512i nibbles(__m512i words, __m512i flip) {
  return _mm512_ternarylogic_epi32(words, _mm512_set1_epi32(0x0f0f0f0f), flip, 0x6a); /* (x & y) ^ z */
}

static inline __m512i high(__m512i words) {
  return _mm512_srli_epi32(words, 4);
}

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

/* One dword deep: MR rows of A broadcast against two vectors of B. */
#define RANK4(acc, a, b)                                                                                               \
  UNROLL for (int r = 0; r < MR; r++) {                                                                                \
    __m512i x = _mm512_set1_epi32((int32_t)(a)[r]);                                                                    \
    UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], (b)[v], x);                    \
  }

static inline void start_tile(__m512i acc[MR][VECTORS], const int32_t *start) {
  UNROLL for (int r = 0; r < MR; r++) {
    UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = _mm512_set1_epi32(start[r]);
  }
}

static inline void finish_tile(__m512i acc[MR][VECTORS], const int4mm_target *targets, int32_t count, int64_t ldt) {
  for (int32_t i = 0; i < count; i++) {
    int32_t *tile = targets[i].tile;
    int32_t sign = targets[i].sign;
    UNROLL for (int r = 0; r < MR; r++) {
      UNROLL for (int v = 0; v < VECTORS; v++) {
        __m512i *at = (__m512i *)(tile + r * ldt + LANES * v), sum = acc[r][v];
        if (sign > 0) sum = _mm512_add_epi32(_mm512_loadu_si512(at), sum);
        if (sign < 0) sum = _mm512_sub_epi32(_mm512_loadu_si512(at), sum);
        _mm512_storeu_si512(at, sum);
      }
    }
  }
}

static void kernel_words(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *start,
                         const int4mm_target *targets, int32_t count, int64_t ldt) {
  const __m512i flip = _mm512_set1_epi32(0x08080808); /* panels are two's complement */
  __m512i acc[MR][VECTORS];
  start_tile(acc, start);
  for (int64_t j = 0; j < k8; j++, a += 2 * MR, b += ldb) {
    __m512i words[VECTORS], part[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) {
      words[v] = _mm512_loadu_si512(b + LANES * v);
      part[v] = nibbles(words[v], flip);
    }
    RANK4(acc, a, part)
    UNROLL for (int v = 0; v < VECTORS; v++) part[v] = nibbles(high(words[v]), flip);
    RANK4(acc, a + MR, part)
  }
  finish_tile(acc, targets, count, ldt);
}

static void kernel_bytes(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *start,
                         const int4mm_target *targets, int32_t count, int64_t ldt) {
  __m512i acc[MR][VECTORS];
  start_tile(acc, start);
  for (int64_t j = 0; j < 2 * k8; j++, a += MR, b += ldb) {
    __m512i part[VECTORS];
    UNROLL for (int v = 0; v < VECTORS; v++) part[v] = _mm512_loadu_si512(b + LANES * v);
    RANK4(acc, a, part)
  }
  finish_tile(acc, targets, count, ldt);
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Signed bytes from two's complement nibbles in the low halves of bytes: x ^ 8 - 8. */
static inline __m256i sign256(__m256i nibble) {
  const __m256i eight = _mm256_set1_epi8(8);
  return _mm256_sub_epi8(_mm256_xor_si256(_mm256_and_si256(nibble, _mm256_set1_epi8(15)), eight), eight);
}

/* Eight vectors of eight words become their transpose. */
static inline void transpose8(__m256i x[8]) {
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

static void pack_a(uint32_t *panel, int32_t *sums, const uint32_t *a, int64_t lda, int64_t rows, int64_t k8,
                   uint32_t flip) {
  const __m256i ones = _mm256_set1_epi8(1), flips = _mm256_set1_epi32((int32_t)flip);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < k8; j += 8) {
    int64_t count = int4mm_min64(8, k8 - j);
    __mmask8 mask = (__mmask8)((1u << count) - 1);
    __m256i x[8];
    UNROLL for (int r = 0; r < MR; r++) {
      x[r] = _mm256_setzero_si256();
      if (r < rows) x[r] = _mm256_mask_xor_epi32(x[r], mask, _mm256_maskz_loadu_epi32(mask, a + r * lda + j), flips);
    }
    transpose8(x);
    UNROLL for (int i = 0; i < 8; i++) {
      if (i >= count) break;
      __m256i even = sign256(x[i]), odd = sign256(_mm256_srli_epi32(x[i], 4));
      sum = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(sum, ones, even), ones, odd);
      _mm256_storeu_si256((__m256i *)(panel + 2 * MR * (j + i)), even);
      _mm256_storeu_si256((__m256i *)(panel + 2 * MR * (j + i) + MR), odd);
    }
  }
  _mm256_storeu_si256((__m256i *)sums, sum);
}

static int32_t expand(uint32_t *dwords, const uint32_t *a, int64_t k8, uint32_t flip) {
  const __m256i ones = _mm256_set1_epi8(1), flips = _mm256_set1_epi32((int32_t)flip);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < k8; j += 8) {
    int64_t count = int4mm_min64(8, k8 - j);
    __mmask8 mask = (__mmask8)((1u << count) - 1);
    __m256i x = _mm256_maskz_xor_epi32(mask, _mm256_maskz_loadu_epi32(mask, a + j), flips);
    __m256i even = sign256(x), odd = sign256(_mm256_srli_epi32(x, 4));
    sum = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(sum, ones, even), ones, odd);
    /* interleave: the two dwords of a word lie side by side */
    __m256i low = _mm256_unpacklo_epi32(even, odd), upper = _mm256_unpackhi_epi32(even, odd);
    uint32_t mask16 = (1u << 2 * count) - 1;
    _mm256_mask_storeu_epi32(dwords + 2 * j, (__mmask8)mask16, _mm256_permute2x128_si256(low, upper, 0x20));
    _mm256_mask_storeu_epi32(dwords + 2 * j + 8, (__mmask8)(mask16 >> 8), _mm256_permute2x128_si256(low, upper, 0x31));
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static void pack_b(uint32_t *panel, const uint32_t *b, int64_t ldb, int64_t columns, int64_t k8, uint32_t flip,
                   int32_t offset) {
  const __m512i eights = _mm512_set1_epi32((int32_t)(~flip & 0x08080808u)); /* value + 8 whatever the encoding */
  const __m512i rest = _mm512_set1_epi8((char)(offset - 8));
  for (int64_t j = 0; j < k8; j++, b += ldb, panel += 2 * NR) {
    UNROLL for (int v = 0; v < VECTORS; v++) {
      int64_t here = int4mm_max64(0, int4mm_min64(LANES, columns - LANES * v));
      __m512i words = _mm512_maskz_loadu_epi32((__mmask16)((1u << here) - 1), b + LANES * v);
      _mm512_storeu_si512(panel + LANES * v, _mm512_add_epi8(nibbles(words, eights), rest));
      _mm512_storeu_si512(panel + NR + LANES * v, _mm512_add_epi8(nibbles(high(words), eights), rest));
    }
  }
}

/* ---- small M ---------------------------------------------------------------------------------------------------- */

/* `depth` words of K (at most 8) of 16 columns, split once for all rows. Two chains of sums a row. */
static inline void stream_step(int64_t rows, int depth, const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb,
                               __m512i flip, int32_t *acc, int64_t ldacc) {
  __m512i even[8], odd[8];
  UNROLL for (int i = 0; i < 8; i++) {
    if (i >= depth) break;
    __m512i words = _mm512_loadu_si512(b + i * ldb);
    even[i] = nibbles(words, flip);
    odd[i] = nibbles(high(words), flip);
  }
  for (int64_t m = 0; m < rows; m++, a += lda, acc += ldacc) {
    __m512i sum = _mm512_loadu_si512(acc), other = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < 8; i++) {
      if (i >= depth) break;
      sum = _mm512_dpbusd_epi32(sum, even[i], _mm512_set1_epi32((int32_t)a[2 * i]));
      other = _mm512_dpbusd_epi32(other, odd[i], _mm512_set1_epi32((int32_t)a[2 * i + 1]));
    }
    _mm512_storeu_si512(acc, _mm512_add_epi32(sum, other));
  }
}

static void stream(int64_t rows, int64_t columns, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b,
                   int64_t ldb, uint32_t flip, int32_t *acc, int64_t ldacc) {
  const __m512i eights = _mm512_set1_epi32((int32_t)(~flip & 0x08080808u));
  int64_t j = 0;
  for (; j + 8 <= k8; j += 8, a += 16, b += 8 * ldb) {
    for (int64_t n = 0; n < columns; n += LANES) stream_step(rows, 8, a, lda, b + n, ldb, eights, acc + n, ldacc);
  }
  for (; j < k8; j++, a += 2, b += ldb) {
    for (int64_t n = 0; n < columns; n += LANES) stream_step(rows, 1, a, lda, b + n, ldb, eights, acc + n, ldacc);
  }
}

/* ---- epilogue --------------------------------------------------------------------------------------------------- */

static inline void store_vector(void *out, int32_t dtype, __mmask16 mask, __m512 x) {
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  __m512i bits = _mm512_mask_set1_epi32(_mm512_castps_si512(x), nan, (int)INT4MM_NAN_BITS);
  if (dtype == INT4MM_FLOAT32) {
    _mm512_mask_storeu_epi32(out, mask, bits);
  } else if (dtype == INT4MM_FLOAT16) { /* NaN 0x7fffffff becomes 0x7fff */
    const int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    _mm256_mask_storeu_epi16(out, mask, _mm512_cvtps_ph(_mm512_castsi512_ps(bits), mode));
  } else {
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    up = _mm512_mask_mov_epi32(up, nan, bits);
    _mm256_mask_storeu_epi16(out, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
  }
}

static void store(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows, int64_t columns, const int32_t *tile,
                  int64_t ldt) {
  int64_t size = p->out_dtype == INT4MM_FLOAT32 ? 4 : 2;
  for (int64_t c = 0; c < columns; c += LANES) {
    __mmask16 mask = (__mmask16)(columns - c >= LANES ? 0xffff : (1u << (columns - c)) - 1);
    __m512 scale_b = _mm512_maskz_loadu_ps(mask, p->scale_b + n + c);
    __m512 bias = p->bias ? _mm512_maskz_loadu_ps(mask, p->bias + n + c) : _mm512_setzero_ps();
    char *out = (char *)p->out + (m * p->ldo + n + c) * size;
    for (int64_t r = 0; r < rows; r++, out += p->ldo * size) {
      __m512 x = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(mask, tile + r * ldt + c));
      x = _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(p->scale_a[m + r])), scale_b);
      if (p->bias) x = _mm512_add_ps(x, bias);
      store_vector(out, p->out_dtype, mask, x);
    }
  }
}

/* ---- table ------------------------------------------------------------------------------------------------------ */

static const int4mm_kernels kernels = {
    .mr = MR,
    .nr = NR,
    .offset = 8,
    .bytes_b = false,
    .stream_rows = 16,
    .stream_width = LANES,
    .strassen = 2,
    .pack_a = pack_a,
    .pack_b = pack_b,
    .kernel = kernel_words,
    .kernel_bytes = kernel_bytes,
    .expand = expand,
    .stream = stream,
    .store = store,
};

static int32_t matmul(const int4mm_problem *problem) {
  return int4mm_gemm(&kernels, problem);
}

static void plan(const int4mm_problem *problem, int4mm_plan *out) {
  int4mm_gemm_plan(&kernels, problem, out);
}

const int4mm_cpu_table int4mm_cpu_avx512vnni = {"avx512vnni", int4mm_has_avx512vnni, matmul, plan, &int4mm_rows_avx512};
