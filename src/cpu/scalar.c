/*
 * The scalar instruction set, which every machine has: plain C, no -m flags. Its product is deliberately direct, so
 * that the others can be tested against it: no packing, no blocking of K, one accumulator for each output.
 */
#define INT4MM_ROWS_TABLE int4mm_rows_scalar
#include "cpu/elementwise/rows.inc"

#include <stdio.h>

#include "cpu/cpu.h"

enum { ROWS = 16 }; /* rows of out in a piece; its columns are a panel */

static bool supported(void) {
  return true;
}

/* ---- epilogue --------------------------------------------------------------------------------------------------- */

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 1 };
typedef int32_t i32_vector;
typedef float f32_vector;

INLINE i32_vector i32_load(const int32_t *p) {
  return *p;
}
INLINE f32_vector f32_load(const float *p) {
  return *p;
}
INLINE f32_vector f32_from_i32(i32_vector x) {
  return (float)x;
}
INLINE f32_vector f32_set1(float x) {
  return x;
}
INLINE f32_vector f32_mul(f32_vector x, f32_vector y) {
  return int4mm_mul(x, y);
}
INLINE f32_vector f32_add(f32_vector x, f32_vector y) {
  return int4mm_add(x, y);
}
INLINE f32_vector f32_replace_nan(f32_vector x, uint32_t bits) {
  return x == x ? x : int4mm_bits_float(bits);
}
INLINE void f32_store(void *out, f32_vector x) {
  memcpy(out, &x, sizeof x);
}
INLINE void f32_store_half(void *out, f32_vector x) {
  uint16_t half = int4mm_to_half(x);
  memcpy(out, &half, sizeof half);
}
INLINE void f32_store_bfloat(void *out, f32_vector x) {
  uint16_t bfloat = int4mm_to_bfloat(x);
  memcpy(out, &bfloat, sizeof bfloat);
}

#include "cpu/gemm/epilogue.inc"

/* ---- product ---------------------------------------------------------------------------------------------------- */

/* Where B's words of columns n0, n0 + 1, ... lie: `step` apart. */
static int64_t column_step(const int4mm_problem *p) {
  return int4mm_is_k_major(&p->b) ? p->b.stride : 1;
}

/* W4A4 with a scale for each column: one row of out, at most a panel of columns. */
static void elementary_row(const int4mm_problem *p, int64_t m, int64_t n0, int64_t columns) {
  int32_t acc[INT4MM_PANEL] = {0};
  int64_t step = column_step(p);
  for (int64_t j = 0; j < p->K / 8; j++) {
    uint32_t word_a = p->a.words[m * p->a.stride + j] ^ p->a.xor_mask;
    const uint32_t *b = int4mm_b_word(p, j, n0);
    for (int i = 0; i < 8; i++) {
      int32_t a = int4mm_nibble(word_a, i);
      for (int64_t n = 0; n < columns; n++) acc[n] += a * int4mm_nibble(b[n * step] ^ p->b.xor_mask, i);
    }
  }
  epilogue(p, m, n0, 1, columns, acc, INT4MM_PANEL);
}

/* The same for any A, groups and zero points, in groups. */
typedef struct row_sums {
  int32_t acc[INT4MM_PANEL]; /* over a group, or over all of K */
  double real[INT4MM_PANEL]; /* of an A of floats, the same in float64 */
  float t[INT4MM_PANEL];     /* the chain over groups */
} row_sums;

static int32_t int_of_a(const int4mm_problem *p, int64_t m, int64_t k) {
  if (p->a.dtype == INT4MM_INT8) return ((const int8_t *)p->a.data)[m * p->a.stride + k];
  return int4mm_nibble(p->a.words[m * p->a.stride + k / 8] ^ p->a.xor_mask, (int)(k % 8));
}

/* Adds the products of value k, of group g. */
static void add_products(const int4mm_problem *p, int64_t m, int64_t n0, int64_t columns, int64_t k, int64_t g,
                         row_sums *sums) {
  const uint32_t *b = int4mm_b_word(p, k / 8, n0);
  const int8_t *zeros = p->b.zeros.data, *factors = p->b.factors.data;
  int64_t step = column_step(p);
  float x = int4mm_is_w4a16(p) ? int4mm_load_float(p->a.data, p->a.dtype, m * p->a.stride + k) : 0;
  int32_t a = int4mm_is_w4a16(p) ? 0 : int_of_a(p, m, k);
  for (int64_t n = 0; n < columns; n++) {
    int32_t w = int4mm_nibble(b[n * step] ^ p->b.xor_mask, (int)(k % 8));
    if (zeros) w -= zeros[g * p->b.zeros.stride + n0 + n];
    if (factors) w *= factors[g * p->b.factors.stride + n0 + n];
    if (int4mm_is_w4a16(p))
      sums->real[n] += (double)x * w;
    else
      sums->acc[n] += a * w;
  }
}

static float scale_of_b(const int4mm_problem *p, int64_t g, int64_t n) {
  const int4mm_matrix *scales = &p->b.group_scales;
  return scales->data ? int4mm_load_float(scales->data, scales->dtype, g * scales->stride + n) : p->b.scales[n];
}

/* Takes the sums of group g into the chain, and begins the next group's. */
static void flush_group(const int4mm_problem *p, int64_t n0, int64_t columns, int64_t g, row_sums *sums) {
  for (int64_t n = 0; n < columns; n++) {
    float scale = scale_of_b(p, g, n0 + n);
    if (int4mm_is_w4a16(p))
      sums->t[n] = int4mm_fma((float)sums->real[n], scale, sums->t[n]);
    else
      sums->t[n] = int4mm_next_group(sums->t[n], sums->acc[n], scale);
    sums->acc[n] = 0, sums->real[n] = 0;
  }
}

static void general_row(const int4mm_problem *p, int64_t m, int64_t n0, int64_t columns) {
  row_sums sums = {.acc = {0}};
  bool chain = p->b.group_scales.data || int4mm_is_w4a16(p);
  for (int64_t g = 0; g < p->b.groups; g++) {
    int64_t end = int4mm_min64(p->K, (g + 1) * p->b.group);
    for (int64_t k = g * p->b.group; k < end; k++) add_products(p, m, n0, columns, k, g, &sums);
    /* with factors and floats the scale is the column's alone: one chain of one sum */
    if (p->b.group_scales.data || (chain && g + 1 == p->b.groups)) flush_group(p, n0, columns, g, &sums);
  }
  if (chain)
    store_sums(p, m, n0, 1, columns, (const int32_t *)sums.t, INT4MM_PANEL, FLOAT_SUMS);
  else
    epilogue(p, m, n0, 1, columns, sums.acc, INT4MM_PANEL);
}

static void tile(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const int4mm_problem *p = context;
  int64_t panels = int4mm_ceil_div(p->N, INT4MM_PANEL), n0 = index % panels * INT4MM_PANEL;
  int64_t m0 = index / panels * ROWS, m1 = int4mm_min64(m0 + ROWS, p->M);
  int64_t columns = int4mm_min64(INT4MM_PANEL, p->N - n0);
  for (int64_t m = m0; m < m1; m++) {
    if (int4mm_is_elementary(p))
      elementary_row(p, m, n0, columns);
    else
      general_row(p, m, n0, columns);
  }
}

static int32_t matmul(const int4mm_kernels *kernels, const int4mm_problem *problem) {
  (void)kernels;
  int4mm_problem p = *problem;
  int64_t pieces = int4mm_ceil_div(p.M, ROWS) * int4mm_ceil_div(p.N, INT4MM_PANEL);
  int4mm_parallel(int4mm_threads_for(p.M * p.N, int4mm_max64(1, (1 << 16) / (p.K + 1))), pieces, tile, &p);
  return INT4MM_OK;
}

static void plan(const int4mm_kernels *kernels, const int4mm_problem *p, int4mm_plan *out) {
  (void)kernels, (void)p;
  snprintf(out->reason, sizeof out->reason, "plain C, an output at a time");
}

static void transpose(uint32_t *dst, int64_t width, const uint32_t *src, int64_t ld, int64_t columns, int64_t k8,
                      uint32_t xor_mask) {
  for (int64_t j = 0; j < k8; j++, dst += width) {
    for (int64_t c = 0; c < width; c++) dst[c] = c < columns ? src[c * ld + j] ^ xor_mask : 0;
  }
}

const int4mm_cpu_table int4mm_cpu_scalar = {"scalar", supported, matmul, plan, NULL, &int4mm_rows_scalar, transpose};
