/*
 * Device memory: a stream-ordered pool, frees that cannot disturb a graph capture, copies.
 */
#include <pthread.h>
#include <stdlib.h>

#include "cuda/backend.h"

/* A free that is still to be done: while a blocking stream captures a graph, the default stream cannot be used. */
typedef struct deferred_free {
  int4mm_cuda_block block;
  struct deferred_free *next;
} deferred_free;

static deferred_free *deferred;
static pthread_mutex_t deferred_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- allocation ---- */

static cudaError_t allocate(const int4mm_cuda_device *on, size_t bytes, void *stream, void **data) {
  return on->pool ? cudaMallocFromPoolAsync(data, bytes, on->pool, int4mm_cuda_stream(stream))
                  : cudaMalloc(data, bytes);
}

/* The device is entered. On a non-blocking stream a free must not come before the allocation is done. */
static int32_t allocate_here(int32_t device, const int4mm_cuda_device *on, size_t bytes, void *stream, void **data) {
  void *made = NULL;
  if (!stream && on->pool && int4mm_cuda_default_blocked())
    return int4mm_cuda_fail(
        INT4MM_ERR_ARGUMENT,
        "no tensor can be allocated while a stream of cuda:%d captures a CUDA graph: allocate before", (int)device);
  int32_t status = int4mm_cuda_check(allocate(on, bytes, stream, &made), "allocate device memory");
  if (status) return status;
  if ((status = int4mm_cuda_record_work(device, stream))) {
    cudaError_t error = on->pool ? cudaFreeAsync(made, int4mm_cuda_stream(stream)) : cudaFree(made);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return status;
  }
  *data = made;
  return INT4MM_OK;
}

int32_t int4mm_cuda_alloc(int32_t device, size_t bytes, void *stream, void **data) {
  int4mm_cuda_scope scope;
  *data = NULL;
  if (!bytes) return INT4MM_OK;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  int4mm_cuda_flush_deferred();
  status = allocate_here(device, scope.device, bytes, stream, data);
  int4mm_cuda_leave(&scope);
  return status;
}

/* Frees now, in the order of the default stream, after the work on non-blocking streams where there may be some. */
static cudaError_t release(const int4mm_cuda_device *on, int32_t device, void *data, bool non_blocking) {
  if (!on->pool) return cudaFree(data); /* waits for the device by itself */
  if (non_blocking) {
    cudaError_t error = int4mm_cuda_wait_events(device);
    if (error == cudaErrorStreamCaptureImplicit) return error;
    if (error != cudaSuccess) { /* there is the other way to be sure that the work is done */
      (void)cudaGetLastError();
      if ((error = cudaDeviceSynchronize()) != cudaSuccess) return error;
    }
  }
  return cudaFreeAsync(data, cudaStreamLegacy);
}

/* True when done, or when nothing more can be done: CUDA is shutting down with the process. */
static bool try_release(const int4mm_cuda_block *b) {
  int4mm_cuda_scope scope;
  int32_t device = b->device;
  if (device == INT4MM_CPU) return int4mm_cuda_try_host_free(b->data, b->devices);
  if (int4mm_cuda_enter(device, &scope)) return true;
  bool blocked = int4mm_cuda_default_blocked();
  if (!blocked) {
    cudaError_t error = release(scope.device, device, b->data, b->non_blocking);
    if (error != cudaSuccess) (void)cudaGetLastError();
    blocked = error == cudaErrorStreamCaptureImplicit; /* a capture that began just now */
  }
  int4mm_cuda_leave(&scope);
  return !blocked;
}

static void defer(deferred_free *d) {
  pthread_mutex_lock(&deferred_lock);
  d->next = deferred;
  deferred = d;
  pthread_mutex_unlock(&deferred_lock);
}

void int4mm_cuda_give_back(const int4mm_cuda_block *block) {
  int4mm_cuda_flush_deferred();
  if (try_release(block)) return;
  deferred_free *d = malloc(sizeof *d);
  if (!d) return; /* a few bytes are not to be had: the block is lost, the capture is not */
  *d = (deferred_free){*block, NULL};
  defer(d);
}

void int4mm_cuda_free(int32_t device, void *data, bool non_blocking) {
  if (data) int4mm_cuda_give_back(&(int4mm_cuda_block){device, data, non_blocking, 0});
}

void int4mm_cuda_flush_deferred(void) {
  pthread_mutex_lock(&deferred_lock);
  deferred_free *list = deferred;
  deferred = NULL;
  pthread_mutex_unlock(&deferred_lock);
  while (list) {
    deferred_free *d = list;
    list = d->next;
    if (try_release(&d->block))
      free(d);
    else
      defer(d);
  }
}

/* ---- scratch memory ---- */

/* A graph owns what is allocated from a pool during its capture; plain memory would be freed before it is replayed. */
static int32_t check_capture(int32_t device, void *stream) {
  int4mm_stream_state state;
  int32_t status = int4mm_cuda_state_here(stream, &state);
  if (!status && state.capturing)
    status =
        int4mm_cuda_fail(INT4MM_ERR_ARGUMENT,
                         "this call takes scratch memory and cuda:%d has no memory pools, so it cannot be captured "
                         "into a CUDA graph (a prepacked b_packed takes none)",
                         (int)device);
  return status;
}

int32_t int4mm_cuda_scratch_here(int32_t device, const int4mm_cuda_device *on, size_t bytes, void **data,
                                 void *stream) {
  void *made = NULL;
  int32_t status = on->pool ? INT4MM_OK : check_capture(device, stream);
  if (status) return status;
  status = int4mm_cuda_check(allocate(on, bytes, stream, &made), "allocate scratch memory on the device");
  if (status == INT4MM_ERR_MEMORY)
    int4mm_cuda_fail(status, "out of memory on cuda:%d: asked for %zu bytes of scratch memory", (int)device, bytes);
  if (!status) *data = made;
  return status;
}

cudaError_t int4mm_cuda_scratch_free_here(const int4mm_cuda_device *on, void *data, void *stream) {
  return on->pool ? cudaFreeAsync(data, int4mm_cuda_stream(stream)) : cudaFree(data);
}

int32_t int4mm_cuda_scratch(int32_t device, size_t bytes, void **data, void *stream) {
  int4mm_cuda_scope scope;
  *data = NULL;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  int4mm_cuda_flush_deferred();
  status = int4mm_cuda_scratch_here(device, scope.device, bytes, data, stream);
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_scratch_free(int32_t device, void *data, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = int4mm_cuda_scratch_free_here(scope.device, data, stream);
  return int4mm_cuda_leave_after(&scope, error, "free scratch memory on the device");
}

/* ---- copies ---- */

/* Rows within one GPU or between it and the host. Rows whose pitch is more than CUDA's 2D copies take (2^31 - 1) are
 * copied one by one: they are few. */
static cudaError_t copy_rows(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                             enum cudaMemcpyKind kind, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (rows == 1 || (dst_pitch == width && src_pitch == width))
    return cudaMemcpyAsync(dst, src, width * rows, kind, stream);
  if (dst_pitch <= INT32_MAX && src_pitch <= INT32_MAX)
    return cudaMemcpy2DAsync(dst, dst_pitch, src, src_pitch, width, rows, kind, stream);
  for (size_t r = 0; r < rows && error == cudaSuccess; r++)
    error = cudaMemcpyAsync((char *)dst + r * dst_pitch, (const char *)src + r * src_pitch, width, kind, stream);
  return error;
}

/* Between two GPUs: cudaMemcpyPeer without a stream is ordered with both, and pool memory needs the Peer functions
 * where the two cannot map each other's memory. */
static cudaError_t copy_peer(int dst_device, void *dst, size_t dst_pitch, int src_device, const void *src,
                             size_t src_pitch, size_t width, size_t rows) {
  cudaError_t error = cudaSuccess;
  if (rows == 1 || (dst_pitch == width && src_pitch == width)) width *= rows, rows = 1;
  for (size_t r = 0; r < rows && error == cudaSuccess; r++)
    error =
        cudaMemcpyPeer((char *)dst + r * dst_pitch, dst_device, (const char *)src + r * src_pitch, src_device, width);
  return error;
}

/* In the scope of dst_device. */
static int32_t copy_between(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                            size_t src_pitch, size_t width, size_t rows, void *stream) {
  int32_t status = int4mm_cuda_check(cudaStreamSynchronize(int4mm_cuda_stream(stream)), "wait for the stream");
  if (!status)
    status = int4mm_cuda_check(copy_peer(dst_device, dst, dst_pitch, src_device, src, src_pitch, width, rows),
                               "copy between devices");
  return status ? status : int4mm_cuda_check(cudaDeviceSynchronize(), "wait for the device");
}

/* Between the host and a GPU; waits even when a row failed, for the caller may use the memory again on return. */
static int32_t copy_host(bool to_host, void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width,
                         size_t rows, void *stream) {
  enum cudaMemcpyKind kind = to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  cudaStream_t s = int4mm_cuda_stream(stream);
  cudaError_t error = copy_rows(dst, dst_pitch, src, src_pitch, width, rows, kind, s);
  cudaError_t waited = cudaStreamSynchronize(s);
  return int4mm_cuda_check(error == cudaSuccess ? waited : error,
                           to_host ? "copy from the device" : "copy to the device");
}

int32_t int4mm_cuda_copy(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                         size_t src_pitch, size_t width, size_t rows, void *stream) {
  bool to_host = dst_device == INT4MM_CPU, from_host = src_device == INT4MM_CPU, here = dst_device == src_device;
  int32_t device = to_host ? src_device : dst_device;
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  if (!here)
    status = int4mm_cuda_check_waitable(stream, "copy between devices",
                                        "copy before or after it, or with pinned host memory and non_blocking = true");
  if (status) {
    /* said already */
  } else if (to_host || from_host) {
    status = copy_host(to_host, dst, dst_pitch, src, src_pitch, width, rows, stream);
  } else if (!here) {
    status = copy_between(dst_device, dst, dst_pitch, src_device, src, src_pitch, width, rows, stream);
  } else {
    cudaError_t error =
        copy_rows(dst, dst_pitch, src, src_pitch, width, rows, cudaMemcpyDeviceToDevice, int4mm_cuda_stream(stream));
    status = int4mm_cuda_check(error, "copy on the device");
    if (!status) status = int4mm_cuda_record_work(device, stream);
  }
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_copy_async(int32_t device, bool to_host, void *dst, size_t dst_pitch, const void *src,
                               size_t src_pitch, size_t width, size_t rows, void *stream) {
  enum cudaMemcpyKind kind = to_host ? cudaMemcpyDeviceToHost : cudaMemcpyHostToDevice;
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = copy_rows(dst, dst_pitch, src, src_pitch, width, rows, kind, int4mm_cuda_stream(stream));
  status = int4mm_cuda_check(error, to_host ? "copy from the device" : "copy to the device");
  /* also after a failure: some rows may be under way */
  int32_t recorded = int4mm_cuda_record_work(device, stream);
  int4mm_cuda_leave(&scope);
  return status ? status : recorded;
}

int32_t int4mm_cuda_fill_bytes(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows,
                               void *stream) {
  int4mm_cuda_scope scope;
  cudaStream_t s = int4mm_cuda_stream(stream);
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaSuccess;
  if (rows == 1 || pitch == width)
    error = cudaMemsetAsync(dst, byte, width * rows, s);
  else if (pitch <= INT32_MAX)
    error = cudaMemset2DAsync(dst, pitch, byte, width, rows, s);
  else
    for (size_t r = 0; r < rows && error == cudaSuccess; r++)
      error = cudaMemsetAsync((char *)dst + r * pitch, byte, width, s);
  status = int4mm_cuda_check(error, "fill device memory");
  if (!status) status = int4mm_cuda_record_work(device, stream);
  int4mm_cuda_leave(&scope);
  return status;
}
