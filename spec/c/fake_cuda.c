/*
 * A CUDA library without CUDA, so that what the core does with one is tested where there is no GPU. Point
 * INT4MM_CUDA_LIBRARY at it; INT4MM_FAKE_CUDA says what it does:
 *
 *   no_driver, old_driver, no_device   refuses to open, in the words of the CUDA library
 *   other_abi, no_table                is no library for this core
 *   host                               two devices of 1 GiB each in host memory that do the work with the CPU backend
 *
 * INT4MM_FAKE_FAIL=matmul has the first product fail, as where this build has no code for the GPU; scratch (no memory),
 * scratch_free, stream_destroy, host_alloc (no memory) and graph_end likewise. With a number before it (3scratch) that
 * many calls fail; several stand with commas between them.
 *
 * A device address is a host address with its device in the top bits, so no host code can read through it by mistake,
 * and work that is given memory of the host or of the other device ends the process.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cuda/table.h"
#include "dispatch/choose.h"
#include "fake_streams.h"
#include "int4mm_abi.h"

enum { DEVICES = 2 };
static const size_t device_bytes = (size_t)1 << 30;

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

/* Pinned memory, by its first address. */
enum { MOST_PINNED = 1000 };
static struct {
  const char *data;
  size_t bytes;
  uint64_t used_by; /* bit d: copies of device d, also those of a graph */
} pinned[MOST_PINNED];

static int find_pinned(const void *data) {
  int i = 0;
  while (i < MOST_PINNED && !(pinned[i].data && (const char *)data >= pinned[i].data &&
                              (const char *)data < pinned[i].data + pinned[i].bytes))
    i++;
  return i;
}

/* Memory of a device is told by its address; the rest is the host's. */
static int32_t fake_locate(const void *data, int4mm_location *location) {
  uint64_t bits = (uint64_t)(uintptr_t)data;
  bool on_device = bits >> 56 == device_tag >> 56;
  *location = (int4mm_location){.device = on_device ? (int32_t)(bits >> 48 & 0xff) : INT4MM_CPU,
                                .pinned = !on_device && find_pinned(data) < MOST_PINNED};
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
  run_line();
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

typedef struct block {
  int32_t device;
  void *data;
} block;

static void run_free(const void *job) {
  const block *b = job;
  fake_free(b->device, b->data, false);
}

/* What a capture used stays the graph's. */
static int32_t fake_scratch_free(int32_t device, void *data, void *stream) {
  static atomic_int calls;
  fake_graph *capture = capture_of(stream);
  block b = {device, data};
  if (capture)
    append(&capture->at_end, run_free, &b, sizeof b);
  else
    run_free(&b);
  return told_to_fail("scratch_free", &calls)
             ? core_fail(INT4MM_ERR_CUDA, "cannot free scratch memory on the device: it was told so")
             : INT4MM_OK;
}

static int32_t fake_host_alloc(size_t bytes, void **data) {
  static atomic_int calls;
  int i = 0;
  while (i < MOST_PINNED && pinned[i].data) i++;
  if (told_to_fail("host_alloc", &calls) || i == MOST_PINNED || bytes > device_bytes ||
      !(*data = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)))
    return core_fail(INT4MM_ERR_MEMORY, "cannot allocate pinned host memory: out of memory");
  pinned[i].data = *data, pinned[i].bytes = bytes, pinned[i].used_by = 0;
  return INT4MM_OK;
}

/* Waits, as CUDA's does, for the devices that are named, which are to be all that used it. */
static void fake_host_free(void *data, uint64_t devices) {
  int i = find_pinned(data);
  if (i == MOST_PINNED || pinned[i].data != data || (pinned[i].used_by & ~devices)) abort();
  if (devices) run_line();
  memset(data, 0xAA, pinned[i].bytes);
  pinned[i].data = NULL;
  free(data);
}

/* ---- copies and fills ---- */

typedef struct copy_job {
  char *dst;
  const char *src;
  size_t dst_pitch, src_pitch, width, rows;
  uint8_t byte; /* of a fill, which has no src */
} copy_job;

static void run_copy(const void *job) {
  const copy_job *c = job;
  for (size_t r = 0; r < c->rows; r++) memmove(c->dst + r * c->dst_pitch, c->src + r * c->src_pitch, c->width);
}

static void run_fill(const void *job) {
  const copy_job *c = job;
  for (size_t r = 0; r < c->rows; r++) memset(c->dst + r * c->dst_pitch, c->byte, c->width);
}

static int32_t fake_copy(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                         size_t src_pitch, size_t width, size_t rows, void *stream) {
  copy_job job = {.dst = dst_device == INT4MM_CPU ? dst : to_host(dst_device, dst),
                  .src = src_device == INT4MM_CPU ? src : to_host(src_device, src),
                  .dst_pitch = dst_pitch,
                  .src_pitch = src_pitch,
                  .width = width,
                  .rows = rows};
  int32_t status = INT4MM_OK;
  if (dst_device != src_device)
    status = check_waitable(stream, "copy between devices",
                            "copy before or after it, or with pinned host memory and non_blocking = true");
  if (!status) enqueue(stream, run_copy, &job, sizeof job);
  return status;
}

static int32_t fake_copy_async(int32_t device, bool to_cpu, void *dst, size_t dst_pitch, const void *src,
                               size_t src_pitch, size_t width, size_t rows, void *stream) {
  copy_job job = {.dst = to_cpu ? dst : to_host(device, dst),
                  .src = to_cpu ? to_host(device, src) : src,
                  .dst_pitch = dst_pitch,
                  .src_pitch = src_pitch,
                  .width = width,
                  .rows = rows};
  fake_graph *capture = capture_of(stream);
  int i = find_pinned(to_cpu ? dst : src);
  if (i == MOST_PINNED) abort();
  pinned[i].used_by |= (uint64_t)1 << device;
  append(capture ? &capture->nodes : &in_line, run_copy, &job, sizeof job);
  return INT4MM_OK;
}

static int32_t fake_fill_bytes(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows,
                               void *stream) {
  copy_job job = {.dst = to_host(device, dst), .dst_pitch = pitch, .width = width, .rows = rows, .byte = byte};
  enqueue(stream, run_fill, &job, sizeof job);
  return INT4MM_OK;
}

/* ---- devices and streams ---- */

static int32_t fake_device_count(int32_t *count) {
  *count = DEVICES;
  return INT4MM_OK;
}

static int32_t fake_traits(int32_t device, int4mm_gpu_traits *traits) {
  *traits = (int4mm_gpu_traits){
      .name = "host memory", .arch = 90, .sms = 132, .clock = 1980, .memory = 3350, .shared = 227 << 10};
  return check_device(device);
}

static int32_t fake_code_arch(int32_t device, int32_t *code_arch) {
  *code_arch = 90;
  return check_device(device);
}

static int32_t fake_device_info(int32_t device, int4mm_gpu_info *info) {
  int32_t status = check_device(device);
  if (status) return status;
  *info = (int4mm_gpu_info){.name = "host memory",
                            .total_memory = (int64_t)device_bytes,
                            .free_memory = (int64_t)(device_bytes - atomic_load(&used[device])),
                            .runtime_version = 13000,
                            .driver_version = 13000};
  int4mm_gpu_traits traits;
  status = fake_traits(device, &traits);
  info->arch = traits.arch, info->sms = traits.sms;
  info->clock = traits.clock, info->memory = traits.memory, info->shared = traits.shared;
  return status;
}

static int32_t fake_synchronize(int32_t device) {
  run_line();
  return check_device(device);
}

static int32_t fake_stream_create(int32_t device, void **stream) {
  int32_t status = check_device(device);
  if (!status) *stream = make_stream(device, false);
  return status;
}

static int32_t fake_stream_destroy(int32_t device, void *stream) {
  static atomic_int calls;
  int32_t status = check_waitable(stream, "destroy the stream", "end the capture first");
  if (status) return status;
  if (told_to_fail("stream_destroy", &calls))
    return core_fail(INT4MM_ERR_CUDA, "cannot destroy the stream: it was told so");
  remove_stream(stream);
  return check_device(device);
}

static int32_t fake_stream_synchronize(int32_t device, void *stream) {
  int32_t status = check_waitable(stream, "wait for the stream", "wait before or after it");
  return status ? status : check_device(device);
}

static int32_t fake_stream_state(int32_t device, void *stream, int4mm_stream_state *state) {
  state_of(stream, state);
  return check_device(device);
}

static int32_t fake_stream_join(int32_t device, void *stream) {
  if (capture_of(stream)) abort(); /* a capture cannot wait for work outside it */
  return check_device(device);
}

static int32_t fake_graph_end(int32_t device, void *stream, void **executable, int64_t *nodes) {
  static atomic_int calls;
  (void)device;
  return end_graph(stream, told_to_fail("graph_end", &calls), executable, nodes);
}

/* ---- work ---- */

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

/* Where that is `widened`: into words, and these into bytes. */
static void run_quantize(const void *job) {
  const int4mm_pack_job *quantize = job;
  int4mm_pack_job words = *quantize;
  int64_t bad;
  if (words.widened) {
    const int64_t rows = words.plain.rows, cols = (words.plain.cols + 7) / 8;
    words.packed = (int4mm_matrix){malloc((size_t)(rows * cols) * 4), rows, cols, cols, INT4MM_INT32};
    words.xor_mask = 0, words.widened = false;
    if (!words.packed.data) abort();
  }
  (void)int4mm_cpu_quantize(&words, &bad); /* unchecked: whatever the values */
  if (!quantize->widened) return;
  int4mm_pack_job widen = {.packed = words.packed, .plain = quantize->packed, .dim = 1};
  int4mm_cpu_unpack(&widen);
  free(words.packed.data);
}

static void run_quantize_groups(const void *job) {
  if (int4mm_cpu_quantize_groups(job)) abort();
}

static void run_dequantize_groups(const void *job) {
  int4mm_cpu_dequantize_groups(job);
}

static void run_rotate(const void *job) {
  int4mm_cpu_rotate(job);
}

static void run_unpack(const void *job) {
  int4mm_cpu_unpack(job);
}

static void run_dequantize(const void *job) {
  int4mm_cpu_dequantize(job);
}

static void run_map(const void *job) {
  int4mm_cpu_map(job);
}

static void run_rowwise(const void *job) {
  int4mm_cpu_rowwise(job);
}

static void run_random(const void *job) {
  int4mm_cpu_random(job);
}

static int32_t fake_pack(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  int32_t status = check_waitable(stream, "check values", "pack before the capture");
  return status ? status : int4mm_cpu_pack(&j, bad);
}

static int32_t fake_quantize(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  if (!j.check) {
    enqueue(stream, run_quantize, &j, sizeof j);
    return INT4MM_OK;
  }
  int32_t status = check_waitable(stream, "check values", "give check = false");
  return status ? status : int4mm_cpu_quantize(&j, bad);
}

static int4mm_group_job host_group_job(int32_t device, const int4mm_group_job *job) {
  int4mm_group_job j = *job;
  j.packed = host_matrix(device, j.packed), j.plain = host_matrix(device, j.plain);
  j.scales = host_matrix(device, j.scales), j.zeros = host_matrix(device, j.zeros);
  j.factors = host_matrix(device, j.factors), j.group_scales = host_matrix(device, j.group_scales);
  return j;
}

static int32_t fake_quantize_groups(int32_t device, const int4mm_group_job *job, void *stream) {
  int4mm_group_job j = host_group_job(device, job);
  enqueue(stream, run_quantize_groups, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_dequantize_groups(int32_t device, const int4mm_group_job *job, void *stream) {
  int4mm_group_job j = host_group_job(device, job);
  enqueue(stream, run_dequantize_groups, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_find_not_finite(int32_t device, const int4mm_matrix *src, int64_t *bad, void *stream) {
  int4mm_matrix m = host_matrix(device, *src);
  int32_t status = check_waitable(stream, "check values", "give check = false");
  if (!status) *bad = int4mm_cpu_find_not_finite(&m);
  return status;
}

static void *advance(const void *data, int64_t elements, int32_t dtype) {
  return data ? (char *)data + elements * (int64_t)int4mm_dtype_size(dtype) : NULL;
}

/* The product of expert e, which has `rows` rows from `first` on. */
static int4mm_problem problem_of(const int4mm_problem *p, int64_t e, int64_t first, int64_t rows) {
  const int4mm_experts *x = &p->experts;
  int4mm_problem one = *p;
  one.experts.count = 0;
  one.M = one.a.rows = one.out.rows = rows;
  one.a.data = advance(p->a.data, first * p->a.stride, p->a.dtype);
  one.a.scales = advance(p->a.scales, first, INT4MM_FLOAT32);
  one.out.data = advance(p->out.data, first * p->out.stride, p->out.dtype);
  one.b.data = advance(p->b.data, e * x->b, INT4MM_INT32);
  one.b.scales = advance(p->b.scales, e * x->scales, INT4MM_FLOAT32);
  one.b.group_scales.data = advance(p->b.group_scales.data, e * x->group_scales, p->b.group_scales.dtype);
  one.b.factors.data = advance(p->b.factors.data, e * x->factors, INT4MM_INT8);
  one.b.zeros.data = advance(p->b.zeros.data, e * x->zeros, INT4MM_INT8);
  one.bias = advance(p->bias, e * x->bias, INT4MM_FLOAT32);
  return one;
}

/* Offsets are what they are when the work runs, and may be any number. */
static int64_t first_row(const int4mm_problem *p, int64_t e, int64_t least) {
  int64_t offset = p->experts.offsets ? p->experts.offsets[e] : e * p->experts.rows;
  return offset < least ? least : offset > p->M ? p->M : offset;
}

static void run_experts(const int4mm_problem *p) {
  const size_t size = int4mm_dtype_size(p->out.dtype);
  for (int64_t m = 0; m < p->M; m++) memset(advance(p->out.data, m * p->out.stride, p->out.dtype), 0, p->N * size);
  for (int64_t e = 0, first = first_row(p, 0, 0), next; e < p->experts.count; e++, first = next) {
    next = first_row(p, e + 1, first);
    int4mm_problem one = problem_of(p, e, first, next - first);
    if (one.M && int4mm_cpu_matmul(&one)) abort();
  }
}

static void run_matmul(const void *job) {
  const int4mm_problem *p = job;
  if (p->experts.count)
    run_experts(p);
  else if (int4mm_cpu_matmul(p))
    abort();
}

static int32_t fake_matmul(int32_t device, const int4mm_pack_job *quantize, const int4mm_problem *problem,
                           const int4mm_plan *plan, void *stream, bool non_blocking) {
  static atomic_int calls;
  int4mm_problem p = *problem;
  if (told_to_fail("matmul", &calls))
    return core_fail(INT4MM_ERR_UNAVAILABLE, "cannot launch the product: no kernel image is available for execution on "
                                             "the device (cudaErrorNoKernelImageForDevice)");
  (void)non_blocking;
  if (plan->device != device) abort();
  p.a.data = to_host(device, p.a.data), p.b.data = to_host(device, p.b.data), p.bias = to_host(device, p.bias);
  p.a.scales = to_host(device, p.a.scales), p.b.scales = to_host(device, p.b.scales);
  p.b.group_scales.data = to_host(device, p.b.group_scales.data), p.b.zeros.data = to_host(device, p.b.zeros.data);
  p.b.factors.data = to_host(device, p.b.factors.data);
  p.experts.offsets = to_host(device, p.experts.offsets);
  p.out.data = to_host(device, p.out.data), p.residual.data = to_host(device, p.residual.data);
  if (p.sums) /* what a plan that splits K writes */
    memset(to_host(device, p.sums), 0xaa, (size_t)int4mm_sums_bytes(&p, plan));
  if (quantize) (void)fake_quantize(device, quantize, NULL, stream);
  enqueue(stream, run_matmul, &p, sizeof p);
  return INT4MM_OK;
}

static int32_t fake_rotate(int32_t device, const int4mm_rotate_job *job, void *stream) {
  int4mm_rotate_job j = *job;
  j.dst = host_matrix(device, j.dst), j.src = host_matrix(device, j.src);
  enqueue(stream, run_rotate, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_unpack(int32_t device, const int4mm_pack_job *job, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  enqueue(stream, run_unpack, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_dequantize(int32_t device, const int4mm_pack_job *job, void *stream) {
  int4mm_pack_job j = host_job(device, job);
  enqueue(stream, run_dequantize, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_map(int32_t device, const int4mm_map_job *job, void *stream) {
  int4mm_map_job j = *job;
  j.dst = host_matrix(device, j.dst), j.src = host_matrix(device, j.src), j.other = host_matrix(device, j.other);
  enqueue(stream, run_map, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_rowwise(int32_t device, const int4mm_rowwise_job *job, void *stream) {
  int4mm_rowwise_job j = *job;
  j.dst = host_matrix(device, j.dst), j.src = host_matrix(device, j.src);
  j.weight = host_matrix(device, j.weight), j.bias = host_matrix(device, j.bias);
  enqueue(stream, run_rowwise, &j, sizeof j);
  return INT4MM_OK;
}

static int32_t fake_random(int32_t device, const int4mm_random_job *job, void *stream) {
  int4mm_random_job j = *job;
  j.dst = host_matrix(device, j.dst);
  enqueue(stream, run_random, &j, sizeof j);
  return INT4MM_OK;
}

typedef struct words_job {
  int4mm_matrix to, from;
  uint32_t xor_mask;
} words_job;

static void run_align_rows(const void *job) {
  const words_job *a = job;
  if (a->to.dtype != a->from.dtype) {
    int4mm_pack_job widen = {.packed = a->from, .plain = a->to, .dim = 1, .xor_mask = a->xor_mask};
    int4mm_cpu_unpack(&widen);
    return;
  }
  const size_t size = int4mm_dtype_size(a->from.dtype), bytes = (size_t)a->from.cols * size;
  for (int64_t r = 0; r < a->from.rows; r++) {
    char *to = (char *)a->to.data + (size_t)(r * a->to.stride) * size;
    memcpy(to, (const char *)a->from.data + (size_t)(r * a->from.stride) * size, bytes);
    memset(to + bytes, 0, -bytes % 16);
    for (size_t i = 0; a->xor_mask && i < bytes / 4; i++) ((uint32_t *)to)[i] ^= a->xor_mask;
  }
}

static int32_t fake_align_rows(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                               bool even_odd, bool early_b, void *stream) {
  (void)early_b, (void)even_odd; /* nor does the product look at its operand's */
  words_job job = {host_matrix(device, *dst), host_matrix(device, *src), xor_mask};
  enqueue(stream, run_align_rows, &job, sizeof job);
  return INT4MM_OK;
}

static void run_transpose(const void *job) {
  const words_job *t = job;
  if (!t->xor_mask) {
    int4mm_cpu_transpose(&t->to, &t->from);
    return;
  }
  for (int64_t r = 0; r < t->from.rows; r++)
    for (int64_t c = 0; c < t->from.cols; c++)
      ((uint32_t *)t->to.data)[c * t->to.stride + r] =
          ((const uint32_t *)t->from.data)[r * t->from.stride + c] ^ t->xor_mask;
}

static int32_t fake_transpose(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                              void *stream) {
  words_job job = {host_matrix(device, *dst), host_matrix(device, *src), xor_mask};
  enqueue(stream, run_transpose, &job, sizeof job);
  return INT4MM_OK;
}

static void run_gather(const void *job) {
  int4mm_cpu_gather(job);
}

static int32_t fake_gather(int32_t device, const int4mm_gather_job *job, void *stream) {
  int4mm_gather_job j = *job;
  j.dst = host_matrix(device, j.dst), j.src = host_matrix(device, j.src), j.indices = to_host(device, j.indices);
  enqueue(stream, run_gather, &j, sizeof j);
  return INT4MM_OK;
}

INT4MM_API const int4mm_cuda_backend *int4mm_cuda_backend_table(void);
const int4mm_cuda_backend *int4mm_cuda_backend_table(void) {
  static int4mm_cuda_backend table = {.abi = INT4MM_CUDA_ABI,
                                      .open = fake_open,
                                      .device_count = fake_device_count,
                                      .device_info = fake_device_info,
                                      .traits = fake_traits,
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
                                      .quantize_groups = fake_quantize_groups,
                                      .find_not_finite = fake_find_not_finite,
                                      .rotate = fake_rotate,
                                      .unpack = fake_unpack,
                                      .dequantize = fake_dequantize,
                                      .dequantize_groups = fake_dequantize_groups,
                                      .map = fake_map,
                                      .rowwise = fake_rowwise,
                                      .random = fake_random,
                                      .transpose = fake_transpose,
                                      .gather = fake_gather,
                                      .align_rows = fake_align_rows,
                                      .scratch = fake_scratch,
                                      .scratch_free = fake_scratch_free,
                                      .host_alloc = fake_host_alloc,
                                      .host_free = fake_host_free,
                                      .copy_async = fake_copy_async,
                                      .event_create = fake_event_create,
                                      .event_destroy = fake_event_destroy,
                                      .event_record = fake_event_record,
                                      .event_synchronize = fake_event_synchronize,
                                      .event_query = fake_event_query,
                                      .event_elapsed = fake_event_elapsed,
                                      .stream_wait = fake_stream_wait,
                                      .graph_begin = fake_graph_begin,
                                      .graph_end = fake_graph_end,
                                      .graph_launch = fake_graph_launch,
                                      .graph_destroy = fake_graph_destroy};
  if (asked_for("other_abi")) table.abi = INT4MM_CUDA_ABI + 1;
  return asked_for("no_table") ? NULL : &table;
}
