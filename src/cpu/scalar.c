/*
 * The default of every machine: plain C, no -m flags. Its product is deliberately direct, so that it can judge the
 * others: no packing, no blocking of K, an accumulator for each output.
 */
#define INT4MM_ROWS_TABLE int4mm_rows_scalar
#include "cpu/elementwise/rows.inc"

#include <stdio.h>

#include "cpu/cpu.h"

enum { ROWS = 16 }; /* of out in a piece; its columns are one panel's */

static bool supported(void) {
  return true;
}

static void store(const int4mm_problem *p, int64_t m, int64_t n0, int64_t columns, const int32_t *acc) {
  float x[INT4MM_PANEL];
  for (int64_t i = 0; i < columns; i++) {
    x[i] = int4mm_scale(acc[i], p->a.scales[m], p->b.scales[n0 + i]);
    if (p->bias) x[i] = int4mm_add(x[i], p->bias[n0 + i]);
    if (x[i] != x[i]) x[i] = int4mm_bits_float(INT4MM_NAN_BITS);
  }
  int64_t first = m * p->out.stride + n0;
  char *out = (char *)p->out.data + (p->out.dtype == INT4MM_FLOAT32 ? 4 : 2) * first;
  rows_from_float(out, p->out.dtype, x, columns);
}

static void tile(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const int4mm_problem *p = context;
  int64_t panels = int4mm_ceil_div(p->N, INT4MM_PANEL), n0 = index % panels * INT4MM_PANEL;
  int64_t m0 = index / panels * ROWS, m1 = int4mm_min64(m0 + ROWS, p->M);
  int64_t columns = int4mm_min64(INT4MM_PANEL, p->N - n0);
  for (int64_t m = m0; m < m1; m++) {
    int32_t acc[INT4MM_PANEL] = {0};
    for (int64_t j = 0; j < p->K / 8; j++) {
      uint32_t word_a = p->a.words[m * p->a.stride + j] ^ p->a.xor_mask;
      const uint32_t *b = int4mm_b_word(p, j, n0);
      for (int i = 0; i < 8; i++) {
        int32_t a = int4mm_nibble(word_a, i);
        for (int64_t n = 0; n < columns; n++) acc[n] += a * int4mm_nibble(b[n] ^ p->b.xor_mask, i);
      }
    }
    store(p, m, n0, columns, acc);
  }
}

static int32_t matmul(const int4mm_problem *problem) {
  int4mm_problem p = *problem;
  int64_t pieces = int4mm_ceil_div(p.M, ROWS) * int4mm_ceil_div(p.N, INT4MM_PANEL);
  int4mm_parallel(int4mm_threads_for(p.M * p.N, int4mm_max64(1, (1 << 16) / (p.K + 1))), pieces, tile, &p);
  return INT4MM_OK;
}

static void plan(const int4mm_problem *p, int4mm_plan *out) {
  (void)p;
  snprintf(out->reason, sizeof out->reason, "plain C, an output at a time");
}

const int4mm_cpu_table int4mm_cpu_scalar = {"scalar", supported, matmul, plan, &int4mm_rows_scalar};
