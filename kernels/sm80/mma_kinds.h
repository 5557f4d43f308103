/*
 * mma for operands of every kind but W4A4 with a scale for each column: a file for each kind of activations. The plan's
 * tile tells which; cudaErrorNotSupported where there is none for a problem.
 */
#ifndef INT4MM_MMA_KINDS_H
#define INT4MM_MMA_KINDS_H

#include "common/kernels.h"

int4mm_launch_fn int4mm_mma_w4a8, int4mm_mma_w4a16;

/* int4 activations with group scales, on int4 tensor cores. */
int4mm_launch_fn int4mm_mma_w4a4_groups;

#endif
