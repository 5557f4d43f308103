/*
 * The tables that the core reaches memory through, and streams: a storage has to be ready before work on a stream uses
 * it, and must not be freed before that work is done.
 */
#include "dispatch/devices.h"
#include "core/check.h"
#include "core/device.h"
#include "core/error.h"
#include "core/graph.h"
#include "core/host_memory.h"
#include "core/storage.h"
#include "cuda/table.h"
#include "dispatch/gpu.h"

/* ---- the host ---- */

static int32_t host_check(int32_t device) {
  (void)device;
  return INT4MM_OK;
}

/* `data`, wanted on one device, is memory of another. */
static int32_t wrong_device(const void *data, int32_t is_on, int32_t wanted) {
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "data is at %p, which is memory of %s, not of %s", data,
                     int4mm_device_name(is_on).s, int4mm_device_name(wanted).s);
}

static int32_t check_location(const int4mm_cuda_backend *cuda, int32_t device, const void *data) {
  int4mm_location location;
  int32_t status = cuda->locate(data, &location);
  if (status || location.managed || location.device == device) return status;
  return wrong_device(data, location.device, device);
}

static int32_t host_check_pointer(int32_t device, const void *data) {
  const int4mm_cuda_backend *cuda = int4mm_cuda_if_open();
  return cuda ? check_location(cuda, device, data) : INT4MM_OK;
}

/* ---- GPUs ---- */

static int32_t gpu_check(int32_t device) {
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  int4mm_gpu_traits gpu;
  return cuda ? int4mm_gpu_traits_of(cuda, device, &gpu) : INT4MM_ERR_UNAVAILABLE;
}

static void gpu_release(int4mm_storage *s) {
  const int4mm_cuda_backend *cuda = int4mm_cuda(); /* none after a fork: the memory is the parent's */
  if (cuda) cuda->free(s->device, s->data, atomic_load(&s->non_blocking));
}

static int32_t gpu_alloc(int4mm_storage *s, void *stream) {
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  int4mm_stream_state state = {0};
  if (!cuda) return INT4MM_ERR_UNAVAILABLE;
  int32_t status = stream ? cuda->stream_state(s->device, stream, &state) : INT4MM_OK;
  /* In a capture of ours the memory is a plain tensor's, allocated beside the capture, and the graph keeps it. Made
   * part of the graph instead, it would be gone with the graph while a tensor is over it. */
  if (!status && state.capturing && !int4mm_is_own_capture(state.capture))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "no tensor can be allocated while its stream captures a CUDA graph: "
                                              "allocate before (give out, and operands on the GPU)");
  bool ordered = state.non_blocking && !state.capturing;
  if (!status) status = cuda->alloc(s->device, s->bytes, ordered ? stream : NULL, &s->data);
  if (status) return status;
  s->release = gpu_release;
  atomic_store(&s->non_blocking, state.non_blocking);
  if (ordered) int4mm_storage_set_joined(s, state.id);
  return INT4MM_OK;
}

static void pinned_release(int4mm_storage *s) {
  const int4mm_cuda_backend *cuda = int4mm_cuda(); /* as above */
  if (cuda) cuda->host_free(s->data, atomic_load(&s->used_by));
}

static int32_t pinned_alloc(int4mm_storage *s) {
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  if (!cuda) return INT4MM_ERR_UNAVAILABLE;
  s->release = pinned_release;
  return cuda->host_alloc(s->bytes ? s->bytes : 1, &s->data);
}

static int32_t gpu_check_pointer(int32_t device, const void *data) {
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  int32_t status = gpu_check(device);
  return status ? status : check_location(cuda, device, data);
}

__attribute__((constructor)) static void register_devices(void) {
  static const int4mm_device_ops host = {host_check, int4mm_host_alloc, host_check_pointer, NULL};
  static const int4mm_device_ops gpu = {gpu_check, gpu_alloc, gpu_check_pointer, pinned_alloc};
  int4mm_register_devices(&host, &gpu);
}

int32_t int4mm_cuda_device_info(int32_t device, int4mm_gpu_info *info) {
  const int4mm_cuda_backend *cuda;
  int4mm_gpu_info made;
  int4mm_gpu_traits traits;
  if (!info) return int4mm_fail(INT4MM_ERR_ARGUMENT, "info is NULL");
  int32_t status = int4mm_cuda_for(device, &cuda);
  if (!status) status = cuda->device_info(device, &made);
  if (!status) status = int4mm_gpu_traits_of(cuda, device, &traits);
  if (status) return status;
  made.kernel_arch = traits.arch;
  *info = made;
  return INT4MM_OK;
}

/* ---- streams ---- */

/* The storage of a tensor, if it is one of this device's. */
static int4mm_storage *storage_on(const int4mm_tensor *t, int32_t device) {
  return t && t->storage && t->storage->device == device ? t->storage : NULL;
}

int32_t int4mm_join_storages(const int4mm_cuda_backend *cuda, int32_t device, void *stream, uint64_t stream_id,
                             int4mm_storage *const *storages, size_t count) {
  bool join = false;
  for (size_t i = 0; i < count && !join; i++) join = storages[i] && !int4mm_storage_is_joined(storages[i], stream_id);
  int32_t status = join ? cuda->stream_join(device, stream) : INT4MM_OK;
  for (size_t i = 0; join && i < count && !status; i++)
    if (storages[i]) int4mm_storage_set_joined(storages[i], stream_id);
  return status;
}

int32_t int4mm_use_on_stream(const int4mm_cuda_backend *cuda, int32_t device, void *stream,
                             const int4mm_tensor *const *tensors, int count, bool *non_blocking) {
  enum { MOST = 16 };
  int4mm_storage *storages[MOST];
  int4mm_stream_state state;
  if (non_blocking) *non_blocking = false;
  if (!stream) return INT4MM_OK;
  int32_t status = cuda->stream_state(device, stream, &state);
  if (status || !state.non_blocking) return status;
  if (non_blocking) *non_blocking = !state.capturing;
  for (int i = 0; i < count && i < MOST; i++) {
    int4mm_storage *s = storages[i] = storage_on(tensors[i], device);
    if (s && !atomic_load_explicit(&s->non_blocking, memory_order_relaxed)) atomic_store(&s->non_blocking, true);
  }
  /* A capture cannot wait for work outside it: its graph runs later, and its launches are ordered. */
  if (state.capturing) return int4mm_graph_keep(state.capture, tensors, count);
  return int4mm_join_storages(cuda, device, stream, state.id, storages, (size_t)(count < MOST ? count : MOST));
}
