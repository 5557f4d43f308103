/*
 * Whose rows are whose in a grouped product (int4mm_experts), found on the device: tiles of rows are counted over the
 * experts, so that none has rows of two.
 */
#ifndef INT4MM_EXPERTS_CUH
#define INT4MM_EXPERTS_CUH

#include "common/epilogue.cuh"
#include "core/problem.h"

namespace {

/* A tile of rows: those from `row` on that lie below `end`. */
struct ExpertTile {
  int expert; /* -1: rows of no expert; -2: there is no such tile */
  int row, end;
};

/* Where the first `part` parts of M rows end: what lies before the experts, each expert, what lies after them. Not
 * ordered yet where offsets are not. */
__device__ __forceinline__ int end_of_part(const int4mm_experts &x, int M, int part) {
  if (part > x.count) return M;
  if (!x.offsets) return (int)min(part * x.rows, (int64_t)M);
  return min(max(__ldg(x.offsets + part), 0), M);
}

/* Tile `index` of TILE_M rows each. All lanes of a warp call it alike: a lane has a part, and the sums over parts of
 * rows, the largest end so far, and of tiles are formed by shuffles. */
template <int TILE_M>
__device__ __forceinline__ ExpertTile find_expert_tile(const int4mm_experts &x, int M, int64_t index) {
  constexpr unsigned ALL = 0xffffffffu;
  const int lane = threadIdx.x + threadIdx.y * blockDim.x, l = lane % 32;
  int first = 0; /* row of the parts of this round */
  for (int part = 0; part <= x.count + 1; part += 32) {
    int end = max(first, end_of_part(x, M, part + l));
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      int before = __shfl_up_sync(ALL, end, d);
      if (l >= d) end = max(end, before);
    }
    int begin = __shfl_up_sync(ALL, end, 1);
    if (l == 0) begin = first;
    const int own = (end - begin + TILE_M - 1) / TILE_M;
    int tiles = own;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      int before = __shfl_up_sync(ALL, tiles, d);
      if (l >= d) tiles += before;
    }
    const unsigned found = __ballot_sync(ALL, index < tiles);
    if (found) {
      const int at = __ffs(found) - 1, number = part + at;
      const int inside = (int)index - __shfl_sync(ALL, tiles - own, at);
      const bool none = number == 0 || number > x.count;
      return {none ? -1 : number - 1, __shfl_sync(ALL, begin, at) + inside * TILE_M, __shfl_sync(ALL, end, at)};
    }
    index -= __shfl_sync(ALL, tiles, 31), first = __shfl_sync(ALL, end, 31);
  }
  return {-2, 0, 0};
}

/* A matrix of one expert's. */
__device__ __forceinline__ void move_matrix(int4mm_matrix &m, int64_t elements, int size) {
  if (m.data) m.data = (char *)m.data + elements * size;
}

/* Makes B of a problem, and what its epilogue has for columns, those of an expert. */
__device__ __forceinline__ void select_expert(int4mm_problem &p, EpilogueArguments &e, int expert) {
  const int4mm_experts &x = p.experts;
  p.b.words += expert * x.b;
  move_matrix(p.b.group_scales, expert * x.group_scales, p.b.group_scales.dtype == INT4MM_FLOAT32 ? 4 : 2);
  move_matrix(p.b.factors, expert * x.factors, 1), move_matrix(p.b.zeros, expert * x.zeros, 1);
  if (e.scale_b) e.scale_b += expert * x.scales;
  if (e.bias) e.bias += expert * x.bias;
}

} // namespace
#endif
