/*
 * A CUDA library without CUDA, so that what the core does with one is tested where there is no GPU. Point
 * INT4MM_CUDA_LIBRARY at it; INT4MM_FAKE_CUDA says what it does:
 *
 *   no_driver, old_driver, no_device   refuses to open, in the words of the CUDA library
 *   other_abi, no_table                is no library for this core
 *   host                               two devices of 1 GiB each in host memory that do the work with the CPU backend
 *
 * INT4MM_FAKE_FAIL=matmul has the first product fail, as where this build has no code for the GPU; scratch (no memory),
 * scratch_free and stream_destroy likewise. With a number before it (3scratch) that many calls fail; several
 * stand with commas between them.
 *
 * A device address is a host address with its device in the top bits, so no host code can read through it by mistake,
 * and work that is given memory of the host or of the other device ends the process.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cuda/table.h"
#include "int4mm_abi.h"

enum { DEVICES = 2 };
static const size_t device_bytes = (size_t)1 << 30;

static int32_t (*core_fail)(int32_t status, const char *format, ...);
static atomic_size_t used[DEVICES];

static bool asked_for(const char *what) {
  const char *asked = getenv("INT4MM_FAKE_CUDA");
  return asked && !strcmp(asked, what);
}

/* Whether this call of `what` is one of those that INT4MM_FAKE_FAIL has fail. `calls` counts them. */
static bool told_to_fail(const char *what, atomic_int *calls) {
  const char *told = getenv("INT4MM_FAKE_FAIL");
  while (told && *told) {
    char *name;
    long count = strtol(told, &name, 10);
    size_t length = strcspn(name, ",");
    if (length == strlen(what) && !strncmp(name, what, length)) return atomic_fetch_add(calls, 1) < (count ? count : 1);
    told = name + length + (name[length] == ',');
  }
  return false;
}

static int32_t fake_open(int32_t (*fail)(int32_t status, const char *format, ...)) {
  core_fail = fail;
  if (asked_for("host")) return INT4MM_OK;
  if (asked_for("no_driver"))
    return fail(INT4MM_ERR_UNAVAILABLE, "no NVIDIA driver (libcuda.so.1 is not found or does not load)");
  if (asked_for("old_driver"))
    return fail(INT4MM_ERR_UNAVAILABLE, "the NVIDIA driver is too old: it serves CUDA %d.%d, this build needs %d.%d",
                11, 4, 13, 0);
  return fail(INT4MM_ERR_UNAVAILABLE, "no CUDA device");
}

/* ---- addresses and memory ---- */

static const uint64_t device_tag = (uint64_t)0x5A << 56;

static void *to_device(int32_t device, void *host) {
  return (void *)((uint64_t)(uintptr_t)host | device_tag | (uint64_t)device << 48);
}

/* The host address behind one of `device`; NULL stays NULL. */
static void *to_host(int32_t device, const void *data) {
  if (!data) return NULL;
  uint64_t bits = (uint64_t)(uintptr_t)data, tag = device_tag | (uint64_t)device << 48;
  if (bits >> 48 != tag >> 48) {
    fprintf(stderr, "fake_cuda: %p is not an address of cuda:%d\n", data, (int)device);
    abort();
  }
  return (void *)(uintptr_t)(bits ^ tag);
}

/* Memory of a device is told by its address; the rest is the host's. */
static int32_t fake_locate(const void *data, int4mm_location *location) {
  uint64_t bits = (uint64_t)(uintptr_t)data;
  bool on_device = bits >> 56 == device_tag >> 56;
  *location = (int4mm_location){.device = on_device ? (int32_t)(bits >> 48 & 0xff) : INT4MM_CPU};
  return INT4MM_OK;
}

static int32_t check_device(int32_t device) {
  if (device >= 0 && device < DEVICES) return INT4MM_OK;
  return core_fail(INT4MM_ERR_ARGUMENT, "there is no device cuda:%d: this machine has %d", (int)device, DEVICES);
}

/* Before each block's data, which is aligned to 256 as CUDA's is. */
typedef struct header {
  size_t bytes;
  void *block;
} header;

static int32_t fake_alloc(int32_t device, size_t bytes, void *stream, void **data) {
  (void)stream;
  if (bytes > device_bytes - atomic_load(&used[device]))
    return core_fail(INT4MM_ERR_MEMORY, "cannot allocate device memory: out of memory");
  char *block = malloc(sizeof(header) + 256 + bytes);
  if (!block) return core_fail(INT4MM_ERR_MEMORY, "cannot allocate device memory: out of memory");
  char *start = (char *)(((uintptr_t)block + sizeof(header) + 255) / 256 * 256);
  ((header *)(void *)start)[-1] = (header){bytes, block};
  atomic_fetch_add(&used[device], bytes);
  *data = to_device(device, start);
  return INT4MM_OK;
}

static void fake_free(int32_t device, void *data, bool non_blocking) {
  (void)non_blocking;
  const header *h = (const header *)to_host(device, data) - 1;
  atomic_fetch_sub(&used[device], h->bytes);
  free(h->block);
}

static int32_t fake_scratch(int32_t device, size_t bytes, void **data, void *stream) {
  static atomic_int calls;
  int32_t status = told_to_fail("scratch", &calls) ? INT4MM_ERR_MEMORY : fake_alloc(device, bytes, stream, data);
  if (status == INT4MM_ERR_MEMORY)
    core_fail(status, "out of memory on cuda:%d: asked for %zu bytes of scratch memory", (int)device, bytes);
  return status;
}

static int32_t fake_scratch_free(int32_t device, void *data, void *stream) {
  static atomic_int calls;
  (void)stream;
  fake_free(device, data, false);
  return told_to_fail("scratch_free", &calls)
             ? core_fail(INT4MM_ERR_CUDA, "cannot free scratch memory on the device: it was told so")
             : INT4MM_OK;
}

static int32_t fake_copy(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                         size_t src_pitch, size_t width, size_t rows, void *stream) {
  char *to = dst_device == INT4MM_CPU ? dst : to_host(dst_device, dst);
  const char *from = src_device == INT4MM_CPU ? src : to_host(src_device, src);
  (void)stream;
  for (size_t r = 0; r < rows; r++) memmove(to + r * dst_pitch, from + r * src_pitch, width);
  return INT4MM_OK;
}

static int32_t fake_fill_bytes(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows,
                               void *stream) {
  (void)stream;
  for (size_t r = 0; r < rows; r++) memset((char *)to_host(device, dst) + r * pitch, byte, width);
  return INT4MM_OK;
}

/* ---- devices and streams ---- */

static int32_t fake_device_count(int32_t *count) {
  *count = DEVICES;
  return INT4MM_OK;
}

static int32_t fake_arch(int32_t device, int32_t *arch, int32_t *sms) {
  *arch = 90, *sms = 132;
  return check_device(device);
}

static int32_t fake_code_arch(int32_t device, int32_t *code_arch) {
  int32_t sms;
  return fake_arch(device, code_arch, &sms);
}

static int32_t fake_device_info(int32_t device, int4mm_gpu_info *info) {
  int32_t status = check_device(device);
  if (status) return status;
  *info = (int4mm_gpu_info){.name = "host memory",
                            .total_memory = (int64_t)device_bytes,
                            .free_memory = (int64_t)(device_bytes - atomic_load(&used[device])),
                            .runtime_version = 13000,
                            .driver_version = 13000};
  return fake_arch(device, &info->arch, &info->sms);
}

static int32_t fake_synchronize(int32_t device) {
  return check_device(device);
}

static int32_t fake_stream_create(int32_t device, void **stream) {
  int32_t status = check_device(device);
  if (!status && !(*stream = malloc(1))) status = core_fail(INT4MM_ERR_MEMORY, "cannot create a stream: out of memory");
  return status;
}

static int32_t fake_stream_destroy(int32_t device, void *stream) {
  static atomic_int calls;
  if (told_to_fail("stream_destroy", &calls))
    return core_fail(INT4MM_ERR_CUDA, "cannot destroy the stream: it was told so");
  free(stream);
  return check_device(device);
}

static int32_t fake_stream_synchronize(int32_t device, void *stream) {
  (void)stream;
  return check_device(device);
}

static int32_t fake_stream_state(int32_t device, void *stream, int4mm_stream_state *state) {
  (void)stream;
  *state = (int4mm_stream_state){0};
  return check_device(device);
}

static int32_t fake_stream_join(int32_t device, void *stream) {
  (void)stream;
  return check_device(device);
}

/* ---- work ---- */

/* The product on the CPU, which takes B as [K/8, N]. */
static int32_t multiply(int4mm_problem *p) {
  int4mm_operand *b = &p->b;
  if (b->layout != INT4MM_K_MAJOR) return int4mm_cpu_matmul(p);
  int64_t words = p->K / 8;
  uint32_t *kn = malloc((size_t)(words * p->N) * sizeof *kn + 1);
  if (!kn) return core_fail(INT4MM_ERR_MEMORY, "out of memory for a transposed weight");
  int4mm_matrix from = {(void *)b->words, p->N, words, b->stride, INT4MM_INT32};
  int4mm_matrix to = {kn, words, p->N, p->N, INT4MM_INT32};
  if (words) int4mm_cpu_transpose(&to, &from, 0);
  b->words = kn, b->rows = words, b->cols = b->stride = p->N, b->layout = INT4MM_MN_MAJOR;
  int32_t status = int4mm_cpu_matmul(p);
  free(kn);
  return status;
}

static int32_t fake_matmul(int32_t device, const int4mm_problem *problem, const int4mm_plan *plan, void *stream,
                           bool non_blocking) {
  static atomic_int calls;
  int4mm_problem p = *problem;
  if (told_to_fail("matmul", &calls))
    return core_fail(INT4MM_ERR_UNAVAILABLE, "cannot launch the product: no kernel image is available for execution on "
                                             "the device (cudaErrorNoKernelImageForDevice)");
  (void)stream, (void)non_blocking;
  if (plan->device != device) abort();
  p.a.data = to_host(device, p.a.data), p.b.data = to_host(device, p.b.data), p.bias = to_host(device, p.bias);
  p.a.scales = to_host(device, p.a.scales), p.b.scales = to_host(device, p.b.scales);
  p.out.data = to_host(device, p.out.data);
  return multiply(&p);
}

static int4mm_matrix host_matrix(int32_t device, int4mm_matrix m) {
  m.data = to_host(device, m.data);
  return m;
}

static int4mm_pack_job host_job(int32_t device, const int4mm_pack_job *job) {
  int4mm_pack_job j = *job;
  j.packed = host_matrix(device, j.packed), j.plain = host_matrix(device, j.plain);
  j.scales = to_host(device, j.scales);
  return j;
}

static int32_t fake_pack(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  (void)stream;
  return int4mm_cpu_pack(&j, bad);
}

static int32_t fake_quantize(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  (void)stream;
  return int4mm_cpu_quantize(&j, bad);
}

static int32_t fake_rotate(int32_t device, const int4mm_rotate_job *job, void *stream) {
  int4mm_rotate_job j = *job;
  (void)stream;
  j.dst = host_matrix(device, j.dst), j.src = host_matrix(device, j.src);
  int4mm_cpu_rotate(&j);
  return INT4MM_OK;
}

static int32_t fake_unpack(int32_t device, const int4mm_pack_job *job, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  (void)stream;
  int4mm_cpu_unpack(&j);
  return INT4MM_OK;
}

static int32_t fake_dequantize(int32_t device, const int4mm_pack_job *job, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  (void)stream;
  int4mm_cpu_dequantize(&j);
  return INT4MM_OK;
}

static int32_t fake_random(int32_t device, const int4mm_random_job *job, void *stream) {
  int4mm_random_job j = *job;
  (void)stream;
  j.dst = host_matrix(device, j.dst);
  int4mm_cpu_random(&j);
  return INT4MM_OK;
}

static int32_t fake_align_rows(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, void *stream) {
  int4mm_matrix to = host_matrix(device, *dst), from = host_matrix(device, *src);
  (void)stream;
  for (int64_t r = 0; r < from.rows; r++)
    memcpy((uint32_t *)to.data + r * to.stride, (uint32_t *)from.data + r * from.stride, (size_t)from.cols * 4);
  return INT4MM_OK;
}

static int32_t fake_transpose(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                              void *stream) {
  int4mm_matrix to = host_matrix(device, *dst), from = host_matrix(device, *src);
  (void)stream;
  int4mm_cpu_transpose(&to, &from, xor_mask);
  return INT4MM_OK;
}

INT4MM_API const int4mm_cuda_backend *int4mm_cuda_backend_table(void);
const int4mm_cuda_backend *int4mm_cuda_backend_table(void) {
  static int4mm_cuda_backend table = {.abi = INT4MM_CUDA_ABI,
                                      .open = fake_open,
                                      .device_count = fake_device_count,
                                      .device_info = fake_device_info,
                                      .arch = fake_arch,
                                      .code_arch = fake_code_arch,
                                      .alloc = fake_alloc,
                                      .free = fake_free,
                                      .locate = fake_locate,
                                      .stream_state = fake_stream_state,
                                      .stream_join = fake_stream_join,
                                      .copy = fake_copy,
                                      .fill_bytes = fake_fill_bytes,
                                      .synchronize = fake_synchronize,
                                      .stream_create = fake_stream_create,
                                      .stream_destroy = fake_stream_destroy,
                                      .stream_synchronize = fake_stream_synchronize,
                                      .matmul = fake_matmul,
                                      .pack = fake_pack,
                                      .quantize = fake_quantize,
                                      .rotate = fake_rotate,
                                      .unpack = fake_unpack,
                                      .dequantize = fake_dequantize,
                                      .random = fake_random,
                                      .transpose = fake_transpose,
                                      .align_rows = fake_align_rows,
                                      .scratch = fake_scratch,
                                      .scratch_free = fake_scratch_free};
  if (asked_for("other_abi")) table.abi = INT4MM_CUDA_ABI + 1;
  return asked_for("no_table") ? NULL : &table;
}
