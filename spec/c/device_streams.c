/*
 * What only a driver can show: contexts that nobody asked for, addresses of the wrong device, streams that the default
 * stream is not ordered with, and CUDA graphs. Memory is given back while such streams still use it; releases, scratch
 * memory and refused allocations must not disturb a capture. Needs a GPU: INT4MM_CUDA_LIBRARY names the
 * CUDA library when it does not lie beside this program. Without a driver it says so and passes.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "core/error.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cuda/table.h"
#include "driver.h"

enum { NON_BLOCKING = 1, GLOBAL = 0, THREAD_LOCAL = 1, ATTACH_GLOBAL = 1 };

/* ---- tensors ---- */

typedef struct problem {
  int4mm_tensor a, b, scale_a, scale_b; /* b is [N, K/8] */
} problem;

static int4mm_tensor make(int64_t rows, int64_t cols, int32_t dtype, int32_t device) {
  int4mm_tensor t = {0};
  OK(int4mm_tensor_alloc(&t, cols ? 2 : 1, rows, cols ? cols : 1, dtype, device));
  return t;
}

static problem make_problem(int64_t M, int64_t N, int64_t K, uint64_t seed) {
  problem p = {make(M, K / 8, INT4MM_INT32, 0), make(N, K / 8, INT4MM_INT32, 0), make(M, 0, INT4MM_FLOAT32, 0),
               make(N, 0, INT4MM_FLOAT32, 0)};
  OK(int4mm_random(&p.a, seed, 0, 0, 0, NULL));
  OK(int4mm_random(&p.b, seed, 1, 0, 0, NULL));
  OK(int4mm_random(&p.scale_a, seed, 2, 0.01f, 0.02f, NULL));
  OK(int4mm_random(&p.scale_b, seed, 3, 0.01f, 0.02f, NULL));
  return p;
}

static void release(problem *p) {
  int4mm_tensor_release(&p->a);
  int4mm_tensor_release(&p->b);
  int4mm_tensor_release(&p->scale_a);
  int4mm_tensor_release(&p->scale_b);
}

static int32_t multiply(problem *p, int4mm_tensor *out, void *stream) {
  int4mm_matmul_args args = {.a_packed = &p->a,
                             .b_packed = &p->b,
                             .scale_a = &p->scale_a,
                             .scale_b = &p->scale_b,
                             .out = out,
                             .out_dtype = INT4MM_FLOAT32,
                             .layout_b = INT4MM_B_NK,
                             .backend = INT4MM_USE_CUDA,
                             .stream = stream};
  return int4mm_matmul(&args);
}

static bool same(const int4mm_tensor *x, const int4mm_tensor *y) {
  int4mm_tensor a = make(x->shape[0], x->shape[1], x->dtype, INT4MM_CPU),
                b = make(x->shape[0], x->shape[1], x->dtype, INT4MM_CPU);
  OK(int4mm_tensor_copy(&a, x, NULL));
  OK(int4mm_tensor_copy(&b, y, NULL));
  bool equal = !memcmp(a.data, b.data, (size_t)(a.shape[0] * a.shape[1]) * sizeof(float));
  int4mm_tensor_release(&a);
  int4mm_tensor_release(&b);
  return equal;
}

/* ---- a stream that the default stream does not wait for ---- */

enum { ROUNDS = 50 };

/* Operands and results are dropped as soon as the call returns, and their memory at once taken and poisoned on the
 * default stream: if a release did not wait for the other stream, a product would read or leave poison. */
static void test_early_release(void *stream) {
  int4mm_tensor expected = {0}, outs[ROUNDS] = {{0}};
  problem p = make_problem(700, 1000, 4096, 1);
  OK(multiply(&p, &expected, NULL));
  release(&p);
  for (int i = 0; i < ROUNDS; i++) {
    int4mm_tensor dropped = {0}, poison;
    p = make_problem(700, 1000, 4096, 1);
    OK(multiply(&p, &dropped, stream));
    OK(multiply(&p, &outs[i], stream));
    release(&p);
    int4mm_tensor_release(&dropped);
    poison = make(700, 4096, INT4MM_INT32, 0);
    OK(int4mm_tensor_fill_bytes(&poison, 0xff, NULL));
    int4mm_tensor_release(&poison);
  }
  OK(int4mm_stream_synchronize(0, stream));
  for (int i = 0; i < ROUNDS; i++) {
    CHECK(same(&expected, &outs[i]));
    int4mm_tensor_release(&outs[i]);
  }
  int4mm_tensor_release(&expected);
}

/* Each non-blocking stream waits for what the default stream is still doing to a tensor, not only the first one that
 * uses it. Everything but the tensor has been used on its stream before, so that nothing else makes it wait. */
static void test_second_stream(void *first, void *second) {
  int4mm_tensor product = {0}, t = make(1000, 1000, INT4MM_INT32, 0), copies[2], expected;
  problem p = make_problem(4096, 4096, 4096, 1);
  void *streams[2] = {first, second};
  for (int i = 0; i < 2; i++) {
    copies[i] = make(1000, 1000, INT4MM_INT32, 0);
    OK(int4mm_tensor_fill_bytes(&copies[i], 0, streams[i]));
  }
  expected = make(1000, 1000, INT4MM_INT32, INT4MM_CPU);
  OK(int4mm_tensor_fill_bytes(&expected, 0x11, NULL));
  OK(int4mm_tensor_fill_bytes(&t, 0, NULL));
  OK(multiply(&p, &product, NULL));
  OK(int4mm_synchronize(0));
  for (int i = 0; i < 50; i++) OK(multiply(&p, &product, NULL)); /* milliseconds on the default stream, and only then */
  OK(int4mm_tensor_fill_bytes(&t, 0x11, NULL));
  for (int i = 0; i < 2; i++) OK(int4mm_tensor_copy(&copies[i], &t, streams[i]));
  OK(int4mm_synchronize(0));
  for (int i = 0; i < 2; i++) CHECK(same(&copies[i], &expected));
  int4mm_tensor *all[] = {&product, &t, &copies[0], &copies[1], &expected};
  for (int i = 0; i < 5; i++) int4mm_tensor_release(all[i]);
  release(&p);
}

/* ---- contexts and addresses ---- */

/* Before anything else in this process. A tensor on the second GPU leaves the first one without a context, and this
 * thread too. */
static void test_second_gpu(const driver *d) {
  int32_t devices = 0;
  unsigned flags;
  int active = 1;
  void *context = &devices, *stream = NULL;
  OK(int4mm_cuda_device_count(&devices));
  if (devices < 2) {
    puts("one GPU: a second one's contexts are not tested");
    return;
  }
  int4mm_tensor t = make(100, 100, INT4MM_FLOAT32, 1), host = make(100, 100, INT4MM_FLOAT32, INT4MM_CPU), wrapped = {0};
  OK(int4mm_random(&t, 1, 0, 0, 1, NULL));
  OK(int4mm_stream_create(1, &stream));
  OK(int4mm_tensor_fill_bytes(&t, 0, stream));
  OK(int4mm_stream_destroy(1, stream));
  OK(int4mm_tensor_copy(&host, &t, NULL));
  OK(int4mm_tensor_wrap(&wrapped, t.data, 2, 100, 100, 100, INT4MM_FLOAT32, 1));
  int4mm_tensor_release(&wrapped);
  FAILS(int4mm_tensor_wrap(&wrapped, t.data, 2, 100, 100, 100, INT4MM_FLOAT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT,
        "which is memory of cuda:1, not of cpu");
  int4mm_tensor_release(&t);
  int4mm_tensor_release(&host);
  OK(int4mm_synchronize(1));
  OK(int4mm_synchronize(0));
  CHECK(d->primary_state(0, &flags, &active) == 0 && !active);
  CHECK(d->primary_state(1, &flags, &active) == 0 && active);
  CHECK(d->context_current(&context) == 0 && !context);
}

static void test_addresses(const driver *d) {
  int4mm_tensor on_gpu = make(4, 4, INT4MM_FLOAT32, 0), t = {0};
  float plain[16] = {0};
  void *pinned = NULL;
  unsigned long long managed = 0;
  FAILS(int4mm_tensor_wrap(&t, plain, 2, 4, 4, 4, INT4MM_FLOAT32, 0), INT4MM_ERR_ARGUMENT,
        "which is memory of cpu, not of cuda:0");
  FAILS(int4mm_tensor_wrap(&t, on_gpu.data, 2, 4, 4, 4, INT4MM_FLOAT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT,
        "which is memory of cuda:0, not of cpu");
  CHECK(d->alloc_host(&pinned, sizeof plain) == 0);
  FAILS(int4mm_tensor_wrap(&t, pinned, 2, 4, 4, 4, INT4MM_FLOAT32, 0), INT4MM_ERR_ARGUMENT, "which is memory of cpu");
  OK(int4mm_tensor_wrap(&t, pinned, 2, 4, 4, 4, INT4MM_FLOAT32, INT4MM_CPU));
  OK(int4mm_tensor_copy(&t, &on_gpu, NULL));
  int4mm_tensor_release(&t);
  CHECK(d->free_host(pinned) == 0);
  CHECK(d->alloc_managed(&managed, sizeof plain, ATTACH_GLOBAL) == 0);
  for (int32_t device = INT4MM_CPU; device <= 0; device++) {
    OK(int4mm_tensor_wrap(&t, (void *)(uintptr_t)managed, 2, 4, 4, 4, INT4MM_FLOAT32, device));
    OK(int4mm_tensor_fill_bytes(&t, 0, NULL));
    OK(int4mm_synchronize(0));
    int4mm_tensor_release(&t);
  }
  CHECK(d->free_device(managed) == 0);
  int4mm_tensor_release(&on_gpu);
}

/* ---- captures ---- */

/* `blocking`: the default stream cannot be used while this stream captures. */
static void test_capture(const driver *d, void *stream, bool blocking, int mode) {
  problem p = make_problem(65, 130, 520, 2), other = make_problem(64, 64, 64, 3);
  int4mm_tensor expected = {0}, none = {0}, out = make(65, 130, INT4MM_FLOAT32, 0), fresh = {0};
  void *graph = NULL, *executable = NULL;
  OK(multiply(&p, &expected, NULL));
  OK(multiply(&other, &fresh, stream)); /* `other` has been used on the stream when it goes */
  OK(int4mm_synchronize(0));
  CHECK(d->begin_capture(stream, mode) == 0);
  FAILS(multiply(&p, &none, stream), INT4MM_ERR_ARGUMENT, "captures a CUDA graph");
  OK(multiply(&p, &out, stream)); /* with scratch memory where rows of a are copied, since K/8 is 65 */
  release(&other);                /* as a garbage collector would, in the middle of it */
  int4mm_tensor_release(&fresh);
  if (blocking)
    FAILS(int4mm_tensor_alloc(&fresh, 1, 100, 1, INT4MM_INT32, 0), INT4MM_ERR_ARGUMENT, "captures a CUDA graph");
  else
    OK(int4mm_tensor_alloc(&fresh, 1, 100, 1, INT4MM_INT32, 0));
  FAILS(int4mm_stream_synchronize(0, stream), INT4MM_ERR_ARGUMENT, "a CUDA graph is being captured");
  CHECK(d->end_capture(stream, &graph) == 0 && graph);
  if (!graph) return;
  CHECK(d->instantiate(&executable, graph, 0) == 0);
  for (int i = 0; i < 3; i++) {
    OK(int4mm_tensor_fill_bytes(&out, 0xff, NULL));
    OK(int4mm_synchronize(0));
    CHECK(d->launch(executable, stream) == 0);
    OK(int4mm_stream_synchronize(0, stream));
    CHECK(same(&expected, &out));
  }
  CHECK(d->executable_destroy(executable) == 0 && d->graph_destroy(graph) == 0);
  int4mm_tensor *all[] = {&expected, &out, &fresh};
  for (int i = 0; i < 3; i++) int4mm_tensor_release(all[i]);
  release(&p);
}

/* What could not be freed during the captures is given back by now: this would not fit otherwise. */
static void test_given_back(void) {
  int4mm_gpu_info info;
  int4mm_tensor t = {0};
  OK(int4mm_synchronize(0));
  CHECK(int4mm_allocated(0) == 0);
  OK(int4mm_cuda_device_info(0, &info));
  for (int i = 0; i < 20; i++) {
    OK(int4mm_tensor_alloc(&t, 1, info.total_memory / 4, 1, INT4MM_INT8, 0));
    int4mm_tensor_release(&t);
  }
}

int main(void) {
  driver d;
  void *beside, *second, *ours;
  if (!open_driver(&d)) {
    puts("no CUDA driver here: nothing to test");
    return 0;
  }
  OK(int4mm_cuda_available());
  if (failures) return 1;
  test_second_gpu(&d);
  int4mm_tensor first = make(1, 1, INT4MM_INT32, 0); /* from here on the device's context is the current one */
  int4mm_tensor_release(&first);
  CHECK(d.stream_create(&beside, NON_BLOCKING) == 0);
  CHECK(d.stream_create(&second, NON_BLOCKING) == 0);
  OK(int4mm_stream_create(0, &ours));
  test_addresses(&d);
  test_second_stream(beside, second);
  test_early_release(beside);
  test_early_release(ours);
  for (int mode = GLOBAL; mode <= THREAD_LOCAL; mode++) {
    test_capture(&d, ours, true, mode);
    test_capture(&d, beside, false, mode);
  }
  CHECK(d.stream_destroy(beside) == 0 && d.stream_destroy(second) == 0);
  OK(int4mm_stream_destroy(0, ours));
  test_given_back();
  return report();
}
