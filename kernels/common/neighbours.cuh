/*
 * From packed words to what an mma takes of B where A lies in memory as it is, k in its order: a lane's values are
 * neighbours along k, where unpack.cuh gives the even and the odd ones of a word.
 *
 * int8, two halves of words: four nibbles to four bytes, twice. Plain ones are 16 times their value. With a zero point
 * z a nibble u = b + 8 becomes the byte u + c with c = 120 - z, 1 to 240, which carries into no other, and 128 less is
 * b - z; with a factor f too it is u f + c with c = 128 - 8 f.
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
__host__ __device__ __forceinline__ uint32_t bytes_fix(int weights, uint32_t xor_mask) {
  return weights == PLAIN ? xor_mask & 0x80808080u : ~xor_mask & 0x08080808u;
}

/* What weights take for a column: c, and for AFFINE f, as above; floats: -8 - z, twice, at the scale of the values. */
struct Column {
  uint32_t c, f;
};

/* Of four columns, from a byte of the matrix of zero points, or of factors, for each. */
template <int WEIGHTS> __device__ __forceinline__ void columns_of_bytes(Column *to, uint32_t bytes, bool factors) {
  uint32_t c = 0xf8f8f8f8u - (bytes ^ 0x80808080u); /* no byte borrows from the next */
  if (WEIGHTS == AFFINE && factors) c = 0x80808080u - 8 * bytes;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    to[i].c = __byte_perm(c, 0, i * 0x1111);
    to[i].f = WEIGHTS == AFFINE && factors ? __byte_perm(bytes, 0, 0x4440 + i) : 1;
  }
}

/* `halves`: two half words, of which the first gives the lower 16 bits. */
template <int WEIGHTS>
__device__ __forceinline__ void bytes_of_neighbours(uint32_t &first, uint32_t &second, uint32_t halves, uint32_t fix,
                                                    const Column &column) {
  constexpr uint32_t MASK = WEIGHTS == PLAIN ? 0xf0f0f0f0u : 0x0f0f0f0fu;
  uint32_t even = WEIGHTS == PLAIN ? halves << 4 : halves, odd = WEIGHTS == PLAIN ? halves : halves >> 4;
  first = (__byte_perm(even, odd, 0x5140) & MASK) ^ fix, second = (__byte_perm(even, odd, 0x7362) & MASK) ^ fix;
  if (WEIGHTS == PLAIN) return;
  const uint32_t f = WEIGHTS == AFFINE ? column.f : 1;
  first = (first * f + column.c) ^ 0x80808080u, second = (second * f + column.c) ^ 0x80808080u;
}

/* ---- float16 and bfloat16 ---- */

template <bool BFLOAT16> struct FloatsScale {
  static constexpr float UNSCALE = BFLOAT16 ? 64 : 512; /* undoes that of the sums */
};

__host__ __device__ __forceinline__ uint32_t floats_fix(uint32_t xor_mask) {
  return ~xor_mask & 0x00800008u;
}

/* x * unit + column for two values. */
template <bool BFLOAT16> __device__ __forceinline__ uint32_t fma2(uint32_t x, uint32_t unit, uint32_t column) {
  uint32_t y;
  if (BFLOAT16)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(unit), "r"(column));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(x), "r"(unit), "r"(column));
  return y;
}

/* Of four columns, from four zero points: 120 - (z + 128), whose bits are those of a subnormal number. */
template <bool BFLOAT16> __device__ __forceinline__ void columns_of_floats(Column *to, uint32_t zeros) {
  constexpr uint32_t UNIT = BFLOAT16 ? 0xff00ff00u : 0xf800f800u, BASE = BFLOAT16 ? 0x3ff03ff0u : 0x33803380u;
#pragma unroll
  for (int i = 0; i < 4; i++)
    to[i].c = fma2<BFLOAT16>(__byte_perm(zeros ^ 0x80808080u, 0, 0x4040 + i * 0x0101), UNIT, BASE), to[i].f = 1;
}

/* The nibbles at bits 0 and 20. */
template <bool BFLOAT16>
__device__ __forceinline__ uint32_t floats_of_neighbours(uint32_t bits, uint32_t fix, const Column &column) {
  constexpr uint32_t UNIT = BFLOAT16 ? 0x7d007f00u : 0x68007800u; /* 2^127 or 2^15, the upper one a sixteenth */
  return fma2<BFLOAT16>((bits & 0x00f0000fu) ^ fix, UNIT, column.c);
}

} // namespace
#endif
