/*
 * Elementwise loops over short runs of numbers, the parts of pack, unpack, rotate, quantize, dequantize, map, rowwise,
 * random and copy. They are written once, in rows.inc, and compiled for each instruction set; elementwise.c,
 * quantize.c, groups.c, rotate.c, map.c and rowwise.c apply them to blocks that stay in the caches.
 */
#ifndef INT4MM_CPU_ROWS_H
#define INT4MM_CPU_ROWS_H

#include "core/problem.h"

/* `q` are int4 (or int8) values, one a byte; `n` counts elements. */
typedef struct int4mm_rows {
  /* q = src (int8 or int32); false when one of them is outside [-8, 7]. */
  bool (*narrow)(int8_t *q, const void *src, int32_t dtype, int64_t n);
  void (*widen)(void *dst, int32_t dtype, const int8_t *q, int64_t n); /* dst int8 or int32 */
  /* n words of eight values each, which are contiguous in q ... */
  void (*pack_along)(uint32_t *words, const int8_t *q, int64_t n, uint32_t xor_mask);
  void (*unpack_along)(int8_t *q, const uint32_t *words, int64_t n, uint32_t xor_mask);
  /* ... or in the same column of eight rows of q, `pitch` bytes apart */
  void (*pack_across)(uint32_t *words, const int8_t *q, int64_t pitch, int64_t n, uint32_t xor_mask);
  void (*unpack_across)(int8_t *q, int64_t pitch, const uint32_t *words, int64_t n, uint32_t xor_mask);

  void (*to_float)(float *dst, const void *src, int32_t dtype, int64_t n);   /* any dtype */
  void (*from_float)(void *dst, int32_t dtype, const float *src, int64_t n); /* a float dtype; rounds to nearest even */

  /* As int4mm_rotate defines it, in float32: x = src, n values of a float dtype in blocks along a row, n a multiple of
   * block, whose absmax it returns; or one block of rows of x, `pitch` floats apart, in n columns, in place */
  uint32_t (*rotate)(float *x, const void *src, int32_t dtype, int32_t block, int64_t n);
  void (*rotate_columns)(float *x, int64_t pitch, int32_t block, int64_t n);

  /* The largest |x| as bits of a float32, which order like integers: 0x7f800000 and above mean infinite or NaN. */
  uint32_t (*absmax)(const float *x, int64_t n);
  /* bits[i] = max(bits[i], |x[i]|, |x[stride + i]|, ...) over rows */
  void (*absmax_columns)(uint32_t *bits, const float *x, int64_t stride, int64_t rows, int64_t n);
  /* q = clamp(round_half_even(x / scale), -most, most), most below 128, 0 where the scale is 0 or infinite. clamp,
   * where it is an argument: some |x / scale| may be most + 0.5 and more. */
  void (*quantize)(int8_t *q, const float *x, float scale, float most, int64_t n);
  /* The words of n such q with most = 7; the last one is completed with zeros. */
  void (*quantize_words)(uint32_t *words, const float *x, float scale, bool clamp, int64_t n, uint32_t xor_mask);
  /* A scale for each column. inverses: of these scales, by `reciprocals`: 0 where a division is needed. */
  void (*reciprocals)(float *inverses, const float *scales, int64_t n);
  void (*quantize_columns)(int8_t *q, const float *x, const float *scales, const float *inverses, float most,
                           bool clamp, int64_t n);
  /* For that q and finite x and scales: sums[k % 32] += (x[k] - q[k] * scale)^2 in float64; or the error of one row
   * added to one sum for each column */
  void (*add_errors)(double *sums, const float *x, float scale, float most, int64_t n);
  void (*add_errors_columns)(double *sums, const float *x, const float *scales, float most, int64_t n);
  void (*dequantize)(float *x, const int8_t *q, float scale, int64_t n);
  void (*dequantize_columns)(float *x, const int8_t *q, const float *scales, int64_t n);

  /* In place, x and y apart. op: int4mm_activation or an int4mm_map_op of one operand; INT4MM_ADD or INT4MM_MUL */
  void (*map)(float *x, int32_t op, int64_t n);
  void (*combine)(float *x, const float *y, int32_t op, int64_t n);
  /* The largest of `most` and those that are not NaN. */
  float (*max)(const float *x, float most, int64_t n);
  /* The largest int4mm_order_key. */
  int32_t (*max_key)(const float *x, int64_t n);
  /* sums[k % 32] += x[k];  += (x[k] - mean)^2 */
  void (*add_sums)(float *sums, const float *x, int64_t n);
  void (*add_squares)(float *sums, const float *x, float mean, int64_t n);
  /* In place: x = e^(x - most), x / divisor, (x - mean) * factor */
  void (*exp_below)(float *x, float most, int64_t n);
  void (*divide)(float *x, float divisor, int64_t n);
  void (*normalize)(float *x, float mean, float factor, int64_t n);

  /* Philox blocks first .. first + n - 1, four words each. */
  void (*random)(uint32_t *words, uint64_t seed, uint64_t first, uint32_t sequence, int64_t n);
  void (*uniform)(float *x, const uint32_t *words, float low, float high, int64_t n);
} int4mm_rows;

extern const int4mm_rows int4mm_rows_scalar, int4mm_rows_avx2, int4mm_rows_avx512;

#endif
