/*
 * Operands as the drivers' kernels read them, where instruction sets share it: B in bytes from each of its layouts,
 * rows of int8, scales and zero points.
 */
#include <string.h>

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

/* ---- A ---------------------------------------------------------------------------------------------------------- */

void int4mm_pack_rows(const int4mm_kernels *kernels, const int4mm_problem *p, int64_t m, int64_t rows, int64_t j,
                      int64_t k8, uint32_t *panel, int32_t *sums) {
  const int4mm_operand *a = &p->a;
  if (a->dtype == INT4MM_INT8) {
    kernels->pack_a_int8(panel, sums, (const int8_t *)a->data + m * a->stride + 8 * j, a->stride, rows,
                         int4mm_min64(8 * k8, p->K - 8 * j));
  } else {
    kernels->pack_a(panel, sums, a->words + m * a->stride + j, a->stride, rows, k8, a->xor_mask);
  }
}

int32_t int4mm_expand_int8(uint32_t *dwords, const int8_t *a, int64_t k, int64_t run) {
  int64_t k8 = int4mm_ceil_div(k, 8);
  int32_t sum = 0;
  for (int64_t i = 0; i < k; i++) sum += a[i];
  for (int64_t j = 0; j < int4mm_round_up(k8, run); j++) {
    uint64_t bytes = 0;
    int64_t left = int4mm_max64(0, int4mm_min64(8, k - 8 * j));
    if (left == 8) {
      memcpy(&bytes, a + 8 * j, 8);
    } else if (left > 0) {
      memcpy(&bytes, a + 8 * j, (size_t)left);
    }
    uint32_t *even = dwords + 2 * j - j % run;
    even[0] = int4mm_even_bytes(bytes);
    even[run] = int4mm_odd_bytes(bytes);
  }
  return sum;
}

/* ---- groups ------------------------------------------------------------------------------------------------------ */

static const char *row_of(const int4mm_matrix *matrix, int64_t row, int64_t n) {
  return (const char *)matrix->data + (row * matrix->stride + n) * int4mm_dtype_size(matrix->dtype);
}

void int4mm_load_group(const int4mm_kernels *kernels, const int4mm_problem *p, int64_t group, int64_t n,
                       int64_t columns, int64_t width, float *scales, int32_t *factors, int32_t *zeros) {
  const int4mm_operand *b = &p->b;
  size_t rest = (size_t)(width - columns) * 4;
  if (b->group_scales.data) {
    kernels->rows->to_float(scales, row_of(&b->group_scales, group, n), b->group_scales.dtype, columns);
    memset(scales + columns, 0, rest);
  }
  if (b->factors.data) {
    kernels->rows->widen(factors, INT4MM_INT32, (const int8_t *)row_of(&b->factors, group, n), columns);
    memset(factors + columns, 0, rest);
  }
  if (b->zeros.data) {
    kernels->rows->widen(zeros, INT4MM_INT32, (const int8_t *)row_of(&b->zeros, group, n), columns);
    memset(zeros + columns, 0, rest);
  }
}
