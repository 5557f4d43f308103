/*
 * Tensors: made, wrapped, narrowed, released.
 */
#include <string.h>

#include "core/device.h"
#include "core/storage.h"
#include "core/tensor.h"

int4mm_matrix int4mm_as_matrix(const int4mm_tensor *t) {
  int4mm_matrix m = {t->data, t->shape[0], t->shape[1], t->stride, t->dtype};
  if (t->rank == 1) m.rows = 1, m.cols = t->shape[0];
  if (m.rows <= 1) m.stride = m.cols; /* there is no next row, however far away */
  return m;
}

/* Contiguous rows over fresh memory, or over none where there are no elements. */
static int4mm_tensor make_rows(int4mm_storage *storage, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                               int32_t device) {
  return (int4mm_tensor){.data = storage ? storage->data : NULL,
                         .shape = {rows, cols},
                         .stride = cols,
                         .rank = rank,
                         .dtype = dtype,
                         .device = device,
                         .layout = INT4MM_ROWS,
                         .storage = storage};
}

int32_t int4mm_tensor_alloc_on(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                               int32_t device, void *stream) {
  int4mm_storage *storage;
  int32_t status = int4mm_check_vacant("tensor", t);
  if (!status) status = int4mm_check_device(device);
  if (!status) status = int4mm_check_shape(rank, rows, cols, cols, dtype);
  if (!status)
    status = int4mm_storage_alloc(&storage, (size_t)(rows * cols) * int4mm_dtype_size(dtype), device, stream);
  if (!status) *t = make_rows(storage, rank, rows, cols, dtype, device);
  return status;
}

int32_t int4mm_tensor_alloc_pinned(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype) {
  int4mm_storage *storage;
  int32_t status = int4mm_check_vacant("tensor", t);
  if (!status) status = int4mm_check_shape(rank, rows, cols, cols, dtype);
  if (!status) status = int4mm_storage_alloc_pinned(&storage, (size_t)(rows * cols) * int4mm_dtype_size(dtype));
  if (!status) *t = make_rows(storage, rank, rows, cols, dtype, INT4MM_CPU);
  return status;
}

int32_t int4mm_tensor_alloc(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype, int32_t device) {
  return int4mm_tensor_alloc_on(t, rank, rows, cols, dtype, device, NULL);
}

int32_t int4mm_tensor_alloc_panels(int4mm_tensor *t, int64_t k8, int64_t N, int64_t words) {
  int4mm_storage *storage;
  int32_t status = int4mm_check_vacant("prepacked", t);
  if (!status) status = int4mm_storage_alloc(&storage, (size_t)words * sizeof(uint32_t), INT4MM_CPU, NULL);
  if (status) return status;
  *t = (int4mm_tensor){.data = storage ? storage->data : NULL,
                       .shape = {k8, N},
                       .stride = N,
                       .rank = 2,
                       .dtype = INT4MM_INT32,
                       .device = INT4MM_CPU,
                       .layout = INT4MM_PANELS,
                       .storage = storage};
  return INT4MM_OK;
}

/* Whether memory of the caller's can be such a tensor. */
static int32_t check_memory(const int4mm_tensor *t, const void *data, int32_t rank, int64_t rows, int64_t cols,
                            int64_t stride, int32_t dtype, int32_t device) {
  int32_t status = int4mm_check_vacant("tensor", t);
  if (!status) status = int4mm_check_device(device);
  if (!status) status = int4mm_check_shape(rank, rows, cols, stride, dtype);
  if (status) return status;
  if (!data && rows && cols) return int4mm_fail(INT4MM_ERR_ARGUMENT, "data is NULL");
  if ((uintptr_t)data % int4mm_dtype_size(dtype))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "data is at %p, which is not aligned for %s", data,
                       int4mm_dtype_name(dtype));
  return rows && cols ? int4mm_device_ops_of(device)->check_pointer(device, data) : INT4MM_OK;
}

int32_t int4mm_tensor_wrap(int4mm_tensor *t, void *data, int32_t rank, int64_t rows, int64_t cols, int64_t stride,
                           int32_t dtype, int32_t device) {
  int32_t status = check_memory(t, data, rank, rows, cols, stride, dtype, device);
  if (status) return status;
  *t = (int4mm_tensor){.data = data,
                       .shape = {rows, cols},
                       .stride = stride,
                       .rank = rank,
                       .dtype = dtype,
                       .device = device,
                       .layout = INT4MM_ROWS};
  return INT4MM_OK;
}

int32_t int4mm_tensor_adopt(int4mm_tensor *t, void *data, int32_t rank, int64_t rows, int64_t cols, int64_t stride,
                            int32_t dtype, int32_t device, int4mm_deleter *deleter, void *context) {
  int4mm_tensor made = {0};
  if (!deleter) return int4mm_fail(INT4MM_ERR_ARGUMENT, "deleter is NULL: int4mm_tensor_wrap borrows memory");
  int32_t status = int4mm_check_vacant("tensor", t);
  if (!status) status = int4mm_tensor_wrap(&made, data, rank, rows, cols, stride, dtype, device);
  if (!status)
    status = int4mm_storage_adopt(&made.storage, data, (size_t)(rows * stride) * int4mm_dtype_size(dtype), device,
                                  deleter, context);
  if (!status) *t = made;
  return status;
}

/* ---- marks ---- */

void int4mm_set_mark(int4mm_tensor *t, int32_t dim, int32_t encoding, int64_t k, int32_t rotate) {
  t->packing = dim ? INT4MM_PACKED_DIM1 : INT4MM_PACKED_DIM0, t->encoding = encoding;
  t->packed_k = k, t->packed_rotate = rotate, t->packed_with = INT4MM_WITH_SCALES;
}

void int4mm_clear_mark(int4mm_tensor *t) {
  t->packing = INT4MM_UNMARKED, t->encoding = INT4MM_TWOS_COMPLEMENT, t->packed_k = 0, t->packed_rotate = 0;
  t->packed_with = INT4MM_WITH_SCALES;
}

void int4mm_copy_mark(int4mm_tensor *dst, const int4mm_tensor *src, int32_t dim) {
  const int4mm_tensor from = *src; /* which may be dst */
  int4mm_clear_mark(dst);
  if (!from.packing) return;
  int4mm_set_mark(dst, dim, from.encoding, from.packed_k, from.packed_rotate);
  dst->packed_with = from.packed_with;
}

int32_t int4mm_tensor_mark(int4mm_tensor *t, int32_t packing, int32_t encoding, int64_t packed_k) {
  int32_t status = int4mm_check_rows("tensor", t);
  if (!status) status = int4mm_check_mark(t, packing, encoding, packed_k);
  if (status) return status;
  if (packing == INT4MM_UNMARKED)
    int4mm_clear_mark(t);
  else
    int4mm_set_mark(t, packing - 1, encoding, packed_k, 0);
  return INT4MM_OK;
}

/* ---- views, the end ---- */

/* packed_k of `length` of the words along the packed dimension, from `first` on. */
static int64_t narrow_k(int64_t k, int64_t first, int64_t length) {
  if (!k || !length) return 0;
  return k / 8 - first >= length ? 8 * length : k - 8 * first;
}

int32_t int4mm_tensor_narrow(int4mm_tensor *view, const int4mm_tensor *t, int32_t dim, int64_t first, int64_t length) {
  int32_t status = int4mm_check_vacant("view", view);
  if (!status) status = int4mm_check_rows("tensor", t);
  if (status) return status;
  if (dim < 0 || dim >= t->rank)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "dim is %d but the tensor is %s", (int)dim, int4mm_describe(t).s);
  if (first < 0 || length < 0 || first > t->shape[dim] || length > t->shape[dim] - first)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%lld elements from %lld along dim %d do not fit %s", (long long)length,
                       (long long)first, (int)dim, int4mm_describe(t).s);
  *view = *t;
  view->shape[dim] = length;
  if (t->data && length)
    view->data = (char *)t->data + (size_t)(dim ? first : first * t->stride) * int4mm_dtype_size(t->dtype);
  if (t->packing && dim == t->packing - 1) {
    view->packed_k = narrow_k(t->packed_k, first, length);
    if (length < t->shape[dim]) view->packed_rotate = 0; /* its blocks may be cut */
  }
  int4mm_storage_retain(t->storage);
  return INT4MM_OK;
}

static bool is_contiguous(const int4mm_tensor *t) {
  return t->shape[0] <= 1 || !t->shape[1] || t->stride == t->shape[1];
}

/* Whether the elements of `t` can be seen in another shape, which is known to be one. */
static int32_t check_view(const int4mm_tensor *t, int64_t rows, int64_t cols) {
  if (rows * cols != t->shape[0] * t->shape[1])
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%lld x %lld elements are not those of %s", (long long)rows,
                       (long long)cols, int4mm_describe(t).s);
  if (!is_contiguous(t))
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "tensor is %s with a stride of %lld: only rows without gaps can be seen in another shape",
                       int4mm_describe(t).s, (long long)t->stride);
  if (t->packing)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "tensor is %s of int4 packed along dim %d, which another shape would break: unpack it, or take "
                       "its mark away",
                       int4mm_describe(t).s, (int)t->packing - 1);
  return INT4MM_OK;
}

int32_t int4mm_tensor_view(int4mm_tensor *view, const int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols) {
  int32_t status = int4mm_check_vacant("view", view);
  if (!status) status = int4mm_check_rows("tensor", t);
  if (status) return status;
  bool same = rank == t->rank && rows == t->shape[0] && cols == t->shape[1];
  if (!same) status = int4mm_check_shape(rank, rows, cols, cols, t->dtype);
  if (!same && !status) status = check_view(t, rows, cols);
  if (status) return status;
  *view = *t;
  if (!same) view->rank = rank, view->shape[0] = rows, view->shape[1] = cols, view->stride = cols;
  int4mm_storage_retain(t->storage);
  return INT4MM_OK;
}

void int4mm_tensor_release(int4mm_tensor *t) {
  if (!t) return;
  if (t->rank) int4mm_storage_release(t->storage);
  memset(t, 0, sizeof *t);
}
