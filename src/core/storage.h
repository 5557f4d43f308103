/*
 * Reference-counted memory behind tensors. It belongs to a device or to whoever gave a deleter for it; views share it,
 * and it goes with the last reference.
 */
#ifndef INT4MM_CORE_STORAGE_H
#define INT4MM_CORE_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "int4mm.h"

/* Non-blocking streams that a storage remembers; one more makes it forget the oldest, which costs a wait. */
enum { INT4MM_JOINED_STREAMS = 8 };

struct int4mm_storage {
  atomic_size_t references;
  void *data;
  size_t bytes;
  int32_t device;
  bool counted;                             /* in int4mm_allocated: not so for adopted memory */
  bool pinned;                              /* page-locked host memory */
  void (*release)(int4mm_storage *storage); /* gives data back */
  int4mm_deleter *deleter;                  /* of adopted memory, run by `release` */
  void *context;                            /* of `release` or the deleter */
  /* GPUs: whether it was used on a stream that the default stream does not wait for, and the ids of such streams that
   * were made to wait for what the default stream did to it, each plus one; 0: none. */
  atomic_bool non_blocking;
  atomic_uint oldest_joined;
  atomic_uint_fast64_t joined[INT4MM_JOINED_STREAMS];
  /* Pinned host memory: the GPUs that were given copies that use it, also in a graph; bit d: device d. */
  atomic_uint_fast64_t used_by;
};

/* Memory of a device that is usable at once on `stream` (NULL: its default stream). *storage is NULL for 0 bytes. */
int32_t int4mm_storage_alloc(int4mm_storage **storage, size_t bytes, int32_t device, void *stream);
/* Pinned host memory. *storage is never NULL. */
int32_t int4mm_storage_alloc_pinned(int4mm_storage **storage, size_t bytes);
/* Memory of someone else, who is told by `deleter` when it is not needed any more. */
int32_t int4mm_storage_adopt(int4mm_storage **storage, void *data, size_t bytes, int32_t device,
                             int4mm_deleter *deleter, void *context);
/* Both take NULL. Releasing leaves the thread's error sentence as it is. */
void int4mm_storage_retain(int4mm_storage *storage);
void int4mm_storage_release(int4mm_storage *storage);

/* Whether the non-blocking stream of this id has waited for the default stream on behalf of the storage; and that it
 * has done so. */
bool int4mm_storage_is_joined(const int4mm_storage *storage, uint64_t stream_id);
void int4mm_storage_set_joined(int4mm_storage *storage, uint64_t stream_id);

#endif
