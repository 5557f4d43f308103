/* The same as grouped_w4a8.cu for activations in even-odd order. */
#include "sm90/grouped.cuh"
#include "sm90/grouped_kinds.h"

cudaError_t int4mm_grouped_even_odd(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  return launch_bytes<W4A8_EVEN_ODD>(problem, plan, stream);
}
