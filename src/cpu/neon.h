/*
 * Kernels on AArch64's 128-bit registers, included by neon_dot.c and neon_i8mm.c. Both operands are signed, so there is
 * no offset. They differ in the kernel and in where it wants the two dwords of a word:
 *
 *   dot    sdot by element: [2 * k8][8] dwords, as on x86
 *   i8mm   smmla, 2 x 8 by 8 x 2: the dwords of a word side by side, [k8][8][2]
 */
#include <arm_neon.h>
#include <string.h>

#include "../numeric.h"
#include "features.h"
#include "gemm.h"

#define COMBINE_WIDTH 16
#include "strassen_combine.h"

enum { MR = 8, NR = 8, LANES = 4, DEPTH = 4 };

#define UNROLL _Pragma("GCC unroll 8")
#define INLINE static inline __attribute__((always_inline))

/* Dwords from one word's even nibbles to its odd ones, and from one row or column to the next. */
#ifdef INT4MM_I8MM
enum { ODD = 1, NEXT = 2 };
#else
enum { ODD = MR, NEXT = 1 };
#endif

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

INLINE void put(int32_t *at, int32x4_t sum, int32_t sign) {
  if (sign > 0) sum = vaddq_s32(vld1q_s32(at), sum);
  if (sign < 0) sum = vsubq_s32(vld1q_s32(at), sum);
  vst1q_s32(at, sum);
}

static void put_tile(int32x4_t acc[MR][2], const int4mm_target *targets, int32_t count, int64_t ldt) {
  for (int32_t i = 0; i < count; i++) {
    for (int r = 0; r < MR; r++) {
      put(targets[i].tile + r * ldt, acc[r][0], targets[i].sign);
      put(targets[i].tile + r * ldt + LANES, acc[r][1], targets[i].sign);
    }
  }
}

INLINE int8x16_t bytes(const uint32_t *p) {
  return vreinterpretq_s8_u32(vld1q_u32(p));
}

#ifdef INT4MM_I8MM

static void kernel_bytes(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *start,
                         const int4mm_target *targets, int32_t count, int64_t ldt, int4mm_ahead ahead) {
  (void)ldb, (void)ahead;
  int32x4_t acc[4][4], rows[MR][2]; /* acc[i][j]: rows 2i, 2i + 1 by columns 2j, 2j + 1 */
  UNROLL for (int i = 0; i < 4; i++) {
    UNROLL for (int j = 0; j < 4; j++) {
      acc[i][j] = vcombine_s32(vdup_n_s32(start[2 * i]), vdup_n_s32(start[2 * i + 1]));
    }
  }
  for (int64_t j = 0; j < k8; j++, a += 2 * MR, b += 2 * NR) {
    int8x16_t b0 = bytes(b), b1 = bytes(b + 4), b2 = bytes(b + 8), b3 = bytes(b + 12);
    UNROLL for (int i = 0; i < 4; i++) {
      int8x16_t x = bytes(a + 4 * i);
      acc[i][0] = vmmlaq_s32(acc[i][0], x, b0);
      acc[i][1] = vmmlaq_s32(acc[i][1], x, b1);
      acc[i][2] = vmmlaq_s32(acc[i][2], x, b2);
      acc[i][3] = vmmlaq_s32(acc[i][3], x, b3);
    }
  }
  UNROLL for (int i = 0; i < 4; i++) {
    UNROLL for (int h = 0; h < 2; h++) {
      rows[2 * i][h] = vcombine_s32(vget_low_s32(acc[i][2 * h]), vget_low_s32(acc[i][2 * h + 1]));
      rows[2 * i + 1][h] = vcombine_s32(vget_high_s32(acc[i][2 * h]), vget_high_s32(acc[i][2 * h + 1]));
    }
  }
  put_tile(rows, targets, count, ldt);
}

#else

static void kernel_bytes(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *start,
                         const int4mm_target *targets, int32_t count, int64_t ldt, int4mm_ahead ahead) {
  (void)ahead;
  int32x4_t acc[MR][2];
  UNROLL for (int r = 0; r < MR; r++) acc[r][0] = acc[r][1] = vdupq_n_s32(start[r]);
  for (int64_t j = 0; j < 2 * k8; j++, a += MR, b += ldb) {
    int8x16_t a0 = bytes(a), a1 = bytes(a + 4), b0 = bytes(b), b1 = bytes(b + LANES);
#define ROW(r)                                                                                                         \
  acc[r][0] = vdotq_laneq_s32(acc[r][0], b0, a0, r), acc[r][1] = vdotq_laneq_s32(acc[r][1], b1, a0, r);                \
  acc[r + 4][0] = vdotq_laneq_s32(acc[r + 4][0], b0, a1, r), acc[r + 4][1] = vdotq_laneq_s32(acc[r + 4][1], b1, a1, r)
    ROW(0);
    ROW(1);
    ROW(2);
    ROW(3);
#undef ROW
  }
  put_tile(acc, targets, count, ldt);
}

#endif

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* The even nibbles of a two's complement word as four signed bytes. */
INLINE uint32_t even_bytes(uint32_t word) {
  uint32_t x = (word & 0x0f0f0f0fu) ^ 0x08080808u; /* value + 8 */
  return ((x | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
}

INLINE int32_t sum_bytes(uint32_t x) {
  return (int8_t)x + (int8_t)(x >> 8) + (int8_t)(x >> 16) + (int8_t)(x >> 24);
}

static void pack_a(uint32_t *panel, int32_t *sums, const uint32_t *a, int64_t lda, int64_t rows, int64_t k8,
                   uint32_t flip) {
  for (int64_t r = 0; r < MR; r++) {
    uint32_t *dst = panel + r * NEXT;
    for (int64_t j = 0; j < k8; j++, dst += 2 * MR) {
      uint32_t word = r < rows ? a[r * lda + j] ^ flip : 0;
      dst[0] = even_bytes(word);
      dst[ODD] = even_bytes(word >> 4);
    }
    sums[r] = 0; /* wanted only where B has an offset */
  }
}

static int32_t expand(uint32_t *dwords, const uint32_t *a, int64_t k8, uint32_t flip) {
  for (int64_t j = 0; j < k8; j++) {
    dwords[2 * j] = even_bytes(a[j] ^ flip);
    dwords[2 * j + 1] = even_bytes((a[j] ^ flip) >> 4);
  }
  return 0;
}

static void pack_b(uint32_t *panel, const uint32_t *b, int64_t ldb, int64_t columns, int64_t k8, uint32_t flip,
                   int32_t offset) {
  (void)offset; /* 0 */
  for (int64_t j = 0; j < k8; j++, b += ldb, panel += 2 * NR) {
    uint32_t words[NR] = {0};
    if (columns >= NR) {
      memcpy(words, b, sizeof words);
    } else {
      memcpy(words, b, (size_t)columns * 4);
    }
    for (int c = 0; c < NR; c++) {
      panel[c * NEXT] = even_bytes(words[c] ^ flip);
      panel[c * NEXT + ODD] = even_bytes((words[c] ^ flip) >> 4);
    }
  }
}

/* ---- small M ---------------------------------------------------------------------------------------------------- */

INLINE int8x16_t even_of(uint32x4_t words) {
  return vshrq_n_s8(vshlq_n_s8(vreinterpretq_s8_u32(words), 4), 4);
}
INLINE int8x16_t odd_of(uint32x4_t words) {
  return vshrq_n_s8(vreinterpretq_s8_u32(words), 4);
}

/* DEPTH words of K by four columns. */
INLINE void stream_step(int64_t rows, const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb, uint32x4_t flips,
                        int32_t *acc, int64_t ldacc) {
  int8x16_t even[DEPTH], odd[DEPTH];
  UNROLL for (int i = 0; i < DEPTH; i++) {
    uint32x4_t words = veorq_u32(vld1q_u32(b + i * ldb), flips);
    even[i] = even_of(words);
    odd[i] = odd_of(words);
  }
  for (int64_t m = 0; m < rows; m++, a += lda, acc += ldacc) {
    int8x16_t first = bytes(a), second = bytes(a + 4);
    int32x4_t sum = vld1q_s32(acc), other = vdupq_n_s32(0);
    sum = vdotq_laneq_s32(vdotq_laneq_s32(sum, even[0], first, 0), odd[0], first, 1);
    other = vdotq_laneq_s32(vdotq_laneq_s32(other, even[1], first, 2), odd[1], first, 3);
    sum = vdotq_laneq_s32(vdotq_laneq_s32(sum, even[2], second, 0), odd[2], second, 1);
    other = vdotq_laneq_s32(vdotq_laneq_s32(other, even[3], second, 2), odd[3], second, 3);
    vst1q_s32(acc, vaddq_s32(sum, other));
  }
}

INLINE void stream_word(int64_t rows, const uint32_t *a, int64_t lda, const uint32_t *b, uint32x4_t flips, int32_t *acc,
                        int64_t ldacc) {
  uint32x4_t words = veorq_u32(vld1q_u32(b), flips);
  for (int64_t m = 0; m < rows; m++, a += lda, acc += ldacc) {
    int8x16_t x = vreinterpretq_s8_u32(vdupq_n_u32(a[0])), y = vreinterpretq_s8_u32(vdupq_n_u32(a[1]));
    vst1q_s32(acc, vdotq_s32(vdotq_s32(vld1q_s32(acc), even_of(words), x), odd_of(words), y));
  }
}

static void stream(int64_t rows, int64_t columns, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b,
                   int64_t ldb, uint32_t flip, int32_t *acc, int64_t ldacc) {
  const uint32x4_t flips = vdupq_n_u32(flip);
  int64_t j = 0;
  for (; j + DEPTH <= k8; j += DEPTH, a += 2 * DEPTH, b += DEPTH * ldb) {
    for (int64_t n = 0; n < columns; n += LANES) stream_step(rows, a, lda, b + n, ldb, flips, acc + n, ldacc);
  }
  for (; j < k8; j++, a += 2, b += ldb) {
    for (int64_t n = 0; n < columns; n += LANES) stream_word(rows, a, lda, b + n, flips, acc + n, ldacc);
  }
}

static void stream_panel(int64_t rows, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int32_t *acc,
                         int64_t ldacc) {
  stream(rows, INT4MM_PANEL, k8, a, lda, b, INT4MM_PANEL, 0, acc, ldacc);
}

/* ---- epilogue --------------------------------------------------------------------------------------------------- */

/* Four outputs of one type. */
INLINE void store_vector(void *out, int32_t dtype, float32x4_t x) {
  uint32x4_t number = vceqq_f32(x, x);
  uint32x4_t bits = vbslq_u32(number, vreinterpretq_u32_f32(x), vdupq_n_u32(INT4MM_NAN_BITS));
  if (dtype == INT4MM_FLOAT32) {
    vst1q_u32(out, bits);
  } else if (dtype == INT4MM_FLOAT16) { /* NaN 0x7fffffff becomes 0x7fff */
    vst1_u16(out, vreinterpret_u16_f16(vcvt_f16_f32(vreinterpretq_f32_u32(bits))));
  } else {
    uint32x4_t up = vaddq_u32(bits, vdupq_n_u32(0x7fff));
    up = vaddq_u32(up, vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1)));
    vst1_u16(out, vshrn_n_u32(vbslq_u32(number, up, bits), 16));
  }
}

/* Up to four columns of all rows; inlined once for each output type. */
INLINE void store_columns(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows, int64_t columns,
                          const int32_t *tile, int64_t ldt, int32_t dtype) {
  const int64_t size = dtype == INT4MM_FLOAT32 ? 4 : 2;
  float scales[LANES] = {0}, biases[LANES] = {0};
  memcpy(scales, p->scale_b + n, (size_t)columns * 4);
  if (p->bias) memcpy(biases, p->bias + n, (size_t)columns * 4);
  float32x4_t scale_b = vld1q_f32(scales), bias = vld1q_f32(biases);
  char *out = (char *)p->out + (m * p->ldo + n) * size, part[16];
  for (int64_t r = 0; r < rows; r++, out += p->ldo * size, tile += ldt) {
    float32x4_t x = vmulq_f32(vmulq_n_f32(vcvtq_f32_s32(vld1q_s32(tile)), p->scale_a[m + r]), scale_b);
    if (p->bias) x = vaddq_f32(x, bias);
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
    .offset = 0,
    .bytes_b = true,
    .stream_rows = 8,
    .stream_shared = 8,
    .stream_width = LANES,
    .panel_rows = 8,
    .strassen = 2,
    .pack_a = pack_a,
    .pack_b = pack_b,
    .kernel = kernel_bytes,
    .kernel_bytes = kernel_bytes,
    .combine_a = combine_a,
    .combine_b = combine_b,
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
