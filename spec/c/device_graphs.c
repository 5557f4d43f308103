/*
 * CUDA graphs, events and pinned memory through the C interface, where only a driver shows whether they are right:
 * launches on a stream that the default stream is not ordered with, memory given back while they run, captures of two
 * threads, captures that fail. Needs a GPU, as device_streams.c does; without a driver it says so and passes.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "driver.h"

enum { NON_BLOCKING = 1, LENGTH = 1 << 22, ROUNDS = 30 };

static int4mm_tensor make(int64_t length) {
  int4mm_tensor t = {0};
  OK(int4mm_tensor_alloc(&t, 1, length, 1, INT4MM_INT8, 0));
  return t;
}

static int4mm_tensor make_pinned(int64_t length) {
  int4mm_tensor t = {0};
  OK(int4mm_tensor_alloc_pinned(&t, 1, length, 1, INT4MM_INT8));
  CHECK(int4mm_tensor_is_pinned(&t));
  return t;
}

/* Whether all of t, on the CPU, is this byte. */
static bool is_all(const int4mm_tensor *t, int byte) {
  const char *data = t->data;
  bool all = true;
  for (int64_t i = 0; i < t->shape[0]; i++) all = all && data[i] == (char)byte;
  return all;
}

/* The same for one on a GPU. */
static bool holds(const int4mm_tensor *t, int byte) {
  int4mm_tensor here = {0};
  OK(int4mm_tensor_alloc(&here, 1, t->shape[0], 1, INT4MM_INT8, INT4MM_CPU));
  OK(int4mm_tensor_copy(&here, t, NULL));
  bool all = is_all(&here, byte);
  int4mm_tensor_release(&here);
  return all;
}

/* dst = src by way of tensors that are made and dropped inside. */
static int4mm_graph *capture_chain(int4mm_tensor *dst, const int4mm_tensor *src) {
  int4mm_graph *graph = NULL;
  void *stream = NULL;
  OK(int4mm_graph_begin(0, &graph, &stream));
  int4mm_tensor before = make(LENGTH);
  OK(int4mm_tensor_copy(&before, src, stream));
  for (int i = 0; i < 5; i++) {
    int4mm_tensor next = make(LENGTH), garbage = make(LENGTH);
    OK(int4mm_tensor_copy(&next, &before, stream));
    OK(int4mm_tensor_fill_bytes(&garbage, 0xee, stream));
    int4mm_tensor_release(&garbage);
    int4mm_tensor_release(&before);
    before = next;
  }
  OK(int4mm_tensor_copy(dst, &before, stream));
  int4mm_tensor_release(&before);
  FAILS(int4mm_synchronize(0), INT4MM_ERR_ARGUMENT, "cannot wait for cuda:0 while a CUDA graph is being captured");
  FAILS(int4mm_graph_launch(graph, NULL), INT4MM_ERR_ARGUMENT, "graph is being captured");
  OK(int4mm_graph_end(graph));
  FAILS(int4mm_graph_end(graph), INT4MM_ERR_ARGUMENT, "has ended already");
  CHECK(int4mm_graph_nodes(graph) == 12);
  return graph;
}

/* On its own stream a launch is ordered with the default stream, both ways. */
static void test_own_stream(void) {
  int4mm_tensor x = make(LENGTH), y = make(LENGTH);
  int4mm_graph *graph = capture_chain(&y, &x);
  for (int i = 0; i < ROUNDS; i++) {
    OK(int4mm_tensor_fill_bytes(&x, (uint8_t)i, NULL));
    OK(int4mm_graph_launch(graph, NULL));
    OK(int4mm_tensor_fill_bytes(&x, 0xff, NULL));
    CHECK(holds(&y, i));
  }
  OK(int4mm_graph_launch(graph, NULL));
  OK(int4mm_graph_synchronize(graph));
  OK(int4mm_graph_destroy(graph));
  int4mm_tensor_release(&x);
  int4mm_tensor_release(&y);
}

/* On a stream that the default stream is not ordered with: the graph and all tensors are given back while it runs, and
 * their memory is taken anew and poisoned. */
static void test_early_release(void *beside) {
  int4mm_tensor result = make_pinned(LENGTH);
  for (int i = 0; i < ROUNDS; i++) {
    int4mm_tensor x = make(LENGTH), y = make(LENGTH);
    OK(int4mm_tensor_fill_bytes(&x, (uint8_t)i, NULL));
    int4mm_graph *graph = capture_chain(&y, &x);
    OK(int4mm_graph_launch(graph, beside));
    OK(int4mm_tensor_copy_async(&result, &y, beside));
    int4mm_tensor_release(&x);
    int4mm_tensor_release(&y);
    OK(int4mm_graph_destroy(graph));
    for (int j = 0; j < 12; j++) {
      int4mm_tensor poison = make(LENGTH);
      OK(int4mm_tensor_fill_bytes(&poison, 0xee, NULL));
      int4mm_tensor_release(&poison);
    }
    OK(int4mm_stream_synchronize(0, beside));
    CHECK(is_all(&result, i));
  }
  int4mm_tensor_release(&result);
}

/* Pinned memory is released while it is copied from. */
static void test_pinned(const driver *d, void *beside) {
  int4mm_tensor y[8] = {{0}};
  for (int i = 0; i < 8; i++) {
    int4mm_tensor pinned = make_pinned(LENGTH);
    y[i] = make(LENGTH);
    memset(pinned.data, i, LENGTH);
    OK(int4mm_tensor_copy_async(&y[i], &pinned, i % 2 ? beside : NULL));
    int4mm_tensor_release(&pinned);
  }
  OK(int4mm_synchronize(0));
  for (int i = 0; i < 8; i++) {
    CHECK(holds(&y[i], i));
    int4mm_tensor_release(&y[i]);
  }
  void *host = NULL;
  char plain[64];
  int4mm_tensor wrapped = {0}, unpinned = {0};
  CHECK(d->alloc_host(&host, 64) == 0);
  OK(int4mm_tensor_wrap(&wrapped, host, 1, 64, 1, 1, INT4MM_INT8, INT4MM_CPU));
  OK(int4mm_tensor_wrap(&unpinned, plain, 1, 64, 1, 1, INT4MM_INT8, INT4MM_CPU));
  CHECK(int4mm_tensor_is_pinned(&wrapped) == 1 && int4mm_tensor_is_pinned(&unpinned) == 0);
  CHECK(d->free_host(host) == 0);
}

/* A stream that joined a capture and was not waited for makes it fail; nothing is left of it. */
static void test_failed_capture(void *beside) {
  int4mm_tensor x = make(LENGTH);
  int4mm_graph *graph = NULL;
  void *stream = NULL, *event = NULL;
  int64_t before = int4mm_allocated(0);
  OK(int4mm_tensor_fill_bytes(&x, 3, NULL));
  OK(int4mm_event_create(0, &event));
  OK(int4mm_graph_begin(0, &graph, &stream));
  OK(int4mm_tensor_fill_bytes(&x, 1, stream));
  OK(int4mm_event_record(0, event, stream));
  OK(int4mm_stream_wait(0, beside, event));
  int4mm_tensor inside = make(LENGTH);
  OK(int4mm_tensor_fill_bytes(&inside, 2, beside));
  int4mm_tensor_release(&inside);
  FAILS(int4mm_graph_end(graph), INT4MM_ERR_CUDA, "cannot end the capture of the CUDA graph: ");
  FAILS(int4mm_graph_launch(graph, NULL), INT4MM_ERR_ARGUMENT, "its capture failed");
  OK(int4mm_graph_destroy(graph));
  OK(int4mm_graph_begin(0, &graph, &stream)); /* one that is given up */
  OK(int4mm_tensor_fill_bytes(&x, 1, stream));
  OK(int4mm_graph_destroy(graph));
  OK(int4mm_synchronize(0));
  CHECK(holds(&x, 3) && int4mm_allocated(0) == before);
  OK(int4mm_event_destroy(0, event));
  int4mm_tensor_release(&x);
}

static void test_events(void *beside) {
  void *start = NULL, *end = NULL;
  int4mm_tensor x = make(LENGTH);
  int32_t done = -1;
  float milliseconds = 0;
  OK(int4mm_event_create(0, &start));
  OK(int4mm_event_create(0, &end));
  FAILS(int4mm_event_elapsed(0, start, end, &milliseconds), INT4MM_ERR_ARGUMENT, "both have to be recorded");
  OK(int4mm_event_record(0, start, NULL));
  OK(int4mm_stream_wait(0, beside, start));
  for (int i = 0; i < 100; i++) OK(int4mm_tensor_fill_bytes(&x, (uint8_t)i, beside));
  OK(int4mm_event_record(0, end, beside));
  OK(int4mm_event_elapsed(0, start, end, &milliseconds));
  OK(int4mm_event_query(0, end, &done));
  CHECK(milliseconds > 0 && done == 1);
  OK(int4mm_event_synchronize(0, end));
  OK(int4mm_event_destroy(0, start));
  OK(int4mm_event_destroy(0, end));
  int4mm_tensor_release(&x);
}

static void *capture_in_thread(void *result) {
  int4mm_tensor x = make(LENGTH), y = make(LENGTH);
  bool right = true;
  for (int i = 0; i < 10; i++) {
    int4mm_graph *graph = capture_chain(&y, &x);
    OK(int4mm_tensor_fill_bytes(&x, (uint8_t)i, NULL));
    OK(int4mm_graph_launch(graph, NULL));
    right = right && holds(&y, i);
    OK(int4mm_graph_destroy(graph));
  }
  int4mm_tensor_release(&x);
  int4mm_tensor_release(&y);
  *(bool *)result = right;
  return NULL;
}

/* Counters of check.h are not atomic: a lost count does no harm. */
static void test_threads(void) {
  pthread_t thread;
  bool first = false, second = false;
  CHECK(pthread_create(&thread, NULL, capture_in_thread, &first) == 0);
  capture_in_thread(&second);
  CHECK(pthread_join(thread, NULL) == 0);
  CHECK(first && second);
}

int main(void) {
  driver d;
  void *beside = NULL;
  if (!open_driver(&d)) {
    puts("no CUDA driver here: nothing to test");
    return 0;
  }
  OK(int4mm_cuda_available());
  if (failures) return 1;
  int4mm_tensor first = make(1); /* from here on the device's context is the current one */
  int4mm_tensor_release(&first);
  CHECK(d.stream_create(&beside, NON_BLOCKING) == 0);
  test_own_stream();
  test_early_release(beside);
  test_pinned(&d, beside);
  test_failed_capture(beside);
  test_events(beside);
  test_threads();
  CHECK(d.stream_destroy(beside) == 0);
  OK(int4mm_synchronize(0));
  CHECK(int4mm_allocated(0) == 0 && int4mm_allocated(INT4MM_CPU) == 0);
  return report();
}
