/* W4A8 with scales of every kind: grouped.cuh for int8 activations. */
#include "sm90/grouped.cuh"
#include "sm90/grouped_kinds.h"

namespace {

cudaError_t launch_groups(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (plan->tile_m == 256) return launch_tile<W4A8, 256, 1, 128, 5>(problem, plan, stream);
  if (plan->tile_m == 128) return launch_tile<W4A8, 128, 1, 128, 8>(problem, plan, stream);
  if (plan->tile_m == 32)
    return launch_tile<W4A8, 32, 1, 32, INT4MM_TILE(grouped_32x64, STAGES), 4, 2>(problem, plan, stream);
  if (plan->tile_n == 64) return launch_tile<W4A8, 64, 1, 64, 14, 3, 2>(problem, plan, stream);
  if (plan->tile_m == 64)
    return launch_tile<W4A8, 64, 1, 64, INT4MM_TILE(grouped_64x128, STAGES)>(problem, plan, stream);
  return cudaErrorNotSupported;
}

} // namespace

cudaError_t int4mm_grouped_w4a8(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->b.group_scales.data) return launch_groups(problem, plan, stream);
  if (plan->tile_m == 256) return launch_columns<256, 5>(problem, plan, stream);
  if (plan->tile_m == 128) return launch_columns<128, 9>(problem, plan, stream);
  return cudaErrorNotSupported;
}
