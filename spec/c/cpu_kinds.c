/*
 * Products that are not elementary (A of int8 and of floats, group scales, factors, zero points) on every instruction
 * set that runs here, over generated problems: the exact ones bit for bit against a product written out plainly, those
 * of floats within the bound of int4mm.h against float64. Exits 1 at the first difference.
 *
 *   cpu_kinds [cases [seed]]    generated cases, 1500 by default (150 under an emulator), from seed 1
 */
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/dtype.h"
#include "core/error.h"
#include "core/numeric.h"
#include "cpu/backend.h"
#include "cpu/cpu.h"
#include "memory.h"
#include "random.h"

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
enum { CASES = 1500 };
#else
enum { CASES = 150 };
#endif

static void *random_bytes(int64_t bytes) {
  uint8_t *p = allocate(bytes);
  for (int64_t i = 0; i < bytes; i++) p[i] = (uint8_t)next();
  return p;
}

static float some_float(void) {
  return ((float)below(20001) - 10000.0f) * 1.25e-4f;
}

/* A float of a dtype that holds it, of many magnitudes. */
static void store_float(void *data, int32_t dtype, int64_t i, float x) {
  if (dtype == INT4MM_FLOAT32) ((float *)data)[i] = x;
  if (dtype == INT4MM_FLOAT16) ((uint16_t *)data)[i] = int4mm_to_half(x);
  if (dtype == INT4MM_BFLOAT16) ((uint16_t *)data)[i] = int4mm_to_bfloat(x);
}

static void *floats(int64_t count, int32_t dtype, bool wild) {
  void *data = allocate(count * 4);
  for (int64_t i = 0; i < count; i++) {
    float x = some_float();
    if (wild && below(8) == 0) x *= dtype == INT4MM_FLOAT16 ? 1.0e-6f : 1.0e-39f;
    store_float(data, dtype, i, x);
  }
  return data;
}

static int32_t float_dtype(void) {
  return INT4MM_FLOAT16 + (int32_t)below(3);
}

enum { HELD = 16 };

typedef struct generated {
  int4mm_problem p;
  void *held[HELD]; /* to be freed */
  int count;
  int64_t out_bytes;
} generated;

static void *hold(generated *g, void *memory) {
  g->held[g->count++] = memory;
  return memory;
}

static int4mm_matrix group_matrix(generated *g, int32_t dtype, void *data, int64_t stride) {
  return (int4mm_matrix){hold(g, data), g->p.b.groups, g->p.N, stride, dtype};
}

static int8_t *int8_range(int64_t count, int64_t low, int64_t high) {
  int8_t *data = allocate(count);
  for (int64_t i = 0; i < count; i++) data[i] = (int8_t)(low + below(high - low + 1));
  return data;
}

static void make_a(generated *g, int32_t dtype, bool extreme) {
  int4mm_problem *p = &g->p;
  int64_t length = dtype == INT4MM_INT32 ? p->K / 8 : p->K;
  p->a.dtype = dtype, p->a.layout = INT4MM_K_MAJOR, p->a.rows = p->M, p->a.cols = length;
  p->a.stride = length + below(2) * below(9);
  int64_t count = p->M && length ? (p->M - 1) * p->a.stride + length : 0;
  if (int4mm_is_w4a16(p)) {
    p->a.data = hold(g, floats(count, dtype, below(3) == 0));
    return;
  }
  int8_t *bytes = hold(g, random_bytes(count * (int64_t)int4mm_dtype_size(dtype)));
  if (extreme) memset(bytes, dtype == INT4MM_INT8 ? 0x80 : 0x88, (size_t)count * int4mm_dtype_size(dtype));
  p->a.data = bytes;
  p->a.xor_mask = dtype == INT4MM_INT32 && below(2) && !extreme ? INT4MM_ENCODING_XOR : 0;
  float *scales = hold(g, allocate(p->M * 4));
  for (int64_t i = 0; i < p->M; i++) scales[i] = some_float();
  p->a.scales = scales;
}

static void make_scales(generated *g, int32_t scaling, bool zeros, bool extreme) {
  int4mm_problem *p = &g->p;
  int64_t stride = p->N + below(2) * below(9), count = (p->b.groups - 1) * stride + p->N;
  if (scaling == INT4MM_GROUP_SCALES) {
    int32_t dtype = float_dtype();
    p->b.group_scales = group_matrix(g, dtype, floats(count, dtype, false), stride);
  } else {
    p->b.scales = hold(g, floats(p->N, INT4MM_FLOAT32, false));
  }
  if (scaling == INT4MM_GROUP_FACTORS) {
    p->b.factors = group_matrix(g, INT4MM_INT8, int8_range(count, extreme ? 15 : 1, 15), stride);
  } else if (zeros) {
    bool wide = below(2);
    p->b.zeros = group_matrix(g, INT4MM_INT8, int8_range(count, wide ? -120 : -8, wide ? 119 : 7), stride);
  }
}

static void make_b(generated *g, int32_t layout, bool extreme) {
  int4mm_problem *p = &g->p;
  int64_t k8 = int4mm_words_of_k(p), rows = layout == INT4MM_K_MAJOR ? p->N : k8;
  int64_t cols = layout == INT4MM_K_MAJOR ? k8 : p->N, stride = cols + below(2) * below(9);
  int64_t count = rows && cols ? (rows - 1) * stride + cols : 0;
  uint32_t *words = hold(g, random_bytes(count * 4));
  if (extreme) memset(words, 0x88, (size_t)count * 4);
  p->b.words = words, p->b.rows = rows, p->b.cols = cols, p->b.stride = stride;
  p->b.layout = layout == INT4MM_K_MAJOR ? layout : INT4MM_MN_MAJOR;
  p->b.xor_mask = below(2) && !extreme ? INT4MM_ENCODING_XOR : 0;
  if (layout != INT4MM_PANELS_N) return;
  uint32_t *panels = hold(g, allocate(int4mm_cpu_panel_words(k8, p->N) * 4));
  int4mm_cpu_prepack(panels, &p->b);
  p->b.words = panels, p->b.layout = INT4MM_PANELS_N, p->b.xor_mask = 0;
}

static int64_t some_group(int64_t K) {
  static const int64_t sizes[] = {32, 64, 96, 128, 256, 160, 1024, 4096};
  int64_t group = sizes[below(below(3) ? 4 : 8)];
  return below(6) == 0 || group > K ? K : group;
}

static generated make(int64_t M, int64_t N, int64_t K, int32_t dtype_a) {
  generated g = {.p = {.M = M, .N = N, .K = dtype_a == INT4MM_INT32 ? K / 8 * 8 : K, .strassen = -1}};
  int4mm_problem *p = &g.p;
  bool extreme = below(12) == 0;
  int32_t scaling = (int32_t)below(3), layouts[] = {INT4MM_MN_MAJOR, INT4MM_K_MAJOR, INT4MM_PANELS_N};
  make_a(&g, dtype_a, extreme);
  p->b.dtype = INT4MM_INT32;
  p->b.group = p->a.group = p->K;
  p->b.groups = 1;
  if (scaling != INT4MM_PER_COLUMN) p->b.group = some_group(p->K);
  if (p->K) p->b.groups = int4mm_ceil_div(p->K, p->b.group);
  make_b(&g, layouts[below(3)], extreme);
  make_scales(&g, scaling, below(2), extreme);
  if (below(2)) p->bias = hold(&g, floats(N, INT4MM_FLOAT32, false));
  p->activation = below(3) ? 0 : INT4MM_RELU;
  if (below(4) == 0) {
    p->residual = (int4mm_matrix){hold(&g, floats(M * N, INT4MM_FLOAT32, false)), M, N, N, INT4MM_FLOAT32};
  }
  p->out.dtype = float_dtype(), p->out.rows = M, p->out.cols = N, p->out.stride = N + below(2) * below(9);
  g.out_bytes = ((M - 1) * p->out.stride + N) * (int64_t)int4mm_dtype_size(p->out.dtype);
  p->out.data = hold(&g, allocate(g.out_bytes));
  return g;
}

static void destroy(generated *g) {
  for (int i = 0; i < g->count; i++) free(g->held[i]);
}

/* ---- the product, plainly ---------------------------------------------------------------------------------------- */

static int32_t a_at(const int4mm_problem *p, int64_t m, int64_t k) {
  if (p->a.dtype == INT4MM_INT8) return ((const int8_t *)p->a.data)[m * p->a.stride + k];
  return int4mm_nibble(p->a.words[m * p->a.stride + k / 8] ^ p->a.xor_mask, (int)(k % 8));
}

static int32_t b_at(const int4mm_problem *p, int64_t k, int64_t n) {
  int64_t g = p->b.group ? k / p->b.group : 0;
  int32_t b = int4mm_nibble(*int4mm_b_word(p, k / 8, n) ^ p->b.xor_mask, (int)(k % 8));
  if (p->b.zeros.data) b -= ((const int8_t *)p->b.zeros.data)[g * p->b.zeros.stride + n];
  if (p->b.factors.data) b *= ((const int8_t *)p->b.factors.data)[g * p->b.factors.stride + n];
  return b;
}

static float group_scale(const int4mm_problem *p, int64_t g, int64_t n) {
  return int4mm_load_float(p->b.group_scales.data, p->b.group_scales.dtype, g * p->b.group_scales.stride + n);
}

/* What follows the scales, to the bits of the output. */
static uint32_t finish(const int4mm_problem *p, int64_t m, int64_t n, float x) {
  if (p->bias) x = int4mm_add(x, p->bias[n]);
  if (p->activation == INT4MM_RELU) x = int4mm_relu(x);
  if (p->residual.data) x = int4mm_add(x, ((const float *)p->residual.data)[m * p->residual.stride + n]);
  if (p->out.dtype == INT4MM_FLOAT16) return int4mm_to_half(x);
  if (p->out.dtype == INT4MM_BFLOAT16) return int4mm_to_bfloat(x);
  return x == x ? int4mm_float_bits(x) : INT4MM_NAN_BITS;
}

static uint32_t exact_output(const int4mm_problem *p, int64_t m, int64_t n) {
  int32_t acc = 0;
  float t = 0.0f;
  for (int64_t k = 0; k < p->K; k++) {
    if (p->b.group_scales.data && k % p->b.group == 0 && k > 0) {
      t = int4mm_next_group(t, acc, group_scale(p, k / p->b.group - 1, n));
      acc = 0;
    }
    acc += a_at(p, m, k) * b_at(p, k, n);
  }
  if (!p->b.group_scales.data) return finish(p, m, n, int4mm_scale(acc, p->a.scales[m], p->b.scales[n]));
  if (p->K) t = int4mm_next_group(t, acc, group_scale(p, p->b.groups - 1, n));
  return finish(p, m, n, int4mm_mul(t, p->a.scales[m]));
}

static uint32_t output_bits(const int4mm_problem *p, const void *out, int64_t i) {
  return p->out.dtype == INT4MM_FLOAT32 ? ((const uint32_t *)out)[i] : ((const uint16_t *)out)[i];
}

/* Whether an output of floats keeps the bound of int4mm.h; bias, activation and residual add a rounding each. */
static bool within_bound(const int4mm_problem *p, int64_t m, int64_t n, const void *out) {
  double exact = 0.0, sum = 0.0;
  for (int64_t k = 0; k < p->K; k++) {
    int64_t g = p->b.group ? k / p->b.group : 0;
    double scale = p->b.group_scales.data ? group_scale(p, g, n) : p->b.scales[n];
    double term = int4mm_load_float(p->a.data, p->a.dtype, m * p->a.stride + k) * (b_at(p, k, n) * scale);
    exact += term, sum += fabs(term);
  }
  double rest = 0.0;
  if (p->bias) exact += p->bias[n], rest += fabs(exact);
  if (p->activation == INT4MM_RELU) exact = exact > 0.0 ? exact : 0.0;
  if (p->residual.data) exact += ((const float *)p->residual.data)[m * p->residual.stride + n], rest += fabs(exact);
  double unit = p->out.dtype == INT4MM_FLOAT16 ? 0x1p-11 : p->out.dtype == INT4MM_BFLOAT16 ? 0x1p-8 : 0x1p-24;
  double bound = unit * fabs(exact) + (16.0 + (double)p->K / 8.0) * 0x1p-24 * sum + rest * 0x1p-23;
  bound += p->out.dtype == INT4MM_FLOAT16    ? 0x1p-25
           : p->out.dtype == INT4MM_BFLOAT16 ? 0x1p-134
                                             : 0x1p-149; /* half a subnormal unit */
  float x = int4mm_load_float(out, p->out.dtype, m * p->out.stride + n);
  return fabs(x - exact) <= bound * (1.0 + 1e-6) || (p->out.dtype == INT4MM_FLOAT16 && fabs(exact) > 65500.0);
}

/* ---- a case ------------------------------------------------------------------------------------------------------ */

static void describe(const int4mm_problem *p, const char *isa) {
  printf("%s: M %" PRId64 ", N %" PRId64 ", K %" PRId64 ", group %" PRId64 ", A dtype %d, scaling %d, zeros %d, "
         "layout %d, strides %" PRId64 " %" PRId64 ", out dtype %d\n",
         isa, p->M, p->N, p->K, p->b.group, p->a.dtype, int4mm_scaling_of(p), p->b.zeros.data != NULL, p->b.layout,
         p->a.stride, p->b.stride, p->out.dtype);
}

static bool same(const int4mm_problem *p, const uint32_t *expected, const char *isa) {
  for (int64_t m = 0; m < p->M; m++) {
    for (int64_t n = 0; n < p->out.stride; n++) {
      if (n >= p->N && m == p->M - 1) break;
      uint32_t got = output_bits(p, p->out.data, m * p->out.stride + n), poison = 0xa5a5a5a5u;
      if (p->out.dtype != INT4MM_FLOAT32) poison &= 0xffff;
      bool good = n >= p->N            ? got == poison
                  : int4mm_is_w4a16(p) ? within_bound(p, m, n, p->out.data)
                                       : got == expected[m * p->N + n];
      if (good) continue;
      describe(p, isa);
      printf("  out[%" PRId64 ", %" PRId64 "] is %08x, expected %08x\n", m, n, got,
             n < p->N ? expected[m * p->N + n] : poison);
      return false;
    }
  }
  return true;
}

/* A row alone has the bits that it has among others. */
static bool row_alone(generated *g, const char *isa) {
  int4mm_problem one = g->p;
  int64_t m = below(one.M), size = (int64_t)int4mm_dtype_size(one.out.dtype);
  one.M = one.a.rows = one.out.rows = 1;
  one.a.data = (const char *)one.a.data + m * one.a.stride * (int64_t)int4mm_dtype_size(one.a.dtype);
  if (one.a.scales) one.a.scales += m;
  if (one.residual.data) one.residual.data = (float *)one.residual.data + m * one.residual.stride;
  one.out.data = allocate(one.N * size);
  bool good = int4mm_cpu_matmul(&one) == INT4MM_OK &&
              !memcmp(one.out.data, (const char *)g->p.out.data + m * g->p.out.stride * size, (size_t)(one.N * size));
  free(one.out.data);
  if (!good) {
    describe(&g->p, isa);
    printf("  row %" PRId64 " alone differs\n", m);
  }
  return good;
}

static bool run_case(generated *g) {
  const int4mm_problem *p = &g->p;
  uint32_t *expected = allocate(p->M * p->N * 4);
  memset(expected, 0, (size_t)(p->M * p->N) * 4);
  for (int64_t i = 0; i < p->M * p->N && !int4mm_is_w4a16(p); i++) {
    expected[i] = exact_output(p, i / p->N, i % p->N);
  }
  bool good = true;
  const char *isa;
  for (int32_t i = 0; good && (isa = int4mm_cpu_isa_at(i)); i++) {
    if (int4mm_set_cpu_isa(isa) != INT4MM_OK) exit(2);
    if (int4mm_set_num_threads(1 + (int32_t)below(4)) != INT4MM_OK) exit(2);
    memset(p->out.data, 0xa5, (size_t)g->out_bytes);
    good = int4mm_cpu_matmul(p) == INT4MM_OK && same(p, expected, isa) && row_alone(g, isa);
  }
  free(expected);
  return good;
}

/* Rather small than large, and around the sizes of tiles. */
static int64_t some_size(int64_t most) {
  int64_t size = below(3) ? 1 + below(below(2) ? 40 : most) : (1 + below(8)) * 16 + below(3) - 1;
  return size < most ? size : most;
}

int main(int argc, char **argv) {
  int64_t cases = argc > 1 ? atoll(argv[1]) : CASES, first = argc > 2 ? atoll(argv[2]) : 1;
  static const int32_t dtypes[] = {INT4MM_INT32,   INT4MM_INT8,     INT4MM_INT8,
                                   INT4MM_FLOAT16, INT4MM_BFLOAT16, INT4MM_FLOAT32};
  for (int64_t i = first; i < first + cases; i++) {
    state = (uint64_t)i;
    int64_t M = some_size(100), N = some_size(100), K = below(20) ? some_size(1200) : below(30000);
    if (K > 2000) M = 1 + below(20), N = 1 + below(40);
    if (below(40) == 0) M = 1 + below(48), N = 400 + below(1200), K = 1 + below(300); /* several pieces along N */
    generated g = make(M, N, K, dtypes[below(6)]);
    if (!run_case(&g)) {
      printf("case %" PRId64 " failed\n", i);
      return 1;
    }
    destroy(&g);
  }
  printf("%" PRId64 " cases:", cases);
  const char *isa;
  for (int32_t i = 0; (isa = int4mm_cpu_isa_at(i)); i++) printf(" %s", isa);
  printf("\n");
  return 0;
}
