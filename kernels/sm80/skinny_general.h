/*
 * The skinny products that are not W4A4 with a scale for each column.
 */
#ifndef INT4MM_SKINNY_GENERAL_H
#define INT4MM_SKINNY_GENERAL_H

#include <cuda_runtime_api.h>

#include "core/problem.h"

/* Of so many rows to a CTA. cudaErrorNotSupported: another kernel must. */
cudaError_t int4mm_launch_skinny_general(int rows, const int4mm_problem *problem, const int4mm_plan *plan,
                                         cudaStream_t stream);

#endif
