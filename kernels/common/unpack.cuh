/*
 * From packed words to int8, four values at a time: the even nibbles (k = 0, 2, 4, 6 of a word) and the odd ones. k may
 * be permuted freely as long as both operands are permuted alike, so the two halves are never interleaved.
 *
 * A nibble that stays in the high half of its byte is 16 times its value: two instructions for four values and no sign
 * extension. A product of two such operands is 256 times too large, which int32 holds for K < 131,072 (INT4MM_WIDE_K);
 * the epilogue multiplies the converted accumulator by 2^-8, which is exact. Above that the WIDE form sign-extends to
 * the value itself.
 */
#ifndef INT4MM_UNPACK_CUH
#define INT4MM_UNPACK_CUH

#include <stdint.h>

/* Word i of a 128-bit load; i is a constant after unrolling. */
__device__ __forceinline__ uint32_t element(const uint4 &v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <bool WIDE> struct Unpacker {
  static constexpr float UNSCALE = WIDE ? 1.0f : 1.0f / 256;
  uint32_t fix; /* what XOR puts right in every byte */

  /* `xor_mask` as in int4mm_problem: INT4MM_ENCODING_XOR for the offset encoding, else 0. */
  __device__ __forceinline__ explicit Unpacker(uint32_t xor_mask)
      : fix(WIDE ? 0x88888888u ^ (xor_mask & 0x08080808u) : xor_mask & 0x80808080u) {}

  __device__ __forceinline__ uint32_t even(uint32_t word) const {
    if (WIDE) return sign_extend(word & 0x0f0f0f0fu);
    return (word << 4 & 0xf0f0f0f0u) ^ fix;
  }
  __device__ __forceinline__ uint32_t odd(uint32_t word) const {
    if (WIDE) return sign_extend(word >> 4 & 0x0f0f0f0fu);
    return (word & 0xf0f0f0f0u) ^ fix;
  }

private:
  /* Per byte: nibble + 8 with the top bit set, so that taking 8 away borrows from no neighbour. */
  __device__ __forceinline__ uint32_t sign_extend(uint32_t nibbles) const {
    return ((nibbles ^ fix) - 0x08080808u) ^ 0x80808080u;
  }
};

/* A word of B whose values b are to become b * f, which int8 holds (f from 1 to 15): u = b + 8 does to u * factor +
 * offset, with f and 128 - 8 f. That is 128 more than the value, so that no byte carries into the next. `offset` has it
 * in every byte. */
struct AffineWord {
  uint32_t word, factor, offset;
};

struct AffineUnpacker {
  uint32_t fix;

  __device__ __forceinline__ explicit AffineUnpacker(uint32_t xor_mask) : fix(~xor_mask & 0x08080808u) {}

  __device__ __forceinline__ uint32_t even(const AffineWord &w) const { return affine(w.word & 0x0f0f0f0fu, w); }
  __device__ __forceinline__ uint32_t odd(const AffineWord &w) const { return affine(w.word >> 4 & 0x0f0f0f0fu, w); }

private:
  __device__ __forceinline__ uint32_t affine(uint32_t nibbles, const AffineWord &w) const {
    return ((nibbles ^ fix) * w.factor + w.offset) ^ 0x80808080u;
  }
};

#endif
