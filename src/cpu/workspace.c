/*
 * Scratch memory of the products. The kernel zeroes each fresh page, which for the largest workspaces takes as long as
 * a twentieth of the product itself; so SLOTS blocks wait for the next call, one that may be large (Strassen's own
 * limits keep it below 96 MiB for usual sizes) and others for calls made at the same time.
 */
#define _GNU_SOURCE /* madvise */
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cpu/gemm/gemm.h"

enum { SLOTS = 4, HUGE_PAGE = 2 << 20, HEADER = 64 };

static size_t max_bytes_of_slot(int slot) {
  return (size_t)(slot == 0 ? 96 : 16) << 20;
}

typedef struct block {
  size_t bytes; /* with the header */
} block;

static _Atomic(block *) slots[SLOTS];

static block *acquire_kept(size_t bytes) {
  for (int i = 0; i < SLOTS; i++) {
    block *kept = atomic_exchange(&slots[i], NULL);
    if (!kept) continue;
    if (kept->bytes >= bytes) return kept;
    free(kept); /* too small for what this process multiplies now */
  }
  return NULL;
}

static block *allocate(size_t bytes) {
  size_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : HEADER;
  bytes = (bytes + alignment - 1) / alignment * alignment;
  block *b = aligned_alloc(alignment, bytes);
  if (!b) return NULL;
  if (alignment == HUGE_PAGE) (void)madvise(b, bytes, MADV_HUGEPAGE); /* a wish; the memory serves without */
  b->bytes = bytes;
  return b;
}

void *int4mm_workspace_acquire(int64_t bytes) {
  size_t whole = (size_t)bytes + HEADER;
  block *b = acquire_kept(whole);
  if (!b) b = allocate(whole);
  if (!b) {
    int4mm_fail(INT4MM_ERR_MEMORY, "matmul: no memory for a workspace of %lld bytes", (long long)bytes);
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

/* When the library is unloaded. */
__attribute__((destructor)) static void drop(void) {
  for (int i = 0; i < SLOTS; i++) free(atomic_exchange(&slots[i], NULL));
}
