/*
 * What the operands of a wgmma product may be: A int4 or int8; B as it is, with integer group scales ("factors") or
 * with zero points. A product of any kind is a sum of int8 products, so that all kinds share one mainloop: they differ
 * in how A becomes fragments (mainloop.cuh) and B int8.
 *
 * B is unpacked to 16 times its value, which is the fastest, or by an affine map, u * factor + offset, for factors and
 * zero points alike (unpack.cuh). A group's factor changes with k: every 32 values of a k-block, a unit, may have their
 * own. An unpacking lane has those of its four columns as a word, a byte each, for each of the k-block's units.
 */
#ifndef INT4MM_KINDS_CUH
#define INT4MM_KINDS_CUH

#include "common/ptx.cuh"
#include "common/shapes.h"
#include "common/unpack.cuh"
#include "core/problem.h"

namespace {

constexpr int BLOCK_WORDS = INT4MM_BLOCK_WORDS; /* packed words of k in a k-block */
constexpr int BLOCK_K = INT4MM_BLOCK_K;
constexpr int UNITS = 4; /* of a k-block: so many groups it may have */
constexpr int UNIT_K = BLOCK_K / UNITS;

/* Factors or zero points, a row for each group. The unit u of K is in group u * reciprocal / 2^31. Four bytes of a row
 * give four factors, bytes & keep | one, and four offsets, base - (bytes ^ flip) * scale: see AffineWord. */
struct AffineArguments {
  const int8_t *data;
  int64_t stride;
  uint32_t reciprocal, last; /* group */
  uint32_t keep, one, base, flip, scale;
  bool vector; /* four columns, from a multiple of four on, may be loaded at once */
};

struct NoAffineArguments {};

/* AFFINE: factors or zero points. WIDE: as in unpack.cuh. */
template <bool INT8_A_, bool AFFINE_, bool WIDE_ = false> struct Kind {
  static constexpr bool INT8_A = INT8_A_, AFFINE = AFFINE_, WIDE = WIDE_;
  /* What undoes the 16 times of A and of B. */
  static constexpr float UNSCALE = (INT8_A || WIDE ? 1.0f : 1.0f / 16) * (AFFINE || WIDE ? 1.0f : 1.0f / 16);
  typedef typename std::conditional<AFFINE, AffineUnpacker, Unpacker<WIDE>>::type UnpackB;
  typedef typename std::conditional<AFFINE, AffineArguments, NoAffineArguments>::type Affine;
  /* A k-block of a row of A: its elements and bytes. */
  static constexpr int A_ELEMENTS = INT8_A ? BLOCK_K : BLOCK_WORDS, A_ROW_BYTES = INT8_A ? BLOCK_K : BLOCK_WORDS * 4;
  /* Zero words of A, where the copy engine has none, may mean -8, and those of B are not 0 with zero points. */
  static constexpr bool MASKS_B = AFFINE && !INT8_A;
  static constexpr bool ZERO_TAIL = AFFINE && INT8_A; /* B's words past K may be anything */
};

/* Those of four columns in a unit. */
struct AffineColumns {
  uint32_t factors, offsets;
  __device__ __forceinline__ void make(const AffineArguments &a, uint32_t bytes) {
    factors = (bytes & a.keep) | a.one, offsets = a.base - (bytes ^ a.flip) * a.scale;
  }
  __device__ __forceinline__ AffineWord word(uint32_t word, int column) const {
    return {word, __byte_perm(factors, 0, 0x4440 + column), __byte_perm(offsets, 0, column * 0x1111)};
  }
};

__device__ __forceinline__ const int8_t *affine_row(const AffineArguments &a, int unit) {
  uint32_t group = (uint32_t)((uint64_t)(uint32_t)unit * a.reciprocal >> 31);
  return a.data + min(group, a.last) * a.stride;
}

/* Those of the columns first, first + step, ...: of STEP 1 from a multiple of four on. */
template <int STEP>
__device__ __forceinline__ uint32_t load_affine(const AffineArguments &a, int unit, int first, int N) {
  const int8_t *from = affine_row(a, unit) + first;
  if (STEP == 1 && a.vector) return first < N ? __ldg((const uint32_t *)from) : 0;
  uint32_t raw = 0;
#pragma unroll 1 /* registers are few where this is called */
  for (int i = 0; i < 4; i++)
    if (first + i * STEP < N) raw |= (uint32_t)__ldg((const uint8_t *)from + i * STEP) << 8 * i;
  return raw;
}

/* ---- host ---- */

AffineArguments affine_arguments(const int4mm_problem *problem) {
  const int4mm_operand *b = &problem->b;
  bool factors = b->factors.data;
  const int4mm_matrix *m = factors ? &b->factors : &b->zeros;
  AffineArguments a = {};
  a.data = (const int8_t *)m->data, a.stride = m->stride;
  if (factors) { /* else all of k is one group */
    int64_t units = (b->group + UNIT_K - 1) / UNIT_K;
    a.reciprocal = (uint32_t)((((uint64_t)1 << 31) + units - 1) / units), a.last = (uint32_t)(m->rows - 1);
  }
  a.keep = factors ? ~0u : 0, a.one = factors ? 0 : 0x01010101u;
  a.base = factors ? 0x80808080u : 0xf8f8f8f8u, a.flip = factors ? 0 : 0x80808080u, a.scale = factors ? 8 : 1;
  a.vector = (uintptr_t)m->data % 4 == 0 && m->stride % 4 == 0 && problem->N % 4 == 0;
  return a;
}

} // namespace
#endif
