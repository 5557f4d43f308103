/*
 * CUDA graphs: captures, launches, and what a graph owns.
 */
#include <stdlib.h>

#include "core/error.h"
#include "core/graph.h"
#include "dispatch/devices.h"

/* Both streams of a graph, of which one captures. */
static int32_t begin(const int4mm_cuda_backend *cuda, int4mm_graph *g) {
  int32_t status = cuda->stream_create(g->device, &g->stream);
  if (status) return status;
  if ((status = cuda->graph_begin(g->device, &g->capture_stream, &g->capture))) {
    int4mm_hold_error();
    (void)cuda->stream_destroy(g->device, g->stream); /* it was given nothing; the first failure is the one to tell */
    int4mm_unhold_error();
  }
  return status;
}

int32_t int4mm_graph_begin(int32_t device, int4mm_graph **graph, void **stream) {
  const int4mm_cuda_backend *cuda;
  if (!graph) return int4mm_fail(INT4MM_ERR_ARGUMENT, "graph is NULL");
  if (!stream) return int4mm_fail(INT4MM_ERR_ARGUMENT, "stream is NULL");
  int32_t status = int4mm_cuda_for(device, &cuda);
  if (status) return status;
  int4mm_graph *g = calloc(1, sizeof *g);
  if (!g)
    return int4mm_fail(INT4MM_ERR_MEMORY, "out of memory on cpu: asked for %zu bytes to describe a graph", sizeof *g);
  g->device = device;
  if ((status = begin(cuda, g))) {
    free(g);
    return status;
  }
  int4mm_graph_add_capture(g);
  *graph = g, *stream = g->capture_stream;
  return INT4MM_OK;
}

/* Ends the capture that is under way; without `executable` what was captured is dropped. */
static int32_t end_capture(const int4mm_cuda_backend *cuda, int4mm_graph *g, void **executable) {
  void *stream = g->capture_stream;
  int4mm_graph_remove_capture(g);
  g->capture = 0, g->capture_stream = NULL;
  return cuda->graph_end(g->device, stream, executable, &g->nodes);
}

int32_t int4mm_graph_end(int4mm_graph *graph) {
  const int4mm_cuda_backend *cuda;
  if (!graph) return int4mm_fail(INT4MM_ERR_ARGUMENT, "graph is NULL");
  if (!graph->capture) return int4mm_fail(INT4MM_ERR_ARGUMENT, "the capture of this graph has ended already");
  int32_t status = int4mm_cuda_for(graph->device, &cuda);
  if (!status) status = end_capture(cuda, graph, &graph->executable);
  int4mm_graph_keep_once(graph);
  return status;
}

/* ---- launches ---- */

/* A graph whose capture has ended well. */
static int32_t check_graph(const int4mm_graph *graph, const int4mm_cuda_backend **cuda) {
  if (!graph) return int4mm_fail(INT4MM_ERR_ARGUMENT, "graph is NULL");
  if (graph->capture) return int4mm_fail(INT4MM_ERR_ARGUMENT, "graph is being captured: int4mm_graph_end comes first");
  if (!graph->executable) return int4mm_fail(INT4MM_ERR_ARGUMENT, "graph is empty: its capture failed");
  return int4mm_cuda_for(graph->device, cuda);
}

/* Orders what the graph uses before its launch on a stream of the caller's. */
static int32_t prepare_stream(const int4mm_cuda_backend *cuda, int4mm_graph *g, void *stream, bool *non_blocking) {
  int4mm_stream_state state;
  int32_t status = cuda->stream_state(g->device, stream, &state);
  if (!status && state.capturing)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "stream captures a CUDA graph, in which another one cannot be launched: capture its calls");
  *non_blocking = !status && state.non_blocking;
  if (!*non_blocking || g->joined == state.id) return status;
  status = int4mm_join_storages(cuda, g->device, stream, state.id, g->kept, g->kept_count);
  if (!status) g->joined = state.id;
  return status;
}

int32_t int4mm_graph_launch(int4mm_graph *graph, void *stream) {
  const int4mm_cuda_backend *cuda;
  bool non_blocking = false;
  int32_t status = check_graph(graph, &cuda);
  if (!status && stream) status = prepare_stream(cuda, graph, stream, &non_blocking);
  if (status) return status;
  if (stream) graph->launched_elsewhere = true;
  return cuda->graph_launch(graph->device, graph->executable, stream ? stream : graph->stream, non_blocking);
}

int32_t int4mm_graph_synchronize(int4mm_graph *graph) {
  const int4mm_cuda_backend *cuda;
  int32_t status = check_graph(graph, &cuda);
  if (status) return status;
  if (!graph->launched_elsewhere) return cuda->stream_synchronize(graph->device, graph->stream);
  /* the other stream may be gone */
  status = int4mm_synchronize(graph->device);
  if (!status) graph->launched_elsewhere = false;
  return status;
}

int64_t int4mm_graph_nodes(const int4mm_graph *graph) {
  return graph ? graph->nodes : 0;
}

/* ---- the end ---- */

/* Every step is done, whatever came of those before; the first failure is the one to tell. */
static int32_t give_back(const int4mm_cuda_backend *cuda, int4mm_graph *g) {
  int32_t ended = g->capture ? end_capture(cuda, g, NULL) : INT4MM_OK;
  if (ended) int4mm_hold_error();
  int32_t waited = cuda->stream_destroy(g->device, g->stream);
  if (waited) int4mm_hold_error();
  int32_t destroyed = g->executable ? cuda->graph_destroy(g->device, g->executable) : INT4MM_OK;
  if (waited) int4mm_unhold_error();
  if (ended) int4mm_unhold_error();
  return ended ? ended : waited ? waited : destroyed;
}

int32_t int4mm_graph_destroy(int4mm_graph *graph) {
  const int4mm_cuda_backend *cuda;
  if (!graph) return INT4MM_OK;
  int32_t status = int4mm_cuda_for(graph->device, &cuda); /* none after a fork: what CUDA has is the parent's */
  if (!status) status = give_back(cuda, graph);
  int4mm_graph_remove_capture(graph);
  int4mm_graph_release_kept(graph);
  free(graph);
  return status;
}
