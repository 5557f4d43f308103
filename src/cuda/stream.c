/*
 * Streams, and the order between them and the default stream.
 *
 * Memory is allocated and freed in the order of the legacy default stream. Blocking streams (cudaStreamCreate, and
 * ours) are ordered with it by CUDA; non-blocking ones ("foreign" here) are not. A tensor's first use on a foreign
 * stream makes that stream wait for the default one (int4mm_cuda_stream_join); work put on a foreign stream records an
 * event, its mark, and a tensor that was used on any foreign stream is freed after all marks. No step waits on the
 * host.
 */
#include <pthread.h>
#include <stdlib.h>

#include "cuda/backend.h"

typedef struct mark {
  int32_t device;
  cudaStream_t stream;
  cudaEvent_t event;
  struct mark *next;
} mark;

static mark *marks; /* one per foreign stream ever used: few, so never removed */
static pthread_mutex_t mark_lock = PTHREAD_MUTEX_INITIALIZER;

bool int4mm_cuda_default_blocked(void) {
  enum cudaStreamCaptureStatus capture;
  cudaError_t error = cudaStreamIsCapturing(cudaStreamLegacy, &capture);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaErrorStreamCaptureImplicit;
}

/* The state of a stream of the current device. */
static int32_t state_here(void *stream, bool *foreign, bool *capturing) {
  enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  unsigned flags = 0;
  *foreign = *capturing = false;
  if (!stream) {
    *capturing = int4mm_cuda_default_blocked(); /* it cannot capture, but another stream's capture forbids its use */
    return INT4MM_OK;
  }
  cudaError_t error = cudaStreamIsCapturing((cudaStream_t)stream, &capture);
  *capturing = capture != cudaStreamCaptureStatusNone;
  /* a stream that captures does not tell its flags: whatever it is, its work does not run now */
  if (error == cudaSuccess && !*capturing) error = cudaStreamGetFlags((cudaStream_t)stream, &flags);
  *foreign = *capturing || (flags & cudaStreamNonBlocking) != 0;
  return int4mm_cuda_check(error, "use the stream");
}

int32_t int4mm_cuda_stream_state(int32_t device, void *stream, bool *foreign, bool *capturing) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = state_here(stream, foreign, capturing);
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_check_waitable(int32_t device, void *stream, const char *doing) {
  bool foreign, capturing;
  int32_t status = int4mm_cuda_stream_state(device, stream, &foreign, &capturing);
  if (!status && capturing)
    status = int4mm_cuda_fail(INT4MM_ERR_ARGUMENT,
                              "cannot %s while a CUDA graph is being captured: that would have "
                              "to wait for the result",
                              doing);
  return status;
}

int32_t int4mm_cuda_stream_join(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  pthread_mutex_lock(&mark_lock); /* one event per device serves every thread */
  cudaError_t error = cudaEventRecord(scope.device->default_event, cudaStreamLegacy);
  if (error == cudaSuccess)
    error = cudaStreamWaitEvent((cudaStream_t)stream, scope.device->default_event, cudaEventWaitDefault);
  pthread_mutex_unlock(&mark_lock);
  status = int4mm_cuda_check(error, "order the stream after the default stream");
  int4mm_cuda_leave(&scope);
  return status;
}

/* The mark of a stream, made when there is none; NULL when there is no memory. Locked. */
static mark *find_mark(int32_t device, cudaStream_t stream) {
  mark *m = marks;
  while (m && (m->stream != stream || m->device != device)) m = m->next;
  if (m || !(m = calloc(1, sizeof *m))) return m;
  if (cudaEventCreateWithFlags(&m->event, cudaEventDisableTiming) != cudaSuccess) {
    free(m);
    return NULL;
  }
  m->device = device, m->stream = stream, m->next = marks;
  return marks = m;
}

int32_t int4mm_cuda_mark_here(int32_t device, void *stream) {
  bool foreign, capturing;
  if (!stream) return INT4MM_OK;
  int32_t status = state_here(stream, &foreign, &capturing);
  if (status || !foreign || capturing) return status; /* captured work runs later, where the graph's owner orders it */
  pthread_mutex_lock(&mark_lock);
  mark *m = find_mark(device, (cudaStream_t)stream);
  cudaError_t error = m ? cudaEventRecord(m->event, (cudaStream_t)stream) : cudaErrorMemoryAllocation;
  pthread_mutex_unlock(&mark_lock);
  return int4mm_cuda_check(error, "record an event on the stream");
}

int32_t int4mm_cuda_mark(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  if (!stream) return INT4MM_OK;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_mark_here(device, stream);
  int4mm_cuda_leave(&scope);
  return status;
}

cudaError_t int4mm_cuda_wait_marks(int32_t device) {
  cudaError_t error = cudaSuccess;
  pthread_mutex_lock(&mark_lock);
  for (mark *m = marks; m && error == cudaSuccess; m = m->next)
    if (m->device == device) error = cudaStreamWaitEvent(cudaStreamLegacy, m->event, cudaEventWaitDefault);
  pthread_mutex_unlock(&mark_lock);
  return error;
}

/* A blocking stream: ordered with the default stream, as everything else here is. */
int32_t int4mm_cuda_stream_create(int32_t device, void **stream) {
  int4mm_cuda_scope scope;
  cudaStream_t made;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check(cudaStreamCreateWithFlags(&made, cudaStreamDefault), "create a stream");
  if (!status) *stream = made;
  int4mm_cuda_leave(&scope);
  return status;
}

/* Waits first: what its work still reads must not be freed once nothing orders the two any more. */
int32_t int4mm_cuda_stream_destroy(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_check_waitable(device, stream, "destroy the stream");
  if (!status) status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check(cudaStreamSynchronize((cudaStream_t)stream), "wait for the stream");
  if (!status) status = int4mm_cuda_check(cudaStreamDestroy((cudaStream_t)stream), "destroy the stream");
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_stream_synchronize(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_check_waitable(device, stream, "wait for the stream");
  if (!status) status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check(cudaStreamSynchronize(int4mm_cuda_stream(stream)), "wait for the stream");
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_synchronize(int32_t device) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  int4mm_cuda_flush();
  status = int4mm_cuda_check(cudaDeviceSynchronize(), "wait for the device");
  int4mm_cuda_leave(&scope);
  return status;
}
