/*
 * Captures under way, in a list, and the storages that their graphs keep.
 */
#include <pthread.h>
#include <stdlib.h>

#include "core/error.h"
#include "core/graph.h"

static int4mm_graph *captures; /* few: one for each thread at most, unless a caller captures several at once */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- captures ---- */

void int4mm_graph_add_capture(int4mm_graph *graph) {
  pthread_mutex_lock(&lock);
  graph->next = captures;
  captures = graph;
  pthread_mutex_unlock(&lock);
}

void int4mm_graph_remove_capture(int4mm_graph *graph) {
  pthread_mutex_lock(&lock);
  int4mm_graph **link = &captures;
  while (*link && *link != graph) link = &(*link)->next;
  if (*link) *link = graph->next;
  graph->next = NULL;
  pthread_mutex_unlock(&lock);
}

/* Locked. */
static int4mm_graph *find(uint64_t capture) {
  int4mm_graph *g = captures;
  while (g && g->capture != capture) g = g->next;
  return g;
}

bool int4mm_is_own_capture(uint64_t capture) {
  pthread_mutex_lock(&lock);
  bool found = find(capture) != NULL;
  pthread_mutex_unlock(&lock);
  return found;
}

bool int4mm_is_capturing(int32_t device) {
  pthread_mutex_lock(&lock);
  int4mm_graph *g = captures;
  while (g && g->device != device) g = g->next;
  pthread_mutex_unlock(&lock);
  return g != NULL;
}

/* ---- memory ---- */

static int32_t make_room(int4mm_graph *g, size_t count) {
  size_t room = g->kept_room ? g->kept_room : 64;
  while (room - g->kept_count < count) room *= 2;
  if (room == g->kept_room) return INT4MM_OK;
  int4mm_storage **kept = realloc(g->kept, room * sizeof *kept);
  if (!kept) return int4mm_fail(INT4MM_ERR_MEMORY, "out of memory on cpu: a CUDA graph keeps %zu tensors", room);
  g->kept = kept, g->kept_room = room;
  return INT4MM_OK;
}

/* Locked. There is room. */
static void keep(int4mm_graph *g, int4mm_storage *s) {
  int4mm_storage_retain(s);
  g->kept[g->kept_count++] = s;
}

int32_t int4mm_graph_keep(uint64_t capture, const int4mm_tensor *const *tensors, int count) {
  pthread_mutex_lock(&lock);
  int4mm_graph *g = find(capture);
  int32_t status = g ? make_room(g, (size_t)count) : INT4MM_OK;
  for (int i = 0; i < count && g && !status; i++) {
    int4mm_storage *s = tensors[i] ? tensors[i]->storage : NULL;
    if (s) keep(g, s);
  }
  pthread_mutex_unlock(&lock);
  return status;
}

static int compare_addresses(const void *a, const void *b) {
  int4mm_storage *const *x = a, *const *y = b;
  return ((uintptr_t)*x > (uintptr_t)*y) - ((uintptr_t)*x < (uintptr_t)*y);
}

void int4mm_graph_keep_once(int4mm_graph *g) {
  size_t unique = 0;
  if (g->kept_count) qsort(g->kept, g->kept_count, sizeof *g->kept, compare_addresses);
  for (size_t i = 0; i < g->kept_count; i++) {
    if (unique && g->kept[unique - 1] == g->kept[i])
      int4mm_storage_release(g->kept[i]);
    else
      g->kept[unique++] = g->kept[i];
  }
  g->kept_count = unique;
}

void int4mm_graph_release_kept(int4mm_graph *g) {
  for (size_t i = 0; i < g->kept_count; i++) int4mm_storage_release(g->kept[i]);
  free(g->kept);
  g->kept = NULL, g->kept_count = g->kept_room = 0;
  while (g->scratch) {
    int4mm_graph_block *block = g->scratch;
    g->scratch = block->next;
    free(block);
  }
}

/* ---- scratch memory ---- */

/* The graph whose capture began on this stream. Locked. */
static int4mm_graph *find_by_stream(int32_t device, const void *stream) {
  int4mm_graph *g = captures;
  while (g && (g->device != device || g->capture_stream != stream)) g = g->next;
  return g;
}

/* The smallest block that is free and has so many bytes, in use from now on. Locked. */
static int4mm_graph_block *take_block(int4mm_graph *g, size_t bytes) {
  int4mm_graph_block *best = NULL;
  for (int4mm_graph_block *b = g->scratch; b; b = b->next)
    if (!b->in_use && b->storage->bytes >= bytes && (!best || b->storage->bytes < best->storage->bytes)) best = b;
  if (best) best->in_use = true;
  return best;
}

/* A new block, in use; NULL where there is no memory. Locked. */
static int4mm_graph_block *add_block(int4mm_graph *g, size_t bytes) {
  int4mm_storage *storage = NULL;
  int4mm_graph_block *b = calloc(1, sizeof *b);
  if (!b || make_room(g, 1) || int4mm_storage_alloc(&storage, bytes, g->device, NULL)) {
    free(b);
    return NULL;
  }
  atomic_store(&storage->non_blocking, true); /* the graph may be launched on such a stream */
  keep(g, storage);
  int4mm_storage_release(storage); /* the graph's reference stays */
  *b = (int4mm_graph_block){storage, true, g->scratch};
  return g->scratch = b;
}

void *int4mm_graph_take_scratch(int32_t device, void *stream, size_t bytes) {
  if (!stream || !bytes) return NULL;
  pthread_mutex_lock(&lock);
  int4mm_graph *g = find_by_stream(device, stream);
  int4mm_graph_block *block = g ? take_block(g, bytes) : NULL;
  int4mm_hold_error();
  if (g && !block) block = add_block(g, bytes);
  int4mm_unhold_error();
  void *data = block ? block->storage->data : NULL;
  pthread_mutex_unlock(&lock);
  return data;
}

bool int4mm_graph_free_scratch(int32_t device, void *stream, const void *data) {
  if (!stream) return false;
  pthread_mutex_lock(&lock);
  int4mm_graph *g = find_by_stream(device, stream);
  int4mm_graph_block *b = g ? g->scratch : NULL;
  while (b && b->storage->data != data) b = b->next;
  if (b) b->in_use = false;
  pthread_mutex_unlock(&lock);
  return b != NULL;
}
