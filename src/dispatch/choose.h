/*
 * The choice of a CUDA kernel, for the core's own calls.
 */
#ifndef INT4MM_DISPATCH_CHOOSE_H
#define INT4MM_DISPATCH_CHOOSE_H

#include "int4mm.h"

/* int4mm_choose_cuda for a problem that is known to be valid, without the words of the reason, which cost more than the
 * choice. */
int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

#endif
