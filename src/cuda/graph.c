/*
 * CUDA graphs: capture, instantiation, launch.
 *
 * A capture is of a non-blocking stream, so the default stream stays usable beside it, for allocations and frees, and
 * relaxed: nothing that this thread or others do elsewhere ends it.
 */
#include <stdatomic.h>

#include "cuda/backend.h"

static atomic_int captures; /* under way */

bool int4mm_cuda_is_capturing(void) {
  return atomic_load(&captures) > 0;
}

/* Drops what a stream captured, whatever came of it. */
static void drop_capture(cudaStream_t stream) {
  cudaGraph_t graph = NULL;
  if (cudaStreamEndCapture(stream, &graph) != cudaSuccess) (void)cudaGetLastError();
  if (graph && cudaGraphDestroy(graph) != cudaSuccess) (void)cudaGetLastError();
}

/* In the device's scope: has the stream capture, and finds the capture's id. */
static int32_t begin_capture(cudaStream_t stream, uint64_t *capture) {
  int4mm_stream_state state;
  int32_t status = int4mm_cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed),
                                     "begin the capture of a CUDA graph");
  if (status) return status;
  if ((status = int4mm_cuda_state_here(stream, &state)))
    drop_capture(stream);
  else
    *capture = state.capture;
  return status;
}

int32_t int4mm_cuda_graph_begin(int32_t device, void **stream, uint64_t *capture) {
  int4mm_cuda_scope scope;
  cudaStream_t made = NULL;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  int4mm_cuda_flush_deferred();
  status = int4mm_cuda_check(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "create a stream");
  if (!status) {
    atomic_fetch_add(&captures, 1);
    if ((status = begin_capture(made, capture))) {
      atomic_fetch_sub(&captures, 1);
      if (cudaStreamDestroy(made) != cudaSuccess) (void)cudaGetLastError();
    } else {
      *stream = made;
    }
  }
  int4mm_cuda_leave(&scope);
  return status;
}

/* In the device's scope: what the stream captured, ready to be launched. */
static int32_t instantiate(cudaStream_t stream, void **executable, int64_t *nodes) {
  cudaGraph_t graph = NULL;
  cudaGraphExec_t made = NULL;
  size_t count = 0;
  int32_t status = int4mm_cuda_check(cudaStreamEndCapture(stream, &graph), "end the capture of the CUDA graph");
  if (!status) status = int4mm_cuda_check(cudaGraphGetNodes(graph, NULL, &count), "count the CUDA graph's nodes");
  if (!status) status = int4mm_cuda_check(cudaGraphInstantiateWithFlags(&made, graph, 0), "instantiate the CUDA graph");
  if (graph && cudaGraphDestroy(graph) != cudaSuccess) (void)cudaGetLastError(); /* the executable needs it no more */
  if (!status) *executable = made, *nodes = (int64_t)count;
  return status;
}

int32_t int4mm_cuda_graph_end(int32_t device, void *stream, void **executable, int64_t *nodes) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  if (executable)
    status = instantiate((cudaStream_t)stream, executable, nodes);
  else
    drop_capture((cudaStream_t)stream);
  if (cudaStreamDestroy((cudaStream_t)stream) != cudaSuccess) (void)cudaGetLastError(); /* nothing ran on it */
  atomic_fetch_sub(&captures, 1);
  int4mm_cuda_flush_deferred();
  int4mm_cuda_leave(&scope);
  return status;
}

int32_t int4mm_cuda_graph_launch(int32_t device, void *executable, void *stream, bool non_blocking) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  cudaError_t error = cudaGraphLaunch((cudaGraphExec_t)executable, int4mm_cuda_stream(stream));
  status = int4mm_cuda_check(error, "launch the CUDA graph");
  if (!status && non_blocking) status = int4mm_cuda_record_event(device, stream);
  int4mm_cuda_leave(&scope);
  return status;
}

/* A launch that is under way runs to its end: the driver frees the executable after it. */
int32_t int4mm_cuda_graph_destroy(int32_t device, void *executable) {
  int4mm_cuda_scope scope;
  int32_t status = int4mm_cuda_enter(device, &scope);
  if (status) return status;
  return int4mm_cuda_leave_after(&scope, cudaGraphExecDestroy((cudaGraphExec_t)executable), "destroy the CUDA graph");
}
