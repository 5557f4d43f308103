/*
 * Storage: allocation through the device's table, adopted memory, references.
 */
#include <stdlib.h>

#include "core/check.h"
#include "core/device.h"
#include "core/error.h"
#include "core/storage.h"

static atomic_size_t host_bytes, gpu_bytes[INT4MM_MAX_DEVICES];

static atomic_size_t *counter(int32_t device) {
  return device == INT4MM_CPU ? &host_bytes : &gpu_bytes[device];
}

static int32_t new_storage(int4mm_storage **storage, size_t bytes, int32_t device) {
  int4mm_storage *s = calloc(1, sizeof *s);
  if (!s)
    return int4mm_fail(INT4MM_ERR_MEMORY, "out of memory on cpu: asked for %zu bytes to describe a tensor", sizeof *s);
  s->bytes = bytes, s->device = device;
  atomic_init(&s->references, 1);
  *storage = s;
  return INT4MM_OK;
}

/* What allocations end with: `status` of the device's own. */
static int32_t finish_alloc(int4mm_storage **storage, int4mm_storage *s, int32_t status, const char *kind) {
  if (status) {
    if (status == INT4MM_ERR_MEMORY)
      int4mm_fail(status, "out of %smemory on %s: asked for %zu bytes, %zu are in use by this library", kind,
                  int4mm_device_name(s->device).s, s->bytes, atomic_load(counter(s->device)));
    free(s);
    return status;
  }
  s->counted = true;
  atomic_fetch_add(counter(s->device), s->bytes);
  *storage = s;
  return INT4MM_OK;
}

int32_t int4mm_storage_alloc(int4mm_storage **storage, size_t bytes, int32_t device, void *stream) {
  const int4mm_device_ops *ops = int4mm_device_ops_of(device);
  int4mm_storage *s = NULL;
  *storage = NULL;
  int32_t status = ops->check(device);
  if (status || !bytes) return status;
  if ((status = new_storage(&s, bytes, device))) return status;
  return finish_alloc(storage, s, ops->alloc(s, stream), "");
}

int32_t int4mm_storage_alloc_pinned(int4mm_storage **storage, size_t bytes) {
  int4mm_storage *s = NULL;
  *storage = NULL;
  int32_t status = new_storage(&s, bytes, INT4MM_CPU);
  if (status) return status;
  s->pinned = true;
  return finish_alloc(storage, s, int4mm_device_ops_of(0)->alloc_pinned(s), "pinned ");
}

static void run_deleter(int4mm_storage *s) {
  s->deleter(s->context);
}

int32_t int4mm_storage_adopt(int4mm_storage **storage, void *data, size_t bytes, int32_t device,
                             int4mm_deleter *deleter, void *context) {
  int32_t status = new_storage(storage, bytes, device);
  if (status) return status;
  (*storage)->data = data;
  (*storage)->release = run_deleter, (*storage)->deleter = deleter, (*storage)->context = context;
  return INT4MM_OK;
}

void int4mm_storage_retain(int4mm_storage *s) {
  if (s) atomic_fetch_add(&s->references, 1);
}

void int4mm_storage_release(int4mm_storage *s) {
  if (!s || atomic_fetch_sub(&s->references, 1) != 1) return;
  if (s->counted) atomic_fetch_sub(counter(s->device), s->bytes);
  int4mm_hold_error();
  s->release(s);
  int4mm_unhold_error();
  free(s);
}

bool int4mm_storage_is_joined(const int4mm_storage *s, uint64_t stream_id) {
  for (int i = 0; i < INT4MM_JOINED_STREAMS; i++)
    if (atomic_load_explicit(&s->joined[i], memory_order_acquire) == stream_id + 1) return true;
  return false;
}

void int4mm_storage_set_joined(int4mm_storage *s, uint64_t stream_id) {
  if (int4mm_storage_is_joined(s, stream_id)) return;
  unsigned slot = atomic_fetch_add(&s->oldest_joined, 1) % INT4MM_JOINED_STREAMS;
  atomic_store_explicit(&s->joined[slot], stream_id + 1, memory_order_release);
}

int64_t int4mm_allocated(int32_t device) {
  if (device < INT4MM_CPU || device >= INT4MM_MAX_DEVICES) return 0;
  return (int64_t)atomic_load(counter(device));
}
