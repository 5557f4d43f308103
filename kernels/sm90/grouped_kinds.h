/*
 * The instances of grouped.cuh by kind of activations. The plan's tile tells which; cudaErrorNotSupported where there
 * is none for a problem.
 */
#ifndef INT4MM_GROUPED_KINDS_H
#define INT4MM_GROUPED_KINDS_H

#include "common/kernels.h"

int4mm_launch_fn int4mm_grouped_w4a8, int4mm_grouped_even_odd, int4mm_grouped_w4a16;

#endif
