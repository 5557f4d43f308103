/*
 * The core's devices over their backends, and the order between tensors and streams.
 */
#ifndef INT4MM_DISPATCH_DEVICES_H
#define INT4MM_DISPATCH_DEVICES_H

#include "cuda/table.h"

/* Before work that touches these tensors (16 at most, NULLs are skipped) goes to `stream` of a GPU: orders their
 * allocation and what the default stream was given before it, and their release after it; where it captures a graph of
 * int4mm_graph_begin, the graph keeps them. `non_blocking`, if not NULL, receives
 * whether the default stream does not wait for the stream and it captures nothing: then the work has to be recorded. */
int32_t int4mm_use_on_stream(const int4mm_cuda_backend *cuda, int32_t device, void *stream,
                             const int4mm_tensor *const *tensors, int count, bool *non_blocking);

/* Before work that touches these storages of the device (NULLs are skipped) goes to a non-blocking stream with this id:
 * has it wait for what the default stream was given, where it has not done so for one of them. */
int32_t int4mm_join_storages(const int4mm_cuda_backend *cuda, int32_t device, void *stream, uint64_t stream_id,
                             int4mm_storage *const *storages, size_t count);

#endif
