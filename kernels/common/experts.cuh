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

/* What a lane has of 32 parts: its part's rows, how many tiles of them there are, and how many in the parts before. */
struct Part {
  int begin, end, tiles, before;
};

/* Goes through the parts, 32 at a time, by sums over a warp, all lanes of which call it alike. */
struct PartWalk {
  int row = 0, tiles = 0; /* of the parts so far */

  /* `part`: this lane's. Without `outside`, parts of no expert have no tiles. */
  template <int TILE_M>
  __device__ __forceinline__ Part next(const int4mm_experts &x, int M, int part, bool outside = true) {
    constexpr unsigned ALL = 0xffffffffu;
    const unsigned lane = (threadIdx.x + threadIdx.y * blockDim.x) % 32;
    Part p;
    p.end = max(row, end_of_part(x, M, part));
#pragma unroll
    for (unsigned d = 1; d < 32; d *= 2) {
      int other = __shfl_up_sync(ALL, p.end, d);
      if (lane >= d) p.end = max(p.end, other);
    }
    p.begin = __shfl_up_sync(ALL, p.end, 1);
    if (lane == 0) p.begin = row;
    p.tiles = outside || (part > 0 && part <= x.count) ? (p.end - p.begin + TILE_M - 1) / TILE_M : 0;
    int sum = p.tiles;
#pragma unroll
    for (unsigned d = 1; d < 32; d *= 2) {
      int other = __shfl_up_sync(ALL, sum, d);
      if (lane >= d) sum += other;
    }
    p.before = tiles + sum - p.tiles;
    row = __shfl_sync(ALL, p.end, 31), tiles += __shfl_sync(ALL, sum, 31);
    return p;
  }
};

/* Tile `index` of TILE_M rows each. All lanes of a warp call it alike. */
template <int TILE_M>
__device__ __forceinline__ ExpertTile find_expert_tile(const int4mm_experts &x, int M, int64_t index) {
  constexpr unsigned ALL = 0xffffffffu;
  const int lane = (threadIdx.x + threadIdx.y * blockDim.x) % 32;
  PartWalk walk;
  for (int part = 0; part <= x.count + 1; part += 32) {
    const Part p = walk.next<TILE_M>(x, M, part + lane);
    const unsigned found = __ballot_sync(ALL, index < p.before + p.tiles);
    if (!found) continue;
    const int at = __ffs(found) - 1, number = part + at;
    const int inside = (int)index - __shfl_sync(ALL, p.before, at);
    return {number == 0 || number > x.count ? -1 : number - 1, __shfl_sync(ALL, p.begin, at) + inside * TILE_M,
            __shfl_sync(ALL, p.end, at)};
  }
  return {-2, 0, 0};
}

/* The experts' tiles alone, for who looks them up often: table[e] becomes how many there are before expert e's, and its
 * first row; table[count] how many there are, and the end of the rows. By one warp. */
template <int TILE_M> __device__ __forceinline__ void make_expert_table(int2 *table, const int4mm_experts &x, int M) {
  PartWalk walk;
  for (int part = 0; part <= x.count + 1; part += 32) {
    const int number = part + threadIdx.x % 32;
    const Part p = walk.next<TILE_M>(x, M, number, false);
    if (number > 0 && number <= x.count + 1) table[number - 1] = make_int2(p.before, p.begin);
  }
}

/* Results of rows of no expert, from first_row to `end` and of so many columns, by a CTA. */
__device__ __noinline__ void zero_tile(const EpilogueArguments &e, int first_row, int end, int first_column,
                                       int columns, int N) {
  const float zero[1] = {0};
  for (int row = first_row; row < end; row++)
    for (int i = threadIdx.x; i < columns; i += blockDim.x) int4mm_store(e, row, first_column + i, N, zero);
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
