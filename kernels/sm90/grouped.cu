/*
 * The launchers of grouped.cuh's kernels, whose instances are in a file for each kind of activations.
 */
#include "common/kernels.h"
#include "sm90/grouped_kinds.h"

namespace {

cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->a.even_odd) return int4mm_grouped_even_odd(problem, plan, stream);
  if (problem->a.dtype == INT4MM_INT8) return int4mm_grouped_w4a8(problem, plan, stream);
  return int4mm_grouped_w4a16(problem, plan, stream);
}

} // namespace

#define LAUNCHER(NAME)                                                                                                 \
  extern "C" cudaError_t int4mm_launch_##NAME(const int4mm_problem *problem, const int4mm_plan *plan,                  \
                                              cudaStream_t stream) {                                                   \
    return launch(problem, plan, stream);                                                                              \
  }
LAUNCHER(grouped_256x128)
LAUNCHER(grouped_128x128)
LAUNCHER(grouped_64x128)
LAUNCHER(grouped_64x64)
LAUNCHER(grouped_32x64)
