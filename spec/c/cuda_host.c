/*
 * The host side of the CUDA library (src/cuda/) on a runtime that is played here, so that what happens when a call of
 * CUDA fails, and which contexts come into being, is tested without a GPU. A device's context is
 * made when it is asked for or, in a thread without one, by the first call of the runtime that needs one, on device 0.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/error.h"
#include "cuda/backend.h"

static void *stand_in_symbol(const char *name);
#define dlopen(name, flags)  ((void)(name), (void *)&devices_made[0])
#define dlsym(library, name) ((void)(library), stand_in_symbol(name))

enum { DEVICES = 2, NO_CONTEXT = -1 };
static bool devices_made[DEVICES]; /* whether their contexts were made */

/* launch.c is not in this program: its functions are missing in the table. */
#define int4mm_cuda_code_arch         NULL
#define int4mm_cuda_matmul            NULL
#define int4mm_cuda_pack              NULL
#define int4mm_cuda_quantize          NULL
#define int4mm_cuda_unpack            NULL
#define int4mm_cuda_dequantize        NULL
#define int4mm_cuda_rotate            NULL
#define int4mm_cuda_map               NULL
#define int4mm_cuda_rowwise           NULL
#define int4mm_cuda_random            NULL
#define int4mm_cuda_transpose         NULL
#define int4mm_cuda_gather            NULL
#define int4mm_cuda_align_rows        NULL
#define int4mm_cuda_quantize_groups   NULL
#define int4mm_cuda_dequantize_groups NULL
#define int4mm_cuda_find_not_finite   NULL

#include "cuda/context.c"
#include "cuda/device.c"
#include "cuda/event.c"
#include "cuda/graph.c"
#include "cuda/host_memory.c"
#include "cuda/memory.c"
#include "cuda/stream.c"

/* ---- the runtime ---- */

struct CUstream_st {
  unsigned flags;
  unsigned long long id;
  bool capturing;
};

struct CUevent_st {
  unsigned long long stream_id; /* its work is done when this stream is not busy; 0: the default stream */
  int recorded;                 /* how many events were recorded before it; 0: it was not */
};

static int context = NO_CONTEXT; /* the current one, by its device */
static bool pools = true;
static bool legacy_blocked;                          /* a blocking stream captures */
static int blocks, events, live_pools, live_streams; /* what is alive */
static int pinned_blocks, graphs, executables;       /* that too */
static int records, event_waits;
static int waits_of_legacy, stream_waits, device_waits;
static unsigned long long next_id = 1;
static bool busy[1000]; /* streams with work under way, by their ids */
static enum cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;

/* The calls that fail, by name, with what. */
static const char *failing[2];
static cudaError_t failure = cudaErrorLaunchFailure;

static void fail_in(const char *first, const char *second, cudaError_t error) {
  failing[0] = first, failing[1] = second, failure = error;
}

/* What every call begins with: a context, unless it needs none, and whether it fails. */
static cudaError_t call(const char *name, bool needs_context) {
  if (needs_context && context == NO_CONTEXT) context = 0, devices_made[0] = true;
  for (int i = 0; i < 2; i++)
    if (failing[i] && !strcmp(failing[i], name)) return failure;
  return cudaSuccess;
}
#define CALL(needs_context)                                                                                            \
  do {                                                                                                                 \
    cudaError_t error_ = call(__func__, needs_context);                                                                \
    if (error_ != cudaSuccess) return error_;                                                                          \
  } while (0)

cudaError_t cudaGetLastError(void) {
  return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "told to fail";
}
const char *cudaGetErrorName(cudaError_t error) {
  (void)error;
  return "cudaErrorOfTheTest";
}
cudaError_t cudaDriverGetVersion(int *version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *count) {
  *count = DEVICES;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  (void)device;
  *value = attribute == cudaDevAttrMemoryPoolsSupported     ? pools
           : attribute == cudaDevAttrComputeCapabilityMinor ? 0
           : attribute == cudaDevAttrClockRate              ? 1980000
           : attribute == cudaDevAttrGlobalMemoryBusWidth   ? 5120
                                                            : 9;
  if (attribute != cudaDevAttrMemoryClockRate) return cudaSuccess;
  *value = 2619000;
  return device == 0 ? cudaSuccess : cudaErrorInvalidValue; /* the second does not tell */
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  (void)device;
  *properties = (struct cudaDeviceProp){.name = "played", .totalGlobalMem = (size_t)1 << 30, .major = 9};
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *unused_bytes, size_t *total) {
  CALL(true);
  *unused_bytes = *total = (size_t)1 << 30;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
  CALL(true);
  device_waits++;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *exchanged) {
  enum cudaStreamCaptureMode old = mode;
  CALL(true);
  mode = *exchanged, *exchanged = old;
  return cudaSuccess;
}
cudaError_t cudaMemPoolCreate(cudaMemPool_t *pool, const struct cudaMemPoolProps *properties) {
  (void)properties;
  CALL(true);
  live_pools++;
  *pool = (cudaMemPool_t)&live_pools;
  return cudaSuccess;
}
cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  (void)pool;
  live_pools--;
  return cudaSuccess;
}
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attribute, void *value) {
  (void)pool, (void)attribute, (void)value;
  CALL(true);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void **data, size_t bytes) {
  CALL(true);
  blocks++;
  return (*data = malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *data) {
  CALL(true);
  blocks--;
  free(data);
  return cudaSuccess;
}
cudaError_t cudaMallocFromPoolAsync(void **data, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  (void)pool, (void)stream;
  CALL(true);
  blocks++;
  return (*data = malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeAsync(void *data, cudaStream_t stream) {
  if (stream == cudaStreamLegacy && legacy_blocked) return cudaErrorStreamCaptureImplicit;
  return cudaFree(data);
}
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
  (void)kind, (void)stream;
  CALL(true);
  memcpy(dst, src, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t rows,
                              enum cudaMemcpyKind kind, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (size_t r = 0; r < rows && error == cudaSuccess; r++)
    error = cudaMemcpyAsync((char *)dst + r * dst_pitch, (const char *)src + r * src_pitch, width, kind, stream);
  return error;
}
cudaError_t cudaMemcpyPeer(void *dst, int dst_device, const void *src, int src_device, size_t bytes) {
  CALL(true);
  devices_made[dst_device] = devices_made[src_device] = true;
  memcpy(dst, src, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *dst, int byte, size_t bytes, cudaStream_t stream) {
  (void)stream;
  CALL(true);
  memset(dst, byte, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemset2DAsync(void *dst, size_t pitch, int byte, size_t width, size_t rows, cudaStream_t stream) {
  for (size_t r = 0; r < rows; r++) (void)cudaMemsetAsync((char *)dst + r * pitch, byte, width, stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  CALL(true);
  if (!(*stream = malloc(sizeof **stream))) return cudaErrorMemoryAllocation;
  **stream = (struct CUstream_st){.flags = flags, .id = next_id++};
  live_streams++;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  CALL(true);
  live_streams--;
  free(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  CALL(true);
  stream_waits++;
  if (stream != cudaStreamLegacy) busy[stream->id] = false;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  if (stream == cudaStreamLegacy && legacy_blocked) return cudaErrorStreamCaptureImplicit;
  *status =
      stream != cudaStreamLegacy && stream->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned *flags) {
  *flags = stream->flags;
  return cudaSuccess;
}
cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long *id) {
  *id = stream->id;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  (void)event, (void)flags;
  CALL(true);
  waits_of_legacy += stream == cudaStreamLegacy;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  (void)flags;
  CALL(true);
  events++;
  return (*event = calloc(1, sizeof **event)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  events--;
  free(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  CALL(true);
  event->stream_id = stream == cudaStreamLegacy ? 0 : stream->id;
  event->recorded = ++records;
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  CALL(true);
  return busy[event->stream_id] ? cudaErrorNotReady : cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  CALL(true);
  event_waits++;
  busy[event->stream_id] = false;
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  CALL(true);
  if (!start->recorded || !end->recorded) return cudaErrorInvalidResourceHandle;
  if (busy[start->stream_id] || busy[end->stream_id]) return cudaErrorNotReady;
  *milliseconds = (float)(end->recorded - start->recorded);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned flags) {
  CALL(true);
  if (flags != cudaHostAllocPortable) abort();
  pinned_blocks++;
  return (*data = malloc(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFreeHost(void *data) {
  CALL(true);
  pinned_blocks--;
  free(data);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode capture_mode) {
  CALL(true);
  if (capture_mode != cudaStreamCaptureModeRelaxed || !(stream->flags & cudaStreamNonBlocking)) abort();
  stream->capturing = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  stream->capturing = false;
  CALL(true);
  graphs++;
  *graph = (cudaGraph_t)&graphs;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                     const cudaGraphEdgeData **edges, size_t *count) {
  (void)graph, (void)dependencies, (void)edges, (void)count;
  CALL(true);
  *id = stream->id + 1000;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
  (void)graph, (void)nodes;
  CALL(true);
  *count = 3;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long flags) {
  (void)graph, (void)flags;
  CALL(true);
  executables++;
  *executable = (cudaGraphExec_t)&executables;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  (void)executable;
  CALL(true);
  busy[stream->id] = true;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  (void)graph;
  graphs--;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  (void)executable;
  CALL(true);
  executables--;
  return cudaSuccess;
}

/* ---- the driver ---- */

static int context_handles[DEVICES]; /* a context is the address of its device's entry */

static int get_current(void **current) {
  *current = context == NO_CONTEXT ? NULL : &context_handles[context];
  return 0;
}
static int set_current(void *current) {
  context = current ? (int)((int *)current - context_handles) : NO_CONTEXT;
  return 0;
}
static int get_device(int *device) {
  *device = context;
  return context == NO_CONTEXT ? 201 : 0; /* CUDA_ERROR_INVALID_CONTEXT */
}
static int primary_retain(void **made, int device) {
  int error = (int)call("cuDevicePrimaryCtxRetain", false);
  if (!error) devices_made[device] = true, *made = &context_handles[device];
  return error;
}
static int primary_state(int device, unsigned *flags, int *active) {
  *flags = 0, *active = devices_made[device];
  return 0;
}

static const char memory_of_device_1[16], managed_memory[16], registered_host_memory[16];

static int pointer_attributes(unsigned count, int *attributes, void **values, unsigned long long pointer) {
  const void *data = (const void *)(uintptr_t)pointer;
  bool managed = data == managed_memory, on_device = managed || data == memory_of_device_1;
  if (count != 3 || attributes[0] != 2 || attributes[1] != 8 || attributes[2] != 9) abort();
  *(unsigned *)values[0] = on_device ? 2 : data == registered_host_memory;
  *(unsigned *)values[1] = managed;
  *(int *)values[2] = data == memory_of_device_1 ? 1 : on_device ? 0 : -2;
  return 0;
}

static void *stand_in_symbol(const char *name) {
  static const struct {
    const char *name;
    void (*function)(void);
  } symbols[] = {{"cuCtxGetCurrent", (void (*)(void))get_current},
                 {"cuCtxSetCurrent", (void (*)(void))set_current},
                 {"cuCtxGetDevice", (void (*)(void))get_device},
                 {"cuDevicePrimaryCtxRetain", (void (*)(void))primary_retain},
                 {"cuDevicePrimaryCtxGetState", (void (*)(void))primary_state},
                 {"cuPointerGetAttributes", (void (*)(void))pointer_attributes}};
  void *found = NULL;
  for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++)
    if (!strcmp(symbols[i].name, name)) memcpy(&found, &symbols[i].function, sizeof found);
  return found;
}

/* ---- tests ---- */

static const int4mm_cuda_backend *cuda;

static cudaStream_t make_stream(unsigned flags) {
  cudaStream_t stream = NULL;
  CHECK(cudaStreamCreateWithFlags(&stream, flags) == cudaSuccess);
  return stream;
}

/* A device that cannot be got ready leaves nothing behind and may be tried again. */
static void test_half_ready_device(void) {
  static const char *const steps[] = {"cuDevicePrimaryCtxRetain", "cudaEventCreateWithFlags", "cudaMemPoolCreate",
                                      "cudaMemPoolSetAttribute", "cudaThreadExchangeStreamCaptureMode"};
  int4mm_gpu_traits traits;
  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    fail_in(steps[i], NULL, cudaErrorLaunchFailure);
    FAILS(cuda->traits(1, &traits), INT4MM_ERR_CUDA, "told to fail");
    CHECK(events == 0 && live_pools == 0 && context == NO_CONTEXT && mode == cudaStreamCaptureModeGlobal);
  }
  fail_in(NULL, NULL, cudaSuccess);
}

/* Work on the second device makes no context on the first and leaves a thread without one without one. */
static void test_contexts(void) {
  void *data = NULL, *stream = NULL, *scratch = NULL;
  int4mm_stream_state state;
  char host[16] = {0};
  OK(cuda->synchronize(0)); /* nobody's work is there */
  OK(cuda->alloc(1, 16, NULL, &data));
  OK(cuda->fill_bytes(1, data, 16, 1, 16, 1, NULL));
  OK(cuda->copy(INT4MM_CPU, host, 16, 1, data, 16, 16, 1, NULL));
  OK(cuda->stream_create(1, &stream));
  OK(cuda->stream_state(1, stream, &state));
  OK(cuda->scratch(1, 16, &scratch, stream));
  OK(cuda->scratch_free(1, scratch, stream));
  OK(cuda->stream_synchronize(1, stream));
  OK(cuda->stream_destroy(1, stream));
  cuda->free(1, data, true);
  OK(cuda->synchronize(1));
  CHECK(!devices_made[0] && devices_made[1] && context == NO_CONTEXT && mode == cudaStreamCaptureModeGlobal);
  CHECK(host[15] == 1 && blocks == 0 && live_streams == 0);

  int4mm_gpu_traits traits;
  context = 1; /* the caller's own */
  OK(cuda->traits(0, &traits));
  CHECK(traits.arch == 90 && traits.sms == 9 && traits.shared == 9 && traits.clock == 1980 && traits.memory == 3352);
  OK(cuda->traits(1, &traits));
  CHECK(traits.clock == 1980 && traits.memory == 0);
  OK(cuda->alloc(0, 16, NULL, &data));
  cuda->free(0, data, false);
  CHECK(devices_made[0] && context == 1 && blocks == 0);
  FAILS(cuda->synchronize(2), INT4MM_ERR_ARGUMENT, "there is no device cuda:2");
}

static void test_locations(void) {
  int4mm_location location;
  OK(cuda->locate(memory_of_device_1, &location));
  CHECK(location.device == 1 && !location.managed);
  OK(cuda->locate(managed_memory, &location));
  CHECK(location.managed);
  CHECK(!location.pinned);
  OK(cuda->locate(registered_host_memory, &location));
  CHECK(location.device == INT4MM_CPU && !location.managed && location.pinned);
  OK(cuda->locate(&location, &location));
  CHECK(location.device == INT4MM_CPU && !location.managed && !location.pinned);
}

/* An event that cannot be had costs a wait, not the block; when that fails too, nothing is kept. */
static void test_no_event(void) {
  cudaStream_t stream = make_stream(cudaStreamNonBlocking);
  void *data = NULL;
  busy[stream->id] = true;
  stream_waits = 0;
  fail_in("cudaEventCreateWithFlags", NULL, cudaErrorMemoryAllocation);
  OK(cuda->alloc(0, 16, stream, &data));
  CHECK(data && stream_waits == 1 && !busy[stream->id]);
  fail_in("cudaEventCreateWithFlags", "cudaStreamSynchronize", cudaErrorLaunchFailure);
  void *second = &data;
  FAILS(cuda->alloc(0, 16, stream, &second), INT4MM_ERR_CUDA, "cannot wait for the stream");
  CHECK(!second && blocks == 1);
  fail_in("cudaStreamWaitEvent", NULL, cudaErrorLaunchFailure);
  OK(int4mm_cuda_record_event(0, stream));
  device_waits = 0;
  cuda->free(0, data, true); /* the events cannot be waited for: the device is */
  CHECK(blocks == 0 && device_waits == 1);
  fail_in(NULL, NULL, cudaSuccess);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

/* Work of a stream that is gone is still waited for when a new stream has its handle; events of done work serve again.
 */
static void test_events(void) {
  cudaStream_t stream = make_stream(cudaStreamNonBlocking);
  void *data = NULL;
  int before = events;
  for (int i = 0; i < 100; i++) { /* each a new stream, whose work is done before the next one's */
    stream->id = next_id++;
    OK(cuda->alloc(0, 16, stream, &data));
    cuda->free(0, data, true);
  }
  CHECK(events <= before + 1);
  before = events;
  busy[stream->id] = true;
  OK(int4mm_cuda_record_work(0, stream));
  OK(cuda->alloc(0, 16, stream, &data));
  waits_of_legacy = 0;
  cuda->free(0, data, true);
  int waits = waits_of_legacy;
  stream->id = next_id++;
  OK(int4mm_cuda_record_work(0, stream));
  OK(cuda->alloc(0, 16, stream, &data));
  waits_of_legacy = 0;
  cuda->free(0, data, true);
  CHECK(events == before + 1 && waits_of_legacy == waits + 1);
  waits_of_legacy = 0;
  OK(cuda->alloc(0, 16, NULL, &data));
  cuda->free(0, data, false);
  CHECK(waits_of_legacy == 0 && blocks == 0);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

static void test_captures(void) {
  cudaStream_t stream = make_stream(cudaStreamNonBlocking);
  void *data = NULL, *scratch = NULL;
  OK(cuda->alloc(0, 16, NULL, &data));
  stream->capturing = true;
  OK(cuda->scratch(0, 16, &scratch, stream)); /* from a pool: the graph's */
  OK(cuda->scratch_free(0, scratch, stream));
  FAILS(cuda->stream_destroy(0, stream), INT4MM_ERR_ARGUMENT, "cannot destroy the stream while a CUDA graph");
  FAILS(cuda->copy(INT4MM_CPU, &scratch, 8, 0, data, 8, 8, 1, stream), INT4MM_ERR_ARGUMENT, "a CUDA graph");
  cudaMemPool_t pool = devices[0].pool;
  devices[0].pool = NULL; /* a device without pools */
  FAILS(cuda->scratch(0, 16, &scratch, stream), INT4MM_ERR_ARGUMENT,
        "this call takes scratch memory and cuda:0 has no memory pools");
  CHECK(!scratch && blocks == 1);
  stream->capturing = false;
  OK(cuda->scratch(0, 16, &scratch, stream));
  OK(cuda->scratch_free(0, scratch, stream));
  devices[0].pool = pool;

  legacy_blocked = true; /* a blocking stream captures */
  FAILS(cuda->alloc(0, 16, NULL, &scratch), INT4MM_ERR_ARGUMENT, "no tensor can be allocated while a stream of cuda:0");
  cuda->free(0, data, false);
  CHECK(blocks == 1);
  legacy_blocked = false;
  OK(cuda->synchronize(0));
  CHECK(blocks == 0);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

static void test_user_events(void) {
  cudaStream_t stream = make_stream(cudaStreamDefault);
  void *start = NULL, *end = NULL, *none = NULL;
  bool done = false;
  float milliseconds = -1;
  int before = events;
  OK(cuda->event_create(0, &start));
  OK(cuda->event_create(0, &end));
  FAILS(cuda->event_elapsed(0, start, end, &milliseconds), INT4MM_ERR_ARGUMENT, "both have to be recorded");
  OK(cuda->event_record(0, start, NULL));
  OK(cuda->event_record(0, end, stream));
  busy[stream->id] = true;
  OK(cuda->event_query(0, end, &done));
  CHECK(!done);
  OK(cuda->event_elapsed(0, start, end, &milliseconds)); /* waits */
  CHECK(milliseconds == 1);
  OK(cuda->event_query(0, end, &done));
  CHECK(done);
  OK(cuda->event_synchronize(0, end));
  OK(cuda->stream_wait(0, stream, start));
  waits_of_legacy = 0;
  OK(cuda->stream_wait(0, NULL, end));
  CHECK(waits_of_legacy == 1);
  fail_in("cudaEventCreateWithFlags", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->event_create(0, &none), INT4MM_ERR_CUDA, "cannot create an event: told to fail");
  fail_in("cudaEventRecord", "cudaStreamWaitEvent", cudaErrorLaunchFailure);
  FAILS(cuda->event_record(0, start, stream), INT4MM_ERR_CUDA, "cannot record the event: told to fail");
  FAILS(cuda->stream_wait(0, stream, start), INT4MM_ERR_CUDA,
        "cannot have the stream wait for the event: told to fail");
  fail_in("cudaEventSynchronize", "cudaEventQuery", cudaErrorLaunchFailure);
  FAILS(cuda->event_synchronize(0, start), INT4MM_ERR_CUDA, "cannot wait for the event: told to fail");
  FAILS(cuda->event_query(0, start, &done), INT4MM_ERR_CUDA, "cannot ask whether the event is done: told to fail");
  FAILS(cuda->event_elapsed(0, start, end, &milliseconds), INT4MM_ERR_CUDA, "cannot find the time between the events");
  fail_in("cudaEventElapsedTime", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->event_elapsed(0, start, end, &milliseconds), INT4MM_ERR_CUDA, "cannot find the time between the events");
  fail_in("cudaEventSynchronize", "cudaEventQuery", cudaErrorInvalidValue);
  FAILS(cuda->event_synchronize(0, start), INT4MM_ERR_ARGUMENT,
        "cannot wait for the event: it was last recorded while");
  FAILS(cuda->event_query(0, start, &done), INT4MM_ERR_ARGUMENT, "last recorded while a CUDA graph was captured");
  FAILS(cuda->event_elapsed(0, start, end, &milliseconds), INT4MM_ERR_ARGUMENT, "last recorded while a CUDA graph");
  fail_in(NULL, NULL, cudaSuccess);
  CHECK(!none && milliseconds == 1);
  OK(cuda->event_destroy(0, start));
  OK(cuda->event_destroy(0, end));
  CHECK(events == before);
  CHECK(cudaStreamDestroy(stream) == cudaSuccess);
}

/* A graph that cannot be made or launched leaves nothing behind. */
static void test_graphs(void) {
  static const char *const at_begin[] = {"cudaStreamCreateWithFlags", "cudaStreamBeginCapture",
                                         "cudaStreamGetCaptureInfo"};
  static const char *const at_end[] = {"cudaStreamEndCapture", "cudaGraphGetNodes", "cudaGraphInstantiateWithFlags"};
  void *stream = NULL, *executable = NULL, *own = NULL;
  uint64_t capture = 0;
  int64_t nodes = 0;
  int4mm_stream_state state;
  for (size_t i = 0; i < sizeof at_begin / sizeof at_begin[0]; i++) {
    fail_in(at_begin[i], NULL, cudaErrorLaunchFailure);
    FAILS(cuda->graph_begin(0, &stream, &capture), INT4MM_ERR_CUDA, "told to fail");
    fail_in(NULL, NULL, cudaSuccess);
    CHECK(live_streams == 0 && graphs == 0 && !int4mm_cuda_is_capturing());
  }
  for (size_t i = 0; i < sizeof at_end / sizeof at_end[0]; i++) {
    OK(cuda->graph_begin(0, &stream, &capture));
    fail_in(at_end[i], NULL, cudaErrorLaunchFailure);
    FAILS(cuda->graph_end(0, stream, &executable, &nodes), INT4MM_ERR_CUDA, "told to fail");
    fail_in(NULL, NULL, cudaSuccess);
    CHECK(live_streams == 0 && graphs == 0 && executables == 0 && !executable && !int4mm_cuda_is_capturing());
  }
  OK(cuda->graph_begin(0, &stream, &capture)); /* dropped */
  OK(cuda->graph_end(0, stream, NULL, &nodes));
  CHECK(live_streams == 0 && graphs == 0 && executables == 0 && nodes == 0);

  OK(cuda->graph_begin(0, &stream, &capture));
  OK(cuda->stream_state(0, stream, &state));
  CHECK(state.capturing && state.non_blocking && state.capture == capture && capture != 0);
  OK(cuda->graph_end(0, stream, &executable, &nodes));
  CHECK(live_streams == 0 && graphs == 0 && executables == 1 && nodes == 3);
  OK(cuda->stream_create(0, &own));
  OK(cuda->stream_state(0, own, &state));
  CHECK(!state.capturing && state.capture == 0);
  fail_in("cudaGraphLaunch", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->graph_launch(0, executable, own, false), INT4MM_ERR_CUDA, "cannot launch the CUDA graph: told to fail");
  fail_in(NULL, NULL, cudaSuccess);
  OK(cuda->graph_launch(0, executable, own, false));
  cudaStream_t other = make_stream(cudaStreamNonBlocking);
  int before = records;
  OK(cuda->graph_launch(0, executable, other, true));
  CHECK(records == before + 1); /* for later frees */
  OK(cuda->stream_destroy(0, own));
  OK(cuda->graph_destroy(0, executable));
  CHECK(executables == 0 && mode == cudaStreamCaptureModeGlobal);
  CHECK(cudaStreamSynchronize(other) == cudaSuccess && cudaStreamDestroy(other) == cudaSuccess);
}

/* Pinned memory goes when the devices that used it are done, and not during a capture. */
static void test_pinned(void) {
  void *pinned = NULL, *data = NULL, *stream = NULL;
  uint64_t capture;
  int64_t nodes;
  fail_in("cudaHostAlloc", NULL, cudaErrorMemoryAllocation);
  FAILS(cuda->host_alloc(16, &pinned), INT4MM_ERR_MEMORY, "cannot allocate pinned host memory: out of memory");
  fail_in(NULL, NULL, cudaSuccess);
  CHECK(!pinned);
  OK(cuda->host_alloc(16, &pinned));
  event_waits = 0;
  cuda->host_free(pinned, 0); /* no copy used it */
  CHECK(pinned_blocks == 0 && event_waits == 0);

  OK(cuda->alloc(1, 16, NULL, &data));
  OK(cuda->host_alloc(16, &pinned));
  memset(pinned, 7, 16);
  cudaStream_t other = make_stream(cudaStreamNonBlocking);
  stream_waits = 0;
  OK(cuda->copy_async(1, false, data, 16, pinned, 16, 16, 1, other));
  OK(cuda->copy_async(1, true, pinned, 16, data, 16, 16, 1, NULL));
  CHECK(stream_waits == 0 && *(char *)data == 7);
  fail_in("cudaMemcpyAsync", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->copy_async(1, true, pinned, 8, data, 8, 7, 2, NULL), INT4MM_ERR_CUDA, "cannot copy from the device");
  fail_in(NULL, NULL, cudaSuccess);
  waits_of_legacy = 0;
  cuda->host_free(pinned, 2);
  CHECK(pinned_blocks == 0 && event_waits == 1 && waits_of_legacy > 0);

  OK(cuda->host_alloc(16, &pinned)); /* the events cannot be waited for: the device is */
  fail_in("cudaEventSynchronize", NULL, cudaErrorLaunchFailure);
  device_waits = 0;
  cuda->host_free(pinned, 2);
  fail_in(NULL, NULL, cudaSuccess);
  CHECK(pinned_blocks == 0 && device_waits == 1);

  OK(cuda->host_alloc(16, &pinned));
  OK(cuda->graph_begin(0, &stream, &capture));
  event_waits = 0;
  cuda->host_free(pinned, 2);
  CHECK(pinned_blocks == 1 && event_waits == 0);
  OK(cuda->graph_end(0, stream, NULL, &nodes));
  CHECK(pinned_blocks == 0 && event_waits == 1);

  OK(cuda->host_alloc(16, &pinned));
  legacy_blocked = true; /* a blocking stream captures, for someone else */
  cuda->host_free(pinned, 1);
  CHECK(pinned_blocks == 1);
  legacy_blocked = false;
  OK(cuda->synchronize(0));
  CHECK(pinned_blocks == 0);
  cuda->free(1, data, true);
  CHECK(blocks == 0 && cudaStreamDestroy(other) == cudaSuccess);
}

static void test_failures(void) {
  void *data = NULL, *stream = NULL;
  char host[32] = {0};
  fail_in("cudaMallocFromPoolAsync", NULL, cudaErrorMemoryAllocation);
  FAILS(cuda->scratch(1, 12345, &data, NULL), INT4MM_ERR_MEMORY,
        "out of memory on cuda:1: asked for 12345 bytes of scratch memory");
  FAILS(cuda->alloc(1, 12345, NULL, &data), INT4MM_ERR_MEMORY, "out of memory");
  fail_in(NULL, NULL, cudaSuccess);

  OK(cuda->stream_create(0, &stream));
  fail_in("cudaStreamSynchronize", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->stream_destroy(0, stream), INT4MM_ERR_CUDA, "cannot wait for the stream");
  fail_in("cudaStreamDestroy", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->stream_destroy(0, stream), INT4MM_ERR_CUDA, "cannot destroy the stream");
  CHECK(live_streams == 1);
  fail_in(NULL, NULL, cudaSuccess);
  OK(cuda->stream_destroy(0, stream));
  CHECK(live_streams == 0);

  OK(cuda->alloc(0, 32, NULL, &data));
  stream_waits = 0;
  fail_in("cudaMemcpyAsync", NULL, cudaErrorLaunchFailure);
  FAILS(cuda->copy(0, data, 16, INT4MM_CPU, host, 17, 15, 2, NULL), INT4MM_ERR_CUDA, "cannot copy to the device");
  CHECK(stream_waits == 1); /* rows before the failed one may be under way from the caller's memory */
  fail_in(NULL, NULL, cudaSuccess);
  cuda->free(0, data, false);
  CHECK(blocks == 0);

  const char *no_code = "cannot launch: this build has no code that cuda:0, an sm_90, can run; it was built with "
                        "CUDA_ARCHS=\"80 90a\"";
  FAILS(int4mm_cuda_check(cudaErrorNoKernelImageForDevice, "launch"), INT4MM_ERR_UNAVAILABLE, no_code);
  FAILS(int4mm_cuda_check(cudaErrorInvalidDeviceFunction, "launch"), INT4MM_ERR_UNAVAILABLE, no_code);
  FAILS(int4mm_cuda_check(cudaErrorUnsupportedPtxVersion, "launch"), INT4MM_ERR_UNAVAILABLE, "cannot launch");
  FAILS(int4mm_cuda_check(cudaErrorLaunchFailure, "launch"), INT4MM_ERR_CUDA, "cannot launch");
}

int main(void) {
  cuda = int4mm_cuda_backend_table();
  CHECK(cuda->abi == INT4MM_CUDA_ABI);
  OK(cuda->open(int4mm_fail));
  test_half_ready_device();
  test_contexts();
  context = NO_CONTEXT;
  test_locations();
  test_no_event();
  test_events();
  test_captures();
  test_user_events();
  test_graphs();
  test_pinned();
  test_failures();
  return report();
}
