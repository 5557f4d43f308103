/*
 * skinny for integers with group scales, whose chain t = fma(float(acc_g), scale, t) has an order.
 *
 * A segment's sums and scales go to its slot in shared memory, and after a window of rounds the threads that will
 * finish outputs take them from there in order. The window is all of K where that fits, else there are two, of which
 * one is filled while the other is read.
 *
 * With a group to each k-block windows of less than all of K, whose barriers stop all warps of a stripe, are not worth
 * it: the warps are a ring in which t goes from k-block to k-block, by shared memory; a lane has the same outputs in
 * all of them. A turn takes some 100 ns, which is hidden where a CTA has several stripes: 16 x 4096 x 14336 takes 12.8
 * us on an H100, by windows 15.2. Of one stripe 16 x 4096 x 4096 takes 6.4 by a ring and 5.2 by slots.
 */
#ifndef INT4MM_SKINNY_CHAINS_CUH
#define INT4MM_SKINNY_CHAINS_CUH

#include "sm80/skinny_products.cuh"

namespace {

/* ---- slots ---- */

/* A segment with group scales to its slot: [slot_rows, 32] sums, swizzled as slot_swizzle() says, then the scales.
 * `first`: where the lane's first chunk lies in it. */
template <class S>
__device__ __forceinline__ void store_slot(const GeneralArguments &p, const GeneralSource<S> &source,
                                           const Pending<S> &pending, uint32_t first) {
  const int lane = threadIdx.x % 32, rows = S::slot_rows(p);
  const uint32_t at = pending.slot + first;
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) { /* which all have one swizzle */
    int32_t x[S::LANE_COLUMNS];
    pending_sums<S>(x, source, pending, r);
    if (!S::IS_GROUPS && S::lane_row(r) >= rows) continue;
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c += 4)
      ptx::st_shared_v4((at ^ 4 * c) + r * S::ROW_STEP * COLUMNS * 4, x[c], x[c + 1], x[c + 2], x[c + 3]);
  }
  ptx::st_shared(pending.slot + rows * COLUMNS * 4 + 4 * lane, __float_as_uint(pending.scales[0]));
}

/* The first ITEMS outputs of a thread over a run of slots in order, each a group: the addresses are those of their sums
 * and their column's scale in the first. */
template <int ITEMS, int UNROLL, int ALL>
__device__ __forceinline__ void chain_groups(float (&t)[ALL], int slot_bytes, const uint32_t (&sums)[ALL],
                                             uint32_t scales, int count) {
#pragma unroll UNROLL
  for (int i = 0, offset = 0; i < count; i++, offset += slot_bytes) {
    const float scale = __uint_as_float(ptx::ld_shared(scales + offset));
#pragma unroll
    for (int item = 0; item < ITEMS; item++)
      t[item] = int4mm_next_group(t[item], (int32_t)ptx::ld_shared(sums[item] + offset), scale);
  }
}

/* An output over a window's segments from `segment` on, of which several are a group. */
struct ChainState {
  float t;
  int32_t sum; /* of the group so far */
};
__device__ __noinline__ ChainState chain_segments(ChainState state, const GeneralArguments &p, uint32_t sums,
                                                  uint32_t scales, int segment, int count) {
  int in_group = segment - (int)group_of(p, segment) * p.group;
  for (int i = 0; i < count; i++, sums += p.slot_bytes, scales += p.slot_bytes) {
    state.sum += (int32_t)ptx::ld_shared(sums);
    if (++in_group == p.group || segment + i + 1 == p.all_segments) {
      state.t = int4mm_next_group(state.t, state.sum, __uint_as_float(ptx::ld_shared(scales)));
      state.sum = in_group = 0;
    }
  }
  return state;
}

/* The chains of this thread's outputs over `count` slots, each a group. */
template <class S>
__device__ __forceinline__ void chain_slots(typename S::Sums &sums, const GeneralArguments &p, int count) {
  constexpr int ITEMS = S::ITEMS;
  const int slot_bytes = S::slot_bytes(p);
  if (!sums.items) return;
  if (sums.items == 1)
    chain_groups<1, 8>(sums.t, slot_bytes, sums.at, sums.scales, count);
  else if (ITEMS == 2 || sums.items == 2)
    chain_groups<2, S::IS_GROUPS ? 8 : 4>(sums.t, slot_bytes, sums.at, sums.scales, count);
  else
    chain_groups<ITEMS, 2>(sums.t, slot_bytes, sums.at, sums.scales, count);
}

/* CHAIN: the same over a window's slots. */
template <class S>
__device__ __forceinline__ void chain_window(typename S::Sums &sums, const GeneralArguments &p, int rounds) {
  const int segment = sums.first * p.warps_k * p.segments;
  const int count = min(rounds * p.warps_k * p.segments, p.all_segments - segment);
  if (p.group == 1) return chain_slots<S>(sums, p, count);
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    if (item >= sums.items) continue;
    ChainState state = chain_segments({sums.t[item], sums.sum[item]}, p, sums.at[item], sums.scales, segment, count);
    sums.t[item] = state.t, sums.sum[item] = state.sum;
  }
}

/* What the outputs of a chain need. */
template <class S>
__device__ __forceinline__ void load_outputs(typename S::Sums &sums, const GeneralArguments &p, int first_row) {
  int4mm_load_bias(sums.bias, p.epilogue, sums.column, p.N);
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    int row = sums.row + item * sums.step;
    sums.scale_a[item] = row < min(S::ROWS, p.M - first_row) ? __ldg(p.epilogue.scale_a + first_row + row) : 0;
  }
}

/* The outputs of a chain, which by groups begins only here: all slots have been filled. */
template <class S>
__device__ __forceinline__ void finish_chain(typename S::Sums &sums, const GeneralArguments &p, int first_row) {
  if (S::IS_GROUPS) {
    ptx::named_barrier_sync(1 + sums.stripe, 32 * p.warps_k);
    chain_slots<S>(sums, p, p.all_segments);
  } else { /* registers are few before */
    load_outputs<S>(sums, p, first_row);
  }
#pragma unroll
  for (int item = 0; item < S::ITEMS; item++) {
    int row = sums.row + item * sums.step;
    if (row >= min(S::ROWS, p.M - first_row)) continue;
    float x[1] = {__fmul_rn(sums.t[item], sums.scale_a[item])};
    if (sums.column < p.N) int4mm_finish_scaled<S::LAYER>(p.epilogue, first_row + row, sums.column, p.N, sums.bias, x);
  }
}

/* ---- a ring ---- */

/* RING: a k-block, when its turn has come: t = fma(sum, scale, t), for the warp with the next one. */
template <class S>
__device__ __forceinline__ void pass_on(RingSums<S> &sums, Pending<S> &pending, const GeneralSource<S> &source) {
  float x[S::ROWS];
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) {
    int32_t acc[S::LANE_COLUMNS];
    pending_sums<S>(acc, source, pending, r);
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c++) x[S::LANE_COLUMNS * r + c] = (float)acc[c];
  }
  with_scales(pending, source.scale_dtype, [] {});
  const bool first = pending.k_block == 0;
  if (!first) ptx::named_barrier_sync(sums.turn, 64);
#pragma unroll
  for (int i = 0; i < S::ROWS; i += 4) {
    uint4 before = make_uint4(0, 0, 0, 0);
    if (!first) before = ptx::ld_shared_v4(sums.at + 128 * i);
#pragma unroll
    for (int c = 0; c < 4; c++)
      sums.t[i + c] =
          int4mm_fma(x[i + c], pending.scales[i % S::LANE_COLUMNS + c], __uint_as_float(element(before, c)));
  }
  if (pending.k_block == sums.last) return;
#pragma unroll
  for (int i = 0; i < S::ROWS; i += 4) {
    const float *t = &sums.t[i];
    ptx::st_shared_v4(sums.at + 128 * i, __float_as_uint(t[0]), __float_as_uint(t[1]), __float_as_uint(t[2]),
                      __float_as_uint(t[3]));
  }
  ptx::named_barrier_arrive(sums.next, 64);
}

/* Of a ring: this warp's place in it, and what its outputs need. */
template <class S>
__device__ __forceinline__ void begin_ring(RingSums<S> &sums, const GeneralArguments &p, uint32_t slots, int first_row,
                                           int first_column) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, along_k = by_warps_n<S>(p, warp);
  const int stripe = warp - along_k * p.warps_n;
  sums.at = kept(slots + stripe * S::ROWS * COLUMNS * 4 + lane * 16);
  sums.turn = kept(warp), sums.next = kept(along_k + 1 == p.warps_k ? stripe : warp + p.warps_n);
  sums.last = kept((p.words + BLOCK_WORDS - 1) / BLOCK_WORDS - 1);
  sums.row = first_row + S::lane_row(0), sums.column = first_column + S::lane_column();
  if (sums.last % p.warps_k != along_k) sums.row = p.M; /* another has the outputs */
  int4mm_load_bias(sums.bias, p.epilogue, sums.column, p.N);
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++)
    sums.scale_a[r] = sums.row + S::ROW_STEP * r < p.M ? __ldg(p.epilogue.scale_a + sums.row + S::ROW_STEP * r) : 0;
}

/* The outputs of a ring. */
template <class S> __device__ __forceinline__ void finish_ring(const RingSums<S> &sums, const GeneralArguments &p) {
#pragma unroll
  for (int r = 0; r < S::LANE_ROWS; r++) {
    int row = sums.row + S::ROW_STEP * r;
    if (row >= p.M) continue;
#pragma unroll
    for (int c = 0; c < S::LANE_COLUMNS; c += 4) {
      float x[4], bias[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        x[i] = __fmul_rn(sums.t[S::LANE_COLUMNS * r + c + i], sums.scale_a[r]), bias[i] = sums.bias[c + i];
      if (sums.column + c < p.N) int4mm_finish_scaled<S::LAYER>(p.epilogue, row, sums.column + c, p.N, bias, x);
    }
  }
}

} // namespace
#endif
