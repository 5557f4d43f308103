/*
 * The choice of a CUDA kernel, for the core's own calls.
 */
#ifndef INT4MM_DISPATCH_CHOOSE_H
#define INT4MM_DISPATCH_CHOOSE_H

#include "int4mm.h"

/* int4mm_plan.kernel for a CUDA plan: which launcher takes it. */
typedef enum int4mm_cuda_kernel {
  INT4MM_KERNEL_SIMPLE = 0, /* a thread per output */
  INT4MM_KERNEL_TILED = 1,  /* 16 x 16 tiles through shared memory, dp4a */
  INT4MM_KERNEL_STREAM = 2, /* small M: weights streamed through registers, mma.sync (sm_80 on) */
  INT4MM_KERNEL_HOPPER = 3, /* large M: int8 wgmma fed by an unpack (sm_90a) */
  INT4MM_KERNEL_NARROW = 4  /* middling M, small squares: the same in narrow tiles */
} int4mm_cuda_kernel;

/* int4mm_choose_cuda without the words of the reason, which cost more than the choice. */
int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

#endif
