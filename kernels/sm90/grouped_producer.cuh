/*
 * The producers of grouped.cuh: warps that bring activations, packed B, and scales and zero points or factors.
 */
#ifndef INT4MM_GROUPED_PRODUCER_CUH
#define INT4MM_GROUPED_PRODUCER_CUH

#include "sm90/grouped_tile.cuh"

namespace {

/* The copies of a k-block into a stage that is empty: first B's. Boxes of [K/8, N] are 32 columns, 128 bytes of a row;
 * where N is no multiple of that each has a copy of its own. One thread calls them. */
template <class T>
__device__ __forceinline__ void copy_b(const Shared<T> &shared, const CUtensorMap &map, const Arguments &p,
                                       const Walk<T> &walk, int stage) {
  constexpr int BOXES = T::BN / BOX_COLUMNS;
  int row = walk.k_block * BLOCK_WORDS;
  uint32_t full = shared.full(stage);
  ptx::mbarrier_arrive_expect_tx(full, T::B_BYTES + p.box_rows * ROW_BYTES * T::PARTS);
  if (T::NK) return ptx::cp_async_bulk_tensor_3d(shared.b(stage), &map, row, walk.at.n * (T::BN / 2), 0, full);
  if (T::EXPERTS) row += walk.at.expert * ((p.K + 7) / 8);
  if (p.boxes) return ptx::cp_async_bulk_tensor_3d(shared.b(stage), &map, 0, row, walk.at.n * BOXES, full);
#pragma unroll 1
  for (int i = 0; i < BOXES; i++)
    ptx::cp_async_bulk_tensor_2d(shared.b(stage) + i * BOX_BYTES, &map, walk.at.n * T::BN + i * BOX_COLUMNS, row, full);
}

template <class T>
__device__ __forceinline__ void copy_a(const Shared<T> &shared, const CUtensorMap &map, const Walk<T> &walk,
                                       int stage) {
#pragma unroll
  for (int part = 0; part < T::PARTS; part++)
    ptx::cp_async_bulk_tensor_2d(shared.a(stage) + part * T::BM * ROW_BYTES, &map,
                                 walk.k_block * BLOCK_K + part * (BLOCK_K / T::PARTS),
                                 walk.at.begin + walk.at.m * T::BM, shared.full(stage));
}

/* ---- scales and zero points ---- */

/* The group of the value k of K. */
template <class T> __device__ __forceinline__ int group_of(const Arguments &p, int k) {
  return T::GROUP > 0 && p.group == T::GROUP ? k / max(T::GROUP, 1) : k / p.group;
}

/* A thread that copies those of each WARPSth k-block. Beyond N and K the copy engine fills stages with zeros. */
template <class T>
__device__ __forceinline__ void copy_scales(const Shared<T> &shared, const Maps &maps, const Arguments &p, int warp) {
  constexpr int WARPS = 4 - T::COPIERS;
  PipelineState<T::STAGES> state;
  Walk<T> walk(p);
  walk.advance(warp), state.advance(warp);
  bool zeros = T::GROUP_ZEROS && p.zeros;
#pragma unroll 1
  for (; !walk.done(); walk.advance(WARPS), state.advance(WARPS)) {
    uint32_t full = shared.full(state.index);
    int column = walk.at.n * T::BN, group = group_of<T>(p, walk.k_block * BLOCK_K);
    ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, T::GROUPS * T::BN * (p.scale_bytes + zeros));
    ptx::cp_async_bulk_tensor_3d(shared.scales(state.index), &maps.scales, column, group, walk.at.expert, full);
    if (zeros)
      ptx::cp_async_bulk_tensor_3d(shared.zeros(state.index), &maps.zeros, column, group, walk.at.expert, full);
  }
}

/* Zero points of 0 in all stages, where there are none: they are never copied. */
template <class T> __device__ __forceinline__ void clear_zeros(const Shared<T> &shared) {
  for (int i = threadIdx.x * 4; i < T::STAGES * T::ZERO_BYTES; i += T::THREADS * 4)
    ptx::st_shared(shared.zeros(0) + i, 0);
}

/* Scales and zero points of COUNT columns of a group, 32 apart, on their way to a stage. Beyond N and K scales are 0:
 * there the sums are 0 as well. All are loaded before one is looked at, and not by ld.global.nc, which ptxas moves up
 * beyond griddepcontrol.wait. */
template <class T, int COUNT> struct GroupRow {
  uint32_t scale[COUNT]; /* as they lie in memory */
  int zero[COUNT];

  template <class E> __device__ __forceinline__ void load_scales(const E *from, int columns) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      scale[i] = 0;
      if (32 * i < columns) scale[i] = from[32 * i];
    }
  }
  __device__ __forceinline__ void load(const Arguments &p, int expert, int k, int column) {
    int g = group_of<T>(p, k);
    int columns = k < p.K ? p.N - column : 0;
    int64_t at = g * p.scales_stride + column, zeros_at = g * p.zeros_stride + column;
    if (T::EXPERTS) at += expert * p.experts.group_scales, zeros_at += expert * p.experts.zeros;
    if (p.scales_dtype == INT4MM_FLOAT32)
      load_scales((const uint32_t *)p.scales + at, columns);
    else
      load_scales((const uint16_t *)p.scales + at, columns);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      zero[i] = 0;
      if (T::GROUP_ZEROS && p.zeros && 32 * i < columns) zero[i] = p.zeros[zeros_at + 32 * i];
    }
  }
  static __device__ __forceinline__ uint32_t widen(uint32_t bits, int32_t dtype) {
    if (dtype == INT4MM_FLOAT32) return bits;
    return dtype == INT4MM_BFLOAT16 ? bits << 16 : __float_as_uint(__half2float(__ushort_as_half((uint16_t)bits)));
  }
  __device__ __forceinline__ void store(const Shared<T> &shared, const Arguments &p, int stage, int row,
                                        int column) const {
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      uint32_t at = row * T::BN + column + 32 * i;
      ptx::st_shared(shared.scales(stage) + at * 4, widen(scale[i], p.scales_dtype));
      if (T::GROUP_ZEROS && T::COPIES_SCALES) ptx::st_shared_u8(shared.zeros(stage) + at, (uint8_t)zero[i]);
      if (T::GROUP_ZEROS && !T::COPIES_SCALES)
        ptx::st_shared(shared.zeros(stage) + at * 4, prepare_zero<T::KIND>(zero[i]));
    }
  }
};

__device__ __forceinline__ void prefetch_map(const CUtensorMap &map, int thread, bool needed) {
  if ((int)threadIdx.x == thread && needed) ptx::prefetch_tensormap(&map);
}
template <class T> __device__ __forceinline__ void prefetch_maps(const Maps &maps, const Arguments &p) {
  prefetch_map(maps.a, 32, true), prefetch_map(maps.b, 64, true);
  prefetch_map(maps.scales, 96, p.copied_scales), prefetch_map(maps.zeros, 0, p.copied_scales && p.zeros);
}

/* A thread that copies each COPIERSth k-block. */
template <class T>
__device__ __forceinline__ void produce(const Shared<T> &shared, const Maps &maps, const Arguments &p, int index) {
  constexpr int STEP = T::COPIERS;
  PipelineState<T::STAGES> state;
  Walk<T> walk(p);
  walk.advance(index), state.advance(index);
  int early = 0; /* k-blocks whose B is on its way before A may be read */
  if (p.early_b)
#pragma unroll 1
    for (Walk<T> next = walk; index + early * STEP < T::STAGES && !next.done(); next.advance(STEP), early++)
      copy_b(shared, maps.b, p, next, index + early * STEP);
  ptx::griddepcontrol_wait();
#pragma unroll 1
  for (; !walk.done(); walk.advance(STEP), state.advance(STEP), early--) {
    if (early <= 0) {
      ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
      copy_b(shared, maps.b, p, walk, state.index);
    }
    copy_a(shared, maps.a, walk, state.index);
  }
  if (T::LAUNCHES_LATE) ptx::griddepcontrol_launch_dependents();
}

/* A warp that brings factors. */
template <class T> __device__ __forceinline__ void produce_factors(const Shared<T> &shared, const Arguments &p) {
  PipelineState<T::STAGES> state;
  int lane = threadIdx.x % 32;
#pragma unroll 1
  for (Walk<T> walk(p); !walk.done(); walk.advance(), state.advance()) {
    AffineArguments factors = p.factors;
    if (T::EXPERTS) factors.data += walk.at.expert * p.experts.factors;
    ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
    copy_affine<1>(factors, shared.scales(state.index) + lane * 4, T::BN, walk.k_block, walk.at.n * T::BN + lane * 4,
                   p.N, shared.full(state.index));
  }
}

/* A warp that loads those of each WARPSth k-block, where rows are no copy engine's. It waits for memory: of DEPTH
 * k-blocks the loads are under way, or where a k-block's groups take too many registers, of ROWS of these. */
template <class T> __device__ __forceinline__ void load_scales(const Shared<T> &shared, const Arguments &p, int warp) {
  constexpr int WARPS = 4 - T::COPIERS, COUNT = T::BN / 32,
                ROWS = T::BM >= 256                   ? 1
                       : T::EXPERTS && T::GROUPS == 4 ? 2
                                                      : T::GROUPS;
  constexpr int MOST = 16 / (ROWS * COUNT), WANTED = T::COPIERS * 2;
  constexpr int DEPTH = T::BM >= 256 || ROWS < T::GROUPS ? 1 : MOST < WANTED ? MOST : WANTED;
  constexpr bool AHEAD = T::BM < 256; /* elsewhere registers are few: loaded when they are stored */
  static_assert(T::STAGES >= WARPS + (T::K_GROUPS > 1 ? T::RUN * (T::K_GROUPS + 1) - 1 : 0),
                "a warp may not skip a phase of a stage, even when consumers release theirs out of order");
  typedef GroupRow<T, COUNT> Rows[ROWS];
  int lane = threadIdx.x % 32;
  PipelineState<T::STAGES> state;
  Walk<T> walk(p); /* of what is loaded next */
  walk.advance(warp), state.advance(warp);
  auto load = [&](Rows &rows, int first) {
    if (walk.done()) return false;
#pragma unroll
    for (int i = 0; i < ROWS; i++)
      rows[i].load(p, walk.at.expert, walk.k_block * BLOCK_K + (first + i) * T::GROUP, walk.at.n * T::BN + lane);
    if (first + ROWS == T::GROUPS) walk.advance(WARPS);
    return true;
  };
  Rows rows[DEPTH];
  bool there[DEPTH];
#pragma unroll
  for (int i = 0; i < DEPTH; i++) there[i] = AHEAD ? load(rows[i], 0) : !walk.done();
#pragma unroll 1
  while (there[0])
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
      if (!there[i]) return;
#pragma unroll 1
      for (int first = 0; first < T::GROUPS; first += ROWS) {
        if (first || !AHEAD) load(rows[i], first);
        if (first == 0) ptx::mbarrier_wait(shared.empty(state.index), state.phase ^ 1);
#pragma unroll
        for (int r = 0; r < ROWS; r++) rows[i][r].store(shared, p, state.index, first + r, lane);
      }
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(shared.full(state.index));
      state.advance(WARPS);
      there[i] = AHEAD ? load(rows[i], 0) : !walk.done();
    }
}

} // namespace
#endif
