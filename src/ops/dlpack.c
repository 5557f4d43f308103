/*
 * DLPack both ways: a tensor of another library becomes one of ours, ours becomes one of another's. Nothing is copied;
 * whoever has the tensor last gives the memory back through a deleter.
 */
#include <stdio.h>
#include <stdlib.h>

#include "core/dlpack.h"
#include "core/storage.h"
#include "ops/common.h"

/* Each dtype as DLPack has it. */
static const struct {
  int32_t dtype;
  uint8_t code, bits;
} dtypes[] = {{INT4MM_INT32, DL_INT, 32},
              {INT4MM_INT8, DL_INT, 8},
              {INT4MM_FLOAT16, DL_FLOAT, 16},
              {INT4MM_BFLOAT16, DL_BFLOAT, 16},
              {INT4MM_FLOAT32, DL_FLOAT, 32}};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

/* ---- from another library ---- */

static int32_t take_dtype(dl_dtype from, int32_t *dtype) {
  static const char *const names[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  char lanes[32] = "";
  for (int i = 0; i < DTYPES && from.lanes == 1; i++) {
    if (dtypes[i].code != from.code || dtypes[i].bits != from.bits) continue;
    *dtype = dtypes[i].dtype;
    return INT4MM_OK;
  }
  if (from.lanes != 1) snprintf(lanes, sizeof lanes, " in vectors of %d", (int)from.lanes);
  if (from.code < sizeof names / sizeof *names)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "managed holds %s%d%s, expected int32, int8, float16, bfloat16 or float32",
                       names[from.code], (int)from.bits, lanes);
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "managed holds elements of type code %d and %d bits%s, expected int32, int8, float16, bfloat16 or "
                     "float32",
                     (int)from.code, (int)from.bits, lanes);
}

static int32_t take_device(dl_device from, int32_t *device) {
  *device = INT4MM_CPU;
  if (from.type == DL_CPU || from.type == DL_CUDA_HOST) return INT4MM_OK;
  *device = from.id;
  if (from.type == DL_CUDA && from.id >= 0) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "managed is on device %d of DLPack's type %d, expected the CPU (%d), CUDA (%d) or pinned host "
                     "memory (%d)",
                     (int)from.id, (int)from.type, DL_CPU, DL_CUDA, DL_CUDA_HOST);
}

/* Elements from one row to the next. */
static int32_t take_stride(const dl_tensor *d, int64_t rows, int64_t cols, int64_t *stride) {
  const int64_t *strides = d->strides;
  int64_t in_row = d->ndim == 2 ? cols : rows;
  *stride = cols;
  if (!strides || !rows || !cols) return INT4MM_OK;
  if (in_row > 1 && strides[d->ndim - 1] != 1)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "managed has a stride of %lld from one element of a row to the next, expected 1: make it "
                       "contiguous first",
                       (long long)strides[d->ndim - 1]);
  if (d->ndim == 1 || rows == 1) return INT4MM_OK;
  *stride = strides[0];
  if (*stride >= cols) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "managed has a stride of %lld from row to row, less than the %lld elements of a row: make it "
                     "contiguous first",
                     (long long)*stride, (long long)cols);
}

static int32_t take_tensor(int4mm_tensor *t, const dl_tensor *d, int4mm_deleter *deleter, void *managed) {
  int32_t dtype = -1, device = INT4MM_CPU;
  int64_t stride = 0;
  if (d->ndim != 1 && d->ndim != 2)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "managed has %d dimensions, expected 1 or 2", (int)d->ndim);
  if (!d->shape) return int4mm_fail(INT4MM_ERR_ARGUMENT, "managed has no shape: the pointer to it is NULL");
  int64_t rows = d->shape[0], cols = d->ndim == 2 ? d->shape[1] : 1;
  int32_t status = take_dtype(d->dtype, &dtype);
  if (!status) status = take_device(d->device, &device);
  if (!status) status = take_stride(d, rows, cols, &stride);
  if (status) return status;
  void *data = d->data ? (char *)d->data + d->byte_offset : NULL;
  return int4mm_tensor_adopt(t, data, d->ndim, rows, cols, stride, dtype, device, deleter, managed);
}

static void delete_managed(void *context) {
  dl_managed *m = context;
  if (m->deleter) m->deleter(m);
}

static void delete_versioned(void *context) {
  dl_managed_versioned *m = context;
  if (m->deleter) m->deleter(m);
}

int32_t int4mm_from_dlpack(int4mm_tensor *t, struct DLManagedTensor *managed) {
  if (!managed) return int4mm_fail(INT4MM_ERR_ARGUMENT, "managed is NULL");
  /* The version at the other struct's start, read as the address that this one starts with. */
  uint64_t address = (uintptr_t)managed->tensor.data;
  if (address && (uint32_t)address < 10 && address >> 32 < 1000)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "managed begins like a DLManagedTensorVersioned of version %d.%d, expected a DLManagedTensor",
                       (int)(uint32_t)address, (int)(address >> 32));
  return take_tensor(t, &managed->tensor, delete_managed, managed);
}

int32_t int4mm_from_dlpack_versioned(int4mm_tensor *t, struct DLManagedTensorVersioned *managed, int32_t read_only) {
  if (!managed) return int4mm_fail(INT4MM_ERR_ARGUMENT, "managed is NULL");
  if (managed->major != DL_MAJOR)
    return int4mm_fail(
        INT4MM_ERR_ARGUMENT,
        "managed begins with version %u.%u, expected %d.x (a DLManagedTensor begins with none: it is not "
        "versioned)",
        (unsigned)managed->major, (unsigned)managed->minor, DL_MAJOR);
  if ((managed->flags & DL_READ_ONLY) && !read_only)
    return int4mm_fail(
        INT4MM_ERR_ARGUMENT,
        "managed is flagged as read-only: say that nobody will write to it (read_only), or copy it first");
  return take_tensor(t, &managed->tensor, delete_versioned, managed);
}

/* Whether the memory came with the flag. */
static bool is_read_only(const int4mm_tensor *t) {
  const int4mm_storage *s = t->storage;
  return s && s->deleter == delete_versioned && (((const dl_managed_versioned *)s->context)->flags & DL_READ_ONLY);
}

/* ---- to another library ---- */

/* What the deleter frees: the struct that was given away, a reference to the memory, the shape that it points to. */
typedef struct exported {
  union {
    dl_managed managed;
    dl_managed_versioned versioned;
  };
  int4mm_tensor t;
  int64_t shape[2], strides[2];
} exported;

static void release_exported(exported *e) {
  int4mm_tensor_release(&e->t);
  free(e);
}

static void delete_exported(dl_managed *managed) {
  release_exported(managed->manager_ctx);
}

static void delete_exported_versioned(dl_managed_versioned *managed) {
  release_exported(managed->manager_ctx);
}

static dl_tensor describe(const int4mm_tensor *t, exported *e) {
  bool pinned = int4mm_tensor_is_pinned(t);
  dl_tensor d = {.data = t->data, .device = {pinned ? DL_CUDA_HOST : DL_CPU, 0}, .ndim = t->rank};
  if (t->device != INT4MM_CPU) d.device = (dl_device){DL_CUDA, t->device};
  for (int i = 0; i < DTYPES; i++)
    if (dtypes[i].dtype == t->dtype) d.dtype = (dl_dtype){dtypes[i].code, dtypes[i].bits, 1};
  e->shape[0] = t->shape[0], e->shape[1] = t->shape[1];
  e->strides[0] = t->shape[0] > 1 ? t->stride : t->shape[1], e->strides[1] = 1;
  d.shape = e->shape, d.strides = e->strides;
  return d;
}

/* Work on `stream` of the tensor's GPU comes after what `from` was given. */
static int32_t order(const int4mm_tensor *t, void *from, void *stream) {
  const int4mm_cuda_backend *cuda;
  void *event;
  if (t->device == INT4MM_CPU) return INT4MM_OK;
  int32_t status = int4mm_open_cuda(&cuda, stream, &t, 1);
  if (status || from == stream || !t->data) return status;
  if ((status = cuda->event_create(t->device, &event))) return status;
  status = cuda->event_record(t->device, event, from);
  if (!status) status = cuda->stream_wait(t->device, stream, event);
  int32_t destroyed = cuda->event_destroy(t->device, event);
  return status ? status : destroyed;
}

static int32_t check_export(const int4mm_tensor *t, const void *managed) {
  if (!managed) return int4mm_fail(INT4MM_ERR_ARGUMENT, "managed is NULL");
  int32_t status = int4mm_check_rows("tensor", t);
  if (status || t->storage || !t->shape[0] || !t->shape[1]) return status;
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "tensor is over borrowed memory, which nothing would keep for the other library: clone it first");
}

static int32_t export_tensor(exported **made, const int4mm_tensor *t, void *from, void *stream) {
  exported *e = calloc(1, sizeof *e);
  if (!e)
    return int4mm_fail(INT4MM_ERR_MEMORY, "out of memory on cpu: asked for %zu bytes to describe a tensor", sizeof *e);
  int32_t status = order(t, from, stream);
  if (!status) status = int4mm_tensor_view(&e->t, t, t->rank, t->shape[0], t->shape[1]);
  if (status) {
    free(e);
    return status;
  }
  *made = e;
  return INT4MM_OK;
}

int32_t int4mm_to_dlpack(const int4mm_tensor *t, void *from, void *stream, struct DLManagedTensor **managed) {
  exported *e;
  int32_t status = check_export(t, managed);
  if (!status && is_read_only(t))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "tensor is over read-only memory, which only a versioned DLPack tensor can say: ask for that");
  if (!status) status = export_tensor(&e, t, from, stream);
  if (status) return status;
  e->managed = (dl_managed){.tensor = describe(&e->t, e), .manager_ctx = e, .deleter = delete_exported};
  *managed = &e->managed;
  return INT4MM_OK;
}

int32_t int4mm_to_dlpack_versioned(const int4mm_tensor *t, void *from, void *stream,
                                   struct DLManagedTensorVersioned **managed) {
  exported *e;
  int32_t status = check_export(t, managed);
  if (!status) status = export_tensor(&e, t, from, stream);
  if (status) return status;
  e->versioned = (dl_managed_versioned){.major = DL_MAJOR,
                                        .minor = DL_MINOR,
                                        .manager_ctx = e,
                                        .deleter = delete_exported_versioned,
                                        .flags = is_read_only(t) ? DL_READ_ONLY : 0,
                                        .tensor = describe(&e->t, e)};
  *managed = &e->versioned;
  return INT4MM_OK;
}
