/*
 * Scratch memory of the products and of quantising: a cache of blocks.
 *
 * The kernel zeroes each fresh page, which for the largest workspaces takes a twentieth of the product's time. So
 * blocks that are released stay in SLOTS slots for the next calls: a large one in the first (Strassen's own limits keep
 * its workspace below 96 MiB for usual sizes), smaller ones in the others for calls made at the same time.
 */
#define _GNU_SOURCE /* madvise */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/cpu.h"

enum { SLOTS = 4, HUGE_PAGE = 2 << 20, HEADER = 64 };

static size_t max_bytes_of_slot(int slot) {
  return (size_t)(slot == 0 ? 96 : 16) << 20;
}

/* The header of a block, HEADER bytes before the workspace. */
typedef struct block {
  size_t bytes; /* including the header */
} block;

static _Atomic(block *) slots[SLOTS];

static block *acquire_cached(size_t bytes) {
  for (int i = 0; i < SLOTS; i++) {
    block *cached = atomic_exchange(&slots[i], NULL);
    if (!cached) continue;
    if (cached->bytes >= bytes) return cached;
    free(cached); /* too small for the current products */
  }
  return NULL;
}

static block *allocate(size_t bytes) {
  size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : HEADER;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  block *b = aligned_alloc(alignment, bytes);
  if (!b) return NULL;
  if (alignment == HUGE_PAGE) (void)madvise(b, bytes, MADV_HUGEPAGE); /* a hint: the memory is usable without */
  b->bytes = bytes;
  return b;
}

void *int4mm_workspace_acquire(int64_t bytes) {
  size_t whole = (size_t)bytes + HEADER;
  block *b = acquire_cached(whole);
  if (!b) b = allocate(whole);
  if (!b) {
    int4mm_fail(INT4MM_ERR_MEMORY, "no memory for a workspace of %lld bytes", (long long)bytes);
    return NULL;
  }
  return (char *)b + HEADER;
}

void int4mm_workspace_release(void *workspace) {
  block *b = (block *)((char *)workspace - HEADER);
  for (int i = 0; i < SLOTS; i++) {
    block *empty = NULL;
    if (b->bytes > max_bytes_of_slot(i)) break;
    if (atomic_compare_exchange_strong(&slots[i], &empty, b)) return;
  }
  free(b);
}

/* Runs when the library is unloaded. */
__attribute__((destructor)) static void drop(void) {
  for (int i = 0; i < SLOTS; i++) free(atomic_exchange(&slots[i], NULL));
}
