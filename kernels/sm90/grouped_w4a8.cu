/* W4A8 with scales of every kind: grouped.cuh for int8 activations. */
#include "sm90/grouped.cuh"
#include "sm90/grouped_kinds.h"

cudaError_t int4mm_grouped_w4a8(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  return launch_bytes<W4A8>(problem, plan, stream);
}
