/*
 * Products and layers of operands of every kind on a device, by every kernel that serves them: activations of int4,
 * int8 and floats, group scales, factors, zero points. Exact ones bit for bit against the CPU's plain C; those of
 * floats within the bound of int4mm.h, and with the same bits when run again. See device_smoke.c for the device.
 *
 *   device_kinds [products] [seed] [kernel]
 */
#include "device.h"

enum { A, B, SCALE_A, SCALE_B, ZERO_B, FACTOR_B, BIAS, OPERANDS };

/* A problem: what there is has a rank. */
typedef struct kinds {
  int64_t M, N, K, group, groups;
  bool nk, layer;
  int32_t encoding_b, out_dtype;
  int4mm_tensor t[OPERANDS];
} kinds;

static const int32_t floats[] = {INT4MM_FLOAT16, INT4MM_BFLOAT16, INT4MM_FLOAT32};

static int4mm_tensor draw_floats(int64_t rows, int64_t cols, int32_t dtype, float low, float high) {
  int4mm_tensor wide = make(rows, cols, INT4MM_FLOAT32, INT4MM_CPU), t = make(rows, cols, dtype, INT4MM_CPU);
  OK(int4mm_random(&wide, seed + drawn, 1, low, high, NULL));
  OK(int4mm_tensor_copy(&t, &wide, NULL));
  int4mm_tensor_release(&wide);
  return t;
}

/* Bytes in low .. high; now and then all of them the lowest. */
static int4mm_tensor draw_bytes(int64_t rows, int64_t cols, int low, int high) {
  int4mm_tensor t = make(rows, cols, INT4MM_INT8, INT4MM_CPU);
  bool least = draw(10) == 0;
  for (int64_t r = 0; r < t.shape[0]; r++)
    for (int64_t c = 0; c < t.shape[1]; c++)
      ((int8_t *)t.data)[r * t.stride + c] = (int8_t)(least ? low : low + draw(high - low + 1));
  return t;
}

static int4mm_tensor draw_words(int64_t rows, int64_t cols) {
  int4mm_tensor t = make(rows, cols, INT4MM_INT32, INT4MM_CPU);
  OK(int4mm_random(&t, seed + drawn, 2, 0, 0, NULL));
  if (draw(10) == 0) OK(int4mm_tensor_fill_bytes(&t, 0x88, NULL));
  return t;
}

/* [groups, columns], or for a weight [N, K/8] sometimes the other way round. */
static void group_shape(const kinds *p, int64_t columns, int64_t shape[2]) {
  bool ng = p->nk && p->groups != p->N && draw(2);
  shape[0] = ng ? columns : p->groups, shape[1] = ng ? p->groups : columns;
}

static void draw_scales(kinds *p, bool grouped, bool factors) {
  int64_t shape[2];
  group_shape(p, p->N, shape);
  bool tiny = grouped && draw(10) == 0; /* a sixteenth of them would be rounded */
  p->t[SCALE_B] = tiny      ? draw_floats(shape[0], shape[1], floats[1 + draw(2)], 0x1p-126f, 0x1p-120f)
                  : grouped ? draw_floats(shape[0], shape[1], floats[draw(3)], .001f, .01f)
                            : draw_floats(p->N, VECTOR, INT4MM_FLOAT32, .001f, .01f);
  group_shape(p, p->N, shape);
  if (factors) p->t[FACTOR_B] = draw_bytes(shape[0], shape[1], 1, 15);
  if (factors || draw(2)) return;
  bool words = draw(3) == 0;
  int64_t columns = words ? (p->N + 7) / 8 : p->N;
  group_shape(p, columns, shape);
  if (!grouped) shape[0] = columns, shape[1] = VECTOR;
  if (words && grouped)
    p->t[ZERO_B] = draw_words(shape[0], shape[1]);
  else if (words) {
    p->t[ZERO_B] = make(columns, VECTOR, INT4MM_INT32, INT4MM_CPU);
    OK(int4mm_random(&p->t[ZERO_B], seed + drawn, 3, 0, 0, NULL));
  } else
    p->t[ZERO_B] = draw(4) ? draw_bytes(shape[0], shape[1], -8, 7) : draw_bytes(shape[0], shape[1], -120, 119);
}

static kinds draw_kinds(void) {
  static const int64_t groups[] = {32, 64, 128, 128, 128, 256, 96, 4096};
  int kind = (int)draw(5), scaling = (int)draw(3); /* 0, 1: int8; 2: words; 3, 4: floats */
  bool big = draw(4) == 0;
  kinds p = {.M = 1 + draw(big       ? 300
                           : draw(2) ? 70
                                     : 9),
             .N = 1 + draw(big ? 500 : 150),
             .K = 1 + draw(big ? 3000 : 700)};
  if (draw(2)) p.N = (p.N + 31) / 32 * 32; /* aligned rows, for which there are more kernels */
  if (draw(2)) p.K = (p.K + 127) / 128 * 128;
  if (kind == 2) p.K = (p.K + 7) / 8 * 8;
  p.nk = draw(3) == 0, p.layer = draw(3) == 0, p.encoding_b = (int32_t)draw(2), p.out_dtype = floats[draw(3)];
  p.group = scaling ? groups[draw(8)] : 0, p.groups = p.group ? (p.K + p.group - 1) / p.group : 1;
  p.t[A] = kind < 2    ? draw_bytes(p.M, p.K, -128, 127)
           : kind == 2 ? draw_words(p.M, p.K / 8)
                       : draw_floats(p.M, p.K, floats[draw(8) ? kind - 3 : 2], -1, 1);
  p.t[B] = p.nk ? draw_words(p.N, (p.K + 7) / 8) : draw_words((p.K + 7) / 8, p.N);
  if (kind < 3) p.t[SCALE_A] = draw_floats(p.M, VECTOR, INT4MM_FLOAT32, .001f, .01f);
  draw_scales(&p, scaling == 1, scaling == 2);
  if (draw(2)) p.t[BIAS] = draw_floats(p.N, VECTOR, INT4MM_FLOAT32, -1, 1);
  return p;
}

static void release(kinds *p) {
  for (int i = 0; i < OPERANDS; i++) int4mm_tensor_release(&p->t[i]);
}

static kinds on_device(const kinds *p, int32_t device) {
  kinds copy = *p;
  for (int i = 0; i < OPERANDS; i++) copy.t[i] = p->t[i].rank ? moved(&p->t[i], device) : (int4mm_tensor){0};
  return copy;
}

static const int4mm_tensor *given(const kinds *p, int i) {
  return p->t[i].rank ? &p->t[i] : NULL;
}

static int32_t multiply(const kinds *p, int4mm_tensor *out, const char *kernel) {
  int4mm_matmul_args args = {.a_packed = &p->t[A],
                             .b_packed = &p->t[B],
                             .scale_a = given(p, SCALE_A),
                             .scale_b = &p->t[SCALE_B],
                             .zero_b = given(p, ZERO_B),
                             .factor_b = given(p, FACTOR_B),
                             .group = p->group,
                             .bias = given(p, BIAS),
                             .out = out,
                             .out_dtype = p->out_dtype,
                             .encoding_b = p->encoding_b,
                             .layout_b = p->nk,
                             .kernel = kernel};
  return int4mm_matmul(&args);
}

static void describe(const kinds *p, const char *kernel) {
  printf("%s: M = %" PRId64 ", N = %" PRId64 ", K = %" PRId64 ", group %" PRId64
         ", A dtype %d, scale_b rank %d dtype %d, "
         "zeros %d, factors %d, nk %d, out %d, lda %" PRId64 ", ldb %" PRId64 "\n",
         kernel ? kernel : "best", p->M, p->N, p->K, p->group, (int)p->t[A].dtype, (int)p->t[SCALE_B].rank,
         (int)p->t[SCALE_B].dtype, (int)p->t[ZERO_B].rank, (int)p->t[FACTOR_B].rank, (int)p->nk, (int)p->out_dtype,
         p->t[A].stride, p->t[B].stride);
}

/* ---- floats: the exact value and its bound ---- */

/* Element i of row r, of a vector element i. */
static double at(const int4mm_tensor *t, int64_t r, int64_t i) {
  int64_t j = t->rank == 1 ? i : r * t->stride + i;
  return t->dtype == INT4MM_INT8 ? ((const int8_t *)t->data)[j] : int4mm_load_float(t->data, t->dtype, j);
}

/* Of a matrix for groups, in either layout. */
static double of_group(const kinds *p, const int4mm_tensor *t, int64_t g, int64_t n) {
  if (t->rank == 1) return at(t, 0, n);
  bool ng = t->shape[0] == p->N && (t->shape[1] != p->N || t->shape[0] != p->groups);
  return ng ? at(t, n, g) : at(t, g, n);
}

static double zero_of(const kinds *p, int64_t g, int64_t n) {
  const int4mm_tensor *t = &p->t[ZERO_B];
  if (!t->rank) return 0;
  if (t->dtype == INT4MM_INT8) return of_group(p, t, g, n);
  int64_t words = (p->N + 7) / 8;
  bool ng = t->rank == 2 && t->shape[1] != words;
  int64_t j = t->rank == 1 ? n / 8 : ng ? n / 8 * t->stride + g : g * t->stride + n / 8;
  return int4mm_nibble(((const uint32_t *)t->data)[j] ^ int4mm_xor_mask_of(p->encoding_b), (int)(n % 8));
}

static double weight_of(const kinds *p, int64_t k, int64_t n) {
  const int4mm_tensor *b = &p->t[B];
  int64_t j = p->nk ? n * b->stride + k / 8 : k / 8 * b->stride + n, g = p->group ? k / p->group : 0;
  double w = int4mm_nibble(((const uint32_t *)b->data)[j] ^ int4mm_xor_mask_of(p->encoding_b), (int)(k % 8));
  w -= zero_of(p, g, n);
  if (p->t[FACTOR_B].rank) w *= of_group(p, &p->t[FACTOR_B], g, n);
  return w * of_group(p, &p->t[SCALE_B], g, n);
}

static bool within_bound(const kinds *p, const int4mm_tensor *out, int64_t m, int64_t n) {
  double exact = 0, magnitude = 0, bias = p->t[BIAS].rank ? at(&p->t[BIAS], 0, n) : 0;
  for (int64_t k = 0; k < p->K; k++) {
    double product = at(&p->t[A], m, k) * weight_of(p, k, n);
    exact += product, magnitude += fabs(product);
  }
  double unit = p->out_dtype == INT4MM_FLOAT16 ? 0x1p-11 : p->out_dtype == INT4MM_BFLOAT16 ? 0x1p-8 : 0x1p-24;
  double bound = (unit + 0x1p-23) * fabs(exact + bias) + (16 + (double)p->K / 8) * 0x1p-24 * magnitude + 0x1p-25;
  return fabs(at(out, m, n) - (exact + bias)) <= bound;
}

static void check_bound(const kinds *p, const int4mm_tensor *got, const char *kernel) {
  int4mm_tensor out = moved(got, INT4MM_CPU);
  int bad = 0;
  for (int64_t m = 0; m < p->M; m += 1 + draw(1 + p->M / 4)) /* some of the outputs */
    for (int64_t n = 0; n < p->N; n += 1 + draw(1 + p->N / 8)) bad += !within_bound(p, &out, m, n);
  if (bad) describe(p, kernel), printf("  %d outputs out of bounds\n", bad);
  CHECK(!bad);
  int4mm_tensor_release(&out);
}

/* ---- products ---- */

static int served;

/* One kernel (NULL: the best) into a poisoned output, twice. */
static void check_kernel(const kinds *cpu, const kinds *gpu, const int4mm_tensor *expected, const char *kernel) {
  int4mm_tensor out = make(cpu->M, cpu->N, cpu->out_dtype, 0), again = make(cpu->M, cpu->N, cpu->out_dtype, 0);
  OK(int4mm_tensor_fill_bytes(&out, 0xff, NULL));
  OK(int4mm_tensor_fill_bytes(&again, 0xa5, NULL));
  int32_t status = multiply(gpu, &out, kernel);
  if (status != INT4MM_ERR_UNSUPPORTED || !kernel) {
    bool real = cpu->t[SCALE_A].rank == 0;
    OK(status);
    OK(multiply(gpu, &again, kernel));
    bool equal = same(&out, &again) && (real || same(expected, &out));
    if (!equal) describe(cpu, kernel);
    CHECK(equal);
    if (real) check_bound(cpu, &out, kernel);
    served++;
  }
  int4mm_tensor_release(&out);
  int4mm_tensor_release(&again);
}

static void test_product(const char *kernel) {
  kinds cpu = draw_kinds(), gpu = on_device(&cpu, 0);
  int4mm_tensor expected = {0};
  OK(multiply(&cpu, &expected, NULL));
  if (cpu.t[SCALE_A].rank == 0) check_bound(&cpu, &expected, "the CPU");
  if (kernel) {
    check_kernel(&cpu, &gpu, &expected, kernel);
  } else {
    check_kernel(&cpu, &gpu, &expected, NULL);
    for (int32_t i = 0; int4mm_cuda_kernel_at(i); i++) check_kernel(&cpu, &gpu, &expected, int4mm_cuda_kernel_at(i));
  }
  int4mm_tensor_release(&expected);
  release(&cpu);
  release(&gpu);
}

/* ---- layers ---- */

/* The same operands with x and a residual, int8 activations or int4 ones, by every kernel. */
static void test_layer(void) {
  kinds cpu = draw_kinds();
  int4mm_tensor x = draw_floats(cpu.M, cpu.K, floats[draw(3)], -1, 1), expected = {0};
  int4mm_tensor residual = draw_floats(cpu.M, cpu.N, floats[draw(3)], -1, 1);
  kinds gpu = on_device(&cpu, 0);
  int4mm_tensor x_gpu = moved(&x, 0), residual_gpu = moved(&residual, 0);
  int4mm_linear_args args = {.x = &x,
                             .b_packed = &cpu.t[B],
                             .scale_b = &cpu.t[SCALE_B],
                             .zero_b = given(&cpu, ZERO_B),
                             .factor_b = given(&cpu, FACTOR_B),
                             .group = cpu.group,
                             .bias = given(&cpu, BIAS),
                             .residual = draw(2) ? &residual : NULL,
                             .out = &expected,
                             .out_dtype = cpu.out_dtype,
                             .encoding_b = cpu.encoding_b,
                             .layout_b = cpu.nk,
                             .activations = (int32_t)draw(2),
                             .rotate = cpu.K % 32 || draw(2) ? 0 : 32,
                             .activation = (int32_t)draw(5)};
  OK(int4mm_linear(&args));
  args.x = &x_gpu, args.b_packed = &gpu.t[B], args.scale_b = &gpu.t[SCALE_B], args.zero_b = given(&gpu, ZERO_B);
  args.factor_b = given(&gpu, FACTOR_B), args.bias = given(&gpu, BIAS);
  args.residual = args.residual ? &residual_gpu : NULL;
  for (int32_t k = -1; k < 0 || int4mm_cuda_kernel_at(k); k++) {
    int4mm_tensor out = make(cpu.M, cpu.N, cpu.out_dtype, 0);
    OK(int4mm_tensor_fill_bytes(&out, 0xa5, NULL));
    args.out = &out, args.kernel = k < 0 ? NULL : int4mm_cuda_kernel_at(k);
    int32_t status = int4mm_linear(&args);
    CHECK(status == INT4MM_OK || (k >= 0 && status == INT4MM_ERR_UNSUPPORTED));
    bool equal = status != INT4MM_OK || same(&expected, &out);
    if (!equal) describe(&cpu, args.kernel), printf("  a layer of int%d activations\n", args.activations ? 8 : 4);
    CHECK(equal);
    int4mm_tensor_release(&out);
  }
  int4mm_tensor *all[] = {&x, &residual, &x_gpu, &residual_gpu, &expected};
  for (int i = 0; i < 5; i++) int4mm_tensor_release(all[i]);
  release(&cpu);
  release(&gpu);
}

int main(int argc, char **argv) {
  int64_t products = argc > 1 ? strtoll(argv[1], NULL, 10) : 100;
  if (argc > 2) seed = strtoull(argv[2], NULL, 10);
  const char *kernel = argc > 3 ? argv[3] : NULL;
  if (!open_device(argv[0])) return 1;
  for (int64_t i = 0; i < products; i++) test_product(kernel);
  for (int64_t i = 0; i < products / 2 && !kernel; i++) test_layer();
  OK(int4mm_synchronize(0));
  CHECK(int4mm_allocated(0) == 0 && int4mm_allocated(INT4MM_CPU) == 0);
  printf("%d products by kernels that serve them\n", served);
  return report();
}
