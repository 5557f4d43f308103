/*
 * How grouped.cuh's consumers make fragments of packed weights, for each kind of activations. A slice is what
 * one wgmma takes of k; a lane's rows of a fragment, g and g + 8, are neighbouring columns of B.
 *
 *   BytesB   W4A8: k in its order, 32j + 4t .. + 3 and 16 further on: halves of the words 4j + t / 2 and two further on
 *   FloatsB  W4A16: k in its order, 16j + 2t, 2t + 1 and 8 further on: byte t of the words 2j and 2j + 1
 *
 * Plain integers are 16 times their value (unpack.cuh). With a zero point a nibble u = b + 8 becomes the byte u + c
 * with c = 120 - z, 1 to 240, which carries into no other, and 128 less is b - z; with a factor f, u f + 128 - 8 f.
 *
 * In float16 and bfloat16 the numbers 0 .. 255, as bits, are so many times the least subnormal. One fma for two values
 * multiplies that away, by a sixteenth for a nibble that lies in the upper half of its byte, and takes 8 + z: exact.
 */
#ifndef INT4MM_GROUPED_B_CUH
#define INT4MM_GROUPED_B_CUH

#include "common/epilogue.cuh"
#include "common/unpack.cuh"
#include "sm90/pipeline.cuh"

namespace {

/* What activations are, and B's weights: b, b - z, or b times an integer group scale. */
enum Activations { W4A8, W4A16_HALF, W4A16_BFLOAT };
enum Weights { PLAIN, ZEROS, FACTORS };

/* A uniform value in an ordinary register: instructions that take it from a uniform one need a move each. */
__device__ __forceinline__ uint32_t in_register(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

/* `at(row)` is the address of a lane's two words in a row of packed B, where its rows begin with first_row(), of a
 * k-block's. unpack's last argument has for each of the two columns what WEIGHTS take: a prepared zero point or a
 * factor. */
template <int WEIGHTS> struct BytesB {
  static constexpr bool WIDE = WEIGHTS != PLAIN; /* nibbles become u = b + 8 in the low halves of bytes first */
  static constexpr float UNSCALE = WIDE ? 1.0f : 1.0f / 16;
  uint32_t fix, halves; /* a selector for prmt: this lane's half of two words */
  __device__ __forceinline__ explicit BytesB(uint32_t xor_mask)
      : fix(in_register(WIDE ? ~xor_mask & 0x08080808u : xor_mask & 0x80808080u)),
        halves(threadIdx.x & 1 ? 0x7632 : 0x5410) {}

  static __device__ __forceinline__ int first_row() { return threadIdx.x % 4 / 2; }
  /* Halves of the words of slice j: the lower 16 bits are of the first 16 values of k. */
  template <class At> __device__ __forceinline__ uint2 load(int j, At at) const {
    uint2 first = ptx::ld_shared_v2(at(4 * j)), second = ptx::ld_shared_v2(at(4 * j + 2));
    return make_uint2(__byte_perm(first.x, second.x, halves), __byte_perm(first.y, second.y, halves));
  }
  __device__ __forceinline__ void unpack(uint32_t (&to)[4], uint32_t low, uint32_t high, uint2 affine) const {
    spread(to[0], to[2], low, affine.x), spread(to[1], to[3], high, affine.y);
  }

private:
  __device__ __forceinline__ void spread(uint32_t &first, uint32_t &second, uint32_t w, uint32_t affine) const {
    constexpr uint32_t MASK = WIDE ? 0x0f0f0f0fu : 0xf0f0f0f0u;
    uint32_t even = WIDE ? w : w << 4, odd = WIDE ? w >> 4 : w;
    first = (__byte_perm(even, odd, 0x5140) & MASK) ^ fix, second = (__byte_perm(even, odd, 0x7362) & MASK) ^ fix;
    if (WEIGHTS == ZEROS) first = (first + affine) ^ 0x80808080u, second = (second + affine) ^ 0x80808080u;
    if (WEIGHTS == FACTORS) {
      uint32_t offset = 0x80808080u - affine * 0x08080808u;
      first = (first * affine + offset) ^ 0x80808080u, second = (second * affine + offset) ^ 0x80808080u;
    }
  }
};

template <bool BFLOAT> struct FloatsB {
  /* What b - z is multiplied by, the least subnormal times the largest power of two, and what undoes it. */
  static constexpr float SCALE = BFLOAT ? 1.0f / 64 : 1.0f / 512, UNSCALE = 1 / SCALE;
  static constexpr uint32_t UNIT = BFLOAT ? 0x7d007f00u : 0x68007800u; /* 2^127 (2^15), the upper one a sixteenth */
  uint32_t fix, byte; /* a selector for prmt: byte t of two words, twice */
  __device__ __forceinline__ explicit FloatsB(uint32_t xor_mask)
      : fix(in_register(~xor_mask & 0x00800008u)), byte((threadIdx.x % 4) * 0x1111 + 0x4040) {}

  static __device__ __forceinline__ int first_row() { return 0; }
  template <class At> __device__ __forceinline__ uint2 load(int j, At at) const {
    uint2 first = ptx::ld_shared_v2(at(2 * j)), second = ptx::ld_shared_v2(at(2 * j + 1));
    return make_uint2(__byte_perm(first.x, second.x, byte), __byte_perm(first.y, second.y, byte));
  }
  __device__ __forceinline__ void unpack(uint32_t (&to)[4], uint32_t low, uint32_t high, uint2 zero) const {
    to[0] = widen(low, zero.x), to[1] = widen(high, zero.y);
    to[2] = widen(low >> 8, zero.x), to[3] = widen(high >> 8, zero.y);
  }

private:
  __device__ __forceinline__ uint32_t widen(uint32_t w, uint32_t zero) const {
    uint32_t u = (w & 0x00f0000fu) ^ fix, to;
    if (BFLOAT)
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(to) : "r"(u), "r"(UNIT), "r"(zero));
    else
      asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(to) : "r"(u), "r"(UNIT), "r"(zero));
    return to;
  }
};

template <int KIND, int WEIGHTS> struct PolicyB { typedef FloatsB<KIND == W4A16_BFLOAT> type; };
template <int WEIGHTS> struct PolicyB<W4A8, WEIGHTS> { typedef BytesB<WEIGHTS> type; };

/* A zero point as the policies take it, twice or four times. */
template <int KIND> __device__ __forceinline__ uint32_t prepare_zero(int z) {
  if (KIND == W4A8) return (uint32_t)(120 - z) * 0x01010101u;
  float x = (float)(-8 - z) * FloatsB<KIND == W4A16_BFLOAT>::SCALE;
  return KIND == W4A16_BFLOAT ? int4mm_round2<INT4MM_BFLOAT16>(x, x) : int4mm_round2<INT4MM_FLOAT16>(x, x);
}

} // namespace
#endif
