/*
 * mma for int4 activations with group scales, where int4 tensor cores are native.
 */
#include "sm80/mma_kinds.h"
#include "sm80/mma_mainloop.cuh"

namespace {

template <bool NK>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (plan->tile_m == 128)
    return launch<Tile<Int4<true>, 128, 128, 64, 32, 1, 256, 2, 1, NK, true>>(problem, plan, stream);
  return launch<Tile<Int4<true>, 64, 64, 32, 32, 1, 128, 4, 2, NK, true>>(problem, plan, stream);
}

} // namespace

cudaError_t int4mm_mma_w4a4_groups(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  const bool tile = (plan->tile_m == 128 && plan->tile_n == 128) || (plan->tile_m == 64 && plan->tile_n == 64);
  if (!tile || !b->group_scales.data || b->zeros.data || (b->groups > 1 && b->group % 64)) return cudaErrorNotSupported;
  if ((b->groups > 1 ? b->group : problem->K) * Int4<true>::SUM_LIMIT >= 1 << 22) return cudaErrorNotSupported;
  return b->layout == INT4MM_K_MAJOR ? launch_tile<true>(problem, plan, stream)
                                     : launch_tile<false>(problem, plan, stream);
}
