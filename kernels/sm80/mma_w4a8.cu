/*
 * mma for int8 activations.
 */
#include "sm80/mma_kinds.h"
#include "sm80/mma_mainloop.cuh"

namespace {

/* A zero point for each column and factors share a form: the int8 that they make of B differ by column and segment. */
template <bool NK>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  const bool large = plan->tile_m == 128;
  if (b->group_scales.data && b->group == 128 && !b->zeros.data && large)
    return launch<Tile<Bytes<PLAIN>, 128, 128, 64, 32, 1, 128, 3, 1, NK, true, 128, false, true>>(problem, plan,
                                                                                                  stream);
  if (b->group_scales.data && (b->groups == 1 || b->group % 128 == 0))
    return large ? launch<Tile<Bytes<ZEROS>, 128, 128, 64, 32, 1, 128, 3, 1, NK, true, 128>>(problem, plan, stream)
                 : launch<Tile<Bytes<ZEROS>, 64, 64, 32, 32, 1, 128, 3, 2, NK, true, 128>>(problem, plan, stream);
  if (b->group_scales.data && b->group * Bytes<ZEROS>::SUM_LIMIT >= 1 << 22) return cudaErrorNotSupported;
  if (b->group_scales.data)
    return large ? launch<Tile<Bytes<ZEROS>, 128, 128, 64, 32, 1, 128, 3, 1, NK, true>>(problem, plan, stream)
                 : launch<Tile<Bytes<ZEROS>, 64, 64, 32, 32, 1, 128, 3, 2, NK, true>>(problem, plan, stream);
  if (b->factors.data || b->zeros.data)
    return large ? launch<Tile<Bytes<AFFINE>, 128, 128, 64, 32, 1, 128, 3, 1, NK>>(problem, plan, stream)
                 : launch<Tile<Bytes<AFFINE>, 64, 64, 32, 32, 1, 128, 3, 2, NK>>(problem, plan, stream);
  if (plan->tile_n == 256)
    return launch<Tile<Bytes<PLAIN>, 128, 256, 128, 32, 1, 128, 3, 1, NK>>(problem, plan, stream);
  return large ? launch<Tile<Bytes<PLAIN>, 128, 128, 64, 64, 1, 128, 2, 2, NK>>(problem, plan, stream)
               : launch<Tile<Bytes<PLAIN>, 64, 64, 32, 32, 1, 128, 4, 2, NK>>(problem, plan, stream);
}

} // namespace

cudaError_t int4mm_mma_w4a8(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const bool tile = (plan->tile_m == 128 && plan->tile_n >= 128) || (plan->tile_m == 64 && plan->tile_n == 64);
  if (!tile || problem->a.dtype != INT4MM_INT8) return cudaErrorNotSupported;
  return problem->b.layout == INT4MM_K_MAJOR ? launch_tile<true>(problem, plan, stream)
                                             : launch_tile<false>(problem, plan, stream);
}
