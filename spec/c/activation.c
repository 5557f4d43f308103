/*
 * e^x, tanh and erf of core/activation.h against the C library's in float64: within 2 ulp over all of float32, which is
 * swept in steps, and without steps where the functions change from one formula to another. The activations against
 * their definitions. The bits are compared with the oracle in Lua.
 */
#include <math.h>

#include "check.h"
#include "core/activation.h"

typedef struct function {
  const char *name;
  float (*ours)(float x);
  double (*theirs)(double x);
} function;

static const function FUNCTIONS[] = {{"exp", int4mm_exp, exp}, {"tanh", int4mm_tanh, tanh}, {"erf", int4mm_erf, erf}};
enum { COUNT = sizeof FUNCTIONS / sizeof FUNCTIONS[0], AROUND = 1 << 15, CHUNK = 1024 };
#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
enum { STEP = 1999 };
#else
enum { STEP = 9973 }; /* what an emulator or ThreadSanitizer does in seconds */
#endif

static int same(float x, float y) {
  return int4mm_float_bits(x) == int4mm_float_bits(y);
}

/* |got - want| in units in the last place of a float32 of that size; where want is beyond float32, infinity is right
 * and counts as 2^128. */
static double ulps(float got, double want) {
  if (isnan(want)) return int4mm_float_bits(got) == INT4MM_NAN_BITS ? 0 : INFINITY;
  if (!signbit(got) != !signbit(want)) return INFINITY;
  double size = fmin(fabs(want), ldexp(1, 128)), ours = fmin(fabs((double)got), ldexp(1, 128));
  int exponent;
  frexp(size, &exponent);
  return fabs(ours - size) / ldexp(1, exponent - 24 < -149 ? -149 : exponent > 128 ? 104 : exponent - 24);
}

/* The worst of `count` floats whose bits are from `first` on, `step` apart. */
static double worst(const function *f, uint32_t first, int64_t count, uint32_t step) {
  double most = 0;
  for (int64_t i = 0; i < count; i++) {
    float x = int4mm_bits_float(first + (uint32_t)i * step);
    double error = ulps(f->ours(x), f->theirs((double)x));
    if (error > most) most = error;
  }
  return most;
}

static void is_within_2_ulp(const function *f) {
  double most = worst(f, 0, 0x100000000 / STEP, STEP);
  printf("%s: %.3f ulp\n", f->name, most);
  CHECK(most <= 2 && most > 0.4);
  /* 0, the least normal number, joins of formulas, where results become subnormal, 0, 1 or infinite */
  const float edges[] = {0, 0x1p-126f, 0.34657359f, 0.625f, 1, 3.92f, 4, 9.01f, 10, 87.33f, 88.72f, 89, 103.97f, 104};
  for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
    for (uint32_t sign = 0; sign < 2; sign++) {
      uint32_t bits = int4mm_float_bits(edges[i]) | sign << 31;
      CHECK(worst(f, bits - AROUND, 2 * AROUND, 1) <= 2);
    }
}

static void has_the_limits(void) {
  const uint32_t nans[] = {0x7fc00000u, 0xffc00000u, 0x7f800001u, 0xffffffffu, 0x7fffffffu};
  for (int i = 0; i < 5; i++) {
    float nan = int4mm_bits_float(nans[i]);
    for (int k = 0; k < COUNT; k++) CHECK(int4mm_float_bits(FUNCTIONS[k].ours(nan)) == INT4MM_NAN_BITS);
    for (int k = INT4MM_RELU; k <= INT4MM_GELU_TANH; k++)
      CHECK(int4mm_float_bits(int4mm_activate(nan, k)) == INT4MM_NAN_BITS);
  }
  CHECK(same(int4mm_exp(INFINITY), INFINITY) && same(int4mm_exp(-INFINITY), 0) && same(int4mm_exp(-0.0f), 1));
  CHECK(isfinite(int4mm_exp(88.7228317f)) && same(int4mm_exp(88.7228394f), INFINITY));
  CHECK(same(int4mm_exp(-103.97f), 0x1p-149f) && same(int4mm_exp(-103.98f), 0));
  CHECK(same(int4mm_tanh(-INFINITY), -1) && same(int4mm_tanh(-0.0f), -0.0f) && same(int4mm_tanh(0x1p-149f), 0x1p-149f));
  CHECK(same(int4mm_erf(-INFINITY), -1) && same(int4mm_erf(-0.0f), -0.0f) && same(int4mm_erf(-0x1p-149f), -0x1p-149f));
}

static double silu(double x) {
  return x / (1 + exp(-x));
}
static double gelu(double x) {
  return 0.5 * x * (1 + erf(x * M_SQRT1_2));
}
static double gelu_tanh(double x) {
  return 0.5 * x * (1 + tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
}

/* 1 + erf cancels for negative x, so the error is held against |x|. */
static void activates(void) {
  double (*const definitions[])(double) = {silu, gelu, gelu_tanh};
  for (int k = INT4MM_SILU; k <= INT4MM_GELU_TANH; k++)
    for (int i = -200000; i <= 200000; i++) {
      float x = (float)i * 0x1p-11f;
      double error = fabs((double)int4mm_activate(x, k) - definitions[k - INT4MM_SILU]((double)x));
      if (error > 0x1p-23 * fabs((double)x)) CHECK(!"the definition of the activation");
    }
  for (int k = INT4MM_NO_ACTIVATION; k <= INT4MM_GELU_TANH; k++) {
    CHECK(same(int4mm_activate(100, k), 100));
    CHECK(same(int4mm_activate(0, k), 0));
    CHECK(same(int4mm_activate(INFINITY, k), INFINITY));
    if (k >= INT4MM_SILU) CHECK(same(int4mm_activate(-100, k), -0.0f));
    if (k >= INT4MM_SILU) CHECK(int4mm_float_bits(int4mm_activate(-INFINITY, k)) == INT4MM_NAN_BITS);
  }
  CHECK(same(int4mm_activate(-3, INT4MM_RELU), 0) && same(int4mm_activate(-0.0f, INT4MM_RELU), 0));
  CHECK(same(int4mm_activate(-3, INT4MM_NO_ACTIVATION), -3));
}

/* A loop, which compilers make SIMD, gives the bits of single calls. */
#define IS_THE_SAME_IN_A_LOOP(function)                                                                                \
  for (uint32_t first = 0; first < 0x1000; first += 16) {                                                              \
    for (uint32_t i = 0; i < CHUNK; i++) x[i] = int4mm_bits_float(first << 20 | (i * 0x4001 & 0xffffff));              \
    for (int i = 0; i < CHUNK; i++) y[i] = function(x[i]);                                                             \
    for (int i = 0; i < CHUNK; i++) {                                                                                  \
      volatile float one = x[i];                                                                                       \
      if (!same(y[i], function(one))) CHECK(!"the bits of a single call of " #function);                               \
    }                                                                                                                  \
  }

static void are_the_same_in_loops(void) {
  static float x[CHUNK], y[CHUNK];
  IS_THE_SAME_IN_A_LOOP(int4mm_exp)
  IS_THE_SAME_IN_A_LOOP(int4mm_tanh)
  IS_THE_SAME_IN_A_LOOP(int4mm_erf)
  IS_THE_SAME_IN_A_LOOP(int4mm_relu)
}

int main(void) {
  for (int k = 0; k < COUNT; k++) is_within_2_ulp(&FUNCTIONS[k]);
  has_the_limits();
  activates();
  are_the_same_in_loops();
  return report();
}
