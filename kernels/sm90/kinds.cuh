/*
 * What the operands of a wgmma product may be: A int4 or int8; B as it is, with integer group scales ("factors") or
 * with zero points. A product of any kind is a sum of int8 products, so that all kinds share one mainloop: they differ
 * in how A becomes fragments (mainloop.cuh) and B int8.
 *
 * B is unpacked to 16 times its value, which is the fastest, or with factors by an affine map, u * factor + offset
 * (unpack.cuh). A group's factor changes with k: every 32 values of a k-block, a unit, may have their own. An unpacking
 * lane has those of its four columns as a word, a byte each, for each of the k-block's units.
 *
 * Zero points cost the unpacking nothing: sum a (b - z) = sum a b - z sum a, in integers, so that a tile's sums lose z
 * times the sum of a row of A when they are complete.
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

/* Factors, a row for each group. The unit u of K is in group u * reciprocal / 2^31. */
struct AffineArguments {
  const int8_t *data;
  int64_t stride;
  uint32_t reciprocal, last; /* group */
  bool vector;               /* four columns, from a multiple of four on, may be loaded at once */
};

struct NoAffineArguments {};

/* AFFINE: factors. ZEROS: zero points. WIDE: as in unpack.cuh. */
template <bool INT8_A_, bool AFFINE_, bool WIDE_ = false, bool ZEROS_ = false> struct Kind {
  static constexpr bool INT8_A = INT8_A_, AFFINE = AFFINE_, WIDE = WIDE_, ZEROS = ZEROS_;
  /* Bits by which A, and sums, are above their values, and what undoes that where zero points have not. */
  static constexpr int SHIFT_A = INT8_A || WIDE ? 0 : 4, SHIFT = SHIFT_A + (AFFINE || WIDE ? 0 : 4);
  static constexpr float UNSCALE = ZEROS ? 1.0f : 1.0f / (1 << SHIFT);
  typedef typename std::conditional<AFFINE, AffineUnpacker, Unpacker<WIDE>>::type UnpackB;
  typedef typename std::conditional<AFFINE, AffineArguments, NoAffineArguments>::type Affine;
  /* A k-block of a row of A: its elements and bytes. */
  static constexpr int A_ELEMENTS = INT8_A ? BLOCK_K : BLOCK_WORDS, A_ROW_BYTES = INT8_A ? BLOCK_K : BLOCK_WORDS * 4;
  /* Zero words of A, where the copy engine has none, may mean -8, and those of B are not 0 with factors. */
  static constexpr bool MASKS_B = AFFINE && !INT8_A;
  static constexpr bool ZERO_TAIL = AFFINE && INT8_A; /* B's words past K may be anything */
};

/* Those of four columns in a unit. */
struct AffineColumns {
  uint32_t factors, offsets;
  __device__ __forceinline__ explicit AffineColumns(uint32_t bytes)
      : factors(bytes), offsets(0x80808080u - bytes * 8) {}
  __device__ __forceinline__ AffineWord word(uint32_t word, int column) const {
    return {word, __byte_perm(factors, 0, 0x4440 + column), __byte_perm(offsets, 0, column * 0x1111)};
  }
};

__device__ __forceinline__ const int8_t *affine_row(const AffineArguments &a, int unit) {
  uint32_t group = (uint32_t)((uint64_t)(uint32_t)unit * a.reciprocal >> 31);
  return a.data + min(group, a.last) * a.stride;
}

/* Factors of the columns first, first + step, ...: of STEP 1 from a multiple of four on. */
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

/* Those of every STEP-th column from `first` on for a k-block's units, to rows of shared memory `pitch` bytes apart. A
 * warp's lanes call it, each for its own columns, and arrive at `full` when theirs are there. */
template <int STEP>
__device__ __forceinline__ void copy_affine(const AffineArguments &a, uint32_t to, int pitch, int k_block, int first,
                                            int N, uint32_t full) {
  if (STEP == 1 && a.vector) {
#pragma unroll
    for (int u = 0; u < UNITS; u++)
      if (first < N) ptx::cp_async4(to + u * pitch, affine_row(a, k_block * UNITS + u) + first);
    ptx::cp_async_mbarrier_arrive_noinc(full);
  } else {
#pragma unroll 1
    for (int u = 0; u < UNITS; u++) ptx::st_shared(to + u * pitch, load_affine<STEP>(a, k_block * UNITS + u, first, N));
    ptx::mbarrier_arrive(full);
  }
}

/* ---- host ---- */

AffineArguments affine_arguments(const int4mm_problem *problem) {
  const int4mm_matrix *m = &problem->b.factors;
  int64_t units = (problem->b.group + UNIT_K - 1) / UNIT_K;
  AffineArguments a = {};
  a.data = (const int8_t *)m->data, a.stride = m->stride;
  a.reciprocal = (uint32_t)((((uint64_t)1 << 31) + units - 1) / units), a.last = (uint32_t)(m->rows - 1);
  a.vector = (uintptr_t)m->data % 4 == 0 && m->stride % 4 == 0 && problem->N % 4 == 0;
  return a;
}

} // namespace
#endif
