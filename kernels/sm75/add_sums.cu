/*
 * The end of a product whose CTAs share the K of tiles without a cluster: each has left the sums of its part in scratch
 * memory, [parts, tiles, rows of a tile, columns of a tile], and this kernel adds them, exact in any order, and
 * finishes these tiles' outputs.
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

struct SumsArguments {
  const int32_t *sums;
  int64_t part, tile; /* elements from part to part, from tile to tile */
  int parts, M, N;
  unsigned first_tile, tiles_m, tiles_n; /* of the sums; all of the output */
  unsigned tile_m, tile_n;
  int log_quads; /* log2 of COUNTs of a tile's row, a power of two: a division costs as much as the rest of the kernel
                  */
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

/* SHARES lanes of a warp have the same columns and each a share of the parts; blockIdx.y is the tile, of which there
 * are at most two for each SM. */
template <int SHARES> __global__ void __launch_bounds__(THREADS) add_sums(const __grid_constant__ SumsArguments p) {
  constexpr int QUADS = 32 / SHARES; /* of a warp, neighbours */
  const unsigned lane = threadIdx.x % 32, warp = blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
  const unsigned mine = warp * QUADS + lane % QUADS, sum_row = mine >> p.log_quads;
  const TileCoord at = tile_coord(p.first_tile + blockIdx.y, p.tiles_m, p.tiles_n, p.tile_m, p.tile_n);
  const int64_t row = at.row + sum_row, column = at.column + (mine - (sum_row << p.log_quads)) * COUNT, N = p.N;
  const bool inside = mine < (unsigned)p.tile / COUNT && row < p.M && column < N;
  int32_t sums[COUNT] = {};
  float scale_b[COUNT], bias[COUNT];
  ptx::griddepcontrol_wait();
  const float scale_a = inside ? __ldg(p.epilogue.scale_a + row) : 0;
#pragma unroll
  for (int j = 0; j < COUNT; j++) scale_b[j] = inside && column + j < N ? __ldg(p.epilogue.scale_b + column + j) : 0;
  int4mm_load_bias(bias, p.epilogue, column, inside ? N : column); /* outside, of no column */
  if (inside) add_share<SHARES>(sums, p, p.sums + blockIdx.y * p.tile + mine * COUNT, lane / QUADS);
  ptx::griddepcontrol_launch_dependents();
#pragma unroll
  for (int j = 0; j < COUNT; j++)
    for (int other = QUADS; other < 32; other *= 2) sums[j] += __shfl_xor_sync(0xffffffffu, sums[j], other);
  if (inside && lane < QUADS) int4mm_finish<true>(p.epilogue, row, column, N, p.unscale, scale_a, scale_b, bias, sums);
}

template <int SHARES> cudaError_t launch(const SumsArguments &p, int tiles, int device, cudaStream_t stream) {
  const dim3 grid(int4mm_blocks(p.tile / COUNT, THREADS / SHARES), (unsigned)tiles);
  return int4mm_launch<add_sums<SHARES>>(device, grid, THREADS, 0, dim3(1), stream, p);
}

} // namespace

cudaError_t int4mm_launch_add_sums(const int4mm_problem *problem, const int4mm_plan *plan, int parts, float unscale,
                                   cudaStream_t stream) {
  SumsArguments p = {};
  const int tile_m = plan->tile_m, tile_n = plan->tile_n, M = (int)problem->M, N = (int)problem->N;
  const int tiles_m = (M + tile_m - 1) / tile_m, tiles_n = (N + tile_n - 1) / tile_n;
  const int tiles = tiles_m * tiles_n - plan->whole_tiles;
  p.sums = problem->sums, p.parts = parts, p.M = M, p.N = N, p.unscale = unscale;
  p.first_tile = plan->whole_tiles, p.tiles_m = tiles_m, p.tiles_n = tiles_n, p.tile_m = tile_m, p.tile_n = tile_n;
  while (COUNT << p.log_quads < tile_n) p.log_quads++;
  p.tile = (int64_t)int4mm_sum_rows(problem, plan) * tile_n, p.part = p.tile * tiles;
  p.epilogue = int4mm_epilogue_arguments(problem, COUNT);
  return parts > AHEAD ? launch<4>(p, tiles, plan->device, stream) : launch<1>(p, tiles, plan->device, stream);
}
