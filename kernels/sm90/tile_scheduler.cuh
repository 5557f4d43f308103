/*
 * Which tile of the output a persistent CTA has next, of a plain product or of a grouped one, whose experts' tiles
 * follow each other (common/experts.cuh). Tiles are rasterised in groups of T::GROUP_M tile rows, down a group's
 * columns, so that the CTAs of a wave share operands in L2.
 *
 * T is a kernel's tile, BM rows high: EXPERTS of a grouped product, which has a table of TABLE_BYTES at TABLE_OFFSET in
 * dynamic shared memory. P are the kernel's arguments: M, tiles_m, tiles_n, experts and epilogue.
 */
#ifndef INT4MM_TILE_SCHEDULER_CUH
#define INT4MM_TILE_SCHEDULER_CUH

#include "common/experts.cuh"
#include "common/shapes.h"
#include "sm90/pipeline.cuh"

namespace {

constexpr int TABLE_BYTES = 8 * (INT4MM_TABLE_EXPERTS + 1);

/* A tile's coordinates among those of its expert, of whom a plain product has one; and the expert's first row and the
 * end of its rows. */
struct ExpertCoord : TileCoord {
  int expert, begin, end;
};

/* The table of a grouped product's experts. */
template <class T> __device__ __forceinline__ int2 *expert_table() {
  extern __shared__ __align__(1024) uint8_t memory[];
  return (int2 *)(memory + T::TABLE_OFFSET);
}

/* Makes it; all threads of the CTA call it. */
template <class T, class P> __device__ __forceinline__ void init_experts(const P &p) {
  if constexpr (T::EXPERTS) {
    if (threadIdx.x / 32 == 3) make_expert_table<T::BM>(expert_table<T>(), p.experts, p.M);
    __syncthreads();
  }
}

/* How many tiles there are. */
template <class T, class P> __device__ __forceinline__ int count_tiles(const P &p) {
  return (T::EXPERTS ? ((volatile int2 *)expert_table<T>())[p.experts.count].x : p.tiles_m) * p.tiles_n;
}

template <class T, class P> __device__ __forceinline__ ExpertCoord find_tile(int tile, const P &p) {
  int tiles_m = p.tiles_m, expert = 0, begin = 0, end = p.M;
  if constexpr (T::EXPERTS) { /* found anew each time: registers are few */
    const int2 *table = expert_table<T>();
    for (int high = p.experts.count; high - expert > 1;) {
      int middle = (expert + high) / 2;
      if (table[middle].x * p.tiles_n <= tile)
        expert = middle;
      else
        high = middle;
    }
    tile -= table[expert].x * p.tiles_n;
    tiles_m = table[expert + 1].x - table[expert].x, begin = table[expert].y, end = table[expert + 1].y;
  }
  int group = tile / (T::GROUP_M * p.tiles_n), rows = min(tiles_m - group * T::GROUP_M, T::GROUP_M);
  int i = tile % (T::GROUP_M * p.tiles_n);
  return {{group * T::GROUP_M + i % rows, i / rows}, expert, begin, end};
}

/* A product's arguments as those of one expert's, up to the end of its rows. */
template <class T, class P> __device__ __forceinline__ decltype(auto) arguments_of(const P &p, const ExpertCoord &at) {
  if constexpr (T::EXPERTS) {
    P own = p;
    own.M = at.end, own.epilogue.scale_b += at.expert * p.experts.scales;
    if (p.epilogue.bias) own.epilogue.bias += at.expert * p.experts.bias;
    return own;
  } else {
    return (p);
  }
}

/* Results of rows of no expert, by the consumers: `thread` of `threads` in each CTA. */
template <class T, class P> __device__ __noinline__ void zero_rows(const P &p, int thread, int threads) {
  const int before = expert_table<T>()[0].y, after = expert_table<T>()[p.experts.count].y;
  const int64_t outputs = (int64_t)(before + p.M - after) * p.N, step = (int64_t)gridDim.x * threads;
  const float zero[1] = {0};
  for (int64_t i = (int64_t)blockIdx.x * threads + thread; i < outputs; i += step) {
    const int row = (int)(i / p.N), column = (int)(i % p.N);
    int4mm_store(p.epilogue, row < before ? row : row - before + after, column, p.N, zero);
  }
}

} // namespace
#endif
