/*
 * e^x, tanh, erf and the activations made of them, in float32, the same bits in C and in CUDA: products, sums and
 * quotients that are each rounded once, in the order that is written here, and no fused multiply-add, which the oldest
 * x86-64 lacks. Each function is within 2 ulp of the true value for every float32; overflow gives infinity, a result
 * below 2^-126 is a subnormal, NaN gives INT4MM_NAN_BITS. Both branches are computed and one is selected, so that loops
 * over them become SIMD and the threads of a warp stay together.
 *
 * The coefficients are minimax polynomials (the exchange algorithm of Remez, 1934), rounded to float32 one after the
 * other, the rest fitted anew each time. Splitting x into n ln 2 + r is of Cody and Waite, "Software Manual for the
 * Elementary Functions", 1980.
 */
#ifndef INT4MM_ACTIVATION_H
#define INT4MM_ACTIVATION_H

#include "core/numeric.h"
#include "int4mm.h"

/* ---- e^x ---- */

/* 2^k, k from -126 to 127. */
INT4MM_FN float int4mm_power_of_two(int32_t k) {
  return int4mm_bits_float(((uint32_t)k + 127u) << 23);
}

/* For |x| <= 104: n, the whole number nearest to x / ln 2, is returned, and *p is e^(x - n ln 2). For NaN, anything.
 *   n = round(x * log2(e)): adding 1.5 * 2^23 leaves no bits for a fraction
 *   r = (x - n * .693359375) - n * (ln 2 - .693359375): the first product and difference are exact
 *   p = 1 + (r + r^2 * (c0 + r (c1 + r (c2 + r (c3 + r c4))))),  |r| <= ln 2 / 2 */
INT4MM_FN int32_t int4mm_exp_split(float x, float *p) {
  float shifted = int4mm_add(int4mm_mul(x, 1.44269502f), 12582912.0f);
  float n = int4mm_add(shifted, -12582912.0f);
  float r = int4mm_add(int4mm_add(x, -int4mm_mul(n, 0.693359375f)), int4mm_mul(n, 2.12194442e-4f));
  float c = 0.00138380018f;
  c = int4mm_add(int4mm_mul(c, r), 0.00836916547f);
  c = int4mm_add(int4mm_mul(c, r), 0.0416681021f);
  c = int4mm_add(int4mm_mul(c, r), 0.166665167f);
  c = int4mm_add(int4mm_mul(c, r), 0.49999994f);
  *p = int4mm_add(1.0f, int4mm_add(r, int4mm_mul(int4mm_mul(r, r), c)));
  return (int32_t)(int4mm_float_bits(shifted) - 0x4b400000u);
}

/* e^x. Multiplied by 2^n in two steps, of which the first is exact, since n goes from -150 to 128. */
INT4MM_FN float int4mm_exp(float x) {
  float bounded = x < -104.0f ? -104.0f : x, p;
  bounded = bounded > 89.0f ? 89.0f : bounded;
  int32_t n = int4mm_exp_split(bounded, &p), half = n >> 1;
  float y = int4mm_mul(int4mm_mul(p, int4mm_power_of_two(half)), int4mm_power_of_two(n - half));
  return x != x ? int4mm_bits_float(INT4MM_NAN_BITS) : y;
}

/* e^x for |x| <= 80; for NaN, anything. */
INT4MM_FN float int4mm_exp_bounded(float x) {
  float p;
  int32_t n = int4mm_exp_split(x, &p);
  return int4mm_mul(p, int4mm_power_of_two(n));
}

/* ---- odd functions ---- */

INT4MM_FN float int4mm_magnitude(float x) {
  return int4mm_bits_float(int4mm_float_bits(x) & 0x7fffffffu);
}

/* `magnitude`, which is not negative, with the sign of x; NaN where x is. */
INT4MM_FN float int4mm_with_sign(float magnitude, float x) {
  uint32_t bits = int4mm_float_bits(magnitude) | (int4mm_float_bits(x) & 0x80000000u);
  return int4mm_bits_float(x != x ? INT4MM_NAN_BITS : bits);
}

/* tanh(x). With a = |x|, z = a^2:
 *   a < .625:  a + a * (z * (c0 + z (c1 + z (c2 + z (c3 + z c4)))))
 *   else:      1 - 2 / (e^(2 min(a, 10)) + 1), which is 1 from 9.02 on */
INT4MM_FN float int4mm_tanh(float x) {
  float a = int4mm_magnitude(x), z = int4mm_mul(a, a);
  float c = -0.00569229666f;
  c = int4mm_add(int4mm_mul(c, z), 0.0206281673f);
  c = int4mm_add(int4mm_mul(c, z), -0.0537365153f);
  c = int4mm_add(int4mm_mul(c, z), 0.133314058f);
  c = int4mm_add(int4mm_mul(c, z), -0.333332807f);
  float low = int4mm_add(a, int4mm_mul(a, int4mm_mul(z, c)));
  float bounded = a > 10.0f ? 10.0f : a;
  float e = int4mm_exp_bounded(int4mm_add(bounded, bounded));
  float high = int4mm_add(1.0f, -int4mm_div(2.0f, int4mm_add(e, 1.0f)));
  return int4mm_with_sign(a < 0.625f ? low : high, x);
}

/* erf(x). With a = |x|, z = a^2, b = min(a, 4):
 *   a < 1:  a + a * (c0 + z (c1 + z (c2 + z (c3 + z (c4 + z (c5 + z c6))))))
 *   else:   1 - e^-(b * (d0 + b (d1 + b (d2 + b (d3 + b (d4 + b (d5 + b d6)))))),  the exponent being ln(1 - erf(b)) */
INT4MM_FN float int4mm_erf(float x) {
  float a = int4mm_magnitude(x), z = int4mm_mul(a, a);
  float c = 7.80690389e-05f;
  c = int4mm_add(int4mm_mul(c, z), -0.00079978531f);
  c = int4mm_add(int4mm_mul(c, z), 0.0051871622f);
  c = int4mm_add(int4mm_mul(c, z), -0.0268533472f);
  c = int4mm_add(int4mm_mul(c, z), 0.112835787f);
  c = int4mm_add(int4mm_mul(c, z), -0.37612626f);
  c = int4mm_add(int4mm_mul(c, z), 0.128379166f);
  float low = int4mm_add(a, int4mm_mul(a, c));
  float b = a > 4.0f ? 4.0f : a;
  float d = 1.15235098e-05f;
  d = int4mm_add(int4mm_mul(d, b), -0.000325668778f);
  d = int4mm_add(int4mm_mul(d, b), 0.00365384785f);
  d = int4mm_add(int4mm_mul(d, b), -0.023785565f);
  d = int4mm_add(int4mm_mul(d, b), 0.106263444f);
  d = int4mm_add(int4mm_mul(d, b), 0.63513571f);
  d = int4mm_add(int4mm_mul(d, b), 1.12865222f);
  float high = int4mm_add(1.0f, -int4mm_exp_bounded(-int4mm_mul(b, d)));
  return int4mm_with_sign(a < 1.0f ? low : high, x);
}

/* ---- activations ---- */

/* x if x > 0, else +0. */
INT4MM_FN float int4mm_relu(float x) {
  return x > 0.0f ? x : x != x ? int4mm_bits_float(INT4MM_NAN_BITS) : 0.0f;
}

/* x / (1 + e^-x); as it is computed -0 from -89 down and NaN for -infinity. */
INT4MM_FN float int4mm_silu(float x) {
  return int4mm_div(x, int4mm_add(1.0f, int4mm_exp(-x)));
}

/* (.5 x) * (1 + erf(x * float32(1 / sqrt(2)))); NaN for -infinity. */
INT4MM_FN float int4mm_gelu(float x) {
  float e = int4mm_erf(int4mm_mul(x, 0.707106769f));
  return int4mm_mul(int4mm_mul(0.5f, x), int4mm_add(1.0f, e));
}

/* (.5 x) * (1 + tanh(float32(sqrt(2 / pi)) * (x + .044715 * ((x * x) * x)))); NaN for -infinity. */
INT4MM_FN float int4mm_gelu_tanh(float x) {
  float cube = int4mm_mul(int4mm_mul(x, x), x);
  float t = int4mm_tanh(int4mm_mul(0.797884583f, int4mm_add(x, int4mm_mul(0.044715f, cube))));
  return int4mm_mul(int4mm_mul(0.5f, x), int4mm_add(1.0f, t));
}

/* x under an int4mm_activation, in the order of operations that its function above gives. INT4MM_NO_ACTIVATION leaves
 * x as it is; of the others a NaN is INT4MM_NAN_BITS. */
INT4MM_FN float int4mm_activate(float x, int32_t activation) {
  float y;
  switch (activation) {
  case INT4MM_RELU:
    y = int4mm_relu(x);
    break;
  case INT4MM_SILU:
    y = int4mm_silu(x);
    break;
  case INT4MM_GELU:
    y = int4mm_gelu(x);
    break;
  case INT4MM_GELU_TANH:
    y = int4mm_gelu_tanh(x);
    break;
  default:
    return x;
  }
  return y != y ? int4mm_bits_float(INT4MM_NAN_BITS) : y;
}

#endif
