/*
 * Events for callers: order between streams, and times.
 */
#include "cuda/backend.h"

/* As int4mm_cuda_check, of a call that asks for an event's work. CUDA says no more than "invalid argument" of an event
 * whose last record was captured. */
static int32_t check_event(cudaError_t error, const char *doing) {
  if (error != cudaErrorInvalidValue && error != cudaErrorCapturedEvent) return int4mm_cuda_check(error, doing);
  (void)cudaGetLastError();
  return int4mm_cuda_fail(INT4MM_ERR_ARGUMENT,
                          "cannot %s: it was last recorded while a CUDA graph was captured, or is "
                          "no event; record it outside of captures",
                          doing);
}

int32_t int4mm_cuda_event_create(int32_t device, void **event) {
  int4mm_cuda_scope scope;
  cudaEvent_t made = NULL;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_leave_after(&scope, cudaEventCreateWithFlags(&made, cudaEventDefault), "create an event");
  if (!status) *event = made;
  return status;
}

int32_t int4mm_cuda_event_destroy(int32_t device, void *event) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  return status ? status : int4mm_cuda_leave_after(&scope, cudaEventDestroy((cudaEvent_t)event), "destroy the event");
}

int32_t int4mm_cuda_event_record(int32_t device, void *event, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaEventRecord((cudaEvent_t)event, int4mm_cuda_stream(stream));
  return int4mm_cuda_leave_after(&scope, error, "record the event");
}

int32_t int4mm_cuda_event_synchronize(int32_t device, void *event) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = check_event(cudaEventSynchronize((cudaEvent_t)event), "wait for the event");
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_event_query(int32_t device, void *event, bool *done) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaEventQuery((cudaEvent_t)event);
  *done = error == cudaSuccess;
  if (error == cudaErrorNotReady)
    (void)cudaGetLastError();
  else
    status = check_event(error, "ask whether the event is done");
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_event_elapsed(int32_t device, void *start, void *end, float *milliseconds) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaEventSynchronize((cudaEvent_t)start);
  if (error == cudaSuccess) error = cudaEventSynchronize((cudaEvent_t)end);
  if (error == cudaSuccess) error = cudaEventElapsedTime(milliseconds, (cudaEvent_t)start, (cudaEvent_t)end);
  if (error == cudaErrorInvalidResourceHandle) {
    (void)cudaGetLastError();
    status = int4mm_cuda_fail(INT4MM_ERR_ARGUMENT, "there is no time between these events: both have to be recorded, "
                                                   "on one device, and made with timing");
  } else {
    status = check_event(error, "find the time between the events");
  }
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_stream_wait(int32_t device, void *stream, void *event) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaStreamWaitEvent(int4mm_cuda_stream(stream), (cudaEvent_t)event, cudaEventWaitDefault);
  return int4mm_cuda_leave_after(&scope, error, "have the stream wait for the event");
}
