/*
 * mma for float16 and bfloat16 activations.
 */
#include "sm80/mma_kinds.h"
#include "sm80/mma_mainloop.cuh"

namespace {

template <class POLICY, bool NK, int SEGMENT>
cudaError_t launch_groups(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (plan->tile_m == 128)
    return launch<Tile<POLICY, 128, 128, 64, 32, 1, 64, 4, 1, NK, true, SEGMENT>>(problem, plan, stream);
  return launch<Tile<POLICY, 64, 64, 32, 32, 1, 64, 4, 2, NK, true, SEGMENT>>(problem, plan, stream);
}

template <class POLICY, bool NK>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  if (b->group_scales.data || problem->K > INT4MM_MMA_LONG_K)
    return b->groups == 1 || b->group % 64 == 0 ? launch_groups<POLICY, NK, 64>(problem, plan, stream)
                                                : launch_groups<POLICY, NK, 32>(problem, plan, stream);
  if (plan->tile_n == 256) return launch<Tile<POLICY, 128, 256, 128, 32, 1, 64, 4, 1, NK>>(problem, plan, stream);
  if (plan->tile_m == 128) return launch<Tile<POLICY, 128, 128, 128, 32, 1, 64, 2, 2, NK>>(problem, plan, stream);
  return launch<Tile<POLICY, 64, 64, 32, 32, 1, 64, 4, 2, NK>>(problem, plan, stream);
}

template <class POLICY>
cudaError_t launch_layout(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  return problem->b.layout == INT4MM_K_MAJOR ? launch_tile<POLICY, true>(problem, plan, stream)
                                             : launch_tile<POLICY, false>(problem, plan, stream);
}

} // namespace

cudaError_t int4mm_mma_w4a16(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const bool tile = (plan->tile_m == 128 && plan->tile_n >= 128) || (plan->tile_m == 64 && plan->tile_n == 64);
  if (!tile || problem->b.factors.data) return cudaErrorNotSupported;
  switch (problem->a.dtype) {
  case INT4MM_FLOAT16:
    return launch_layout<Floats<false>>(problem, plan, stream);
  case INT4MM_BFLOAT16:
    return launch_layout<Floats<true>>(problem, plan, stream);
  default:
    return cudaErrorNotSupported;
  }
}
