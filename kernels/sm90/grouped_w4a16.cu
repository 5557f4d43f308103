/* W4A16: grouped.cuh for float16 and bfloat16 activations. */
#include "sm90/grouped.cuh"
#include "sm90/grouped_kinds.h"

namespace {

template <int KIND>
cudaError_t launch_kind(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (plan->tile_m == 256)
    return launch_tile<KIND, 256, 1, 128, INT4MM_TILE(grouped_256x128, STAGES)>(problem, plan, stream);
  if (plan->tile_m == 128)
    return launch_tile<KIND, 128, 1, 128, INT4MM_TILE(grouped_128x128, STAGES)>(problem, plan, stream);
  if (plan->tile_m == 32)
    return launch_tile<KIND, 32, 1, 32, INT4MM_TILE(grouped_32x64, STAGES), 4>(problem, plan, stream);
  if (plan->tile_n == 64)
    return launch_tile<KIND, 64, 1, 64, INT4MM_TILE(grouped_64x64, STAGES), 3>(problem, plan, stream);
  if (plan->tile_m == 64)
    return launch_tile<KIND, 64, 1, 64, INT4MM_TILE(grouped_64x128, STAGES)>(problem, plan, stream);
  return cudaErrorNotSupported;
}

} // namespace

cudaError_t int4mm_grouped_w4a16(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->a.dtype == INT4MM_FLOAT16) return launch_kind<W4A16_HALF>(problem, plan, stream);
  if (problem->a.dtype == INT4MM_BFLOAT16) return launch_kind<W4A16_BFLOAT>(problem, plan, stream);
  return cudaErrorNotSupported;
}
