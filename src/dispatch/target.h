/*
 * The choice of where a product runs: on the CPU or on which GPU.
 */
#ifndef INT4MM_DISPATCH_TARGET_H
#define INT4MM_DISPATCH_TARGET_H

#include "cuda/table.h"

typedef struct int4mm_dispatch_target {
  const int4mm_cuda_backend *cuda; /* NULL: the CPU */
  int32_t device;
  bool may_fall_back; /* the GPU was a choice of ours: where it has no memory or cannot run it, the CPU serves */
  const char *reason; /* of that choice; NULL where the arguments left none */
} int4mm_dispatch_target;

/* For arguments that were found valid, of a product of these sizes. INT4MM_ERR_UNAVAILABLE where a GPU was asked for
 * and there is none. */
int32_t int4mm_choose_target(const int4mm_matmul_args *args, int64_t M, int64_t N, int64_t K,
                             int4mm_dispatch_target *target);

#endif
