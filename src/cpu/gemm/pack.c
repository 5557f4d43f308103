/*
 * Packing B in bytes from each of its layouts, for the blocked driver and Strassen's.
 */
#include "cpu/gemm/gemm.h"

/* K-major words become MN-major in a buffer that the first-level cache holds. */
static void pack_k_major(const int4mm_kernels *kernels, const int4mm_operand *b, const uint32_t *words, int64_t columns,
                         int64_t k8, int32_t offset, uint32_t *panel) {
  enum { DEPTH = 16 }; /* words of K at a time: a cache line of each column */
  uint32_t rows[DEPTH * INT4MM_PANEL];
  int64_t nr = kernels->nr;
  for (int64_t j = 0; j < k8; j += DEPTH) {
    int64_t depth = int4mm_min64(DEPTH, k8 - j);
    kernels->transpose(rows, nr, words + j, b->stride, columns, depth, b->xor_mask);
    kernels->pack_b(panel + 2 * j * nr, rows, nr, columns, depth, 0, offset);
  }
}

void int4mm_pack_b(const int4mm_kernels *kernels, const int4mm_problem *p, int64_t j, int64_t n, int64_t columns,
                   int64_t k8, int32_t offset, uint32_t *panel) {
  const uint32_t *words = int4mm_b_word(p, j, n);
  if (int4mm_is_k_major(&p->b)) {
    pack_k_major(kernels, &p->b, words, columns, k8, offset, panel);
  } else {
    int64_t ld = int4mm_is_panels(&p->b) ? INT4MM_PANEL : p->b.stride;
    kernels->pack_b(panel, words, ld, columns, k8, p->b.xor_mask, offset);
  }
}
