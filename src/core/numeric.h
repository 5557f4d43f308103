/*
 * Scalar arithmetic that C and CUDA must do alike, bit for bit: nibbles, float16 and bfloat16 rounding, the epilogue,
 * the generator. Everything is plain integer and IEEE float32 code without contraction (-ffp-contract=off, --fmad=false
 * where it matters: the __f*_rn intrinsics are never fused).
 */
#ifndef INT4MM_NUMERIC_H
#define INT4MM_NUMERIC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/exact.h"
#include "int4mm.h"

#ifdef __CUDACC__
#define INT4MM_FN static __host__ __device__ __forceinline__
#else
#define INT4MM_FN static inline
#endif

INT4MM_FN uint32_t int4mm_float_bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

INT4MM_FN float int4mm_bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

/* x * y, x + y, x / y and the square root, each rounded once: a compiler that contracts a*b+c would change bits. */
INT4MM_FN float int4mm_mul(float x, float y) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(x, y);
#else
  return x * y;
#endif
}

INT4MM_FN float int4mm_add(float x, float y) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(x, y);
#else
  return x + y;
#endif
}

/* x * y + z, rounded once. */
INT4MM_FN float int4mm_fma(float x, float y, float z) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(x, y, z);
#else
  return fmaf(x, y, z);
#endif
}

INT4MM_FN float int4mm_div(float x, float y) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(x, y);
#else
  return x / y;
#endif
}

INT4MM_FN float int4mm_sqrt(float x) {
#ifdef __CUDA_ARCH__
  return __fsqrt_rn(x);
#else
  return sqrtf(x);
#endif
}

/* Nibble i (0..7) of a two's complement word, sign-extended. */
INT4MM_FN int32_t int4mm_nibble(uint32_t word, int i) {
  return (int32_t)(word << (28 - 4 * i)) >> 28;
}

/* A float32 result that is NaN becomes this one quiet NaN, since IEEE leaves its sign and payload to the machine. */
#define INT4MM_NAN_BITS 0x7fffffffu

/* float32 to float16 bits, round to nearest even; overflow gives infinity, every NaN becomes 0x7fff (what the GPU's
 * conversion gives), so that NaN has one pattern on every backend. */
INT4MM_FN uint16_t int4mm_to_half(float x) {
  uint32_t bits = int4mm_float_bits(x), sign = (bits >> 16) & 0x8000u, mag = bits & 0x7fffffffu;
  if (mag > 0x7f800000u) return 0x7fffu;
  if (mag >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
  if (mag < 0x38800000u) {                                   /* below 2^-14: a subnormal half, a multiple of 2^-24 */
    /* adding 0.5 puts the unit of the last place at 2^-24, so the addition itself rounds to nearest even */
    float shifted = int4mm_add(int4mm_bits_float(mag), 0.5f);
    return (uint16_t)(sign | (int4mm_float_bits(shifted) - 0x3f000000u));
  }
  mag += 0xfffu + ((mag >> 13) & 1u);
  return (uint16_t)(sign | ((mag - 0x38000000u) >> 13));
}

/* The value of float16 bits. A NaN stays one; where it becomes a result it has to be made INT4MM_NAN_BITS. */
INT4MM_FN float int4mm_from_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, mag = h & 0x7fffu;
  if (mag >= 0x7c00u) return int4mm_bits_float(sign | 0x7f800000u | (mag & 0x3ffu) << 13);
  if (mag >= 0x400u) return int4mm_bits_float(sign | ((mag << 13) + 0x38000000u));
  float x = int4mm_mul((float)mag, 5.9604644775390625e-8f); /* 2^-24 */
  return int4mm_bits_float(sign | int4mm_float_bits(x));
}

/* float32 to bfloat16 bits, as int4mm_to_half. */
INT4MM_FN uint16_t int4mm_to_bfloat(float x) {
  uint32_t bits = int4mm_float_bits(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
  return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/* The value of bfloat16 bits, as int4mm_from_half. */
INT4MM_FN float int4mm_from_bfloat(uint16_t b) {
  return int4mm_bits_float((uint32_t)b << 16);
}

/* An integer that orders floats: larger for larger numbers, equal for equal ones, the largest for NaN. */
INT4MM_FN int32_t int4mm_order_key(float x) {
  int32_t bits = (int32_t)int4mm_float_bits(int4mm_add(x, 0.0f)); /* -0 becomes 0 */
  int32_t key = bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1);
  return x != x ? INT32_MAX : key;
}

/* The contract's float32 value of one output before its rounding to the output type. */
INT4MM_FN float int4mm_scale(int32_t acc, float scale_a, float scale_b) {
  return int4mm_mul(int4mm_mul((float)acc, scale_a), scale_b);
}

/* What takes the place of acc * scale_b with group scales: the chain's next value, from t = 0 on. */
INT4MM_FN float int4mm_next_group(float t, int32_t acc, float scale) {
  return int4mm_fma((float)acc, scale, t);
}

/* An element of a float dtype. */
INT4MM_FN float int4mm_load_float(const void *data, int32_t dtype, int64_t i) {
  if (dtype == INT4MM_FLOAT32) return ((const float *)data)[i];
  uint16_t bits = ((const uint16_t *)data)[i];
  return dtype == INT4MM_FLOAT16 ? int4mm_from_half(bits) : int4mm_from_bfloat(bits);
}

/* float32(1 / sqrt(block)) for a power of two: what a rotation multiplies by at last. */
INT4MM_FN float int4mm_rotation_factor(int32_t block) {
  float factor = 1.0f;
  for (; block >= 4; block /= 4) factor *= 0.5f;
  return block == 2 ? factor * 0.70710676908493042f : factor;
}

/* One block of Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). */
INT4MM_FN void int4mm_philox(uint64_t seed, uint64_t block, uint32_t sequence, uint32_t out[4]) {
  uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = sequence, c3 = 0;
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; round++) {
    uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c1 = (uint32_t)p1;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* Uniform in (0, 1] from a random word, then into the range; as int4mm_random promises. */
INT4MM_FN float int4mm_uniform(uint32_t word, float low, float high) {
  float u = int4mm_mul((float)((word >> 8) + 1), 5.9604644775390625e-8f); /* 2^-24 */
  return int4mm_add(low, int4mm_mul(u, int4mm_add(high, -low)));
}

#endif
