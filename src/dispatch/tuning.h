/*
 * Kernels that timing found the fastest, which come before the estimates' choice.
 */
#ifndef INT4MM_DISPATCH_TUNING_H
#define INT4MM_DISPATCH_TUNING_H

#include <stdbool.h>

#include "cuda/table.h"

/* The kernel of int4mm_set_tuning for a problem on this device, NULL where it has none. */
const char *int4mm_tuned_kernel(const int4mm_gpu_traits *gpu, const int4mm_gpu_problem *p);
/* Whether what was set is of another GPU or architecture. */
bool int4mm_is_tuned_elsewhere(const int4mm_gpu_traits *gpu);

#endif
