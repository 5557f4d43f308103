/*
 * AVX512-VNNI. A register holds 16 columns by 8 k of B, and is unpacked to bytes without a shuffle: its even nibbles by
 * a mask, its odd ones by a shift and a mask.
 *
 * Needs -mavx512f -mavx512bw -mavx512vl -mavx512vnni.
 */
#ifndef __AVX512VNNI__
#error "compile this file with the flags that flags.mk gives it"
#endif
#include <immintrin.h>
#include <string.h>

#define INT4MM_ROWS_TABLE int4mm_rows_avx512
#include "cpu/elementwise/rows.inc"

#include "cpu/features.h"
#include "cpu/gemm/gemm.h"

#define COMBINE_WIDTH 64
#include "cpu/gemm/strassen_combine.inc"

enum {
  MR = 8,
  VECTORS = 2,
  LANES = 16, /* int32 of a vector */
  NR = VECTORS * LANES,
  PREFETCH_K8 = 16 /* words of K before the end of a tile: when its output is prefetched */
};

#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))

/* The low nibbles of all bytes, XORed with xor_mask, in one instruction. */
static inline __m512i low_nibbles(__m512i words, __m512i xor_mask) {
  return _mm512_ternarylogic_epi32(words, _mm512_set1_epi32(0x0f0f0f0f), xor_mask, 0x6a); /* (x & y) ^ z */
}

/* What XORed into low nibbles of this encoding gives value + 8. */
static inline __m512i offset_mask(uint32_t xor_mask) {
  return _mm512_set1_epi32((int32_t)(~xor_mask & 0x08080808u));
}

static inline __m512i high_nibbles(__m512i words, __m512i xor_mask) {
  return low_nibbles(_mm512_srli_epi32(words, 4), xor_mask);
}

/* ---- microkernels ----------------------------------------------------------------------------------------------- */

/* One dword of four rows of A, broadcast, times two vectors of B. One asm statement: with intrinsics, gcc 12 orders the
 * instructions so that the loop is 1 to 3% slower. */
static inline void four_rows(__m512i acc[4][VECTORS], const uint32_t *a, const __m512i b[VECTORS]) {
  __m512i x;
#define ROW(a, sum0, sum1)                                                                                             \
  "vpbroadcastd %" #a ", %8\n\t"                                                                                       \
  "vpdpbusd %8, %13, %" #sum0 "\n\t"                                                                                   \
  "vpdpbusd %8, %14, %" #sum1 "\n\t"
  __asm__(ROW(9, 0, 1) ROW(10, 2, 3) ROW(11, 4, 5) ROW(12, 6, 7)
          : "+v"(acc[0][0]), "+v"(acc[0][1]), "+v"(acc[1][0]), "+v"(acc[1][1]), "+v"(acc[2][0]), "+v"(acc[2][1]),
            "+v"(acc[3][0]), "+v"(acc[3][1]), "=&v"(x)
          : "m"(a[0]), "m"(a[1]), "m"(a[2]), "m"(a[3]), "v"(b[0]), "v"(b[1]));
#undef ROW
}

/* One dword of A, broadcast from memory, times one vector of B. */
static inline void dot_dword(__m512i *acc, __m512i b, const uint32_t *a) {
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(*acc) : "v"(b), "m"(*a));
}

/* A rank-4 update of the tile: one dword of MR rows of A times two vectors of B. */
INLINE void rank4(__m512i acc[MR][VECTORS], const uint32_t *a, const __m512i b[VECTORS]) {
  four_rows(acc, a, b);
  four_rows(acc + 4, a + 4, b);
}

static inline void init_tile(__m512i acc[MR][VECTORS], const int32_t *acc_init) {
  UNROLL for (int r = 0; r < MR; r++) {
    UNROLL for (int v = 0; v < VECTORS; v++) acc[r][v] = _mm512_set1_epi32(acc_init[r]);
  }
}

/* The next row of a tile. The asm hides the addition from gcc, which would keep the addresses of all rows in vector
 * registers. */
static inline int32_t *next_row(int32_t *row, int64_t ldt) {
  row += ldt;
  __asm__("" : "+r"(row));
  return row;
}

INLINE void accumulate_tile(__m512i acc[MR][VECTORS], int32_t *row, int64_t ldt, int sign) {
  UNROLL for (int r = 0; r < MR; r++, row = next_row(row, ldt)) {
    UNROLL for (int v = 0; v < VECTORS; v++) {
      __m512i *at = (__m512i *)(row + LANES * v), sum = acc[r][v];
      if (sign > 0) sum = _mm512_add_epi32(_mm512_loadu_si512(at), sum);
      if (sign < 0) sum = _mm512_sub_epi32(_mm512_loadu_si512(at), sum);
      _mm512_storeu_si512(at, sum);
    }
  }
}

static inline void store_tiles(__m512i acc[MR][VECTORS], const int4mm_output_tile *tiles, int32_t count, int64_t ldt) {
  for (int32_t i = 0; i < count; i++) {
    if (tiles[i].sign == 0) {
      accumulate_tile(acc, tiles[i].sums, ldt, 0);
    } else if (tiles[i].sign > 0) {
      accumulate_tile(acc, tiles[i].sums, ldt, 1);
    } else {
      accumulate_tile(acc, tiles[i].sums, ldt, -1);
    }
  }
}

/* Prefetches what store_tiles reads and writes. Called shortly before, or the operands evict it again. */
static inline void prefetch_tiles(const int4mm_output_tile *tiles, int32_t count, int64_t ldt) {
  for (int32_t i = 0; i < count; i++) {
    int32_t *row = tiles[i].sums;
    UNROLL for (int r = 0; r < MR; r++, row = next_row(row, ldt)) {
      UNROLL for (int v = 0; v < VECTORS; v++) __builtin_prefetch(row + LANES * v, 1);
    }
  }
}

/* Where a microkernel is along K. */
typedef struct operands {
  const uint32_t *a, *b;
  int64_t ldb;
  uint32_t xor_mask; /* of b */
  int64_t second_line;
  int4mm_prefetch prefetch;
} operands;

/* Accumulates the next k8 words of K, B in words. two: prefetches second lines, which costs some percent. */
INLINE void multiply_words(__m512i acc[MR][VECTORS], int64_t k8, operands *o, bool two) {
  const __m512i to_offset = offset_mask(o->xor_mask);
  for (int64_t j = 0; j < k8; j++, o->a += 2 * MR, o->b += o->ldb, o->prefetch.line += o->prefetch.stride) {
    __m512i words[VECTORS], part[VECTORS];
    _mm_prefetch(o->prefetch.line, _MM_HINT_T1);
    if (two) _mm_prefetch(o->prefetch.line + o->second_line, _MM_HINT_T1);
    UNROLL for (int v = 0; v < VECTORS; v++) {
      words[v] = _mm512_loadu_si512(o->b + LANES * v);
      part[v] = low_nibbles(words[v], to_offset);
    }
    rank4(acc, o->a, part);
    UNROLL for (int v = 0; v < VECTORS; v++) part[v] = high_nibbles(words[v], to_offset);
    rank4(acc, o->a + MR, part);
  }
}

static void microkernel_words(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *acc_init,
                              const int4mm_output_tile *tiles, int32_t count, int64_t ldt, int4mm_prefetch prefetch) {
  operands o = {a, b, ldb, 0, 0, prefetch};
  __m512i acc[MR][VECTORS];
  init_tile(acc, acc_init);
  multiply_words(acc, k8, &o, false);
  store_tiles(acc, tiles, count, ldt);
}

static void microkernel_bytes(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *acc_init,
                              const int4mm_output_tile *tiles, int32_t count, int64_t ldt, int4mm_prefetch prefetch) {
  __m512i acc[MR][VECTORS];
  init_tile(acc, acc_init);
  int64_t end = int4mm_max64(0, k8 - PREFETCH_K8); /* first to where the output is prefetched, then to k8 */
  for (int64_t j = 0;;) {
    for (; j < end; j++, a += 2 * MR, b += 2 * ldb, prefetch.line += prefetch.stride) {
      __m512i part[VECTORS];
      _mm_prefetch(prefetch.line, _MM_HINT_T1);
      UNROLL for (int v = 0; v < VECTORS; v++) part[v] = _mm512_loadu_si512(b + LANES * v);
      rank4(acc, a, part);
      UNROLL for (int v = 0; v < VECTORS; v++) part[v] = _mm512_loadu_si512(b + ldb + LANES * v);
      rank4(acc, a + MR, part);
    }
    if (end == k8) break;
    prefetch_tiles(tiles, count, ldt);
    end = k8;
  }
  store_tiles(acc, tiles, count, ldt);
}

/* acc = acc_init + the next k8 words of K. */
INLINE void multiply_group(__m512i acc[MR][VECTORS], const int32_t *acc_init, int64_t k8, operands *o, bool a_int8) {
  (void)a_int8;
  init_tile(acc, acc_init);
  multiply_words(acc, k8, o, true);
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Signed bytes from nibbles that are value + 8. */
static inline __m512i signed_bytes(__m512i nibbles) {
  return _mm512_sub_epi8(nibbles, _mm512_set1_epi8(8));
}

/* Transposes four rows of 16 words within 128-bit lanes: lane l of x[i] becomes word 4 * l + i of the four rows. */
static inline void transpose4(__m512i x[4]) {
  __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpackhi_epi32(x[0], x[1]);
  __m512i c = _mm512_unpacklo_epi32(x[2], x[3]), d = _mm512_unpackhi_epi32(x[2], x[3]);
  x[0] = _mm512_unpacklo_epi64(a, c), x[1] = _mm512_unpackhi_epi64(a, c);
  x[2] = _mm512_unpacklo_epi64(b, d), x[3] = _mm512_unpackhi_epi64(b, d);
}

/* line[l] = the 128-bit lanes l of a, b, c and d. */
static inline void join_lanes(__m512i a, __m512i b, __m512i c, __m512i d, __m512i line[4]) {
  __m512i ab = _mm512_shuffle_i32x4(a, b, 0x44), ab2 = _mm512_shuffle_i32x4(a, b, 0xee);
  __m512i cd = _mm512_shuffle_i32x4(c, d, 0x44), cd2 = _mm512_shuffle_i32x4(c, d, 0xee);
  line[0] = _mm512_shuffle_i32x4(ab, cd, 0x88), line[1] = _mm512_shuffle_i32x4(ab, cd, 0xdd);
  line[2] = _mm512_shuffle_i32x4(ab2, cd2, 0x88), line[3] = _mm512_shuffle_i32x4(ab2, cd2, 0xdd);
}

/* Packs eight rows of `count` words (at most 16): word i of all rows becomes one line of the panel, the even nibbles'
 * dwords and then the odd ones'. sums[0] accumulates the sums of rows 0 to 3, one for each dword of a lane, sums[1]
 * those of rows 4 to 7. */
static inline void pack_words(uint32_t *panel, __m512i x[8], int count, __m512i to_offset, __m512i sums[2]) {
  const __m512i ones = _mm512_set1_epi8(1);
  transpose4(x);
  transpose4(x + 4);
  UNROLL for (int i = 0; i < 4; i++) {
    __m512i even = signed_bytes(low_nibbles(x[i], to_offset)), even4 = signed_bytes(low_nibbles(x[4 + i], to_offset));
    __m512i odd = signed_bytes(high_nibbles(x[i], to_offset)), odd4 = signed_bytes(high_nibbles(x[4 + i], to_offset));
    __m512i line[4];
    sums[0] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[0], ones, even), ones, odd);
    sums[1] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[1], ones, even4), ones, odd4);
    join_lanes(even, even4, odd, odd4, line);
    UNROLL for (int l = 0; l < 4; l++) {
      if (4 * l + i < count) _mm512_storeu_si512(panel + 2 * MR * (4 * l + i), line[l]);
    }
  }
}

static inline __m128i add_lanes(__m512i x) {
  __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

static void pack_a(uint32_t *panel, int32_t *sums, const uint32_t *a, int64_t lda, int64_t rows, int64_t k8,
                   uint32_t xor_mask) {
  const __m512i to_offset = offset_mask(xor_mask),
                zeros = _mm512_andnot_si512(to_offset, _mm512_set1_epi32(0x08080808));
  __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, x[8];
  int64_t j = 0;
  for (; rows == MR && j + 16 <= k8; j += 16, panel += 32 * MR) {
    UNROLL for (int r = 0; r < MR; r++) {
      x[r] = _mm512_loadu_si512(a + r * lda + j);
      __builtin_prefetch(a + (MR + r) * lda + j); /* short runs, which no hardware prefetcher follows */
    }
    pack_words(panel, x, 16, to_offset, sum);
  }
  for (; j < k8; j += 16, panel += 32 * MR) { /* missing words are zeros in this encoding */
    int count = (int)int4mm_min64(16, k8 - j);
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    __m512i none = _mm512_or_si512(zeros, _mm512_slli_epi32(zeros, 4));
    UNROLL for (int r = 0; r < MR; r++) x[r] = r < rows ? _mm512_mask_loadu_epi32(none, mask, a + r * lda + j) : none;
    pack_words(panel, x, count, to_offset, sum);
  }
  _mm_storeu_si128((__m128i *)sums, add_lanes(sum[0]));
  _mm_storeu_si128((__m128i *)(sums + 4), add_lanes(sum[1]));
}

/* Eight rows of at most 64 int8 each, x: 8 words and their panel, sums as in pack_words. */
static inline void pack_int8(uint32_t *panel, __m512i x[8], int words, __m512i sums[2]) {
  const __m512i ones = _mm512_set1_epi8(1),
                split = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  UNROLL for (int r = 0; r < MR; r++) x[r] = _mm512_shuffle_epi8(x[r], split); /* even and odd bytes of each word */
  transpose4(x);
  transpose4(x + 4);
  UNROLL for (int i = 0; i < 4; i += 2) { /* words 2 * l + i / 2 */
    __m512i line[4];
    sums[0] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[0], ones, x[i]), ones, x[i + 1]);
    sums[1] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[1], ones, x[4 + i]), ones, x[5 + i]);
    join_lanes(x[i], x[4 + i], x[i + 1], x[5 + i], line);
    UNROLL for (int l = 0; l < 4; l++) {
      if (2 * l + i / 2 < words) _mm512_storeu_si512(panel + 2 * MR * (2 * l + i / 2), line[l]);
    }
  }
}

static void pack_a_int8(uint32_t *panel, int32_t *sums, const int8_t *a, int64_t lda, int64_t rows, int64_t k) {
  __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, x[8];
  for (int64_t j = 0; j < k; j += 64, panel += 16 * MR) {
    int64_t count = int4mm_min64(64, k - j);
    __mmask64 mask = ~(__mmask64)0 >> (64 - count);
    UNROLL for (int r = 0; r < MR; r++) {
      x[r] = r < rows ? _mm512_maskz_loadu_epi8(mask, a + r * lda + j) : _mm512_setzero_si512();
      __builtin_prefetch(a + (MR + r) * lda + j); /* short runs, which no hardware prefetcher follows */
    }
    pack_int8(panel, x, (int)int4mm_ceil_div(count, 8), sum);
  }
  _mm_storeu_si128((__m128i *)sums, add_lanes(sum[0]));
  _mm_storeu_si128((__m128i *)(sums + 4), add_lanes(sum[1]));
}

/* Signed bytes from two's complement low nibbles: (x ^ 8) - 8. */
static inline __m256i signed_bytes256(__m256i nibble) {
  const __m256i eight = _mm256_set1_epi8(8);
  return _mm256_sub_epi8(_mm256_xor_si256(_mm256_and_si256(nibble, _mm256_set1_epi8(15)), eight), eight);
}

static int32_t expand(uint32_t *dwords, const uint32_t *a, int64_t k8, uint32_t xor_mask, int64_t run) {
  const __m256i ones = _mm256_set1_epi8(1), xor_mask_vector = _mm256_set1_epi32((int32_t)xor_mask);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t j = 0; j < int4mm_round_up(k8, run); j += 8) {
    int64_t count = int4mm_max64(0, int4mm_min64(8, k8 - j));
    __mmask8 mask = (__mmask8)((1u << count) - 1);
    __m256i x = _mm256_maskz_xor_epi32(mask, _mm256_maskz_loadu_epi32(mask, a + j), xor_mask_vector);
    __m256i even = signed_bytes256(x), odd = signed_bytes256(_mm256_srli_epi32(x, 4));
    sum = _mm256_dpbusd_epi32(_mm256_dpbusd_epi32(sum, ones, even), ones, odd);
    if (run == LANES) {
      uint32_t *half = dwords + 2 * (j / LANES * LANES) + j % LANES;
      _mm256_storeu_si256((__m256i *)half, even);
      _mm256_storeu_si256((__m256i *)(half + LANES), odd);
      continue;
    } /* else the two dwords of a word are adjacent */
    __m256i first = _mm256_unpacklo_epi32(even, odd), second = _mm256_unpackhi_epi32(even, odd);
    uint32_t mask16 = (1u << 2 * count) - 1;
    _mm256_mask_storeu_epi32(dwords + 2 * j, (__mmask8)mask16, _mm256_permute2x128_si256(first, second, 0x20));
    _mm256_mask_storeu_epi32(dwords + 2 * j + 8, (__mmask8)(mask16 >> 8),
                             _mm256_permute2x128_si256(first, second, 0x31));
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}

static void pack_b(uint32_t *panel, const uint32_t *b, int64_t ldb, int64_t columns, int64_t k8, uint32_t xor_mask,
                   int32_t offset) {
  const __m512i to_offset = offset_mask(xor_mask);
  const __m512i rest = _mm512_set1_epi8((char)(offset - 8));
  for (int64_t j = 0; j < k8; j++, b += ldb, panel += 2 * NR) {
    UNROLL for (int v = 0; v < VECTORS; v++) {
      int64_t here = int4mm_max64(0, int4mm_min64(LANES, columns - LANES * v));
      __m512i words = _mm512_maskz_loadu_epi32((__mmask16)((1u << here) - 1), b + LANES * v);
      _mm512_storeu_si512(panel + LANES * v, _mm512_add_epi8(low_nibbles(words, to_offset), rest));
      _mm512_storeu_si512(panel + NR + LANES * v, _mm512_add_epi8(high_nibbles(words, to_offset), rest));
    }
  }
}

/* 16 columns by 16 words of K, or as many as there are. */
INLINE void transpose_square(uint32_t *dst, int64_t width, const uint32_t *src, int64_t ld, int64_t columns,
                             int64_t count, __m512i xor_mask) {
  const __mmask16 mask = (__mmask16)((1u << count) - 1);
  __m512i x[LANES], line[4];
  UNROLL for (int c = 0; c < LANES; c++) {
    x[c] = c < columns ? _mm512_maskz_xor_epi32(mask, _mm512_maskz_loadu_epi32(mask, src + c * ld), xor_mask)
                       : _mm512_setzero_si512();
  }
  UNROLL for (int i = 0; i < 4; i++) transpose4(x + 4 * i);
  UNROLL for (int i = 0; i < 4; i++) {
    join_lanes(x[i], x[4 + i], x[8 + i], x[12 + i], line);
    UNROLL for (int l = 0; l < 4; l++) {
      if (4 * l + i < count) _mm512_storeu_si512(dst + (4 * l + i) * width, line[l]);
    }
  }
}

/* int4mm_kernels.copy_words. */
static void copy_words(uint32_t *dst, const uint32_t *src, int64_t ld, int64_t columns, int64_t k8, uint32_t xor_mask) {
  enum { AHEAD = 16 }; /* rows: each may be on another page, which no hardware prefetcher follows */
  const __m512i mask = _mm512_set1_epi32((int32_t)xor_mask);
  for (int64_t j = 0; j < k8; j++, dst += INT4MM_PANEL, src += ld) {
    UNROLL for (int64_t c = 0; c < INT4MM_PANEL; c += LANES) {
      __mmask16 there = (__mmask16)((1u << int4mm_max64(0, int4mm_min64(LANES, columns - c))) - 1);
      __builtin_prefetch(src + AHEAD * ld + c);
      _mm512_storeu_si512(dst + c, _mm512_maskz_xor_epi32(there, _mm512_maskz_loadu_epi32(there, src + c), mask));
    }
  }
}

static void transpose(uint32_t *dst, int64_t width, const uint32_t *src, int64_t ld, int64_t columns, int64_t k8,
                      uint32_t xor_mask) {
  const __m512i mask = _mm512_set1_epi32((int32_t)xor_mask);
  for (int64_t j = 0; j < k8; j += LANES, dst += LANES * width) {
    for (int64_t c = 0; c < width; c += LANES) {
      int64_t here = columns - c, count = int4mm_min64(LANES, k8 - j);
      if (here >= LANES && count == LANES) {
        transpose_square(dst + c, width, src + c * ld + j, ld, LANES, LANES, mask);
      } else {
        transpose_square(dst + c, width, src + c * ld + j, ld, here, count, mask);
      }
    }
  }
}

/* ---- few rows --------------------------------------------------------------------------------------------------- */

enum { DEPTH = 8 }; /* words of K in a k-block: 16 registers of bytes */

/* What XORed in makes nibbles value + 8, for the low and the high ones of bytes. */
typedef struct skinny_mask {
  __m512i low, high;
} skinny_mask;

INLINE skinny_mask skinny_mask_of(uint32_t xor_mask) {
  __m512i low = offset_mask(xor_mask);
  return (skinny_mask){low, _mm512_slli_epi32(low, 4)};
}

/* High nibbles left in place, 16 times value + 8: their sum is shifted once, not each word. int32 holds it, since a
 * k-block and a slice of K are short. */
INLINE __m512i high_nibbles16(__m512i words, __m512i xor_mask16) {
  return _mm512_ternarylogic_epi32(words, _mm512_set1_epi32((int32_t)0xf0f0f0f0), xor_mask16, 0x6a);
}

typedef __m512i skinny_bytes;

INLINE void split_words(int depth, const uint32_t *b, int64_t ldb, skinny_mask mask, skinny_bytes even[DEPTH],
                        skinny_bytes odd[DEPTH]) {
  UNROLL for (int i = 0; i < depth; i++) {
    __m512i words = _mm512_loadu_si512(b + i * ldb);
    even[i] = low_nibbles(words, mask.low);
    odd[i] = high_nibbles16(words, mask.high);
  }
}

/* sum + the products of `depth` words of K with a row of A. */
INLINE __m512i add_products(__m512i sum, int depth, const skinny_bytes even[DEPTH], const skinny_bytes odd[DEPTH],
                            const uint32_t *a) {
  __m512i odd_sum = _mm512_setzero_si512(); /* two chains of sums: latency */
  UNROLL for (int i = 0; i < depth; i++) {
    dot_dword(&sum, even[i], a + 2 * i);
    dot_dword(&odd_sum, odd[i], a + 2 * i + 1);
  }
  return _mm512_add_epi32(sum, _mm512_srai_epi32(odd_sum, 4));
}

INLINE void skinny_k_block(int64_t rows, int depth, const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb,
                           skinny_mask mask, int32_t *acc, int64_t ldacc) {
  skinny_bytes even[DEPTH], odd[DEPTH];
  split_words(depth, b, ldb, mask, even, odd);
  for (int64_t m = 0; m < rows; m++, a += lda, acc += ldacc) {
    _mm512_storeu_si512(acc, add_products(_mm512_loadu_si512(acc), depth, even, odd, a));
  }
}

INLINE void skinny_row(int64_t columns, const uint32_t *a, const uint32_t *b, int64_t ldb, skinny_mask mask,
                       int32_t *acc) {
  __m512i even[DEPTH], odd[DEPTH];
  UNROLL for (int i = 0; i < DEPTH; i++) {
    even[i] = _mm512_set1_epi32((int32_t)a[2 * i]);
    odd[i] = _mm512_set1_epi32((int32_t)a[2 * i + 1]);
  }
  for (int64_t n = 0; n < columns; n += LANES) {
    __m512i sum = _mm512_loadu_si512(acc + n), odd_sum = _mm512_setzero_si512();
    UNROLL for (int i = 0; i < DEPTH; i++) {
      __m512i words = _mm512_loadu_si512(b + i * ldb + n);
      _mm_prefetch((const char *)(b + (i + DEPTH) * ldb + n), _MM_HINT_T1);
      sum = _mm512_dpbusd_epi32(sum, low_nibbles(words, mask.low), even[i]);
      odd_sum = _mm512_dpbusd_epi32(odd_sum, high_nibbles16(words, mask.high), odd[i]);
    }
    _mm512_storeu_si512(acc + n, _mm512_add_epi32(sum, _mm512_srai_epi32(odd_sum, 4)));
  }
}

/* A prepacked panel, at most four rows: accumulators stay in registers along all of K. */
INLINE void skinny_panel_rows(int rows, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int32_t *acc,
                              int64_t ldacc) {
  const skinny_mask mask = skinny_mask_of(0);
  enum { WIDE = INT4MM_PANEL / LANES };
  __m512i even[4][WIDE], odd[4][WIDE];
  UNROLL for (int m = 0; m < rows; m++) {
    UNROLL for (int v = 0; v < WIDE; v++) {
      even[m][v] = _mm512_loadu_si512(acc + m * ldacc + LANES * v);
      odd[m][v] = _mm512_setzero_si512();
    }
  }
  for (int64_t j = 0; j < k8; j++, a += 2, b += INT4MM_PANEL) {
    UNROLL for (int v = 0; v < WIDE; v++) {
      __m512i words = _mm512_loadu_si512(b + LANES * v);
      __m512i low = low_nibbles(words, mask.low), high = high_nibbles16(words, mask.high);
      UNROLL for (int m = 0; m < rows; m++) {
        even[m][v] = _mm512_dpbusd_epi32(even[m][v], low, _mm512_set1_epi32((int32_t)a[m * lda]));
        odd[m][v] = _mm512_dpbusd_epi32(odd[m][v], high, _mm512_set1_epi32((int32_t)a[m * lda + 1]));
      }
    }
  }
  UNROLL for (int m = 0; m < rows; m++) {
    UNROLL for (int v = 0; v < WIDE; v++) {
      _mm512_storeu_si512(acc + m * ldacc + LANES * v, _mm512_add_epi32(even[m][v], _mm512_srai_epi32(odd[m][v], 4)));
    }
  }
}

static void skinny_panel(int64_t rows, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int32_t *acc,
                         int64_t ldacc) {
  for (; rows >= 2; rows -= 2, a += 2 * lda, acc += 2 * ldacc) skinny_panel_rows(2, k8, a, lda, b, acc, ldacc);
  if (rows == 1) skinny_panel_rows(1, k8, a, lda, b, acc, ldacc);
}

#define SKINNY_PANEL 1
#include "cpu/gemm/skinny.inc"

enum { DOT_SUMS = 16, DOT_ROWS = 8, DOT_COLUMNS = 8, DOT_TOGETHER = 2, DOT_K8 = 4096 };
typedef __m512i dot_sum;

INLINE dot_sum dot_zero(void) {
  return _mm512_setzero_si512();
}

/* A vector of A times one of each of two columns. In asm, since gcc 12 spills with intrinsics. */
INLINE void dot_pair(__m512i *sum0, __m512i *sum1, const uint32_t *a, __m512i b0, __m512i b1) {
  __m512i x;
  __asm__("vmovdqu32 %3, %2\n\t"
          "vpdpbusd %2, %4, %0\n\t"
          "vpdpbusd %2, %5, %1"
          : "+v"(*sum0), "+v"(*sum1), "=&v"(x)
          : "m"(*(const __m512i_u *)a), "v"(b0), "v"(b1));
}

INLINE void dot_step(int rows, int columns, dot_sum sums[DOT_SUMS], const uint32_t *a, int64_t lda,
                     const uint32_t *const b[], int64_t j, int64_t count, skinny_mask mask) {
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  UNROLL for (int c = 0; c < columns; c += DOT_TOGETHER) {
    __m512i low[DOT_TOGETHER], high[DOT_TOGETHER];
    UNROLL for (int i = 0; i < DOT_TOGETHER; i++) {
      const uint32_t *at = b[c + i] + j;
      __m512i words = count == LANES ? _mm512_loadu_si512(at) : _mm512_maskz_loadu_epi32(there, at);
      low[i] = low_nibbles(words, mask.low), high[i] = high_nibbles(words, mask.low);
    }
    UNROLL for (int r = 0; r < rows; r++) {
      dot_sum *sum = &sums[r * columns + c];
      dot_pair(sum, sum + 1, a + r * lda, low[0], low[1]);
      dot_pair(sum, sum + 1, a + r * lda + LANES, high[0], high[1]);
    }
  }
}

/* By halves: the lanes of two vectors become alternate ones of one, and so on. */
INLINE void dot_totals(int32_t totals[DOT_SUMS], const dot_sum sums[DOT_SUMS]) {
  __m512i x[8], line[4];
  UNROLL for (int i = 0; i < 8; i++) {
    __m512i y = sums[2 * i], z = sums[2 * i + 1];
    x[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(y, z), _mm512_unpackhi_epi32(y, z));
  }
  UNROLL for (int i = 0; i < 4; i++) {
    __m512i y = x[2 * i], z = x[2 * i + 1];
    x[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(y, z), _mm512_unpackhi_epi64(y, z));
  }
  join_lanes(x[0], x[1], x[2], x[3], line);
  _mm512_storeu_si512(totals, _mm512_add_epi32(_mm512_add_epi32(line[0], line[1]), _mm512_add_epi32(line[2], line[3])));
}

#include "cpu/gemm/dot.inc"

/* ---- epilogue --------------------------------------------------------------------------------------------------- */

typedef __m512i i32_vector;
typedef __m512 f32_vector;

INLINE i32_vector i32_load(const int32_t *p) {
  return _mm512_loadu_si512(p);
}
INLINE f32_vector f32_load(const float *p) {
  return _mm512_loadu_ps(p);
}
INLINE f32_vector f32_from_i32(i32_vector x) {
  return _mm512_cvtepi32_ps(x);
}
INLINE f32_vector f32_set1(float x) {
  return _mm512_set1_ps(x);
}
INLINE f32_vector f32_mul(f32_vector x, f32_vector y) {
  return _mm512_mul_ps(x, y);
}
INLINE f32_vector f32_add(f32_vector x, f32_vector y) {
  return _mm512_add_ps(x, y);
}
INLINE f32_vector f32_replace_nan(f32_vector x, uint32_t bits) {
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_castsi512_ps(_mm512_mask_set1_epi32(_mm512_castps_si512(x), nan, (int32_t)bits));
}
INLINE void f32_store(void *out, f32_vector x) {
  _mm512_storeu_ps(out, x);
}
INLINE void f32_store_half(void *out, f32_vector x) {
  _mm256_storeu_si256(out, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
INLINE void f32_store_bfloat(void *out, f32_vector x) {
  __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  _mm256_storeu_si256(out, _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16)));
}

INLINE f32_vector f32_fma(f32_vector x, f32_vector y, f32_vector z) {
  return _mm512_fmadd_ps(x, y, z);
}
INLINE i32_vector i32_set1(int32_t x) {
  return _mm512_set1_epi32(x);
}
INLINE i32_vector i32_add(i32_vector x, i32_vector y) {
  return _mm512_add_epi32(x, y);
}
INLINE i32_vector i32_sub(i32_vector x, i32_vector y) {
  return _mm512_sub_epi32(x, y);
}
INLINE i32_vector i32_mul(i32_vector x, i32_vector y) {
  return _mm512_mullo_epi32(x, y);
}
INLINE void i32_store(int32_t *p, i32_vector x) {
  _mm512_storeu_si512(p, x);
}

INLINE f32_vector f32_sub(f32_vector x, f32_vector y) {
  return _mm512_sub_ps(x, y);
}

/* In asm, since gcc 12 broadcasts to a register what it uses twice: on Zen 4 another operation of the vector pipes,
 * which an operand in memory is not. Volatile for the order of columns, by which these pipes are filled better. */
INLINE f32_vector f32_fma_scalar(f32_vector x, const float *y, f32_vector z) {
  __asm__ volatile("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(z) : "v"(x), "m"(*y));
  return z;
}

/* The values of the 16 nibbles, and twice their upper halves, the lower ones being zero. */
typedef struct nibble_table {
  __m512 values;
  __m512i halves;
} nibble_table;

enum {
  ROW_AHEAD = 8, /* words of K ahead of which a row of B is prefetched */
  ROW_WIDE = 4   /* vectors of columns in step */
};

INLINE nibble_table nibble_table_of(uint32_t xor_mask) {
  float values[16];
  for (uint32_t i = 0; i < 16; i++) values[i] = (float)int4mm_nibble(i ^ (xor_mask & 15), 0);
  __m512 all = _mm512_loadu_ps(values);
  __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(all), 16));
  return (nibble_table){all, _mm512_broadcast_i64x4(halves)};
}
INLINE i32_vector nibble_words(i32_vector words, const nibble_table *table) {
  (void)table;
  return words;
}
/* A permutation looks at the low four bits alone, or in the upper half of each word at the low five, and so a shift
 * serves two nibbles. */
INLINE f32_vector nibble_value(i32_vector words, int i, const nibble_table *table) {
  __m512i x = i % 4 ? _mm512_srli_epi32(words, 4 * (i % 4)) : words;
  if (i < 4) return _mm512_permutexvar_ps(x, table->values);
  return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, x, table->halves));
}

#include "cpu/gemm/epilogue.inc"
#include "cpu/gemm/float.inc"
#include "cpu/gemm/groups.inc"

INLINE i32_vector dot_quad(const dot_sum x[4]) {
  __m512i y = _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
  __m512i z = _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(y, z), _mm512_unpackhi_epi64(y, z));
}
INLINE void dot_lanes(const i32_vector x[4], i32_vector lanes[4]) {
  join_lanes(x[0], x[1], x[2], x[3], lanes);
}

#include "cpu/gemm/dot_groups.inc"

/* ---- the fused microkernel -------------------------------------------------------------------------------------- */

/* Stores a whole tile from registers; true where no output is NaN. */
INLINE bool store_tile(const int4mm_problem *p, int64_t m, int64_t n, __m512i acc[MR][VECTORS], int32_t dtype) {
  const int64_t size = out_size(dtype), step = p->out.stride * size;
  const float *scale_a = p->a.scales + m, *scale_b = p->b.scales + n, *bias = p->bias ? p->bias + n : NULL;
  const column_scales left = load_column_scales(scale_b, bias);
  const column_scales right = load_column_scales(scale_b + LANES, bias ? bias + LANES : NULL);
  char *out = (char *)p->out.data + m * step + n * size;
  __mmask16 nan = 0;
  UNROLL for (int r = 0; r < MR; r++, out += step) {
    __m512 x0 = scale_acc(acc[r][0], scale_a[r], &left), x1 = scale_acc(acc[r][1], scale_a[r], &right);
    nan |= _mm512_cmp_ps_mask(x0, x1, _CMP_UNORD_Q);
    store_numbers(out, dtype, x0);
    store_numbers(out + LANES * size, dtype, x1);
  }
  return nan == 0;
}

static bool microkernel_fused(const int4mm_problem *p, int64_t m, int64_t n, const uint32_t *a, const uint32_t *b,
                              const int32_t *acc_init, int4mm_prefetch prefetch) {
  int64_t k8 = int4mm_words_of_k(p), late = int4mm_min64(PREFETCH_K8, k8);
  operands o = {a, b, INT4MM_PANEL, 0, 0, prefetch};
  __m512i acc[MR][VECTORS];
  init_tile(acc, acc_init);
  multiply_words(acc, k8 - late, &o, false);
  __asm__("" : "+r"(p)); /* keeps gcc from computing out's addresses before the loop, which needs all registers */
  int4mm_prefetch_out(p, m, n, MR); /* not sooner, or the operands evict the lines */
  multiply_words(acc, late, &o, false);
  if (p->out.dtype == INT4MM_FLOAT16) return store_tile(p, m, n, acc, INT4MM_FLOAT16);
  if (p->out.dtype == INT4MM_BFLOAT16) return store_tile(p, m, n, acc, INT4MM_BFLOAT16);
  return store_tile(p, m, n, acc, INT4MM_FLOAT32);
}

/* ---- table ------------------------------------------------------------------------------------------------------ */

static const int4mm_kernels kernels = {
    .mr = MR,
    .nr = NR,
    .offset = 8,
    .bytes_b = false,
    .skinny_max_m = 40,
    .skinny_max_m_threaded = 11,
    .skinny_columns = LANES,
    .skinny_panel_max_m = 4,
    .skinny_groups_max_m = 8,
    .raw_max_m = 16,
    .dot_words = LANES,
    .dot_sums = DOT_SUMS,
    .dot_max_m = 64,
    .dot_groups_max_m = 4,
    .float_rows_max_m = 16,
    .strassen = 2,
    .pack_a = pack_a,
    .pack_a_int8 = pack_a_int8,
    .pack_b = pack_b,
    .transpose = transpose,
    .copy_words = copy_words,
    .microkernel = microkernel_words,
    .microkernel_bytes = microkernel_bytes,
    .microkernel_groups = microkernel_groups,
    .skinny_group = skinny_group,
    .unpack_float = unpack_float,
    .microkernel_float = microkernel_float,
    .rows_float = rows_float,
    .flush_float = flush_float,
    .rows = &int4mm_rows_avx512,
    .combine_a = combine_a,
    .combine_b = combine_b,
    .expand = expand,
    .skinny = skinny,
    .skinny_panel = skinny_panel,
    .dot = dot_product,
    .dot_groups = dot_groups,
    .epilogue = epilogue,
    .microkernel_fused = microkernel_fused,
};

const int4mm_cpu_table int4mm_cpu_avx512vnni = {"avx512vnni", int4mm_has_avx512vnni, int4mm_gemm, int4mm_gemm_plan,
                                                &kernels,     &int4mm_rows_avx512,   transpose};
