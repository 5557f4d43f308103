/*
 * What the files of the CUDA library's host side share. Every function that the table offers returns an int4mm_status
 * and leaves the caller's current context, capture mode and last CUDA error as they were; a thread without a context
 * may be left with that of device 0, which CUDA would give it anyway.
 */
#ifndef INT4MM_CUDA_BACKEND_H
#define INT4MM_CUDA_BACKEND_H

#include <cuda_runtime_api.h>

#include "cuda/table.h"

enum { INT4MM_CUDA_DEVICES = 64, INT4MM_CUDA_OLDEST_ARCH = 75 };

/* The core's int4mm_fail, given by open(). */
extern int32_t (*int4mm_cuda_fail)(int32_t status, const char *format, ...);

/* OK for cudaSuccess; else clears CUDA's last error and fails with "cannot <doing>: <CUDA's words>". */
int32_t int4mm_cuda_check(cudaError_t error, const char *doing);

/* ---- contexts (context.c) ---- */

/* Finds the driver functions that contexts and addresses are asked through; the driver is loaded already. */
int32_t int4mm_cuda_open_driver(int32_t (*fail)(int32_t status, const char *format, ...));

/* A device this process has used. */
typedef struct int4mm_cuda_device {
  char name[128];
  int4mm_gpu_traits traits;
  cudaMemPool_t pool;        /* NULL where the device has no pools: plain cudaMalloc */
  cudaEvent_t default_event; /* for stream_join */
} int4mm_cuda_device;

/* While a call works: `device` current and unsafe calls allowed beside a graph capture of the caller's. */
typedef struct int4mm_cuda_scope {
  bool restore;  /* `context`, the caller's, NULL for none, has to be made current again */
  void *context; /* a CUcontext */
  enum cudaStreamCaptureMode mode;
  const int4mm_cuda_device *device;
} int4mm_cuda_scope;

int32_t int4mm_cuda_enter(int32_t device, int4mm_cuda_scope *scope);
void int4mm_cuda_leave(const int4mm_cuda_scope *scope);
/* Leaves, and returns what int4mm_cuda_check says of the call that the scope was for. */
int32_t int4mm_cuda_leave_after(const int4mm_cuda_scope *scope, cudaError_t error, const char *doing);
/* Whether anyone in this process has made the device's primary context; without one no work waits there. */
bool int4mm_cuda_has_context(int32_t device);
int32_t int4mm_cuda_locate(const void *data, int4mm_location *location);

/* ---- devices (device.c) ---- */

/* ERR_ARGUMENT for a device that this machine has not. */
int32_t int4mm_cuda_check_device(int32_t device);
/* A device whose primary context somebody has made; 0 where there is none. */
int32_t int4mm_cuda_device_in_use(void);
/* The device, which is current, ready to be used. */
int32_t int4mm_cuda_prepare(int32_t device, const int4mm_cuda_device **prepared);

/* ---- streams (stream.c) ---- */

/* NULL means the legacy default stream, with which every blocking stream is ordered. */
static inline cudaStream_t int4mm_cuda_stream(void *stream) {
  return stream ? (cudaStream_t)stream : cudaStreamLegacy;
}

int32_t int4mm_cuda_stream_state(int32_t device, void *stream, int4mm_stream_state *state);
int32_t int4mm_cuda_stream_join(int32_t device, void *stream);
int32_t int4mm_cuda_stream_create(int32_t device, void **stream);
int32_t int4mm_cuda_stream_destroy(int32_t device, void *stream);
int32_t int4mm_cuda_stream_synchronize(int32_t device, void *stream);
int32_t int4mm_cuda_synchronize(int32_t device);

/* These are called where the device is entered already. */

int32_t int4mm_cuda_state_here(void *stream, int4mm_stream_state *state);
/* Fails when `stream` captures a graph, which cannot be waited for, in words that name `doing` and what to do instead.
 */
int32_t int4mm_cuda_check_waitable(void *stream, const char *doing, const char *instead);
/* Whether a blocking stream captures a graph: then the default stream cannot be used. */
bool int4mm_cuda_default_blocked(void);
/* After work was enqueued on `stream`: on a non-blocking one, has later frees of the memory used there wait for it;
 * nothing to do on others. */
int32_t int4mm_cuda_record_work(int32_t device, void *stream);
/* The same for a stream that is known to be non-blocking and to capture nothing. */
int32_t int4mm_cuda_record_event(int32_t device, void *stream);
/* Makes the default stream wait for all work that was recorded on `device`. */
cudaError_t int4mm_cuda_wait_events(int32_t device);
/* Waits on the host for that, and for what the default stream and those ordered with it were given. */
cudaError_t int4mm_cuda_wait_for_work(int32_t device, const int4mm_cuda_device *on);

/* ---- events (event.c) ---- */

int32_t int4mm_cuda_event_create(int32_t device, void **event);
int32_t int4mm_cuda_event_destroy(int32_t device, void *event);
int32_t int4mm_cuda_event_record(int32_t device, void *event, void *stream);
int32_t int4mm_cuda_event_synchronize(int32_t device, void *event);
int32_t int4mm_cuda_event_query(int32_t device, void *event, bool *done);
int32_t int4mm_cuda_event_elapsed(int32_t device, void *start, void *end, float *milliseconds);
int32_t int4mm_cuda_stream_wait(int32_t device, void *stream, void *event);

/* ---- graphs (graph.c) ---- */

int32_t int4mm_cuda_graph_begin(int32_t device, void **stream, uint64_t *capture);
int32_t int4mm_cuda_graph_end(int32_t device, void *stream, void **executable, int64_t *nodes);
int32_t int4mm_cuda_graph_launch(int32_t device, void *executable, void *stream, bool non_blocking);
int32_t int4mm_cuda_graph_destroy(int32_t device, void *executable);
/* Whether graph_begin has a capture under way, on any device. */
bool int4mm_cuda_is_capturing(void);

/* ---- memory (memory.c) ---- */

int32_t int4mm_cuda_alloc(int32_t device, size_t bytes, void *stream, void **data);
void int4mm_cuda_free(int32_t device, void *data, bool non_blocking);
/* A block that is given back: of a device, or pinned (then device is INT4MM_CPU). */
typedef struct int4mm_cuda_block {
  int32_t device;
  void *data;
  bool non_blocking; /* of a device: it was used on non-blocking streams */
  uint64_t devices;  /* of pinned memory: those that used it */
} int4mm_cuda_block;

/* Frees the block, now or, where a capture forbids that, later. */
void int4mm_cuda_give_back(const int4mm_cuda_block *block);
/* Frees what could not be freed while a graph was captured. */
void int4mm_cuda_flush_deferred(void);
int32_t int4mm_cuda_scratch(int32_t device, size_t bytes, void **data, void *stream);
int32_t int4mm_cuda_scratch_free(int32_t device, void *data, void *stream);
/* The same where the device is entered already; freeing leaves the words to the caller. */
int32_t int4mm_cuda_scratch_here(int32_t device, const int4mm_cuda_device *on, size_t bytes, void **data, void *stream);
cudaError_t int4mm_cuda_scratch_free_here(const int4mm_cuda_device *on, void *data, void *stream);
int32_t int4mm_cuda_copy(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                         size_t src_pitch, size_t width, size_t rows, void *stream);
int32_t int4mm_cuda_copy_async(int32_t device, bool to_host, void *dst, size_t dst_pitch, const void *src,
                               size_t src_pitch, size_t width, size_t rows, void *stream);
int32_t int4mm_cuda_fill_bytes(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows,
                               void *stream);

/* ---- pinned host memory (host_memory.c) ---- */

int32_t int4mm_cuda_host_alloc(size_t bytes, void **data);
void int4mm_cuda_host_free(void *data, uint64_t devices);
/* Frees now, which waits for these devices; false where that has to come later. */
bool int4mm_cuda_try_host_free(void *data, uint64_t devices);

/* ---- work (launch.c) ---- */

int32_t int4mm_cuda_code_arch(int32_t device, int32_t *arch);
int32_t int4mm_cuda_matmul(int32_t device, const int4mm_pack_job *quantize, const int4mm_problem *problem,
                           const int4mm_plan *plan, void *stream, bool non_blocking);
int32_t int4mm_cuda_pack(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
int32_t int4mm_cuda_quantize(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
int32_t int4mm_cuda_quantize_groups(int32_t device, const int4mm_group_job *job, void *stream);
int32_t int4mm_cuda_find_not_finite(int32_t device, const int4mm_matrix *src, int64_t *bad, void *stream);
int32_t int4mm_cuda_rotate(int32_t device, const int4mm_rotate_job *job, void *stream);
int32_t int4mm_cuda_unpack(int32_t device, const int4mm_pack_job *job, void *stream);
int32_t int4mm_cuda_dequantize(int32_t device, const int4mm_pack_job *job, void *stream);
int32_t int4mm_cuda_dequantize_groups(int32_t device, const int4mm_group_job *job, void *stream);
int32_t int4mm_cuda_map(int32_t device, const int4mm_map_job *job, void *stream);
int32_t int4mm_cuda_rowwise(int32_t device, const int4mm_rowwise_job *job, void *stream);
int32_t int4mm_cuda_random(int32_t device, const int4mm_random_job *job, void *stream);
int32_t int4mm_cuda_align_rows(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                               bool even_odd, bool early_b, void *stream);
int32_t int4mm_cuda_transpose(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                              void *stream);
int32_t int4mm_cuda_gather(int32_t device, const int4mm_gather_job *job, void *stream);

#endif
