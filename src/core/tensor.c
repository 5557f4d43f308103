/*
 * Tensors: storage with a count of references, views, copies, and the checks that every call shares.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "core/tensor.h"
#include "cpu/backend.h"

enum { MAX_DEVICES = 64 };

enum { HOST_ALIGNMENT = 64 };

/* Host memory of this size and up is mapped by itself, aligned to 2 MiB pages, and asks the kernel for such pages: a
 * large weight is read with far fewer TLB misses. */
static const size_t huge_page = (size_t)2 << 20, huge_from = (size_t)4 << 20;

struct int4mm_storage {
  atomic_size_t references;
  void *data;
  void *block; /* what malloc gave for data; NULL for mapped host memory and on a GPU */
  size_t bytes;
  int32_t device;
  atomic_bool foreign; /* used on a stream that the default stream does not wait for */
  atomic_bool joined;  /* ... and that stream was made to wait for the allocation */
};

static atomic_size_t host_bytes, gpu_bytes[MAX_DEVICES];

/* ---- words ---- */

int4mm_text int4mm_describe(const int4mm_tensor *t) {
  int4mm_text text;
  const char *dtype = t->layout == INT4MM_PANELS ? "prepacked" : int4mm_dtype_name(t->dtype);
  if (t->rank == 1)
    snprintf(text.s, sizeof text.s, "[%lld] %s", (long long)t->shape[0], dtype);
  else
    snprintf(text.s, sizeof text.s, "[%lld, %lld] %s", (long long)t->shape[0], (long long)t->shape[1], dtype);
  return text;
}

int4mm_text int4mm_device_name(int32_t device) {
  int4mm_text text;
  if (device == INT4MM_CPU)
    snprintf(text.s, sizeof text.s, "cpu");
  else
    snprintf(text.s, sizeof text.s, "cuda:%d", (int)device);
  return text;
}

/* ---- checks ---- */

static int32_t check_device(int32_t device) {
  if (device >= INT4MM_CPU && device < MAX_DEVICES) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "device is %d: -1 is the CPU, CUDA devices are 0 to %d", (int)device,
                     MAX_DEVICES - 1);
}

/* Rank, shape, stride and dtype of a tensor to be, and that its bytes can be counted. */
static int32_t check_shape(int32_t rank, int64_t rows, int64_t cols, int64_t stride, int32_t dtype) {
  size_t size = int4mm_dtype_size(dtype);
  int64_t elements, bytes;
  if (rank != 1 && rank != 2)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "rank is %d: a tensor is a vector (1) or a matrix (2)", (int)rank);
  if (!size) return int4mm_fail(INT4MM_ERR_ARGUMENT, "dtype is %d, which is not an int4mm_dtype", (int)dtype);
  if (rows < 0 || cols < 0)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "shape is [%lld, %lld]: sizes cannot be negative", (long long)rows,
                       (long long)cols);
  if (rank == 1 && (cols != 1 || stride != 1))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "a vector has 1 column and stride 1, not %lld and %lld", (long long)cols,
                       (long long)stride);
  if (stride < cols)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "stride is %lld, less than the %lld columns of a row", (long long)stride,
                       (long long)cols);
  if (__builtin_mul_overflow(rows, stride, &elements) || __builtin_mul_overflow(elements, (int64_t)size, &bytes))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "[%lld, %lld] %s with stride %lld is larger than any memory",
                       (long long)rows, (long long)cols, int4mm_dtype_name(dtype), (long long)stride);
  return INT4MM_OK;
}

/* Rows, or what int4mm_prepack makes. */
static int32_t check_layout(const int4mm_tensor *t) {
  if (t->layout == INT4MM_ROWS) return INT4MM_OK;
  if (t->layout != INT4MM_PANELS)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "layout is %d: rows are %d, a prepacked weight is %d", (int)t->layout,
                       INT4MM_ROWS, INT4MM_PANELS);
  if (t->rank == 2 && t->dtype == INT4MM_INT32 && t->device == INT4MM_CPU && t->stride == t->shape[1]) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "layout is that of a prepacked weight, but only int4mm_prepack makes those");
}

static int32_t check_vacant(const char *name, const int4mm_tensor *t) {
  if (!t) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", name);
  if (t->rank) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s already holds a tensor: release it first", name);
  return INT4MM_OK;
}

int32_t int4mm_check_tensor(const char *name, const int4mm_tensor *t) {
  if (!t) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", name);
  if (t->rank == 0) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s was freed", name);
  int32_t status = check_shape(t->rank, t->shape[0], t->shape[1], t->stride, t->dtype);
  if (!status) status = check_device(t->device);
  if (!status) status = check_layout(t);
  if (status) return int4mm_fail(status, "%s is not a tensor: %s", name, int4mm_last_error());
  if (!t->data && t->shape[0] && t->shape[1])
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but its data is NULL", name, int4mm_describe(t).s);
  if ((uintptr_t)t->data % int4mm_dtype_size(t->dtype))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but its data is at %p, which is not aligned for that", name,
                       int4mm_describe(t).s, t->data);
  return INT4MM_OK;
}

int32_t int4mm_check_rows(const char *name, const int4mm_tensor *t) {
  int32_t status = int4mm_check_tensor(name, t);
  if (!status && t->layout != INT4MM_ROWS)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is prepacked: it has no elements to read, it only serves as b_packed",
                         name);
  return status;
}

int32_t int4mm_check_same_device(const char *name_a, const int4mm_tensor *a, const char *name_b,
                                 const int4mm_tensor *b) {
  if (a->device == b->device) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is on %s but %s is on %s", name_a, int4mm_device_name(a->device).s,
                     name_b, int4mm_device_name(b->device).s);
}

int32_t int4mm_check_encoding(const char *name, int32_t encoding) {
  if (encoding == INT4MM_TWOS_COMPLEMENT || encoding == INT4MM_OFFSET) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d: two's complement is %d, offset is %d", name, (int)encoding,
                     INT4MM_TWOS_COMPLEMENT, INT4MM_OFFSET);
}

int4mm_matrix int4mm_as_matrix(const int4mm_tensor *t) {
  int4mm_matrix m = {t->data, t->shape[0], t->shape[1], t->stride, t->dtype};
  if (t->rank == 1) m.rows = 1, m.cols = t->shape[0];
  if (m.rows <= 1) m.stride = m.cols; /* there is no next row, however far away */
  return m;
}

/* Whether two tensors share a byte. Rows of equal pitch are compared column by column, so that two column ranges of one
 * matrix count as apart; otherwise the whole spans are compared. */
static bool overlap(const int4mm_tensor *s, const int4mm_tensor *t) {
  int4mm_matrix a = int4mm_as_matrix(s), b = int4mm_as_matrix(t);
  if (s->device != t->device || !a.rows || !a.cols || !b.rows || !b.cols) return false;
  uint64_t size_a = int4mm_dtype_size(a.dtype), size_b = int4mm_dtype_size(b.dtype);
  uint64_t pitch_a = (uint64_t)a.stride * size_a, pitch_b = (uint64_t)b.stride * size_b;
  if (a.rows == 1) pitch_a = pitch_b; /* a single row has any pitch */
  if (b.rows == 1) pitch_b = pitch_a;
  uint64_t width_a = (uint64_t)a.cols * size_a, width_b = (uint64_t)b.cols * size_b;
  uint64_t first_a = (uintptr_t)a.data, end_a = first_a + (uint64_t)(a.rows - 1) * pitch_a + width_a;
  uint64_t first_b = (uintptr_t)b.data, end_b = first_b + (uint64_t)(b.rows - 1) * pitch_b + width_b;
  if (end_a <= first_b || end_b <= first_a) return false;
  if (pitch_a != pitch_b || (a.rows == 1 && b.rows == 1)) return true;
  uint64_t shift = first_b >= first_a ? (first_b - first_a) % pitch_a : (pitch_a - (first_a - first_b) % pitch_a);
  return shift % pitch_a < width_a || shift + width_b > pitch_a;
}

int32_t int4mm_check_apart(const char *name_out, const int4mm_tensor *out, const char *name, const int4mm_tensor *t) {
  if (!overlap(out, t)) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s overlaps %s in memory", name_out, name);
}

/* ---- storage ---- */

static atomic_size_t *counter(int32_t device) {
  return device == INT4MM_CPU ? &host_bytes : &gpu_bytes[device];
}

static size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/* Maps one huge page more than asked for and gives back what lies outside the aligned part. */
static void *map_huge(size_t bytes) {
  size_t length = round_up(bytes, huge_page);
  char *start = mmap(NULL, length + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return NULL;
  size_t head = (huge_page - (uintptr_t)start % huge_page) % huge_page, tail = huge_page - head;
  if (head) (void)munmap(start, head); /* failure leaves address space unused, nothing worse */
  if (tail) (void)munmap(start + head + length, tail);
  (void)madvise(start + head, length, MADV_HUGEPAGE); /* a wish: the memory is good without */
  return start + head;
}

/* Alignment is made by hand: glibc's aligned_alloc does not find the holes that its own blocks leave, so a loop that
 * drops results would grow without end. */
static int32_t host_alloc(int4mm_storage *s) {
  if (s->bytes > (size_t)PTRDIFF_MAX - 2 * huge_page) return INT4MM_ERR_MEMORY;
  if (s->bytes >= huge_from) return (s->data = map_huge(s->bytes)) ? INT4MM_OK : INT4MM_ERR_MEMORY;
  s->block = malloc(s->bytes + HOST_ALIGNMENT - 1);
  if (!s->block) return INT4MM_ERR_MEMORY;
  s->data = (void *)round_up((uintptr_t)s->block, HOST_ALIGNMENT);
  return INT4MM_OK;
}

static void storage_free(int4mm_storage *s) {
  if (s->device != INT4MM_CPU) {
    const int4mm_cuda_backend *cuda = int4mm_cuda(); /* none after a fork: the memory is the parent's */
    if (cuda) cuda->free(s->device, s->data, atomic_load(&s->foreign));
  } else if (s->block) {
    free(s->block);
  } else {
    (void)munmap(s->data, round_up(s->bytes, huge_page));
  }
  free(s);
}

/* Memory for a tensor. *storage is NULL for 0 bytes. */
static int32_t storage_alloc(int4mm_storage **storage, size_t bytes, int32_t device, void *stream) {
  const int4mm_cuda_backend *cuda = NULL;
  int4mm_storage *s;
  int32_t status;
  *storage = NULL;
  if (device != INT4MM_CPU) {
    if (!(cuda = int4mm_cuda())) return INT4MM_ERR_UNAVAILABLE;
    int32_t arch, sms;
    if ((status = cuda->arch(device, &arch, &sms))) return status;
  }
  if (!bytes) return INT4MM_OK;
  if (!(s = calloc(1, sizeof *s))) return int4mm_fail(INT4MM_ERR_MEMORY, "out of memory: %zu bytes", sizeof *s);
  s->bytes = bytes, s->device = device;
  bool foreign = false, capturing = false;
  status = cuda && stream ? cuda->stream_state(device, stream, &foreign, &capturing) : INT4MM_OK;
  if (!status && capturing)
    status =
        int4mm_fail(INT4MM_ERR_ARGUMENT,
                    "no tensor can be allocated while its stream captures a CUDA graph: allocate before (give out, "
                    "and operands on the GPU)");
  if (!status) status = cuda ? cuda->alloc(device, bytes, foreign ? stream : NULL, &s->data) : host_alloc(s);
  if (status) {
    free(s);
    if (status == INT4MM_ERR_MEMORY)
      int4mm_fail(status, "out of memory on %s: asked for %zu bytes, %zu are in use by this library",
                  int4mm_device_name(device).s, bytes, atomic_load(counter(device)));
    return status;
  }
  atomic_init(&s->references, 1);
  atomic_init(&s->foreign, foreign);
  atomic_init(&s->joined, foreign);
  atomic_fetch_add(counter(device), bytes);
  *storage = s;
  return INT4MM_OK;
}

static void storage_release(int4mm_storage *s) {
  if (!s || atomic_fetch_sub(&s->references, 1) != 1) return;
  atomic_fetch_sub(counter(s->device), s->bytes);
  storage_free(s);
}

int64_t int4mm_allocated(int32_t device) {
  if (device < INT4MM_CPU || device >= MAX_DEVICES) return 0;
  return (int64_t)atomic_load(counter(device));
}

int32_t int4mm_use_on_stream(const int4mm_cuda_backend *cuda, int32_t device, void *stream,
                             const int4mm_tensor *const *tensors, int count, bool *runs_foreign) {
  bool foreign, capturing, join = false;
  if (runs_foreign) *runs_foreign = false;
  if (!stream) return INT4MM_OK;
  int32_t status = cuda->stream_state(device, stream, &foreign, &capturing);
  if (status || !foreign) return status;
  if (runs_foreign) *runs_foreign = !capturing;
  for (int i = 0; i < count; i++) {
    int4mm_storage *s = tensors[i] ? tensors[i]->storage : NULL;
    if (!s || s->device != device) continue;
    atomic_store(&s->foreign, true);
    /* Once is enough: a second stream's use has to be ordered after the first's by the caller in any case. A capture
     * cannot wait for work outside it; its graph runs later, on a stream that its owner orders. */
    if (!capturing && !atomic_exchange(&s->joined, true)) join = true;
  }
  return join ? cuda->stream_join(device, stream) : INT4MM_OK;
}

/* ---- tensors ---- */

int32_t int4mm_tensor_alloc_on(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                               int32_t device, void *stream) {
  int4mm_storage *storage;
  int32_t status = check_vacant("tensor", t);
  if (!status) status = check_device(device);
  if (!status) status = check_shape(rank, rows, cols, cols, dtype);
  if (!status) status = storage_alloc(&storage, (size_t)(rows * cols) * int4mm_dtype_size(dtype), device, stream);
  if (status) return status;
  *t = (int4mm_tensor){.data = storage ? storage->data : NULL,
                       .shape = {rows, cols},
                       .stride = cols,
                       .rank = rank,
                       .dtype = dtype,
                       .device = device,
                       .layout = INT4MM_ROWS,
                       .storage = storage};
  return INT4MM_OK;
}

int32_t int4mm_tensor_alloc(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype, int32_t device) {
  return int4mm_tensor_alloc_on(t, rank, rows, cols, dtype, device, NULL);
}

int32_t int4mm_tensor_alloc_panels(int4mm_tensor *t, int64_t k8, int64_t N, int64_t words) {
  int4mm_storage *storage;
  int32_t status = check_vacant("prepacked", t);
  if (!status) status = storage_alloc(&storage, (size_t)words * sizeof(uint32_t), INT4MM_CPU, NULL);
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

int32_t int4mm_tensor_wrap(int4mm_tensor *t, void *data, int32_t rank, int64_t rows, int64_t cols, int64_t stride,
                           int32_t dtype, int32_t device) {
  int32_t status = check_vacant("tensor", t);
  if (!status) status = check_device(device);
  if (!status) status = check_shape(rank, rows, cols, stride, dtype);
  if (status) return status;
  if (!data && rows && cols) return int4mm_fail(INT4MM_ERR_ARGUMENT, "data is NULL");
  if ((uintptr_t)data % int4mm_dtype_size(dtype))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "data is at %p, which is not aligned for %s", data,
                       int4mm_dtype_name(dtype));
  *t = (int4mm_tensor){.data = data,
                       .shape = {rows, cols},
                       .stride = stride,
                       .rank = rank,
                       .dtype = dtype,
                       .device = device,
                       .layout = INT4MM_ROWS};
  return INT4MM_OK;
}

int32_t int4mm_tensor_narrow(int4mm_tensor *view, const int4mm_tensor *t, int32_t dim, int64_t first, int64_t length) {
  int32_t status = check_vacant("view", view);
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
  if (t->storage) atomic_fetch_add(&t->storage->references, 1);
  return INT4MM_OK;
}

void int4mm_tensor_release(int4mm_tensor *t) {
  if (!t) return;
  if (t->rank) storage_release(t->storage);
  memset(t, 0, sizeof *t);
}

/* ---- copies ---- */

int32_t int4mm_copy_checked(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream) {
  int4mm_matrix d = int4mm_as_matrix(dst), s = int4mm_as_matrix(src);
  if (!d.rows || !d.cols || (dst->device == src->device && d.data == s.data)) return INT4MM_OK;
  if (dst->device == INT4MM_CPU && src->device == INT4MM_CPU) {
    int4mm_cpu_copy(&d, &s);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  if (!cuda) return INT4MM_ERR_UNAVAILABLE;
  int32_t device = dst->device != INT4MM_CPU ? dst->device : src->device;
  size_t size = int4mm_dtype_size(d.dtype);
  int32_t status = int4mm_use_on_stream(cuda, device, stream, (const int4mm_tensor *[]){dst, src}, 2, NULL);
  if (status) return status;
  return cuda->copy(dst->device, d.data, (size_t)d.stride * size, src->device, s.data, (size_t)s.stride * size,
                    (size_t)d.cols * size, (size_t)d.rows, stream);
}

int32_t int4mm_tensor_fill_bytes(const int4mm_tensor *t, uint8_t byte, void *stream) {
  int32_t status = int4mm_check_rows("tensor", t);
  if (status) return status;
  int4mm_matrix m = int4mm_as_matrix(t);
  size_t size = int4mm_dtype_size(m.dtype), pitch = (size_t)m.stride * size, width = (size_t)m.cols * size;
  if (!m.rows || !m.cols) return INT4MM_OK;
  if (t->device == INT4MM_CPU) {
    for (int64_t r = 0; r < m.rows; r++) memset((char *)m.data + (size_t)r * pitch, byte, width);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  if (!cuda) return INT4MM_ERR_UNAVAILABLE;
  status = int4mm_use_on_stream(cuda, t->device, stream, &t, 1, NULL);
  return status ? status : cuda->fill_bytes(t->device, m.data, pitch, byte, width, (size_t)m.rows, stream);
}
