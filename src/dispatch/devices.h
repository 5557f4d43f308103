/*
 * The core's devices over their backends, and the order between tensors and streams.
 */
#ifndef INT4MM_DISPATCH_DEVICES_H
#define INT4MM_DISPATCH_DEVICES_H

#include "cuda/table.h"

/* Before work that touches these tensors (NULLs are skipped) goes to `stream` of a GPU: orders their allocation and
 * what the default stream was given before it, and their release after it. `non_blocking`, if not NULL, receives
 * whether the default stream does not wait for the stream and it captures nothing: then the work has to be recorded. */
int32_t int4mm_use_on_stream(const int4mm_cuda_backend *cuda, int32_t device, void *stream,
                             const int4mm_tensor *const *tensors, int count, bool *non_blocking);

#endif
