/*
 * skinny for operands of every kind: A of int4, int8, float16 or bfloat16 (skinny_fragments.cuh), group scales, factors
 * and zero points of B. The mainloop is skinny.cuh's; this is what it calls for a k-block.
 *
 * Sums are formed over segments: the longest of 32, 64 or 128 values that no group's border divides. A stage has the
 * scales and the zero points or factors of its segments beside A and B. What becomes of a segment's sums:
 *
 * A is floats: t = fma(sum, scale, t) in registers, for the segments that a warp has. Warps and CTAs that share K add
 * their t in a fixed order.
 *
 * Integers without group scales: they are added, times the factor. A zero point is taken away times the sum of A's
 * values, which is one mma more with ones; where it is a column's, once at the end.
 *
 * Integers with group scales are chained: skinny_chains.cuh.
 */
#ifndef INT4MM_SKINNY_GENERAL_CUH
#define INT4MM_SKINNY_GENERAL_CUH

#include "sm80/skinny_chains.cuh"

namespace {

/* Scales, zero points and factors of an expert's groups. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::select_expert(Arguments &own, const int4mm_experts &x,
                                                                               int expert) {
  if (own.scales) own.scales += expert * x.group_scales * size_of_scale(own);
  if (own.bytes) own.bytes += expert * (own.factors ? x.factors : x.zeros);
}

/* Where products are added up. */
template <class S> __device__ __forceinline__ Segment<S> &sum_of(typename S::Sums &sums, Pending<S> &pending) {
  if constexpr (S::IS_PLAIN)
    return sums.plain;
  else
    return pending.sum;
}

/* The last segment's sums, once they are there. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::add(Sums &sums, Waiting &pending, const Source &source,
                                                                     const Arguments &p) {
  if constexpr (IS_GROUPS && FLOAT) {
    with_scales(pending, source.scale_dtype, [&] { add_floats<GeneralShape>(sums.state, pending); });
  } else if constexpr (RINGS) {
    pass_on<GeneralShape>(sums, pending, source);
  } else if constexpr (FLOAT) {
    add_floats<GeneralShape>(sums.state, pending);
  } else if constexpr (CHAINS) {
    if (IS_GROUPS) pending.scales[0] = unpack_scale(pending.packed[0], source.scale_dtype);
    store_slot<GeneralShape>(p, source, pending, sums.to);
  }
  if constexpr (MODE == SUMS && !FLOAT) add_integers<GeneralShape>(sums.state, source, pending);
}

/* The products of a part of a k-block. The last segment is left pending: its stage is free and the next copies are
 * issued before its sums are there. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void
GeneralShape<ROWS, A, MODE, NK>::multiply(Sums &sums, Waiting &pending, const Source &source, const Arguments &p,
                                          uint32_t stage, int k_block, int round, int part) {
  const A a(p.xor_a);
  typename A::B b(p.xor_b);
  /* past K the int4 of A are made 0, which zeroed memory is not in every encoding */
  const int valid = p.words - k_block * BLOCK_WORDS;
  const int block = k_block % BLOCKS;
  const uint32_t words_at = (stage - block * PARAMETERS + source.b_at) ^ block * 64;
  const uint32_t rows = stage + source.rows_at;
  if constexpr (!BRANCHES) {
    if constexpr (IS_GROUPS) {
      pending.sum = {}, pending.k_block = k_block;
      if constexpr (ZEROS && FLOAT) b.set_zeros(ptx::ld_shared(stage + source.zeros_at));
      if constexpr (ZEROS && !FLOAT) load_bytes<GeneralShape>(pending.bytes, stage + source.zeros_at);
      load_packed_scales<GeneralShape>(pending, stage + source.scales_at);
      if constexpr (CHAINS) pending.slot = sums.slot + k_block * slot_bytes(p);
    }
    Segment<GeneralShape> &sum = sum_of<GeneralShape>(sums, pending);
#pragma unroll
    for (int i = 0; i < 4; i++) multiply_slice<GeneralShape>(sum, words_at, rows, i, a, b, ZEROS, valid, part);
    return;
  }
  const bool zeros = source.zeros;
  uint32_t scales = stage + PARAMETERS, bytes = scales + p.segments * 128;
  if constexpr (MODE == CHAIN) pending.slot = sums.slot + k_block * p.block_slot_bytes;
#pragma unroll 1
  for (int j = 0; j < 4; j += source.slices, scales += 128, bytes += 32) {
    if (j > 0) {
      add(sums, pending, source, p);
      pending.slot += p.slot_bytes;
    }
    pending.sum = {};
    if (FLOAT && zeros) b.set_zeros(ptx::ld_shared(bytes + threadIdx.x % 32 / 4 * 4));
    if (source.slices == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) multiply_slice<GeneralShape>(pending.sum, words_at, rows, i, a, b, zeros, valid, 0);
    } else {
#pragma unroll 1
      for (int i = 0; i < source.slices; i++)
        multiply_slice<GeneralShape>(pending.sum, words_at, rows, j + i, a, b, zeros, valid, 0);
    }
    load_parameters<GeneralShape>(pending, source, scales, bytes);
  }
}

/* PLAIN_ZEROS: loads the zero points. A chain: where this warp's slots and this thread's outputs are: the warps of a
 * stripe share out its rows, a warp takes whole ones. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::begin(Sums &sums, const Arguments &p, uint32_t slots,
                                                                       int first_row, int first_column) {
  if constexpr (MODE == PLAIN_ZEROS) {
    int column = first_column + lane_column();
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c++)
      sums.zeros[c] = p.bytes && column + c < p.N ? __ldg((const signed char *)p.bytes + column + c) : 0;
  }
  if constexpr (RINGS) begin_ring<GeneralShape>(sums, p, slots, first_row, first_column);
  if constexpr (CHAINS) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = min(ROWS, p.M - first_row);
    sums.row = by_warps_n<GeneralShape>(p, warp), sums.step = p.warps_k;
    sums.stripe = warp - sums.row * p.warps_n, sums.column = first_column + lane;
    slots += sums.stripe * p.stripe_bytes;
    sums.scales = kept(slots + slot_rows(p) * COLUMNS * 4 + lane * 4);
    int items = 0;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) {
      int row = min(sums.row + item * sums.step, rows - 1);
      sums.at[item] = kept((slots + row * COLUMNS * 4 + lane * 4) ^ slot_swizzle(row) * 16);
      if (sums.row + item * sums.step < rows) items = item + 1;
    }
    sums.items = kept(items);
    sums.slot = slots, sums.to = (lane_row(0) * COLUMNS + (lane_column() ^ slot_swizzle(lane_row(0)) * 4)) * 4;
    if (IS_GROUPS) sums.to = kept(sums.to); /* else registers are few */
    if (IS_GROUPS) load_outputs<GeneralShape>(sums, p, first_row);
  }
}

/* CHAIN, after a round: the chains, where it has filled a window or is the last. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::end_round(Sums &sums, const Arguments &p, int round) {
  if constexpr (MODE == CHAIN) {
    const bool last = round + 1 == p.rounds;
    if (!last && round + 1 < sums.first + p.window) return;
    if (last) ptx::griddepcontrol_launch_dependents(); /* as after the mainloop */
    /* All of the window is stored, and all of the one before it has been read. */
    ptx::named_barrier_sync(1 + sums.stripe, 32 * p.warps_k);
    chain_window<GeneralShape>(sums, p, round + 1 - sums.first);
    sums.first = round + 1, sums.half ^= 1;
    const int bytes = p.window * p.warps_k * p.block_slot_bytes, moved = sums.half ? bytes : -bytes;
    sums.slot += moved - bytes, sums.scales += moved;
#pragma unroll
    for (int item = 0; item < ITEMS; item++) sums.at[item] += moved;
  }
}

template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::finish(Sums &sums, const Arguments &p, int first_row) {
  if constexpr (RINGS)
    finish_ring<GeneralShape>(sums, p);
  else
    finish_chain<GeneralShape>(sums, p, first_row);
}

/* Without a chain: this lane's sums as store_partial of skinny.cuh has them. */
template <int ROWS, class A, Mode MODE, bool NK>
__device__ __forceinline__ void GeneralShape<ROWS, A, MODE, NK>::store_partial(uint32_t matrix, const Sums &sums) {
#pragma unroll
  for (int r = 0; r < LANE_ROWS; r++) {
    uint32_t row = matrix + (lane_row(r) * COLUMNS + lane_column()) * 4;
    int32_t x[LANE_COLUMNS];
    if constexpr (IS_PLAIN) {
      true_sums<GeneralShape>(x, sums.plain, r);
      if (MODE == PLAIN_ZEROS) take_zeros<GeneralShape>(x, sums.plain, r, sums.zeros);
    } else {
#pragma unroll
      for (int c = 0; c < LANE_COLUMNS; c++) x[c] = sums.state[LANE_COLUMNS * r + c];
    }
#pragma unroll
    for (int c = 0; c < LANE_COLUMNS; c += 4) ptx::st_shared_v4(row + 4 * c, x[c], x[c + 1], x[c + 2], x[c + 3]);
  }
}

} // namespace
#endif
