/*
 * Streams, and the order between them and the default stream.
 *
 * Memory is allocated and freed in the order of the legacy default stream. Blocking streams (cudaStreamCreate, and
 * ours) are ordered with it by CUDA; non-blocking ones are not. A tensor's first use on a non-blocking stream makes
 * that stream wait for the default one (int4mm_cuda_stream_join); after work on a non-blocking stream an event is
 * recorded there, and a tensor that was used on any such stream is freed after all these events. No step waits on the
 * host, but where an event cannot be had.
 */
#include <pthread.h>
#include <stdlib.h>

#include "cuda/backend.h"

/* The last work on a non-blocking stream. Streams go by their ids, since a handle is used again for another stream
 * while the work of the old one may still run. */
typedef struct work_event {
  int32_t device;
  unsigned long long stream_id;
  cudaEvent_t event;
  struct work_event *next;
} work_event;

static work_event *work_events; /* no more than there ever were non-blocking streams with work at the same time */
static pthread_mutex_t event_lock = PTHREAD_MUTEX_INITIALIZER;

bool int4mm_cuda_default_blocked(void) {
  enum cudaStreamCaptureStatus capture;
  cudaError_t error = cudaStreamIsCapturing(cudaStreamLegacy, &capture);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaErrorStreamCaptureImplicit;
}

/* The id is of the capture, and unlike any other's. */
static cudaError_t ask_capture(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id) {
#if CUDART_VERSION >= 13000
  return cudaStreamGetCaptureInfo(stream, status, id, NULL, NULL, NULL, NULL);
#else
  return cudaStreamGetCaptureInfo(stream, status, id, NULL, NULL, NULL);
#endif
}

int32_t int4mm_cuda_state_here(void *stream, int4mm_stream_state *state) {
  enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  unsigned long long id = 0, capture_id = 0;
  unsigned flags = 0;
  *state = (int4mm_stream_state){0};
  if (!stream) {
    state->capturing = int4mm_cuda_default_blocked();
    return INT4MM_OK;
  }
  cudaError_t error = ask_capture((cudaStream_t)stream, &capture, &capture_id);
  state->capturing = capture != cudaStreamCaptureStatusNone;
  state->capture = capture == cudaStreamCaptureStatusActive ? capture_id : 0;
  /* a stream that captures does not tell its flags: whatever it is, its work does not run now */
  if (error == cudaSuccess && !state->capturing) error = cudaStreamGetFlags((cudaStream_t)stream, &flags);
  if (error == cudaSuccess && (flags & cudaStreamNonBlocking)) error = cudaStreamGetId((cudaStream_t)stream, &id);
  state->non_blocking = state->capturing || (flags & cudaStreamNonBlocking) != 0;
  state->id = id;
  return int4mm_cuda_check(error, "use the stream");
}

int32_t int4mm_cuda_stream_state(int32_t device, void *stream, int4mm_stream_state *state) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_state_here(stream, state);
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_check_waitable(void *stream, const char *doing, const char *instead) {
  int4mm_stream_state state;
  int32_t status = int4mm_cuda_state_here(stream, &state);
  if (!status && state.capturing)
    status = int4mm_cuda_fail(INT4MM_ERR_ARGUMENT,
                              "cannot %s while a CUDA graph is being captured, for that has to wait for the result: %s",
                              doing, instead);
  return status;
}

int32_t int4mm_cuda_stream_join(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  pthread_mutex_lock(&event_lock); /* one event per device serves every thread */
  cudaError_t error = cudaEventRecord(scope.device->default_event, cudaStreamLegacy);
  if (error == cudaSuccess)
    error = cudaStreamWaitEvent((cudaStream_t)stream, scope.device->default_event, cudaEventWaitDefault);
  pthread_mutex_unlock(&event_lock);
  return int4mm_cuda_leave_after(&scope, error, "order the stream after the default stream");
}

/* ---- events ---- */

static bool is_done(const work_event *e) {
  cudaError_t error = cudaEventQuery(e->event);
  if (error != cudaSuccess) (void)cudaGetLastError(); /* cudaErrorNotReady counts as one */
  return error == cudaSuccess;
}

/* The event of a stream; else one whose work is done, or a new one. NULL when there is none to be had. Locked. */
static work_event *find_event(int32_t device, unsigned long long id) {
  work_event *e = work_events;
  while (e && (e->stream_id != id || e->device != device)) e = e->next;
  if (e) return e;
  for (e = work_events; e && (e->device != device || !is_done(e));) e = e->next;
  if (e) {
    e->stream_id = id;
    return e;
  }
  if (!(e = calloc(1, sizeof *e))) return NULL;
  if (cudaEventCreateWithFlags(&e->event, cudaEventDisableTiming) != cudaSuccess) {
    (void)cudaGetLastError();
    free(e);
    return NULL;
  }
  e->device = device, e->stream_id = id, e->next = work_events;
  return work_events = e;
}

static int32_t record(int32_t device, cudaStream_t stream, unsigned long long id) {
  pthread_mutex_lock(&event_lock);
  work_event *e = find_event(device, id);
  cudaError_t error = e ? cudaEventRecord(e->event, stream) : cudaErrorMemoryAllocation;
  pthread_mutex_unlock(&event_lock);
  if (error == cudaSuccess) return INT4MM_OK;
  (void)cudaGetLastError();
  /* without an event the work is waited for: then there is nothing for a later free to wait for */
  return int4mm_cuda_check(cudaStreamSynchronize(stream), "wait for the stream");
}

int32_t int4mm_cuda_record_event(int32_t device, void *stream) {
  unsigned long long id = 0;
  int32_t status = int4mm_cuda_check(cudaStreamGetId((cudaStream_t)stream, &id), "use the stream");
  return status ? status : record(device, (cudaStream_t)stream, id);
}

int32_t int4mm_cuda_record_work(int32_t device, void *stream) {
  int4mm_stream_state state;
  if (!stream) return INT4MM_OK;
  int32_t status = int4mm_cuda_state_here(stream, &state);
  if (status || !state.non_blocking) return status;
  /* captured work runs later, where the graph's owner orders it */
  return state.capturing ? INT4MM_OK : record(device, (cudaStream_t)stream, state.id);
}

cudaError_t int4mm_cuda_wait_events(int32_t device) {
  cudaError_t error = cudaSuccess;
  pthread_mutex_lock(&event_lock);
  for (work_event *e = work_events; e && error == cudaSuccess; e = e->next)
    if (e->device == device) error = cudaStreamWaitEvent(cudaStreamLegacy, e->event, cudaEventWaitDefault);
  pthread_mutex_unlock(&event_lock);
  return error;
}

cudaError_t int4mm_cuda_wait_for_work(int32_t device, const int4mm_cuda_device *on) {
  cudaError_t error = int4mm_cuda_wait_events(device);
  if (error != cudaSuccess) return error;
  pthread_mutex_lock(&event_lock);
  error = cudaEventRecord(on->default_event, cudaStreamLegacy);
  pthread_mutex_unlock(&event_lock);
  /* another thread may record it anew meanwhile: then this waits for more */
  return error == cudaSuccess ? cudaEventSynchronize(on->default_event) : error;
}

/* ---- making, destroying, waiting ---- */

/* A blocking stream: ordered with the default stream, as everything else here is. */
int32_t int4mm_cuda_stream_create(int32_t device, void **stream) {
  int4mm_cuda_scope scope;
  cudaStream_t made = NULL;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_leave_after(&scope, cudaStreamCreateWithFlags(&made, cudaStreamDefault), "create a stream");
  if (!status) *stream = made;
  return status;
}

/* Waits first: what its work still reads must not be freed once nothing orders the two any more. */
int32_t int4mm_cuda_stream_destroy(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check_waitable(stream, "destroy the stream", "end the capture first");
  if (!status) status = int4mm_cuda_check(cudaStreamSynchronize((cudaStream_t)stream), "wait for the stream");
  if (!status) status = int4mm_cuda_check(cudaStreamDestroy((cudaStream_t)stream), "destroy the stream");
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_stream_synchronize(int32_t device, void *stream) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  status = int4mm_cuda_check_waitable(stream, "wait for the stream", "wait before or after it");
  if (!status) status = int4mm_cuda_check(cudaStreamSynchronize(int4mm_cuda_stream(stream)), "wait for the stream");
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_synchronize(int32_t device) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_check_device(device);
  if (status || !int4mm_cuda_has_context(device)) return status; /* nobody's work is there, and none is made */
  if ((status = int4mm_cuda_enter(device, &scope))) return status;
  int4mm_cuda_flush_deferred();
  return int4mm_cuda_leave_after(&scope, cudaDeviceSynchronize(), "wait for the device");
}
