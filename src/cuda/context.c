/*
 * Contexts: a call works in its device's primary context, the one that CUDA's runtime uses, and puts the caller's back.
 * That is done through the driver: cudaSetDevice would make a context, some hundred MiB, on the device that it goes
 * back to even where nobody uses that. The driver is also what knows where an address lies without a context.
 */
#include <dlfcn.h>
#include <stdatomic.h>
#include <string.h>

#include "cuda/backend.h"

/* By their documented names and types; a CUresult is an int, 0 for success, a CUcontext a pointer. */
typedef struct driver_functions {
  int (*get_current)(void **context);
  int (*set_current)(void *context);
  int (*get_device)(int *device); /* of the current context */
  int (*primary_retain)(void **context, int device);
  int (*primary_state)(int device, unsigned *flags, int *active);
  int (*pointer_attributes)(unsigned count, int *attributes, void **values, unsigned long long pointer);
} driver_functions;

static driver_functions driver;
static _Atomic(void *) primary_contexts[INT4MM_CUDA_DEVICES]; /* of the devices used so far; kept for good */

/* A result of the driver as the runtime would name it: the two use the same numbers. */
static int32_t check(int result, const char *doing) {
  return int4mm_cuda_check((cudaError_t)result, doing);
}

int32_t int4mm_cuda_open_driver(int32_t (*fail)(int32_t status, const char *format, ...)) {
  static const char *const names[] = {"cuCtxGetCurrent",
                                      "cuCtxSetCurrent",
                                      "cuCtxGetDevice",
                                      "cuDevicePrimaryCtxRetain",
                                      "cuDevicePrimaryCtxGetState",
                                      "cuPointerGetAttributes"};
  void *symbols[sizeof names / sizeof names[0]];
  _Static_assert(sizeof symbols == sizeof driver, "one name for each function");
  void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL); /* never closed, as the runtime's own handle */
  if (!library) return fail(INT4MM_ERR_UNAVAILABLE, "the NVIDIA driver does not load: %s", dlerror());
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (!(symbols[i] = dlsym(library, names[i])))
      return fail(INT4MM_ERR_UNAVAILABLE, "the NVIDIA driver has no %s", names[i]);
  memcpy(&driver, symbols, sizeof driver); /* ISO C knows no cast from an object to a function pointer */
  return INT4MM_OK;
}

static int32_t primary_context(int32_t device, void **context) {
  if ((*context = atomic_load_explicit(&primary_contexts[device], memory_order_acquire))) return INT4MM_OK;
  int32_t status = check(driver.primary_retain(context, device), "make a context on the device");
  if (!status) atomic_store_explicit(&primary_contexts[device], *context, memory_order_release);
  return status;
}

/* Makes the device current, noting what is to be put back. */
static int32_t make_current(int32_t device, int4mm_cuda_scope *scope) {
  int current;
  void *context;
  scope->restore = false, scope->context = NULL;
  if (driver.get_device(&current)) current = -1; /* no context in this thread */
  if (current == device) return INT4MM_OK;
  int32_t status = primary_context(device, &context);
  if (!status && current >= 0) status = check(driver.get_current(&scope->context), "find the current context");
  if (!status) status = check(driver.set_current(context), "select the device");
  scope->restore = !status && (current >= 0 || device != 0);
  return status;
}

static void put_back(const int4mm_cuda_scope *scope) {
  if (scope->restore) (void)driver.set_current(scope->context); /* it was current before: fails only at process exit */
}

int32_t int4mm_cuda_enter(int32_t device, int4mm_cuda_scope *scope) {
  int32_t status = int4mm_cuda_check_device(device);
  if (!status) status = make_current(device, scope);
  if (status) return status;
  scope->mode = cudaStreamCaptureModeRelaxed;
  status = int4mm_cuda_check(cudaThreadExchangeStreamCaptureMode(&scope->mode), "set the capture mode");
  if (status) {
    put_back(scope);
    return status;
  }
  status = int4mm_cuda_prepare(device, &scope->device);
  if (status) int4mm_cuda_leave(scope);
  return status;
}

void int4mm_cuda_leave(const int4mm_cuda_scope *scope) {
  enum cudaStreamCaptureMode mode = scope->mode;
  /* cannot fail where entering did not, but for a process that is ending */
  if (cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) (void)cudaGetLastError();
  put_back(scope);
}

int32_t int4mm_cuda_leave_after(const int4mm_cuda_scope *scope, cudaError_t error, const char *doing) {
  int32_t status = int4mm_cuda_check(error, doing);
  int4mm_cuda_leave(scope);
  return status;
}

bool int4mm_cuda_has_context(int32_t device) {
  unsigned flags;
  int active = 0;
  return driver.primary_state(device, &flags, &active) || active; /* when in doubt, yes */
}

int32_t int4mm_cuda_locate(const void *data, int4mm_location *location) {
  enum { MEMORY_TYPE = 2, IS_MANAGED = 8, DEVICE_ORDINAL = 9 }; /* CUpointer_attribute */
  enum { HOST_MEMORY = 1, DEVICE_MEMORY = 2 };                  /* CUmemorytype; host memory is said of pinned alone */
  int attributes[] = {MEMORY_TYPE, IS_MANAGED, DEVICE_ORDINAL};
  uint64_t type = 0, managed = 0, ordinal = 0; /* wide enough for whatever the driver writes, which it may leave out */
  void *values[] = {&type, &managed, &ordinal};
  int result = driver.pointer_attributes(3, attributes, values, (unsigned long long)(uintptr_t)data);
  if (result) return check(result, "ask the driver where the memory is");
  location->managed = (uint32_t)managed != 0;
  location->pinned = (uint32_t)type == HOST_MEMORY && !location->managed;
  location->device = (uint32_t)type == DEVICE_MEMORY ? (int32_t)ordinal : INT4MM_CPU;
  return INT4MM_OK;
}
