/* W4A8 with group scales: grouped.cuh for int8 activations. */
#include "sm90/grouped.cuh"
#include "sm90/grouped_kinds.h"

cudaError_t int4mm_grouped_w4a8(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (plan->tile_m == 256) return launch_tile<W4A8, 256, 1, 128, 5>(problem, plan, stream);
  if (plan->tile_n == 64)
    return launch_tile<W4A8, 64, 1, 64, INT4MM_TILE(grouped_64x64, STAGES), 1>(problem, plan, stream);
  if (plan->tile_m == 64)
    return launch_tile<W4A8, 64, 1, 64, INT4MM_TILE(grouped_64x128, STAGES)>(problem, plan, stream);
  return cudaErrorNotSupported;
}
