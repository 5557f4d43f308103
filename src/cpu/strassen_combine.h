/*
 * Strassen's sums of blocks, on vectors of COMBINE_WIDTH signed bytes; included by the instruction sets that offer it.
 * The seven products P[r] = A'[r] * B'[r] of Strassen ("Gaussian elimination is not optimal", Numerische Mathematik
 * 1969) and where they go (strassen.c has the signs). Two levels apply the same sums to their own results.
 */
#ifndef INT4MM_CPU_STRASSEN_COMBINE_H
#define INT4MM_CPU_STRASSEN_COMBINE_H

#include <stdint.h>

typedef int8_t combine_vector __attribute__((vector_size(COMBINE_WIDTH), aligned(1), may_alias));

/* x: blocks 11, 12, 21, 22 */
static inline __attribute__((always_inline)) combine_vector combine_part_a(int r, const combine_vector x[4]) {
  switch (r) {
  case 0:
    return x[0] + x[3];
  case 1:
    return x[2] + x[3];
  case 2:
    return x[0];
  case 3:
    return x[3];
  case 4:
    return x[0] + x[1];
  case 5:
    return x[2] - x[0];
  default:
    return x[1] - x[3];
  }
}

static inline __attribute__((always_inline)) combine_vector combine_part_b(int r, const combine_vector x[4]) {
  switch (r) {
  case 0:
    return x[0] + x[3];
  case 1:
    return x[0];
  case 2:
    return x[1] - x[3];
  case 3:
    return x[2] - x[0];
  case 4:
    return x[3];
  case 5:
    return x[0] + x[1];
  default:
    return x[2] + x[3];
  }
}

#define COMBINE_UNROLL _Pragma("GCC unroll 16")

/* dst[r] = combination r of the blocks of src, row-major 2 x 2 or 4 x 4, plus offset in every byte. */
static inline __attribute__((always_inline)) void combine_body(int8_t *dst, int64_t dst_step, const int8_t *src,
                                                               int64_t src_step, int64_t bytes, int32_t levels,
                                                               int32_t offset,
                                                               combine_vector part(int r, const combine_vector x[4])) {
  const combine_vector add = (combine_vector){0} + (int8_t)offset;
  for (int64_t at = 0; at < bytes; at += COMBINE_WIDTH) {
    combine_vector x[4], y[4][4];
    if (levels == 1) {
      COMBINE_UNROLL for (int i = 0; i < 4; i++) x[i] = *(const combine_vector *)(src + i * src_step + at);
      COMBINE_UNROLL for (int r = 0; r < 7; r++) * (combine_vector *)(dst + r * dst_step + at) = part(r, x) + add;
      continue;
    }
    COMBINE_UNROLL for (int i = 0; i < 4; i++) { /* y[j][i]: sub-block j of block i */
      COMBINE_UNROLL for (int j = 0; j < 4; j++) {
        int row = i / 2 * 2 + j / 2, col = i % 2 * 2 + j % 2;
        y[j][i] = *(const combine_vector *)(src + (row * 4 + col) * src_step + at);
      }
    }
    COMBINE_UNROLL for (int r = 0; r < 7; r++) {
      COMBINE_UNROLL for (int j = 0; j < 4; j++) x[j] = part(r, y[j]);
      COMBINE_UNROLL for (int q = 0; q < 7; q++) {
        *(combine_vector *)(dst + (r * 7 + q) * dst_step + at) = part(q, x) + add;
      }
    }
  }
}

static void combine_a(int8_t *dst, int64_t dst_step, const int8_t *src, int64_t src_step, int64_t bytes,
                      int32_t levels) {
  if (levels == 1) {
    combine_body(dst, dst_step, src, src_step, bytes, 1, 0, combine_part_a);
  } else {
    combine_body(dst, dst_step, src, src_step, bytes, 2, 0, combine_part_a);
  }
}

static void combine_b(int8_t *dst, int64_t dst_step, const int8_t *src, int64_t src_step, int64_t bytes, int32_t levels,
                      int32_t offset) {
  if (levels == 1) {
    combine_body(dst, dst_step, src, src_step, bytes, 1, offset, combine_part_b);
  } else {
    combine_body(dst, dst_step, src, src_step, bytes, 2, offset, combine_part_b);
  }
}

#endif
