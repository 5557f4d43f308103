/*
 * Events: arguments that a backend need not look at again.
 */
#include "core/error.h"
#include "cuda/table.h"

/* The table of a device's calls, where `given`, which `name` names, is not NULL. */
static int32_t open_with(int32_t device, const char *name, const void *given, const int4mm_cuda_backend **cuda) {
  *cuda = NULL;
  if (!given) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", name);
  return int4mm_cuda_for(device, cuda);
}

int32_t int4mm_event_create(int32_t device, void **event) {
  const int4mm_cuda_backend *cuda;
  int32_t status = open_with(device, "event", event, &cuda);
  return status ? status : cuda->event_create(device, event);
}

int32_t int4mm_event_destroy(int32_t device, void *event) {
  const int4mm_cuda_backend *cuda;
  int32_t status = open_with(device, "event", event, &cuda);
  return status ? status : cuda->event_destroy(device, event);
}

int32_t int4mm_event_record(int32_t device, void *event, void *stream) {
  const int4mm_cuda_backend *cuda;
  int32_t status = open_with(device, "event", event, &cuda);
  return status ? status : cuda->event_record(device, event, stream);
}

int32_t int4mm_event_synchronize(int32_t device, void *event) {
  const int4mm_cuda_backend *cuda;
  int32_t status = open_with(device, "event", event, &cuda);
  return status ? status : cuda->event_synchronize(device, event);
}

int32_t int4mm_event_query(int32_t device, void *event, int32_t *done) {
  const int4mm_cuda_backend *cuda;
  bool is_done = false;
  if (!done) return int4mm_fail(INT4MM_ERR_ARGUMENT, "done is NULL");
  int32_t status = open_with(device, "event", event, &cuda);
  if (!status) status = cuda->event_query(device, event, &is_done);
  if (!status) *done = is_done;
  return status;
}

int32_t int4mm_event_elapsed(int32_t device, void *start, void *end, float *milliseconds) {
  const int4mm_cuda_backend *cuda;
  if (!milliseconds) return int4mm_fail(INT4MM_ERR_ARGUMENT, "milliseconds is NULL");
  if (!start) return int4mm_fail(INT4MM_ERR_ARGUMENT, "start is NULL");
  int32_t status = open_with(device, "end", end, &cuda);
  return status ? status : cuda->event_elapsed(device, start, end, milliseconds);
}

int32_t int4mm_stream_wait(int32_t device, void *stream, void *event) {
  const int4mm_cuda_backend *cuda;
  int32_t status = open_with(device, "event", event, &cuda);
  return status ? status : cuda->stream_wait(device, stream, event);
}
