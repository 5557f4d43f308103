/*
 * Device memory: a stream-ordered pool, frees that cannot disturb a graph capture, copies.
 */
#include <pthread.h>
#include <stdlib.h>

#include "cuda/backend.h"

/* A free that had to wait: while a blocking stream captures a graph, the default stream cannot be used. */
typedef struct deferred {
  int32_t device;
  void *data;
  bool foreign;
  struct deferred *next;
} deferred;

static deferred *put_off;
static pthread_mutex_t put_off_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- allocation ---- */

static cudaError_t allocate(const int4mm_cuda_device *device, size_t bytes, cudaStream_t stream, void **data) {
  return device->pool ? cudaMallocFromPoolAsync(data, bytes, device->pool, stream) : cudaMalloc(data, bytes);
}

int32_t int4mm_cuda_alloc(int32_t device, size_t bytes, void *stream, void **data) {
  int4mm_cuda_scope scope;
  void *made = NULL;
  *data = NULL;
  if (!bytes) return INT4MM_OK;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  int4mm_cuda_flush();
  if (!stream && scope.device->pool && int4mm_cuda_default_blocked())
    status = int4mm_cuda_fail(INT4MM_ERR_ARGUMENT,
                              "no tensor can be allocated while a stream of cuda:%d captures a "
                              "CUDA graph: allocate before",
                              (int)device);
  else
    status =
        int4mm_cuda_check(allocate(scope.device, bytes, int4mm_cuda_stream(stream), &made), "allocate device memory");
  if (!status) *data = made;
  int4mm_cuda_leave(&scope);
  return status ? status : int4mm_cuda_mark(device, stream); /* on a foreign stream the free must follow this, too */
}

/* Frees now, in the order of the default stream, after the foreign streams' work where there may be some. */
static cudaError_t release(const int4mm_cuda_device *device, int32_t ordinal, void *data, bool foreign) {
  if (!device->pool) return cudaFree(data); /* waits for the device by itself */
  cudaError_t error = foreign ? int4mm_cuda_wait_marks(ordinal) : cudaSuccess;
  return error == cudaSuccess ? cudaFreeAsync(data, cudaStreamLegacy) : error;
}

/* True when done, or when nothing more can be done: CUDA is shutting down with the process. */
static bool try_release(int32_t device, void *data, bool foreign) {
  int4mm_cuda_scope scope;
  if (int4mm_cuda_enter(device, &scope)) return true;
  bool blocked = int4mm_cuda_default_blocked();
  if (!blocked) {
    cudaError_t error = release(scope.device, device, data, foreign);
    if (error != cudaSuccess) (void)cudaGetLastError();
    blocked = error == cudaErrorStreamCaptureImplicit; /* a capture that began just now */
  }
  int4mm_cuda_leave(&scope);
  return !blocked;
}

static void defer(int32_t device, void *data, bool foreign) {
  deferred *d = malloc(sizeof *d);
  if (!d) return; /* 32 bytes are not to be had: the block is lost, the capture is not */
  *d = (deferred){device, data, foreign, NULL};
  pthread_mutex_lock(&put_off_lock);
  d->next = put_off;
  put_off = d;
  pthread_mutex_unlock(&put_off_lock);
}

void int4mm_cuda_free(int32_t device, void *data, bool foreign) {
  if (!data) return;
  int4mm_cuda_flush();
  if (!try_release(device, data, foreign)) defer(device, data, foreign);
}

void int4mm_cuda_flush(void) {
  pthread_mutex_lock(&put_off_lock);
  deferred *list = put_off;
  put_off = NULL;
  pthread_mutex_unlock(&put_off_lock);
  while (list) {
    deferred *d = list;
    list = d->next;
    if (!try_release(d->device, d->data, d->foreign)) defer(d->device, d->data, d->foreign);
    free(d);
  }
}

int32_t int4mm_cuda_scratch(int32_t device, size_t bytes, void **data, void *stream) {
  int4mm_cuda_scope scope;
  void *made = NULL;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check(allocate(scope.device, bytes, int4mm_cuda_stream(stream), &made),
                             "allocate scratch memory on the device");
  *data = made;
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_scratch_free(int32_t device, void *data, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = scope.device->pool ? cudaFreeAsync(data, int4mm_cuda_stream(stream)) : cudaFree(data);
  status = int4mm_cuda_check(error, "free scratch memory on the device");
  int4mm_cuda_leave(&scope);
  return status;
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

static int32_t copy_between(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                            size_t src_pitch, size_t width, size_t rows, void *stream) {
  int32_t status = int4mm_cuda_stream_synchronize(dst_device, stream);
  if (!status)
    status = int4mm_cuda_check(copy_peer(dst_device, dst, dst_pitch, src_device, src, src_pitch, width, rows),
                               "copy between devices");
  return status ? status : int4mm_cuda_synchronize(dst_device);
}

int32_t int4mm_cuda_copy(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                         size_t src_pitch, size_t width, size_t rows, void *stream) {
  bool to_host = dst_device == INT4MM_CPU, from_host = src_device == INT4MM_CPU, waits = to_host || from_host;
  int32_t device = to_host ? src_device : dst_device;
  enum cudaMemcpyKind kind = to_host     ? cudaMemcpyDeviceToHost
                             : from_host ? cudaMemcpyHostToDevice
                                         : cudaMemcpyDeviceToDevice;
  int4mm_cuda_scope scope;
  int32_t status = INT4MM_OK;
  if (waits || dst_device != src_device) status = int4mm_cuda_check_waitable(device, stream, "copy between devices");
  if (!status) status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  if (!waits && dst_device != src_device) {
    status = copy_between(dst_device, dst, dst_pitch, src_device, src, src_pitch, width, rows, stream);
  } else {
    cudaStream_t s = int4mm_cuda_stream(stream);
    cudaError_t error = copy_rows(dst, dst_pitch, src, src_pitch, width, rows, kind, s);
    if (error == cudaSuccess && waits) error = cudaStreamSynchronize(s);
    status = int4mm_cuda_check(error, to_host     ? "copy from the device"
                                      : from_host ? "copy to the device"
                                                  : "copy on the device");
  }
  int4mm_cuda_leave(&scope);
  return status || waits ? status : int4mm_cuda_mark(device, stream);
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
  int4mm_cuda_leave(&scope);
  return status ? status : int4mm_cuda_mark(device, stream);
}
