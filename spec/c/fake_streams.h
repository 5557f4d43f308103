/*
 * Streams, events, graphs and pinned memory of the fake device (fake_cuda.c).
 *
 * Work runs at once, but for two kinds. What a stream captures is kept, as a function and a copy of its job, and run by
 * each launch. Asynchronous copies with pinned memory stand in line until something waits for the device or gives it
 * other work, so that a copy that waited, or memory that was freed too early, is seen.
 */
#ifndef INT4MM_SPEC_FAKE_STREAMS_H
#define INT4MM_SPEC_FAKE_STREAMS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/table.h"

static int32_t (*core_fail)(int32_t status, const char *format, ...);

/* ---- work in line ---- */

typedef void work_fn(const void *job);

typedef struct work {
  work_fn *run;
  void *job;
  struct work *next;
} work;

typedef struct work_list {
  work *first, **end;
  int64_t count;
} work_list;

static work_list in_line;
static uint64_t times_run = 1; /* how often the line was run, and one */

static void out_of_memory(void) {
  fprintf(stderr, "fake_cuda: out of memory\n");
  abort();
}

static void append(work_list *list, work_fn *run, const void *job, size_t bytes) {
  work *w = malloc(sizeof *w);
  if (!w || !(w->job = malloc(bytes))) out_of_memory();
  w->run = run, w->next = NULL;
  memcpy(w->job, job, bytes);
  *(list->first ? list->end : &list->first) = w;
  list->end = &w->next;
  list->count++;
}

static void run_all(const work_list *list) {
  for (const work *w = list->first; w; w = w->next) w->run(w->job);
}

static void drop_all(work_list *list) {
  while (list->first) {
    work *w = list->first;
    list->first = w->next;
    free(w->job);
    free(w);
  }
  list->count = 0;
}

static void run_line(void) {
  run_all(&in_line);
  drop_all(&in_line);
  times_run++;
}

/* ---- streams ---- */

/* What a stream captured: a graph, and once it has ended its executable. */
typedef struct fake_graph {
  uint64_t id;
  int32_t device;
  work_list nodes, at_end; /* at_end: what gives the scratch memory back */
} fake_graph;

typedef struct fake_stream {
  uint64_t id;
  int32_t device;
  bool non_blocking;
  fake_graph *capture; /* NULL: none */
  struct fake_stream *next;
} fake_stream;

static fake_stream *streams;
static uint64_t last_id;

/* NULL for the default stream; ends the process for what is no live stream. */
static fake_stream *find_stream(void *handle) {
  fake_stream *s = streams;
  while (s && s != handle) s = s->next;
  if (handle && !s) {
    fprintf(stderr, "fake_cuda: %p is not a stream\n", handle);
    abort();
  }
  return s;
}

static fake_graph *capture_of(void *handle) {
  fake_stream *s = find_stream(handle);
  return s ? s->capture : NULL;
}

/* What is not captured comes after the copies in line. */
static void enqueue(void *stream, work_fn *run, const void *job, size_t bytes) {
  fake_graph *capture = capture_of(stream);
  if (capture) {
    append(&capture->nodes, run, job, bytes);
    return;
  }
  run_line();
  run(job);
}

static int32_t check_waitable(void *stream, const char *doing, const char *instead) {
  if (!capture_of(stream)) {
    run_line();
    return INT4MM_OK;
  }
  return core_fail(INT4MM_ERR_ARGUMENT,
                   "cannot %s while a CUDA graph is being captured, for that has to wait for the result: %s", doing,
                   instead);
}

static void *make_stream(int32_t device, bool non_blocking) {
  fake_stream *s = malloc(sizeof *s);
  if (!s) out_of_memory();
  *s = (fake_stream){++last_id, device, non_blocking, NULL, streams};
  return streams = s;
}

static void remove_stream(void *handle) {
  fake_stream *s = find_stream(handle), **link = &streams;
  while (*link != s) link = &(*link)->next;
  *link = s->next;
  free(s);
}

static void state_of(void *handle, int4mm_stream_state *state) {
  const fake_stream *s = find_stream(handle);
  *state = (int4mm_stream_state){0};
  if (!s) return;
  state->capturing = s->capture != NULL;
  state->non_blocking = s->non_blocking || s->capture;
  state->capture = s->capture ? s->capture->id : 0;
  if (s->non_blocking && !s->capture) state->id = s->id;
}

/* ---- events ---- */

typedef struct fake_event {
  int32_t device;
  fake_graph *capture; /* it was recorded in */
  double time;         /* in ms; 0: not recorded */
  uint64_t after;      /* done once the line was run more often than this */
} fake_event;

static int32_t fake_event_create(int32_t device, void **event) {
  fake_event *e = calloc(1, sizeof *e);
  if (!e) out_of_memory();
  e->device = device;
  *event = e;
  return INT4MM_OK;
}

static int32_t fake_event_destroy(int32_t device, void *event) {
  (void)device;
  free(event);
  return INT4MM_OK;
}

static int32_t fake_event_record(int32_t device, void *event, void *stream) {
  fake_event *e = event;
  struct timespec now;
  fake_stream *s = find_stream(stream);
  if (e->device != device || (s && s->device != device))
    return core_fail(INT4MM_ERR_CUDA, "cannot record the event: it is of another device than the stream");
  if (clock_gettime(CLOCK_MONOTONIC, &now)) abort();
  e->time = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
  e->capture = s ? s->capture : NULL;
  e->after = in_line.count ? times_run : 0;
  return INT4MM_OK;
}

static int32_t check_uncaptured(const fake_event *e, const char *doing) {
  if (!e->capture) return INT4MM_OK;
  return core_fail(
      INT4MM_ERR_ARGUMENT,
      "cannot %s: it was last recorded while a CUDA graph was captured, or is no event; record it outside of captures",
      doing);
}

static int32_t fake_event_synchronize(int32_t device, void *event) {
  (void)device;
  int32_t status = check_uncaptured(event, "wait for the event");
  if (!status) run_line();
  return status;
}

static int32_t fake_event_query(int32_t device, void *event, bool *done) {
  const fake_event *e = event;
  (void)device;
  *done = times_run > e->after;
  return check_uncaptured(e, "ask whether the event is done");
}

static int32_t fake_event_elapsed(int32_t device, void *start, void *end, float *milliseconds) {
  const fake_event *first = start, *second = end;
  (void)device;
  int32_t status = check_uncaptured(first, "find the time between the events");
  if (!status) status = check_uncaptured(second, "find the time between the events");
  if (status) return status;
  run_line();
  if (!first->time || !second->time || first->device != second->device)
    return core_fail(INT4MM_ERR_ARGUMENT, "there is no time between these events: both have to be recorded, on one "
                                          "device, and made with timing");
  *milliseconds = (float)(second->time - first->time);
  return INT4MM_OK;
}

/* A stream that waits for captured work is captured as well from then on. */
static int32_t fake_stream_wait(int32_t device, void *stream, void *event) {
  const fake_event *e = event;
  fake_stream *s = find_stream(stream), *captured = streams;
  (void)device;
  while (captured && captured->capture != e->capture) captured = captured->next;
  if (e->capture && (!captured || !s))
    return core_fail(INT4MM_ERR_CUDA, "cannot have the stream wait for the event: its capture has ended");
  if (e->capture) s->capture = e->capture;
  return INT4MM_OK;
}

/* ---- graphs ---- */

static int32_t fake_graph_begin(int32_t device, void **stream, uint64_t *capture) {
  fake_graph *g = calloc(1, sizeof *g);
  if (!g) out_of_memory();
  g->id = ++last_id, g->device = device;
  fake_stream *s = make_stream(device, true);
  s->capture = g;
  *stream = s, *capture = g->id;
  return INT4MM_OK;
}

static void drop_graph(fake_graph *g) {
  run_all(&g->at_end);
  drop_all(&g->at_end);
  drop_all(&g->nodes);
  free(g);
}

static int32_t end_graph(void *stream, bool fail, void **executable, int64_t *nodes) {
  fake_graph *g = capture_of(stream);
  for (fake_stream *s = streams; s; s = s->next)
    if (s->capture == g) s->capture = NULL;
  remove_stream(stream);
  if (executable && !fail) {
    *executable = g, *nodes = g->nodes.count;
    return INT4MM_OK;
  }
  drop_graph(g);
  return executable ? core_fail(INT4MM_ERR_CUDA, "cannot instantiate the CUDA graph: it was told so") : INT4MM_OK;
}

static int32_t fake_graph_launch(int32_t device, void *executable, void *stream, bool non_blocking) {
  const fake_graph *g = executable;
  (void)non_blocking;
  if (g->device != device || capture_of(stream)) abort();
  run_line();
  run_all(&g->nodes);
  return INT4MM_OK;
}

static int32_t fake_graph_destroy(int32_t device, void *executable) {
  (void)device;
  drop_graph(executable);
  return INT4MM_OK;
}

#endif
