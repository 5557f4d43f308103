/*
 * The end of a product whose K CTAs share without a cluster: each has left the sums of its part in scratch memory,
 * [parts, M, N], and this kernel adds them, exact in any order, and finishes the outputs.
 *
 * It waits for the product as any kernel does for the one before it in its stream. CTAs that count who is the last at
 * a tile, and so adds, would spare this launch; but their counters have to be zero at the start of every launch, of
 * which a graph or another stream may have several under way, and zeroing them is a launch as well.
 */
#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"

namespace {

constexpr int THREADS = 128, COUNT = 4; /* columns of a thread */
constexpr int AHEAD = 8;                /* parts that are loaded together */

struct SumsArguments {
  const int32_t *sums;
  int64_t ld, part; /* elements from row to row, from part to part */
  int parts, N;
  unsigned threads, count; /* of a row, of all rows: K is shared where tiles are few */
  float unscale;
  EpilogueArguments epilogue;
};

__device__ __forceinline__ void add(int32_t (&sums)[COUNT], int4 x) {
  sums[0] += x.x, sums[1] += x.y, sums[2] += x.z, sums[3] += x.w;
}

__global__ void __launch_bounds__(THREADS) add_sums(const __grid_constant__ SumsArguments p) {
  const unsigned i = blockIdx.x * THREADS + threadIdx.x;
  const int64_t row = i / p.threads, column = i % p.threads * COUNT;
  const int32_t *from = p.sums + row * p.ld + column;
  int32_t sums[COUNT] = {};
  float scale_b[COUNT], bias[COUNT];
  if (i >= p.count) return;
  ptx::griddepcontrol_wait();
  const float scale_a = __ldg(p.epilogue.scale_a + row);
#pragma unroll
  for (int j = 0; j < COUNT; j++) scale_b[j] = column + j < p.N ? __ldg(p.epilogue.scale_b + column + j) : 0;
  int4mm_load_bias(bias, p.epilogue, column, (int64_t)p.N);
  for (int part = 0; part < p.parts; part += AHEAD) {
    int4 x[AHEAD];
#pragma unroll
    for (int j = 0; j < AHEAD; j++)
      x[j] = part + j < p.parts ? __ldcs((const int4 *)(from + (part + j) * p.part)) : int4{};
#pragma unroll
    for (int j = 0; j < AHEAD; j++) add(sums, x[j]);
  }
  ptx::griddepcontrol_launch_dependents();
  int4mm_finish<true>(p.epilogue, row, column, (int64_t)p.N, p.unscale, scale_a, scale_b, bias, sums);
}

} // namespace

cudaError_t int4mm_launch_add_sums(const int4mm_problem *problem, const int4mm_plan *plan, int parts, float unscale,
                                   cudaStream_t stream) {
  SumsArguments p = {};
  p.sums = problem->sums, p.ld = int4mm_sums_stride(problem->N), p.part = problem->M * p.ld;
  p.parts = parts, p.N = (int)problem->N, p.unscale = unscale;
  p.threads = (unsigned)((problem->N + COUNT - 1) / COUNT), p.count = (unsigned)problem->M * p.threads;
  p.epilogue = int4mm_epilogue_arguments(problem, COUNT);
  const dim3 grid(int4mm_blocks(p.count, THREADS));
  return int4mm_launch<add_sums>(plan->device, grid, THREADS, 0, dim3(1), stream, p);
}
