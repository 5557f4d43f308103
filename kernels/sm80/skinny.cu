/*
 * Launching skinny: W4A4 with a scale for each column here, all else in skinny_general.cu.
 */
#include <string.h>

#include "common/kernels.h"
#include "sm80/skinny.cuh"
#include "sm80/skinny_general.h"

namespace {

/* EXPERTS: there is code for grouped products. */
template <class S, bool EXPERTS = false>
cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream, OwnRows own = {}) {
  SkinnyArguments p = {};
  p.own = own;
  p.a = problem->a.words, p.b = problem->b.words, p.lda = problem->a.stride, p.ldb = problem->b.stride;
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)(problem->K / 8);
  set_warps(&p, plan);
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask;
  p.epilogue = int4mm_epilogue_arguments(problem, CHUNK_WORDS);
  set_rotation(&p, S::BLOCKS * BLOCK_WORDS);
  const int warps = p.warps_n * p.warps_k;
  size_t shared = (size_t)warps * S::WARP_BYTES + (S::OWN_CHUNKS ? own_bytes(own, p.words) : 0);
  if constexpr (S::OWN_CHUNKS > 0) {
    int most;
    cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, plan->device);
    if (error != cudaSuccess) return error;
    if (shared > (size_t)most) return cudaErrorNotSupported;
  }
  return launch_grid<S, EXPERTS>(problem, p, shared, plan->device, stream);
}

/* k-blocks of a stage: two of an aligned [N, K/8]. */
template <int ROWS, bool NK> constexpr int stage_blocks() {
  return NK && ROWS <= 16 ? INT4MM_SKINNY_NK_BLOCKS : 1;
}

template <int ROWS, int STAGES, bool LAYER, bool NK>
cudaError_t launch_aligned(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  /* CTAs of one stripe would all read the same rows of A from L2 at once: rotated, 1 x 4096 x 4096 takes 4.1 us, not
   * 4.5. With several stripes to a CTA rotation costs more than it gains. */
  constexpr int MAX_ROTATED_ROWS = LAYER ? 8 : 16; /* a layer of 16 has no registers left for it */
  constexpr int BLOCKS = stage_blocks<ROWS, NK>();
  constexpr int DEPTH = BLOCKS > 1 ? STAGES : INT4MM_SKINNY_ROTATED_STAGES;
  if constexpr (ROWS <= MAX_ROTATED_ROWS)
    if (plan->tile_n == COLUMNS)
      return launch<Shape<ROWS, DEPTH, LAYER, NK, true, false, true, 0, BLOCKS>>(problem, plan, stream);
  return launch<Shape<ROWS, STAGES, LAYER, NK, true, false, false, 0, BLOCKS>>(problem, plan, stream);
}

/* The depth that src/dispatch/cost_sm80.c plans with. */
template <int ROWS, int STAGES, bool NK>
cudaError_t launch_rows(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  constexpr int GENERAL = INT4MM_SKINNY_GENERAL_STAGES, DEPTH = NK && ROWS <= 16 ? INT4MM_SKINNY_NK_STAGES : STAGES;
  bool aligned = (((uint64_t)problem->a.words | (uint64_t)problem->b.words) % 16 |
                  (uint64_t)(problem->a.stride | problem->b.stride) % 4) == 0;
  /* Where speed depends on other things, as with more than 16 rows, one code serves layers and bare products. It also
   * serves a wide K and any alignment of [N, K/8]: a K for which its rows start off 16 bytes is rare. */
  if (problem->K >= INT4MM_WIDE_K || (NK && !aligned))
    return launch<Shape<ROWS, GENERAL, true, NK, false, true>>(problem, plan, stream);
  if constexpr (!NK)
    if (!aligned) return launch<Shape<ROWS, GENERAL, true, NK, false, false>>(problem, plan, stream);
  if (problem->experts.count) /* fewer instances: one serves layers and bare products */
    return launch<Shape<ROWS, DEPTH, true, NK, true, false, false, 0, stage_blocks<ROWS, NK>()>, true>(problem, plan,
                                                                                                       stream);
  if constexpr (ROWS <= 16)
    if (!int4mm_is_layer(problem)) return launch_aligned<ROWS, DEPTH, false, NK>(problem, plan, stream);
  return launch_aligned<ROWS, DEPTH, true, NK>(problem, plan, stream);
}

} // namespace

#define LAUNCHER(ROWS)                                                                                                 \
  extern "C" cudaError_t int4mm_launch_skinny_##ROWS(const int4mm_problem *problem, const int4mm_plan *plan,           \
                                                     cudaStream_t stream) {                                            \
    static_assert(ROWS == INT4MM_TILE(skinny_##ROWS, M), "the registry has another size");                             \
    constexpr int STAGES = INT4MM_TILE(skinny_##ROWS, STAGES);                                                         \
    if (!int4mm_is_elementary(problem)) return int4mm_launch_skinny_general(ROWS, problem, plan, stream);              \
    return problem->b.layout == INT4MM_K_MAJOR ? launch_rows<ROWS, STAGES, true>(problem, plan, stream)                \
                                               : launch_rows<ROWS, STAGES, false>(problem, plan, stream);              \
  }
LAUNCHER(8)
LAUNCHER(16)
LAUNCHER(32)
LAUNCHER(64)

/* A layer whose CTAs make their A, each warp by CHUNKS. There is one to an SM, and B's first stages are on their way
 * meanwhile. Where a CTA has several stripes two chunks take as long as a kernel ahead of this one. */
template <int CHUNKS, bool NK>
cudaError_t launch_own(const int4mm_pack_job *quantize, const int4mm_problem *problem, const int4mm_plan *plan,
                       cudaStream_t stream) {
  constexpr int STAGES = CHUNKS == 1 ? 4 : 3;
  const int warps_n = plan->tile_n / COLUMNS, warps = warps_n * (plan->tile_k / INT4MM_BLOCK_K);
  OwnRows own;
  if (!plan_own_rows(&own, quantize, WARP_VALUES / 2 * CHUNKS, warps)) return cudaErrorNotSupported;
  if (warps_n == 1) return launch<Shape<8, STAGES, true, NK, true, false, true, CHUNKS>>(problem, plan, stream, own);
  constexpr int BLOCKS = stage_blocks<8, NK>();
  if constexpr (CHUNKS == 1)
    return launch<Shape<8, STAGES / BLOCKS, true, NK, true, false, false, CHUNKS, BLOCKS>>(problem, plan, stream, own);
  return cudaErrorNotSupported;
}

template <bool NK>
cudaError_t launch_own_of(const int4mm_pack_job *quantize, const int4mm_problem *problem, const int4mm_plan *plan,
                          cudaStream_t stream) {
  cudaError_t error = launch_own<1, NK>(quantize, problem, plan, stream);
  return error == cudaErrorNotSupported ? launch_own<2, NK>(quantize, problem, plan, stream) : error;
}

extern "C" cudaError_t int4mm_launch_own_skinny(const int4mm_pack_job *quantize, const int4mm_problem *problem,
                                                const int4mm_plan *plan, cudaStream_t stream) {
  const bool aligned = (uint64_t)problem->b.words % 16 == 0 && problem->b.stride % 4 == 0;
  if (strcmp(plan->name, "skinny_8") || problem->M > 8 || problem->K >= INT4MM_WIDE_K || !aligned)
    return cudaErrorNotSupported;
  int sms;
  cudaError_t error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, plan->device);
  if (error != cudaSuccess) return error;
  if (plan->ctas > sms) return cudaErrorNotSupported; /* those that come after others would each do it anew */
  return problem->b.layout == INT4MM_K_MAJOR ? launch_own_of<true>(quantize, problem, plan, stream)
                                             : launch_own_of<false>(quantize, problem, plan, stream);
}

extern "C" cudaError_t int4mm_code_arch(int32_t *arch) {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(
      &attributes, (const void *)skinny<Shape<8, INT4MM_TILE(skinny_8, STAGES), false, false, true, false>>);
  *arch = 75; /* where this file has no code, only the kernels for every architecture can be taken */
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction) {
    (void)cudaGetLastError();
    return cudaSuccess;
  }
  if (error == cudaSuccess) *arch = attributes.ptxVersion;
  return error;
}
