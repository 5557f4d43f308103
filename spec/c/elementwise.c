/*
 * int4mm_map and int4mm_rowwise on every instruction set that runs here, over generated matrices, against loops that
 * follow src/int4mm.h word for word, bit for bit. The functions of core/activation.h are taken as they are.
 *
 *   elementwise [cases [seed]]    $CASES or 3000 cases by default (300 under an emulator or ThreadSanitizer), from seed
 * 1
 */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"
#include "core/activation.h"
#include "core/tensor.h"
#include "random.h"

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
enum { CASES = 3000 };
#else
enum { CASES = 300 };
#endif

static const int32_t FLOATS[] = {INT4MM_FLOAT32, INT4MM_FLOAT16, INT4MM_BFLOAT16};

static float get(const int4mm_tensor *t, int64_t r, int64_t c) {
  int64_t i = t->rank == 2 ? r * t->stride + c : c;
  if (t->dtype == INT4MM_FLOAT32) return ((const float *)t->data)[i];
  uint16_t bits = ((const uint16_t *)t->data)[i];
  return t->dtype == INT4MM_FLOAT16 ? int4mm_from_half(bits) : int4mm_from_bfloat(bits);
}

/* The bits of an element, and of x as one. */
static uint32_t bits_at(const int4mm_tensor *t, int64_t r, int64_t c) {
  int64_t i = t->rank == 2 ? r * t->stride + c : c;
  return int4mm_dtype_size(t->dtype) == 4 ? ((const uint32_t *)t->data)[i] : ((const uint16_t *)t->data)[i];
}
static uint32_t rounded(int32_t dtype, float x) {
  if (dtype == INT4MM_FLOAT16) return int4mm_to_half(x);
  if (dtype == INT4MM_BFLOAT16) return int4mm_to_bfloat(x);
  return x != x ? INT4MM_NAN_BITS : int4mm_float_bits(x);
}

/* Mostly plain numbers, some of any bits. */
static void put_random(const int4mm_tensor *t, int64_t i, bool plain) {
  float x = (float)(below(4001) - 2000) / 256;
  uint32_t bits = plain || below(8) ? rounded(t->dtype, x) : next();
  if (int4mm_dtype_size(t->dtype) == 4) {
    ((uint32_t *)t->data)[i] = bits;
  } else {
    ((uint16_t *)t->data)[i] = (uint16_t)bits;
  }
}

/* A tensor of random numbers; matrices have rows apart. */
static int4mm_tensor make(int32_t rank, int64_t rows, int64_t cols, int32_t dtype) {
  int4mm_tensor whole = {0}, view = {0};
  bool plain = below(2);
  OK(int4mm_tensor_alloc(&whole, rank, rank == 2 ? rows : cols, rank == 2 ? cols + below(4) : 1, dtype, INT4MM_CPU));
  for (int64_t i = 0; i < whole.shape[0] * whole.shape[1]; i++) put_random(&whole, i, plain);
  if (rank == 1) return whole;
  OK(int4mm_tensor_narrow(&view, &whole, 1, whole.shape[1] - cols, cols));
  int4mm_tensor_release(&whole);
  return view;
}

static float combined(int32_t op, float x, float y) {
  switch (op) {
  case INT4MM_EXP:
    return int4mm_exp(x);
  case INT4MM_TANH:
    return int4mm_tanh(x);
  case INT4MM_ERF:
    return int4mm_erf(x);
  case INT4MM_ADD:
    return x + y;
  case INT4MM_MUL:
    return x * y;
  default:
    return int4mm_activate(x, op);
  }
}

static int wrong;

/* x[r, c] is what out has there. */
static void expect(const int4mm_tensor *out, int64_t r, int64_t c, float x, const char *what, int32_t op) {
  if (bits_at(out, r, c) == rounded(out->dtype, x)) return;
  if (!wrong++) printf("%s, op %d on %s: at [%d, %d]\n", what, (int)op, int4mm_cpu_isa(), (int)r, (int)c);
}

static void map_case(int32_t rank, int64_t rows, int64_t cols) {
  int4mm_tensor src = make(rank, rows, cols, FLOATS[below(3)]), out = make(rank, rows, cols, FLOATS[below(3)]);
  int4mm_tensor other = make(below(2) ? rank : 1, rows, cols, FLOATS[below(3)]);
  int4mm_map_args args = {.src = &src, .out = &out, .number = -0.3f, .op = 1 + (int32_t)below(INT4MM_MUL)};
  if (args.op >= INT4MM_ADD && below(3)) args.other = &other;
  OK(int4mm_map(&args));
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) {
      float y = args.other ? get(&other, r, c) : args.number;
      expect(&out, r, c, combined(args.op, get(&src, r, c), y), "map", args.op);
    }
  }
  int4mm_tensor_release(&src), int4mm_tensor_release(&other), int4mm_tensor_release(&out);
}

/* SUM of int4mm_rowwise_op. */
static float sum_of(const float *x, int64_t n) {
  float partial[32] = {0}, sum = 0;
  for (int64_t i = 0; i < n; i++) partial[i % 32] += x[i];
  for (int i = 0; i < 32; i++) sum += partial[i];
  return sum;
}

/* x becomes the row that softmax or a norm makes of it; t is as long. */
static void transform(int32_t op, float *x, float *t, int64_t n, const int4mm_tensor *weight, const int4mm_tensor *bias,
                      float eps) {
  float most = -INFINITY, mean = op == INT4MM_LAYER_NORM ? sum_of(x, n) / (float)n : 0;
  for (int64_t i = 0; i < n; i++) most = x[i] > most ? x[i] : most;
  for (int64_t i = 0; i < n; i++) x[i] = op == INT4MM_SOFTMAX ? int4mm_exp(x[i] - most) : x[i] - mean;
  for (int64_t i = 0; i < n; i++) t[i] = op == INT4MM_SOFTMAX ? x[i] : x[i] * x[i];
  float sum = sum_of(t, n), factor = 1 / sqrtf(sum / (float)n + eps);
  for (int64_t i = 0; i < n; i++) {
    x[i] = op == INT4MM_SOFTMAX ? x[i] / sum : x[i] * factor;
    if (weight) x[i] *= get(weight, 0, i);
    if (bias) x[i] += get(bias, 0, i);
  }
}

static int64_t first_largest(const float *x, int64_t n) {
  int64_t best = 0;
  for (int64_t i = 1; i < n; i++) {
    if (x[best] == x[best] && (x[i] != x[i] || x[i] > x[best])) best = i;
  }
  return best;
}

static void rowwise_case(int32_t rank, int64_t rows, int64_t cols) {
  int4mm_rowwise_args args = {.eps = below(2) ? 0 : 1e-5f, .op = (int32_t)below(4)};
  bool argmax = args.op == INT4MM_ARGMAX;
  int4mm_tensor src = make(rank, rows, cols, FLOATS[below(3)]), weight = make(1, 1, cols, FLOATS[below(3)]);
  int4mm_tensor bias = make(1, 1, cols, FLOATS[below(3)]);
  int4mm_tensor out = argmax ? make(1, 1, rows, INT4MM_INT32) : make(rank, rows, cols, FLOATS[below(3)]);
  args.src = &src, args.out = &out;
  if ((args.op == INT4MM_LAYER_NORM || args.op == INT4MM_RMS_NORM) && below(2)) args.weight = &weight;
  if (args.op == INT4MM_LAYER_NORM && below(2)) args.bias = &bias;
  OK(int4mm_rowwise(&args));
  float *x = malloc((size_t)cols * 2 * sizeof *x), *t = x + cols;
  if (!x) exit(2);
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) x[c] = get(&src, r, c);
    if (argmax) {
      if (bits_at(&out, 0, r) != (uint32_t)first_largest(x, cols)) wrong++;
      continue;
    }
    transform(args.op, x, t, cols, args.weight, args.bias, args.eps);
    for (int64_t c = 0; c < cols; c++) expect(&out, r, c, x[c], "rowwise", args.op);
  }
  free(x);
  int4mm_tensor_release(&src), int4mm_tensor_release(&weight);
  int4mm_tensor_release(&bias), int4mm_tensor_release(&out);
}

int main(int argc, char **argv) {
  const char *told = getenv("CASES");
  int count = argc > 1 ? atoi(argv[1]) : told ? atoi(told) : CASES;
  state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  OK(int4mm_set_num_threads(3));
  for (int i = 0; i < count; i++) {
    const char *isa = int4mm_cpu_isa_at(i % 5);
    OK(int4mm_set_cpu_isa(isa));
    int32_t rank = 1 + (int32_t)below(2);
    int64_t cols = 1 + below(i % 20 ? 80 : 2500), rows = rank == 1 ? 1 : 1 + below(i % 97 ? 9 : 300);
    if (below(2)) {
      map_case(rank, rows, cols);
    } else {
      rowwise_case(rank, rows, cols);
    }
  }
  CHECK(wrong == 0);
  CHECK(int4mm_allocated(INT4MM_CPU) == 0);
  return report();
}
