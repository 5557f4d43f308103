/*
 * What the files of the CUDA library's host side share. Every function that the table offers returns an int4mm_status
 * and leaves the caller's current device, capture mode and last CUDA error as they were.
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

/* A device this process has used. */
typedef struct int4mm_cuda_device {
  int32_t arch, sms;
  cudaMemPool_t pool;        /* NULL where the device has no pools: plain cudaMalloc */
  cudaEvent_t default_event; /* for stream_join */
} int4mm_cuda_device;

/* While a call works: `device` current and unsafe calls allowed beside a graph capture of the caller's. */
typedef struct int4mm_cuda_scope {
  int previous; /* the caller's device, -1 where it need not be restored */
  enum cudaStreamCaptureMode mode;
  const int4mm_cuda_device *device;
} int4mm_cuda_scope;

int32_t int4mm_cuda_enter(int32_t device, int4mm_cuda_scope *scope);
void int4mm_cuda_leave(const int4mm_cuda_scope *scope);

/* NULL means the legacy default stream, with which every blocking stream is ordered. */
static inline cudaStream_t int4mm_cuda_stream(void *stream) {
  return stream ? (cudaStream_t)stream : cudaStreamLegacy;
}

int32_t int4mm_cuda_stream_state(int32_t device, void *stream, bool *foreign, bool *capturing);
int32_t int4mm_cuda_stream_join(int32_t device, void *stream);
int32_t int4mm_cuda_stream_create(int32_t device, void **stream);
int32_t int4mm_cuda_stream_destroy(int32_t device, void *stream);
int32_t int4mm_cuda_stream_synchronize(int32_t device, void *stream);
int32_t int4mm_cuda_synchronize(int32_t device);
/* After work was enqueued on `stream`: remembers how far a foreign stream has come (nothing to do on others). */
int32_t int4mm_cuda_mark(int32_t device, void *stream);
/* The same where the device is entered already. */
int32_t int4mm_cuda_mark_here(int32_t device, void *stream);
/* Makes the default stream wait for all that was marked on `device`. */
cudaError_t int4mm_cuda_wait_marks(int32_t device);
/* Whether a blocking stream captures a graph: then the default stream cannot be used. */
bool int4mm_cuda_default_blocked(void);
/* Fails, in words that name `doing`, when `stream` captures a graph, which cannot be waited for. */
int32_t int4mm_cuda_check_waitable(int32_t device, void *stream, const char *doing);

int32_t int4mm_cuda_alloc(int32_t device, size_t bytes, void *stream, void **data);
void int4mm_cuda_free(int32_t device, void *data, bool foreign);
/* Frees what had to be put off while a graph was captured. */
void int4mm_cuda_flush(void);
int32_t int4mm_cuda_scratch(int32_t device, size_t bytes, void **data, void *stream);
int32_t int4mm_cuda_scratch_free(int32_t device, void *data, void *stream);
int32_t int4mm_cuda_copy(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                         size_t src_pitch, size_t width, size_t rows, void *stream);
int32_t int4mm_cuda_fill_bytes(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows,
                               void *stream);

int32_t int4mm_cuda_code_arch(int32_t device, int32_t *arch);
int32_t int4mm_cuda_matmul(int32_t device, const int4mm_problem *problem, const int4mm_plan *plan, void *stream,
                           bool foreign);
int32_t int4mm_cuda_pack(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
int32_t int4mm_cuda_quantize(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
int32_t int4mm_cuda_unpack(int32_t device, const int4mm_pack_job *job, void *stream);
int32_t int4mm_cuda_dequantize(int32_t device, const int4mm_pack_job *job, void *stream);
int32_t int4mm_cuda_random(int32_t device, const int4mm_random_job *job, void *stream);
int32_t int4mm_cuda_transpose(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                              void *stream);

#endif
