/*
 * CUDA graphs as the core knows them: which captures are under way, and the memory that a graph keeps.
 */
#ifndef INT4MM_CORE_GRAPH_H
#define INT4MM_CORE_GRAPH_H

#include "core/storage.h"

/* Memory that calls of a capture's own stream use one after the other. */
typedef struct int4mm_graph_block {
  int4mm_storage *storage; /* kept */
  bool in_use;
  struct int4mm_graph_block *next;
} int4mm_graph_block;

struct int4mm_graph {
  int32_t device;
  uint64_t capture;        /* the capture's id; 0 once it has ended */
  void *capture_stream;    /* until then */
  void *stream;            /* of launches that name none */
  void *executable;        /* NULL before the capture has ended, and where that failed */
  int64_t nodes;           /* in it */
  bool launched_elsewhere; /* on another stream than `stream`, since all of its launches were last waited for */
  uint64_t joined;         /* the id of the last non-blocking stream that all of `kept` was made ready for; 0: none */
  int4mm_storage **kept;   /* what captured calls use, a reference to each; during the capture some may come twice */
  size_t kept_count, kept_room;
  int4mm_graph_block *scratch;
  int4mm_graph *next; /* of the captures under way */
};

/* A capture begins and ends to be under way; `capture` is set. */
void int4mm_graph_add_capture(int4mm_graph *graph);
void int4mm_graph_remove_capture(int4mm_graph *graph);
/* Whether a capture with this id is under way, and one on this device. */
bool int4mm_is_own_capture(uint64_t capture);
bool int4mm_is_capturing(int32_t device);

/* Has the graph of this capture keep the storages of these tensors (NULLs are skipped). Nothing to do for a capture
 * that is not one of int4mm_graph_begin. */
int32_t int4mm_graph_keep(uint64_t capture, const int4mm_tensor *const *tensors, int count);
/* Leaves one reference to each storage that is kept. */
void int4mm_graph_keep_once(int4mm_graph *graph);
/* Scratch memory for a call on the stream of a capture under way, which the graph keeps: a graph with memory nodes
 * between its kernels takes .6 to .9 us longer for each. NULL on other streams, those that the capture has come to by
 * events as well, and where no memory is to be had beside the capture. */
void *int4mm_graph_take_scratch(int32_t device, void *stream, size_t bytes);
/* Has later calls on the stream use it; false where `data` is not of a capture's graph. */
bool int4mm_graph_free_scratch(int32_t device, void *stream, const void *data);
void int4mm_graph_release_kept(int4mm_graph *graph);

#endif
