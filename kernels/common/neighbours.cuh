/*
 * From packed words to what an mma takes of B where A lies in memory as it is, k in its order: a lane's values are
 * neighbours along k, where unpack.cuh gives the even and the odd ones of a word.
 *
 * int8, two halves of words: four nibbles to four bytes, twice. Plain ones are 16 times their value. With a zero point
 * z a nibble u = b + 8 becomes the byte u + c with c = 120 - z, 1 to 240, which carries into no other, and 128 less is
 * b
 * - z; with a factor f too it is u f + c with c = 128 - 8 f.
 *
 * float16 and bfloat16, two bytes of words: the numbers 0 .. 255, as bits, are so many times the least subnormal. One
 * fma for two values multiplies that away, by a sixteenth for a nibble that lies in the upper half of its byte, and
 * takes 8 + z: exact. What comes out is b - z times the least subnormal times the largest power of two.
 */
#ifndef INT4MM_NEIGHBOURS_CUH
#define INT4MM_NEIGHBOURS_CUH

#include <stdint.h>

#include <cuda_runtime.h>

namespace {

/* What weights are: b, b - z, or in one form b - z and b times an integer group scale. */
enum Weights { PLAIN, ZEROS, AFFINE };

/* ---- int8 ---- */

/* What bytes_of_neighbours takes for an encoding. */
static inline uint32_t bytes_fix(int weights, uint32_t xor_mask) {
  return weights == PLAIN ? xor_mask & 0x80808080u : ~xor_mask & 0x08080808u;
}

/* What it takes for a column: c in every byte; AFFINE: c in the lowest byte, f in the next. A byte of the matrix of
 * factors or zero points is prepared for that. */
template <int WEIGHTS> __device__ __forceinline__ uint32_t prepare_bytes(int byte, bool is_factor) {
  if (WEIGHTS == AFFINE) return is_factor ? (uint32_t)(128 - 8 * byte) | (uint32_t)byte << 8 : 120u - byte | 1 << 8;
  return (120u - byte) * 0x01010101u;
}

/* `halves`: two half words, of which the first gives the lower 16 bits. */
template <int WEIGHTS>
__device__ __forceinline__ void bytes_of_neighbours(uint32_t &first, uint32_t &second, uint32_t halves, uint32_t fix,
                                                    uint32_t column) {
  constexpr uint32_t MASK = WEIGHTS == PLAIN ? 0xf0f0f0f0u : 0x0f0f0f0fu;
  uint32_t even = WEIGHTS == PLAIN ? halves << 4 : halves, odd = WEIGHTS == PLAIN ? halves : halves >> 4;
  first = (__byte_perm(even, odd, 0x5140) & MASK) ^ fix, second = (__byte_perm(even, odd, 0x7362) & MASK) ^ fix;
  if (WEIGHTS == PLAIN) return;
  uint32_t c = WEIGHTS == AFFINE ? __byte_perm(column, 0, 0) : column, f = WEIGHTS == AFFINE ? column >> 8 : 1;
  first = (first * f + c) ^ 0x80808080u, second = (second * f + c) ^ 0x80808080u;
}

/* ---- float16 and bfloat16 ---- */

template <bool BFLOAT16> struct FloatsScale {
  static constexpr float UNSCALE = BFLOAT16 ? 64 : 512; /* undoes that of the sums */
};

static inline uint32_t floats_fix(uint32_t xor_mask) {
  return ~xor_mask & 0x00800008u;
}

/* -8 - z in both halves, at the scale of the values. */
template <bool BFLOAT16> __device__ __forceinline__ uint32_t prepare_floats(int zero) {
  float x = (float)(-8 - zero) / FloatsScale<BFLOAT16>::UNSCALE;
  if (BFLOAT16) return (__float_as_uint(x) >> 16) * 0x10001u; /* of 8 bits at most, like all of them */
  return (uint32_t)__half_as_ushort(__float2half_rn(x)) * 0x10001u;
}

/* The nibbles at bits 0 and 20. */
template <bool BFLOAT16>
__device__ __forceinline__ uint32_t floats_of_neighbours(uint32_t bits, uint32_t fix, uint32_t column) {
  constexpr uint32_t UNIT = BFLOAT16 ? 0x7d007f00u : 0x68007800u; /* 2^127 or 2^15, the upper one a sixteenth */
  uint32_t u = (bits & 0x00f0000fu) ^ fix, x;
  if (BFLOAT16)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x) : "r"(u), "r"(UNIT), "r"(column));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(x) : "r"(u), "r"(UNIT), "r"(column));
  return x;
}

} // namespace
#endif
