/*
 * Quantising one group of values, as int4mm_quantize defines it: from the range of a group to the step that its values
 * are divided by, and from a value to q. Scalar code that C and CUDA do alike, bit for bit.
 */
#ifndef INT4MM_GROUP_QUANTIZE_H
#define INT4MM_GROUP_QUANTIZE_H

#include "core/numeric.h"

/* What a search of the best clip tries: 64/64, 63/64, ..., 32/64. */
enum { INT4MM_CLIP_RATIOS = 33 };

INT4MM_FN float int4mm_clip_ratio(int i) {
  return (float)(64 - i) / 64;
}

/* The least and the largest of some values and 0, and the largest magnitude as bits, which order like integers. NaN
 * shows in absmax alone. Starts as zeros. */
typedef struct int4mm_group_range {
  float low, high;
  uint32_t absmax;
} int4mm_group_range;

INT4MM_FN int4mm_group_range int4mm_unite_ranges(int4mm_group_range a, int4mm_group_range b) {
  a.low = b.low < a.low ? b.low : a.low;
  a.high = b.high > a.high ? b.high : a.high;
  a.absmax = b.absmax > a.absmax ? b.absmax : a.absmax;
  return a;
}

INT4MM_FN int4mm_group_range int4mm_widen_range(int4mm_group_range range, float x) {
  int4mm_group_range one = {x, x, int4mm_float_bits(x) & 0x7fffffffu};
  return int4mm_unite_ranges(range, one);
}

INT4MM_FN int int4mm_is_finite_range(int4mm_group_range range) {
  return range.absmax < 0x7f800000u;
}

/* How a group is quantised: q = clamp(round_half_even(x / scale) + zero, low, high), and 0 where scale is 0 or
 * infinite, which makes zero 0. */
typedef struct int4mm_group_step {
  float scale, zero, low, high;
} int4mm_group_step;

INT4MM_FN int int4mm_is_step(float scale) {
  return scale > 0 && scale < int4mm_bits_float(0x7f800000u);
}

INT4MM_FN float int4mm_clamp(float x, float low, float high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

/* round_half_even(x / scale), at most 256 in magnitude, which every q is below: a sum with 1.5 * 2^23 has no fraction.
 * x is finite and scale a step. */
INT4MM_FN float int4mm_round_quotient(float x, float scale) {
  const float to_integer = 12582912.0f;
  float y = int4mm_clamp(int4mm_div(x, scale), -256.0f, 256.0f);
  return int4mm_add(int4mm_add(y, to_integer), -to_integer);
}

/* The step of a symmetric group; most: 7 or 127. */
INT4MM_FN int4mm_group_step int4mm_symmetric_step(int4mm_group_range range, float clip, float most) {
  float absmax = int4mm_bits_float(range.absmax < 0x7f800000u ? range.absmax : 0x7f800000u);
  int4mm_group_step step = {int4mm_div(int4mm_mul(absmax, clip), most), 0.0f, -most, most};
  return step;
}

/* That of a group with a zero point. */
INT4MM_FN int4mm_group_step int4mm_affine_step(int4mm_group_range range, float clip) {
  int4mm_group_step step = {int4mm_bits_float(0x7f800000u), 0.0f, -8.0f, 7.0f};
  if (!int4mm_is_finite_range(range)) return step;
  float low = int4mm_mul(range.low, clip), high = int4mm_mul(range.high, clip);
  step.scale = int4mm_div(int4mm_add(high, -low), 15.0f);
  if (int4mm_is_step(step.scale))
    step.zero = int4mm_clamp(int4mm_add(-8.0f, -int4mm_round_quotient(low, step.scale)), -8.0f, 7.0f);
  return step;
}

/* Of the largest of a row's or a column's symmetric steps: the scale beside integer group scales. */
INT4MM_FN float int4mm_scale_of_factors(float largest) {
  return int4mm_div(largest, 15.0f);
}

/* The integer group scale of a group whose symmetric step is `group_scale`. */
INT4MM_FN int32_t int4mm_factor(float group_scale, float scale) {
  return int4mm_is_step(scale) ? (int32_t)int4mm_clamp(int4mm_round_quotient(group_scale, scale), 1.0f, 15.0f) : 1;
}

INT4MM_FN int4mm_group_step int4mm_factor_step(int32_t factor, float scale) {
  int4mm_group_step step = {int4mm_mul((float)factor, scale), 0.0f, -8.0f, 7.0f};
  return step;
}

/* q, a whole number, where step.scale is a step. */
INT4MM_FN float int4mm_quantum(int4mm_group_step step, float x) {
  return int4mm_clamp(int4mm_add(int4mm_round_quotient(x, step.scale), step.zero), step.low, step.high);
}

/* sum + (x - (q - zero) * scale)^2, a product that float64 holds exactly and two roundings. */
INT4MM_FN double int4mm_add_error(double sum, int4mm_group_step step, float x) {
  double e = x;
  if (step.scale > 0) e -= (double)int4mm_add(int4mm_quantum(step, x), -step.zero) * (double)step.scale;
#ifdef __CUDA_ARCH__
  return __dadd_rn(sum, __dmul_rn(e, e));
#else
  return sum + e * e;
#endif
}

#endif
