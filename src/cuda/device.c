/*
 * The CUDA library's one exported function, its table, and the devices behind it.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/backend.h"
#include "int4mm_abi.h"

int32_t (*int4mm_cuda_fail)(int32_t status, const char *format, ...);

static int device_total;
static int4mm_cuda_device devices[INT4MM_CUDA_DEVICES];
static atomic_bool device_ready[INT4MM_CUDA_DEVICES];
static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;

/* ERR_UNAVAILABLE: this build and driver cannot run a kernel on this GPU, whatever the call. */
static int32_t status_of(cudaError_t error) {
  switch (error) {
  case cudaErrorMemoryAllocation:
    return INT4MM_ERR_MEMORY;
  case cudaErrorInvalidKernelImage:
  case cudaErrorInvalidPtx:
  case cudaErrorUnsupportedPtxVersion:
  case cudaErrorJitCompilerNotFound:
  case cudaErrorJitCompilationDisabled:
  case cudaErrorDevicesUnavailable: /* busy, in exclusive mode */
    return INT4MM_ERR_UNAVAILABLE;
  default:
    return INT4MM_ERR_CUDA;
  }
}

/* Neither machine code that this GPU runs nor PTX that the driver could compile for it; the second is what setting a
 * kernel's attributes says of that. */
static bool is_code_missing(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction;
}

static int32_t fail_for_code(const char *doing) {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) (void)cudaGetLastError();
  (void)int4mm_cuda_fail(INT4MM_ERR_UNAVAILABLE,
                         "cannot %s: this build has no code that cuda:%d, an sm_%d%d, can run; it was built with "
                         "CUDA_ARCHS=\"%s\"",
                         doing, device, major, minor, INT4MM_CUDA_ARCHS);
  return INT4MM_ERR_UNAVAILABLE;
}

int32_t int4mm_cuda_check(cudaError_t error, const char *doing) {
  if (error == cudaSuccess) return INT4MM_OK;
  (void)cudaGetLastError(); /* returns and clears it */
  if (is_code_missing(error)) return fail_for_code(doing);
  int32_t status = status_of(error);
  return int4mm_cuda_fail(status, "cannot %s: %s (%s)", doing, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* ---- opening ---- */

/* The driver, then the devices; each thing that is missing with its own words. */
static int32_t open_cuda(int32_t (*fail)(int32_t status, const char *format, ...)) {
  int driver = 0, runtime = 0;
  int4mm_cuda_fail = fail;
  cudaError_t error = cudaDriverGetVersion(&driver);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&runtime);
  if (error == cudaSuccess && driver == 0)
    return fail(INT4MM_ERR_UNAVAILABLE, "no NVIDIA driver (libcuda.so.1 is not found or does not load)");
  if (error == cudaSuccess) error = cudaGetDeviceCount(&device_total);
  (void)cudaGetLastError();
  if (error == cudaErrorInsufficientDriver)
    return fail(INT4MM_ERR_UNAVAILABLE, "the NVIDIA driver is too old: it serves CUDA %d.%d, this build needs %d.%d",
                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
  if (error == cudaErrorNoDevice || (error == cudaSuccess && device_total == 0))
    return fail(INT4MM_ERR_UNAVAILABLE, "no CUDA device%s",
                getenv("CUDA_VISIBLE_DEVICES") ? " (CUDA_VISIBLE_DEVICES is set and may hide it)" : "");
  if (error != cudaSuccess)
    return fail(INT4MM_ERR_UNAVAILABLE, "CUDA does not start: %s (%s)", cudaGetErrorString(error),
                cudaGetErrorName(error));
  if (device_total > INT4MM_CUDA_DEVICES) device_total = INT4MM_CUDA_DEVICES;
  return int4mm_cuda_open_driver(fail);
}

/* ---- devices ---- */

int32_t int4mm_cuda_check_device(int32_t device) {
  if (device >= 0 && device < device_total) return INT4MM_OK;
  return int4mm_cuda_fail(INT4MM_ERR_ARGUMENT, "there is no device cuda:%d: this machine has %d", (int)device,
                          device_total);
}

int32_t int4mm_cuda_device_in_use(void) {
  for (int32_t device = 0; device < device_total; device++)
    if (int4mm_cuda_has_context(device)) return device;
  return 0;
}

/* A pool of our own, so that what it keeps does not depend on others in the process. It keeps up to an eighth of the
 * device's memory over synchronisations; the default of 0 would give everything back to the system each time. */
static int32_t make_pool(int device, size_t memory, cudaMemPool_t *pool) {
  struct cudaMemPoolProps properties = {.allocType = cudaMemAllocationTypePinned,
                                        .location = {.type = cudaMemLocationTypeDevice, .id = device}};
  int supported = 0;
  *pool = NULL;
  int32_t status = int4mm_cuda_check(cudaDeviceGetAttribute(&supported, cudaDevAttrMemoryPoolsSupported, device),
                                     "ask for memory pools");
  if (status || !supported) return status;
  status = int4mm_cuda_check(cudaMemPoolCreate(pool, &properties), "create a memory pool");
  if (status) return status;
  uint64_t keep = memory / 8;
  status =
      int4mm_cuda_check(cudaMemPoolSetAttribute(*pool, cudaMemPoolAttrReleaseThreshold, &keep), "set up a memory pool");
  if (status) {
    (void)cudaMemPoolDestroy(*pool);
    *pool = NULL;
  }
  return status;
}

static int32_t read_traits(int device, int4mm_gpu_traits *traits) {
  enum { MAJOR, MINOR, SMS, SHARED, CLOCK, MEMORY_CLOCK, BUS_WIDTH, COUNT }; /* clocks in kHz, the bus in bits */
  static const enum cudaDeviceAttr attributes[COUNT] = {cudaDevAttrComputeCapabilityMajor,
                                                        cudaDevAttrComputeCapabilityMinor,
                                                        cudaDevAttrMultiProcessorCount,
                                                        cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                                        cudaDevAttrClockRate,
                                                        cudaDevAttrMemoryClockRate,
                                                        cudaDevAttrGlobalMemoryBusWidth};
  int value[COUNT] = {0};
  for (int i = 0; i < COUNT; i++) {
    cudaError_t error = cudaDeviceGetAttribute(&value[i], attributes[i], device);
    if (error != cudaSuccess && i < CLOCK) return int4mm_cuda_check(error, "read the device's attributes");
    if (error != cudaSuccess) (void)cudaGetLastError(), value[i] = 0; /* it need not say */
  }
  *traits = (int4mm_gpu_traits){.arch = 10 * value[MAJOR] + value[MINOR],
                                .sms = value[SMS],
                                .clock = value[CLOCK] / 1000,
                                .memory = (int32_t)((int64_t)value[MEMORY_CLOCK] * 2 * value[BUS_WIDTH] / 8 / 1000000),
                                .shared = value[SHARED]};
  return INT4MM_OK;
}

/* Fills devices[device], which is the current one. */
static int32_t prepare(int device) {
  int4mm_cuda_device *d = &devices[device];
  struct cudaDeviceProp properties;
  int4mm_gpu_traits traits;
  int32_t status = read_traits(device, &traits);
  if (!status) status = int4mm_cuda_check(cudaGetDeviceProperties(&properties, device), "read the device's properties");
  if (status) return status;
  if (traits.arch < INT4MM_CUDA_OLDEST_ARCH)
    return int4mm_cuda_fail(INT4MM_ERR_UNAVAILABLE, "cuda:%d has compute capability %d.%d; 7.5 is the oldest served",
                            device, (int)traits.arch / 10, (int)traits.arch % 10);
  status = int4mm_cuda_check(cudaEventCreateWithFlags(&d->default_event, cudaEventDisableTiming), "create an event");
  if (status) return status;
  status = make_pool(device, properties.totalGlobalMem, &d->pool);
  if (status) {
    (void)cudaEventDestroy(d->default_event);
    return status;
  }
  snprintf(d->name, sizeof d->name, "%.*s", (int)sizeof d->name - 1, properties.name);
  d->traits = traits, d->traits.name = d->name;
  return INT4MM_OK;
}

int32_t int4mm_cuda_prepare(int32_t device, const int4mm_cuda_device **prepared) {
  *prepared = &devices[device];
  if (atomic_load_explicit(&device_ready[device], memory_order_acquire)) return INT4MM_OK;
  pthread_mutex_lock(&device_lock);
  int32_t status = INT4MM_OK;
  if (!atomic_load(&device_ready[device])) {
    status = prepare(device);
    if (!status) atomic_store_explicit(&device_ready[device], true, memory_order_release);
  }
  pthread_mutex_unlock(&device_lock);
  return status;
}

static int32_t device_count(int32_t *count) {
  *count = device_total;
  return INT4MM_OK;
}

static int32_t device_traits(int32_t device, int4mm_gpu_traits *traits) {
  int32_t status = int4mm_cuda_check_device(device);
  if (status) return status;
  if (!atomic_load_explicit(&device_ready[device], memory_order_acquire)) {
    int4mm_cuda_scope scope;
    if ((status = int4mm_cuda_enter(device, &scope))) return status;
    int4mm_cuda_leave(&scope);
  }
  *traits = devices[device].traits;
  return INT4MM_OK;
}

static int32_t device_info(int32_t device, int4mm_gpu_info *info) {
  int4mm_cuda_scope scope;
  struct cudaDeviceProp properties;
  int4mm_gpu_info made = {0};
  size_t unused_bytes = 0, total = 0;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) error = cudaMemGetInfo(&unused_bytes, &total);
  if (error == cudaSuccess) error = cudaRuntimeGetVersion(&made.runtime_version);
  if (error == cudaSuccess) error = cudaDriverGetVersion(&made.driver_version);
  status = int4mm_cuda_leave_after(&scope, error, "read the device's properties");
  if (status) return status;
  int4mm_gpu_traits traits = devices[device].traits;
  snprintf(made.name, sizeof made.name, "%s", traits.name);
  made.arch = traits.arch, made.sms = traits.sms;
  made.clock = traits.clock, made.memory = traits.memory, made.shared = traits.shared;
  made.total_memory = (int64_t)total, made.free_memory = (int64_t)unused_bytes;
  made.l2_bytes = properties.l2CacheSize;
  *info = made;
  return INT4MM_OK;
}

/* ---- the table ---- */

static const int4mm_cuda_backend table = {
    .abi = INT4MM_CUDA_ABI,
    .open = open_cuda,
    .device_count = device_count,
    .device_info = device_info,
    .traits = device_traits,
    .code_arch = int4mm_cuda_code_arch,
    .alloc = int4mm_cuda_alloc,
    .free = int4mm_cuda_free,
    .locate = int4mm_cuda_locate,
    .stream_state = int4mm_cuda_stream_state,
    .stream_join = int4mm_cuda_stream_join,
    .copy = int4mm_cuda_copy,
    .fill_bytes = int4mm_cuda_fill_bytes,
    .synchronize = int4mm_cuda_synchronize,
    .stream_create = int4mm_cuda_stream_create,
    .stream_destroy = int4mm_cuda_stream_destroy,
    .stream_synchronize = int4mm_cuda_stream_synchronize,
    .matmul = int4mm_cuda_matmul,
    .pack = int4mm_cuda_pack,
    .quantize = int4mm_cuda_quantize,
    .quantize_groups = int4mm_cuda_quantize_groups,
    .find_not_finite = int4mm_cuda_find_not_finite,
    .rotate = int4mm_cuda_rotate,
    .unpack = int4mm_cuda_unpack,
    .dequantize = int4mm_cuda_dequantize,
    .dequantize_groups = int4mm_cuda_dequantize_groups,
    .map = int4mm_cuda_map,
    .rowwise = int4mm_cuda_rowwise,
    .random = int4mm_cuda_random,
    .transpose = int4mm_cuda_transpose,
    .gather = int4mm_cuda_gather,
    .align_rows = int4mm_cuda_align_rows,
    .scratch = int4mm_cuda_scratch,
    .scratch_free = int4mm_cuda_scratch_free,
    .host_alloc = int4mm_cuda_host_alloc,
    .host_free = int4mm_cuda_host_free,
    .copy_async = int4mm_cuda_copy_async,
    .event_create = int4mm_cuda_event_create,
    .event_destroy = int4mm_cuda_event_destroy,
    .event_record = int4mm_cuda_event_record,
    .event_synchronize = int4mm_cuda_event_synchronize,
    .event_query = int4mm_cuda_event_query,
    .event_elapsed = int4mm_cuda_event_elapsed,
    .stream_wait = int4mm_cuda_stream_wait,
    .graph_begin = int4mm_cuda_graph_begin,
    .graph_end = int4mm_cuda_graph_end,
    .graph_launch = int4mm_cuda_graph_launch,
    .graph_destroy = int4mm_cuda_graph_destroy,
};

INT4MM_API const int4mm_cuda_backend *int4mm_cuda_backend_table(void);
const int4mm_cuda_backend *int4mm_cuda_backend_table(void) {
  return &table;
}
