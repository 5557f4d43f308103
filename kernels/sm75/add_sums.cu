/*
 * The end of a product whose CTAs share the K of tiles without a cluster: each has left the sums of its part in scratch
 * memory (int4mm_sums_stride), and this kernel adds them, exact in any order, and finishes these tiles' outputs.
 *
 * It waits for the product as any kernel does for the one before it in its stream. CTAs that count who is the last at
 * a tile, and so adds, would spare this launch; but their counters have to be zero at the start of every launch, of
 * which a graph or another stream may have several under way, and zeroing them is a launch as well.
 */
#include "common/bands.cuh"
#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"

namespace {

constexpr int THREADS = 128, COUNT = 4; /* columns of a thread */
constexpr int AHEAD = 4;                /* parts that a lane loads together */

/* Areas of sums, rows by columns: tiles behind whole waves of them, or all of the output. */
struct SumsArguments {
  const int32_t *sums;
  int64_t part, area, row; /* elements from part to part, from area to area, from row to row */
  int parts, M, N;
  int rows, columns;                     /* of an area; of a tile both are powers of two */
  unsigned first_tile, tiles_m, tiles_n; /* the first area; all of the output */
  int log_quads; /* log2 of COUNTs of a CTA's row, a power of two: a division costs as much as the rest of the kernel */
  float unscale;
  EpilogueArguments epilogue;
};

/* Adds COUNT columns of every SHARESth part from `part` on. */
template <int SHARES>
__device__ __forceinline__ void add_share(int32_t (&sums)[COUNT], const SumsArguments &p, const int32_t *from,
                                          int part) {
  for (; part < p.parts; part += AHEAD * SHARES) {
    int4 x[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
      x[j] = part + j * SHARES < p.parts ? __ldcs((const int4 *)(from + (part + j * SHARES) * p.part)) : int4{};
#pragma unroll
    for (int j = 0; j < AHEAD; j++) sums[0] += x[j].x, sums[1] += x[j].y, sums[2] += x[j].z, sums[3] += x[j].w;
  }
}

/* SHARES lanes of a warp have the same columns and each a share of the parts. blockIdx.z is the area, y its rows: at
 * most 256 for each SM, which has less than two tiles. */
template <int SHARES> __global__ void __launch_bounds__(THREADS) add_sums(const __grid_constant__ SumsArguments p) {
  constexpr int QUADS = 32 / SHARES; /* of a warp, neighbours */
  const int lane = threadIdx.x % 32, mine = threadIdx.x / 32 * QUADS + lane % QUADS;
  const int sum_row = blockIdx.y * (THREADS / SHARES >> p.log_quads) + (mine >> p.log_quads);
  const int sum_column = ((blockIdx.x << p.log_quads) + (mine & (1 << p.log_quads) - 1)) * COUNT;
  TileCoord at = {0, 0};
  if (p.first_tile)
    at = tile_coord(p.first_tile + blockIdx.z, p.tiles_m, p.tiles_n, (unsigned)p.rows, (unsigned)p.columns);
  const int64_t row = at.row + sum_row, column = at.column + sum_column, N = p.N;
  const bool inside = row < p.M && column < N;
  int32_t sums[COUNT] = {};
  float scale_b[COUNT], bias[COUNT];
  ptx::griddepcontrol_wait();
  const float scale_a = inside ? __ldg(p.epilogue.scale_a + row) : 0;
#pragma unroll
  for (int j = 0; j < COUNT; j++) scale_b[j] = inside && column + j < N ? __ldg(p.epilogue.scale_b + column + j) : 0;
  int4mm_load_bias(bias, p.epilogue, column, inside ? N : column); /* outside, of no column */
  if (inside) add_share<SHARES>(sums, p, p.sums + blockIdx.z * p.area + sum_row * p.row + sum_column, lane / QUADS);
  ptx::griddepcontrol_launch_dependents();
#pragma unroll
  for (int j = 0; j < COUNT; j++)
    for (int other = QUADS; other < 32; other *= 2) sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], other);
  if (inside && lane < QUADS) int4mm_finish<true>(p.epilogue, row, column, N, p.unscale, scale_a, scale_b, bias, sums);
}

template <int SHARES> cudaError_t launch(SumsArguments &p, int areas, int device, cudaStream_t stream) {
  constexpr int LANES = THREADS / SHARES;
  while (1 << p.log_quads < LANES && COUNT << p.log_quads < p.columns) p.log_quads++;
  const dim3 grid(int4mm_blocks(p.columns, COUNT << p.log_quads), int4mm_blocks(p.rows, LANES >> p.log_quads), areas);
  return int4mm_launch<add_sums<SHARES>>(device, grid, THREADS, 0, dim3(1), stream, p);
}

} // namespace

cudaError_t int4mm_launch_add_sums(const int4mm_problem *problem, const int4mm_plan *plan, int parts, float unscale,
                                   cudaStream_t stream) {
  SumsArguments p = {};
  const int M = (int)problem->M, N = (int)problem->N;
  const bool tiles = plan->whole_tiles > 0;
  p.sums = problem->sums, p.parts = parts, p.M = M, p.N = N, p.unscale = unscale;
  p.rows = tiles ? plan->tile_m : M, p.columns = tiles ? plan->tile_n : N;
  p.tiles_m = (M + plan->tile_m - 1) / plan->tile_m, p.tiles_n = (N + plan->tile_n - 1) / plan->tile_n;
  p.first_tile = plan->whole_tiles;
  const int areas = tiles ? p.tiles_m * p.tiles_n - plan->whole_tiles : 1;
  p.row = int4mm_sums_stride(problem, plan), p.area = int4mm_sum_rows(problem, plan) * p.row, p.part = p.area * areas;
  p.epilogue = int4mm_epilogue_arguments(problem, COUNT);
  return parts > AHEAD ? launch<4>(p, areas, plan->device, stream) : launch<1>(p, areas, plan->device, stream);
}
