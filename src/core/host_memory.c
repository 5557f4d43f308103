/*
 * Host memory: small blocks from malloc, large ones mapped by themselves.
 */
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "core/host_memory.h"

enum { HOST_ALIGNMENT = 64 };

/* Memory of this size and up is mapped by itself, aligned to 2 MiB pages, and asks the kernel for such pages: a large
 * weight is read with far fewer TLB misses. */
static const size_t huge_page = (size_t)2 << 20, huge_from = (size_t)4 << 20;

static size_t round_up(size_t bytes, size_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

/* Maps one huge page more than asked for and gives back what lies outside the aligned part. */
static void *map_huge(size_t bytes) {
  size_t length = round_up(bytes, huge_page);
  char *start = mmap(NULL, length + huge_page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED) return NULL;
  size_t head = (huge_page - (uintptr_t)start % huge_page) % huge_page, tail = huge_page - head;
  if (head) (void)munmap(start, head); /* failure leaves address space unused, nothing worse */
  if (tail) (void)munmap(start + head + length, tail);
  (void)madvise(start + head, length, MADV_HUGEPAGE); /* without huge pages the memory is slower, not wrong */
  return start + head;
}

static void unmap(int4mm_storage *s) {
  (void)munmap(s->data, round_up(s->bytes, huge_page));
}

static void free_block(int4mm_storage *s) {
  free(s->context);
}

/* Small blocks are aligned by hand: glibc's aligned_alloc does not find the holes that its own blocks leave, so a loop
 * that drops results would grow without end. */
int32_t int4mm_host_alloc(int4mm_storage *s, void *stream) {
  (void)stream;
  if (s->bytes > (size_t)PTRDIFF_MAX - 2 * huge_page) return INT4MM_ERR_MEMORY;
  if (s->bytes >= huge_from) {
    s->data = map_huge(s->bytes), s->release = unmap;
    return s->data ? INT4MM_OK : INT4MM_ERR_MEMORY;
  }
  s->context = malloc(s->bytes + HOST_ALIGNMENT - 1), s->release = free_block;
  if (!s->context) return INT4MM_ERR_MEMORY;
  s->data = (void *)round_up((uintptr_t)s->context, HOST_ALIGNMENT);
  return INT4MM_OK;
}
