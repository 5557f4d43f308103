/*
 * The C ABI from C: what a program without Lua sees. Products against a naive loop, views, counts of memory, and the
 * sentence of each argument error. Runs wherever the core does, so it also serves under emulators and sanitizers.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "core/error.h"
#include "core/numeric.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cuda/table.h"

static int4mm_tensor vector(int64_t n, int32_t dtype) {
  int4mm_tensor t = {0};
  OK(int4mm_tensor_alloc(&t, 1, n, 1, dtype, INT4MM_CPU));
  return t;
}

static int4mm_tensor matrix(int64_t rows, int64_t cols, int32_t dtype) {
  int4mm_tensor t = {0};
  OK(int4mm_tensor_alloc(&t, 2, rows, cols, dtype, INT4MM_CPU));
  return t;
}

static void release_all(int4mm_tensor *const *tensors) {
  while (*tensors) int4mm_tensor_release(*tensors++);
}

/* ---- products ---- */

typedef struct operands {
  int4mm_tensor a, b, scale_a, scale_b, bias;
} operands;

static operands make_operands(int64_t M, int64_t N, int64_t K, uint64_t seed) {
  operands o = {matrix(M, K / 8, INT4MM_INT32), matrix(K / 8, N, INT4MM_INT32), vector(M, INT4MM_FLOAT32),
                vector(N, INT4MM_FLOAT32), vector(N, INT4MM_FLOAT32)};
  OK(int4mm_random(&o.a, seed, 0, 0, 0, NULL));
  OK(int4mm_random(&o.b, seed, 1, 0, 0, NULL));
  OK(int4mm_random(&o.scale_a, seed, 2, -0.01f, 0.1f, NULL));
  OK(int4mm_random(&o.scale_b, seed, 3, -0.01f, 0.1f, NULL));
  OK(int4mm_random(&o.bias, seed, 4, -1, 1, NULL));
  return o;
}

static void release_operands(operands *o) {
  release_all((int4mm_tensor *[]){&o->a, &o->b, &o->scale_a, &o->scale_b, &o->bias, NULL});
}

static int4mm_matmul_args arguments(operands *o, int4mm_tensor *out) {
  return (int4mm_matmul_args){.a_packed = &o->a,
                              .b_packed = &o->b,
                              .scale_a = &o->scale_a,
                              .scale_b = &o->scale_b,
                              .out = out,
                              .out_dtype = INT4MM_FLOAT16,
                              .backend = INT4MM_USE_CPU};
}

static float at(const int4mm_tensor *t, int64_t i) {
  return ((const float *)t->data)[i];
}

/* The contract, one output at a time. b is [K/8, N]. */
static float naive(const operands *o, int64_t m, int64_t n, uint32_t xor_a, uint32_t xor_b, bool bias) {
  const uint32_t *a = (const uint32_t *)o->a.data + m * o->a.stride, *b = (const uint32_t *)o->b.data + n;
  int32_t acc = 0;
  for (int64_t j = 0; j < o->a.shape[1]; j++)
    for (int i = 0; i < 8; i++) acc += int4mm_nibble(a[j] ^ xor_a, i) * int4mm_nibble(b[j * o->b.stride] ^ xor_b, i);
  float x = int4mm_scale(acc, at(&o->scale_a, m), at(&o->scale_b, n));
  return bias ? int4mm_add(x, at(&o->bias, n)) : x;
}

static bool same(const int4mm_tensor *out, int64_t m, int64_t n, float expected) {
  int64_t i = m * out->stride + n;
  if (out->dtype == INT4MM_FLOAT16) return ((const uint16_t *)out->data)[i] == int4mm_to_half(expected);
  if (out->dtype == INT4MM_BFLOAT16) return ((const uint16_t *)out->data)[i] == int4mm_to_bfloat(expected);
  return ((const uint32_t *)out->data)[i] == int4mm_float_bits(expected);
}

static void check_product(operands *o, const int4mm_matmul_args *args) {
  uint32_t xor_a = args->encoding_a ? INT4MM_ENCODING_XOR : 0, xor_b = args->encoding_b ? INT4MM_ENCODING_XOR : 0;
  int64_t wrong = 0, M = o->a.shape[0], N = o->b.shape[1];
  OK(int4mm_matmul(args));
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) wrong += !same(args->out, m, n, naive(o, m, n, xor_a, xor_b, args->bias != NULL));
  if (wrong)
    printf("M = %" PRId64 ", N = %" PRId64 ", K = %" PRId64 ": %" PRId64 " wrong\n", M, N, 8 * o->a.shape[1], wrong);
  CHECK(wrong == 0);
}

/* The same product through each form of b, in every encoding and output type. */
static void test_product(int64_t M, int64_t N, int64_t K, uint64_t seed) {
  operands o = make_operands(M, N, K, seed);
  int4mm_tensor nk = matrix(N, K / 8, INT4MM_INT32), panels = {0};
  for (int64_t j = 0; j < K / 8; j++)
    for (int64_t n = 0; n < N; n++)
      ((uint32_t *)nk.data)[n * nk.stride + j] = ((const uint32_t *)o.b.data)[j * o.b.stride + n];
  for (int32_t dtype = INT4MM_FLOAT16; dtype <= INT4MM_FLOAT32; dtype++) {
    int4mm_tensor out = {0};
    int4mm_matmul_args args = arguments(&o, &out);
    args.out_dtype = dtype, args.encoding_a = dtype % 2, args.encoding_b = dtype / 2 % 2;
    args.bias = dtype == INT4MM_FLOAT16 ? NULL : &o.bias;
    check_product(&o, &args);
    CHECK(out.dtype == dtype);
    OK(int4mm_tensor_fill_bytes(&out, 0xa5, NULL));
    args.b_packed = &nk, args.layout_b = INT4MM_B_NK;
    check_product(&o, &args);
    int4mm_tensor_release(&out);
  }
  int4mm_tensor out = {0};
  int4mm_matmul_args args = arguments(&o, &out);
  OK(int4mm_prepack(&panels, &nk, INT4MM_B_NK, INT4MM_TWOS_COMPLEMENT));
  args.b_packed = &panels;
  check_product(&o, &args);
  args.encoding_b = INT4MM_OFFSET;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "b_packed is prepacked");
  release_all((int4mm_tensor *[]){&out, &nk, &panels, NULL});
  release_operands(&o);
}

/* Operands and result as columns of wider tensors. */
static void test_strides(void) {
  operands o = make_operands(5, 7, 64, 3);
  int4mm_tensor wide = matrix(5, 20, INT4MM_FLOAT32), out = {0}, before;
  OK(int4mm_tensor_fill_bytes(&wide, 0x5a, NULL));
  OK(int4mm_tensor_narrow(&out, &wide, 1, 3, 7));
  before = out;
  int4mm_matmul_args args = arguments(&o, &out);
  check_product(&o, &args);
  CHECK(!memcmp(&before, &out, sizeof out));
  for (int64_t m = 0; m < 5; m++)
    CHECK(((uint32_t *)wide.data)[m * 20 + 2] == 0x5a5a5a5a && ((uint32_t *)wide.data)[m * 20 + 10] == 0x5a5a5a5a);
  release_all((int4mm_tensor *[]){&out, &wide, NULL});
  release_operands(&o);
}

/* ---- memory ---- */

static void test_memory(void) {
  int64_t before = int4mm_allocated(INT4MM_CPU);
  int4mm_tensor t = matrix(100, 10, INT4MM_INT32), view = {0}, big = matrix(2048, 2048, INT4MM_INT32);
  CHECK(int4mm_allocated(INT4MM_CPU) == before + 4000 + 4 * 2048 * 2048);
  CHECK((uintptr_t)t.data % 64 == 0 && (uintptr_t)big.data % (2 << 20) == 0);
  int4mm_tensor_release(&big);
  OK(int4mm_tensor_narrow(&view, &t, 0, 90, 10));
  int4mm_tensor_release(&t);
  CHECK(t.rank == 0 && int4mm_allocated(INT4MM_CPU) == before + 4000);
  int4mm_tensor_release(&view);
  int4mm_tensor_release(&view);
  CHECK(int4mm_allocated(INT4MM_CPU) == before);
  FAILS(int4mm_tensor_alloc(&t, 2, INT64_MAX / 2, 8, INT4MM_INT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT,
        "larger than any memory");
  FAILS(int4mm_tensor_alloc(&t, 3, 1, 1, INT4MM_INT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT, "rank is 3");
  FAILS(int4mm_tensor_alloc(&t, 2, -1, 1, INT4MM_INT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT, "cannot be negative");
  FAILS(int4mm_tensor_alloc(&t, 2, 1, 1, 9, INT4MM_CPU), INT4MM_ERR_ARGUMENT, "dtype is 9");
  FAILS(int4mm_tensor_alloc(&t, 2, 1, 1, INT4MM_INT8, -2), INT4MM_ERR_ARGUMENT, "device is -2");
  FAILS(int4mm_tensor_alloc(NULL, 2, 1, 1, INT4MM_INT8, -1), INT4MM_ERR_ARGUMENT, "NULL");
  CHECK(t.rank == 0 && int4mm_allocated(INT4MM_CPU) == before);
}

static int deletions;

static void count_deletion(void *context) {
  deletions++;
  free(context);
}

/* A deleter runs once, with its context, at the last reference; never for a tensor that was not made. */
static void test_adopted(void) {
  int64_t before = int4mm_allocated(INT4MM_CPU);
  float *words = calloc(12, sizeof *words);
  int4mm_tensor t = {0}, view = {0}, other = {0};
  FAILS(int4mm_tensor_adopt(&t, words, 2, 3, 4, 4, INT4MM_FLOAT32, INT4MM_CPU, NULL, words), INT4MM_ERR_ARGUMENT,
        "deleter is NULL");
  FAILS(int4mm_tensor_adopt(&t, words, 2, 3, 4, 3, INT4MM_FLOAT32, INT4MM_CPU, count_deletion, words),
        INT4MM_ERR_ARGUMENT, "stride is 3");
  FAILS(int4mm_tensor_adopt(&t, NULL, 2, 3, 4, 4, INT4MM_FLOAT32, INT4MM_CPU, count_deletion, words),
        INT4MM_ERR_ARGUMENT, "data is NULL");
  CHECK(deletions == 0 && t.rank == 0);
  OK(int4mm_tensor_adopt(&t, words, 2, 3, 4, 4, INT4MM_FLOAT32, INT4MM_CPU, count_deletion, words));
  FAILS(int4mm_tensor_adopt(&t, words, 2, 3, 4, 4, INT4MM_FLOAT32, INT4MM_CPU, count_deletion, words),
        INT4MM_ERR_ARGUMENT, "release it first");
  CHECK(t.data == words && int4mm_allocated(INT4MM_CPU) == before);
  OK(int4mm_tensor_narrow(&view, &t, 1, 2, 2));
  OK(int4mm_tensor_narrow(&other, &view, 0, 1, 1));
  int4mm_tensor_release(&t);
  int4mm_tensor_release(&view);
  CHECK(deletions == 0 && ((float *)other.data)[0] == 0);
  ((float *)other.data)[1] = 7; /* still there */
  int4mm_tensor_release(&other);
  int4mm_tensor_release(&other);
  CHECK(deletions == 1 && int4mm_allocated(INT4MM_CPU) == before);
  /* of no elements: nothing to point to, still something to give back */
  OK(int4mm_tensor_adopt(&t, NULL, 2, 0, 4, 4, INT4MM_FLOAT32, INT4MM_CPU, count_deletion, NULL));
  int4mm_tensor_release(&t);
  CHECK(deletions == 2);
}

static void test_views_and_copies(void) {
  float words[12];
  int4mm_tensor t = {0}, column = {0}, other = {0}, half = matrix(3, 2, INT4MM_FLOAT16);
  for (int i = 0; i < 12; i++) words[i] = (float)i;
  FAILS(int4mm_tensor_wrap(&t, (char *)words + 1, 2, 1, 1, 1, INT4MM_FLOAT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT,
        "not aligned");
  FAILS(int4mm_tensor_wrap(&t, words, 2, 3, 4, 3, INT4MM_FLOAT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT, "stride is 3");
  OK(int4mm_tensor_wrap(&t, words, 2, 3, 4, 4, INT4MM_FLOAT32, INT4MM_CPU));
  FAILS(int4mm_tensor_wrap(&t, words, 2, 3, 4, 4, INT4MM_FLOAT32, INT4MM_CPU), INT4MM_ERR_ARGUMENT, "release it first");
  FAILS(int4mm_tensor_narrow(&column, &t, 1, 3, 2), INT4MM_ERR_ARGUMENT, "do not fit [3, 4] float32");
  OK(int4mm_tensor_narrow(&column, &t, 1, 0, 2));
  OK(int4mm_tensor_narrow(&other, &t, 1, 2, 2));
  OK(int4mm_tensor_copy(&half, &other, NULL));
  CHECK(((uint16_t *)half.data)[5] == int4mm_to_half(11));
  OK(int4mm_tensor_copy(&column, &other, NULL)); /* neighbouring columns do not overlap */
  CHECK(words[0] == 2 && words[9] == 11);
  int4mm_tensor_release(&other);
  OK(int4mm_tensor_narrow(&other, &t, 1, 1, 2));
  FAILS(int4mm_tensor_copy(&column, &other, NULL), INT4MM_ERR_ARGUMENT, "dst overlaps src");
  FAILS(int4mm_tensor_copy(&column, &t, NULL), INT4MM_ERR_ARGUMENT, "the shapes differ");
  release_all((int4mm_tensor *[]){&t, &column, &other, &half, NULL});
}

/* int32 that int8 does not hold: refused by place, with nothing written; the first one, however many threads look. */
static void test_narrowing(void) {
  int4mm_tensor wide = matrix(300, 700, INT4MM_INT32), narrow = matrix(300, 700, INT4MM_INT8), view = {0}, to = {0};
  int32_t *values = wide.data;
  for (int i = 0; i < 300 * 700; i++) values[i] = i % 256 - 128;
  OK(int4mm_tensor_copy(&narrow, &wide, NULL));
  CHECK(((int8_t *)narrow.data)[300 * 700 - 1] == (300 * 700 - 1) % 256 - 128);
  OK(int4mm_tensor_fill_bytes(&narrow, 0x55, NULL));
  values[200 * 700 + 13] = -129, values[299 * 700] = INT32_MIN, values[200 * 700 + 699] = 300;
  FAILS(int4mm_tensor_copy(&narrow, &wide, NULL), INT4MM_ERR_VALUE,
        "src holds -129 at row 200, column 13 (counted from 0): int8 holds -128 to 127");
  for (int i = 0; i < 300 * 700; i++) failures += ((int8_t *)narrow.data)[i] != 0x55;
  OK(int4mm_tensor_narrow(&view, &wide, 1, 14, 600));
  OK(int4mm_tensor_narrow(&to, &narrow, 1, 14, 600));
  OK(int4mm_tensor_copy(&to, &view, NULL));
  int4mm_tensor_release(&to);
  int4mm_tensor v = vector(5, INT4MM_INT32), w = vector(5, INT4MM_INT8);
  OK(int4mm_tensor_fill_bytes(&v, 0, NULL));
  ((int32_t *)v.data)[3] = 128;
  FAILS(int4mm_tensor_copy(&w, &v, NULL), INT4MM_ERR_VALUE, "src holds 128 at index 3 (counted from 0): int8 holds");
  release_all((int4mm_tensor *[]){&wide, &narrow, &view, &v, &w, NULL});
}

/* ---- descriptors made by hand ---- */

/* What int4mm_tensor_wrap would refuse is refused when it comes in a descriptor. */
static void test_descriptors(void) {
  int4mm_tensor plain = matrix(3, 16, INT4MM_INT8), packed = matrix(3, 2, INT4MM_INT32), bad = packed;
  bad.data = (char *)packed.data + 2;
  FAILS(int4mm_pack(&bad, &plain, 1, INT4MM_OFFSET, NULL), INT4MM_ERR_ARGUMENT, "packed is [3, 2] int32 but its data");
  FAILS(int4mm_tensor_fill_bytes(&bad, 0, NULL), INT4MM_ERR_ARGUMENT, "not aligned");
  bad = packed, bad.layout = 2;
  FAILS(int4mm_pack(&bad, &plain, 1, INT4MM_OFFSET, NULL), INT4MM_ERR_ARGUMENT, "packed is not a tensor: layout is 2");
  operands o = make_operands(4, 4, 16, 1);
  int4mm_tensor out = {0};
  int4mm_matmul_args args = arguments(&o, &out);
  int32_t good = o.b.layout;
  o.b.layout = 2;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "b_packed is not a tensor: layout is 2");
  o.b.layout = INT4MM_PANELS, o.b.stride++;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "only int4mm_prepack makes those");
  o.b.layout = good, o.b.stride--;
  OK(int4mm_matmul(&args));
  release_all((int4mm_tensor *[]){&plain, &packed, &out, NULL});
  release_operands(&o);
}

/* A row that there is alone has any stride: overlap is a matter of elements. */
static void test_single_rows(void) {
  float words[40] = {0};
  int4mm_tensor whole = {0}, left = {0}, row = {0}, right = {0}, first = {0};
  OK(int4mm_tensor_wrap(&whole, words, 2, 5, 8, 8, INT4MM_FLOAT32, INT4MM_CPU));
  OK(int4mm_tensor_narrow(&left, &whole, 1, 0, 4));
  OK(int4mm_tensor_narrow(&row, &whole, 0, 2, 1));
  OK(int4mm_tensor_narrow(&right, &row, 1, 4, 4));
  OK(int4mm_tensor_narrow(&first, &left, 0, 2, 1));
  OK(int4mm_check_apart("right", &right, "left", &left));
  OK(int4mm_check_apart("left", &left, "right", &right));
  OK(int4mm_tensor_copy(&right, &first, NULL));
  FAILS(int4mm_check_apart("row", &row, "left", &left), INT4MM_ERR_ARGUMENT, "row overlaps left");
  FAILS(int4mm_check_apart("first", &first, "row", &row), INT4MM_ERR_ARGUMENT, "first overlaps row");
  int4mm_tensor last = {0};
  OK(int4mm_tensor_narrow(&last, &whole, 0, 5, 0));
  CHECK(last.data == whole.data);
}

/* Matrices without elements whose other extent no loop would ever finish. */
static void test_empty(void) {
  const int64_t many = (int64_t)1 << 55;
  uint64_t word = 0;
  alarm(100);
  for (int flip = 0; flip < 2; flip++) {
    int4mm_tensor words = {0}, eighth = {0}, bytes = {0}, floats = {0}, panels = {0}, none = vector(0, INT4MM_FLOAT32);
    int64_t rows = flip ? many : 0, cols = flip ? 0 : many;
    OK(int4mm_tensor_wrap(&words, &word, 2, rows, cols, cols, INT4MM_INT32, INT4MM_CPU));
    OK(int4mm_tensor_wrap(&eighth, &word, 2, rows / 8, cols / 8, cols / 8, INT4MM_INT32, INT4MM_CPU));
    OK(int4mm_tensor_wrap(&bytes, &word, 2, rows, cols, cols, INT4MM_INT8, INT4MM_CPU));
    OK(int4mm_tensor_wrap(&floats, &word, 2, rows, cols, cols, INT4MM_FLOAT32, INT4MM_CPU));
    OK(int4mm_prepack(&panels, &words, flip ? INT4MM_B_NK : INT4MM_B_KN, INT4MM_OFFSET));
    CHECK(panels.shape[0] == 0 && panels.shape[1] == many);
    int4mm_tensor_release(&panels);
    FAILS(int4mm_prepack(&panels, &words, flip ? INT4MM_B_KN : INT4MM_B_NK, INT4MM_OFFSET), INT4MM_ERR_ARGUMENT,
          "expected at most 4194303");
    OK(int4mm_pack(&words, &bytes, flip, INT4MM_OFFSET, NULL)); /* along the dimension of no length */
    OK(int4mm_unpack(&bytes, &words, flip, INT4MM_OFFSET, NULL));
    OK(int4mm_pack(&eighth, &bytes, !flip, INT4MM_OFFSET, NULL));
    int4mm_quantize_args q = {.src = &floats, .packed = &eighth, .scales = &none, .dim = !flip, .check = 1};
    OK(int4mm_quantize(&q));
    q.rotate = 1024, q.clip_mse = 1;
    OK(int4mm_quantize(&q));
    OK(int4mm_rotate(&floats, &floats, !flip, 4, NULL));
    OK(dequantize(&floats, &eighth, &none, !flip, INT4MM_TWOS_COMPLEMENT));
    OK(int4mm_tensor_copy(&floats, &words, NULL));
    OK(int4mm_tensor_copy(&bytes, &words, NULL));
    OK(int4mm_random(&words, 1, 1, 0, 0, NULL));
    OK(int4mm_tensor_fill_bytes(&words, 1, NULL));
    release_all((int4mm_tensor *[]){&words, &eighth, &bytes, &floats, &none, NULL});
  }
  alarm(0);
}

/* ---- argument errors of the product ---- */

static void test_errors(void) {
  operands o = make_operands(32, 64, 2048, 1);
  int4mm_tensor out = {0}, short_b = matrix(128, 64, INT4MM_INT32), three = vector(3, INT4MM_FLOAT32), gone = {0};
  const int4mm_matmul_args good = arguments(&o, &out);
  int4mm_matmul_args args = good;
  FAILS(int4mm_matmul(NULL), INT4MM_ERR_ARGUMENT, "args is NULL");
  args.b_packed = &short_b;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT,
        "b_packed is [128, 64] int32 but a_packed is [32, 256] int32: K/8 differs (256 and 128)");
  args = good, args.scale_a = &three;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT,
        "scale_a is [3] float32, expected [32] float32: one scale per row of a_packed");
  args = good, args.a_packed = &gone;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "a_packed was freed");
  args = good, args.scale_b = NULL;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "scale_b is NULL");
  args = good, args.a_packed = &o.scale_a;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "a_packed is [32] float32, expected a matrix");
  args = good, args.reserved[2] = 1;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "reserved[2] is 1, expected 0");
  args = good, args.encoding_b = 7;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "encoding_b is 7");
  args = good, args.layout_b = 2;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "layout_b is 2");
  args = good, args.out_dtype = INT4MM_INT8;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "out_dtype is int8");
  args = good, args.out_dtype = -9;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "out_dtype is -9");
  args = good, args.out = &short_b;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "out is [128, 64] int32, expected [32, 64] float16");
  args = good, args.kernel = "tiled";
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "kernel is \"tiled\" but the backend is the CPU");

  int4mm_tensor onto_b = {0}, long_a = {0}, long_b = {0};
  int32_t word = 0;
  OK(int4mm_tensor_wrap(&onto_b, (char *)o.b.data + 4096, 2, 32, 64, 64, INT4MM_FLOAT16, INT4MM_CPU));
  args = good, args.out = &onto_b;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "out overlaps b_packed");
  OK(int4mm_tensor_wrap(&long_a, &word, 2, 0, 4194304, 4194304, INT4MM_INT32, INT4MM_CPU));
  OK(int4mm_tensor_wrap(&long_b, &word, 2, 4194304, 0, 0, INT4MM_INT32, INT4MM_CPU));
  args = good, args.a_packed = &long_a, args.b_packed = &long_b;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "K may be at most 33554431");
  CHECK(out.rank == 0);
  release_all((int4mm_tensor *[]){&short_b, &three, &onto_b, &long_a, &long_b, NULL});
  release_operands(&o);
}

/* ---- packing ---- */

static void test_group_errors(void) {
  int4mm_tensor x = matrix(16, 96, INT4MM_FLOAT32), words = matrix(16, 12, INT4MM_INT32),
                bytes = matrix(16, 96, INT4MM_INT8), scales = matrix(16, 3, INT4MM_FLOAT32),
                small = matrix(16, 3, INT4MM_INT8), rows = vector(16, INT4MM_FLOAT32);
  const int4mm_quantize_args good = {.src = &x, .packed = &words, .scales = &scales, .group = 32, .dim = 1};
  int4mm_quantize_args args = good;
  OK(int4mm_random(&x, 5, 0, -3, 3, NULL));
  OK(int4mm_quantize(&args));
  args.zeros = &small;
  OK(int4mm_quantize(&args));
  args.factors = &small;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "zeros and factors are both given");
  args.factors = NULL, args.packed = &bytes;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "zeros is given but packed is [16, 96] int8: expected int4");
  args = good, args.group = 48;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "group is 48, expected a multiple of 32, or all of K = 96");
  args.group = -32;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "group is -32, expected");
  args = good, args.factors = &small;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "scales is [16, 3] float32, expected [16] float32: one per row");
  args.scales = &rows;
  OK(int4mm_quantize(&args));
  args.group = 0;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "factors is given but group is 0");
  args.factors = NULL, args.group = 64;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT,
        "scales is [16] float32, expected [16, 2] float32: one per group of");
  FAILS(int4mm_dequantize(NULL), INT4MM_ERR_ARGUMENT, "args is NULL");
  release_all((int4mm_tensor *[]){&x, &words, &bytes, &scales, &small, &rows, NULL});
}

static void test_quantize_errors(void) {
  int4mm_tensor x = matrix(16, 24, INT4MM_FLOAT32), words = matrix(16, 3, INT4MM_INT32),
                bytes = matrix(16, 24, INT4MM_INT8), narrow = matrix(16, 23, INT4MM_INT8),
                scales = vector(16, INT4MM_FLOAT32);
  const int4mm_quantize_args good = {.src = &x, .packed = &words, .scales = &scales, .dim = 1, .check = 1};
  int4mm_quantize_args args = good;
  OK(int4mm_random(&x, 5, 0, -3, 3, NULL));
  FAILS(int4mm_quantize(NULL), INT4MM_ERR_ARGUMENT, "args is NULL");
  args.packed = &bytes, args.rotate = 8, args.clip_mse = 1;
  OK(int4mm_quantize(&args));
  OK(dequantize(&x, &bytes, &scales, 1, INT4MM_TWOS_COMPLEMENT));
  args.packed = &narrow;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "packed is [16, 23] int8 but src is [16, 24] float32");
  FAILS(dequantize(&x, &narrow, &scales, 1, INT4MM_TWOS_COMPLEMENT), INT4MM_ERR_ARGUMENT,
        "packed is [16, 23] int8 but dst is [16, 24] float32");
  args = good, args.rotate = 12;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "rotate is 12, expected a power of two from 4 to 1024");
  args.rotate = 16;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "rotate is 16, which does not divide the 24 values along dim 1");
  args = good, args.clip = 1.5f;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "clip is 1.5, expected a number above 0 and up to 1");
  args.clip = NAN;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "clip is");
  args.clip = 0.5f, args.clip_mse = 1;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "clip is 0.5 beside clip_mse");
  args = good, args.clip_mse = 2;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "clip_mse is 2");
  FAILS(int4mm_rotate(&bytes, &x, 1, 8, NULL), INT4MM_ERR_ARGUMENT, "dst is [16, 24] int8");
  FAILS(int4mm_rotate(&x, &x, 2, 8, NULL), INT4MM_ERR_ARGUMENT, "dim is 2");
  FAILS(int4mm_rotate(&x, &x, 1, 2048, NULL), INT4MM_ERR_ARGUMENT, "block is 2048");
  FAILS(int4mm_rotate(&x, &x, 0, 32, NULL), INT4MM_ERR_ARGUMENT, "does not divide the 16 values along dim 0");
  int4mm_tensor shifted = {0};
  OK(int4mm_tensor_wrap(&shifted, (char *)x.data + 4, 2, 15, 24, 24, INT4MM_FLOAT32, INT4MM_CPU));
  int4mm_tensor top = {0};
  OK(int4mm_tensor_narrow(&top, &x, 0, 0, 15));
  FAILS(int4mm_rotate(&shifted, &top, 1, 8, NULL), INT4MM_ERR_ARGUMENT, "dst overlaps src");
  release_all((int4mm_tensor *[]){&x, &words, &bytes, &narrow, &scales, &shifted, &top, NULL});
}

static void test_packing(void) {
  int4mm_tensor plain = matrix(3, 13, INT4MM_INT8), packed = matrix(3, 2, INT4MM_INT32),
                back = matrix(3, 13, INT4MM_INT8);
  int4mm_tensor x = matrix(3, 13, INT4MM_FLOAT32), scales = vector(3, INT4MM_FLOAT32);
  for (int i = 0; i < 39; i++) ((int8_t *)plain.data)[i] = (int8_t)(i % 16 - 8);
  OK(int4mm_pack(&packed, &plain, 1, INT4MM_OFFSET, NULL));
  OK(int4mm_unpack(&back, &packed, 1, INT4MM_OFFSET, NULL));
  CHECK(!memcmp(plain.data, back.data, 39));
  CHECK(((uint32_t *)packed.data)[1] >> 20 == 0x888); /* padding nibbles mean zero */
  ((int8_t *)plain.data)[13 + 4] = 9;
  FAILS(int4mm_pack(&packed, &plain, 1, INT4MM_OFFSET, NULL), INT4MM_ERR_VALUE, "src holds 9 at row 1, column 4");
  FAILS(int4mm_pack(&packed, &plain, 0, INT4MM_OFFSET, NULL), INT4MM_ERR_ARGUMENT,
        "packed is [3, 2] int32 but src is [3, 13] int8: packed along dim 0 that is [1, 13]");
  FAILS(int4mm_pack(&packed, &plain, 2, INT4MM_OFFSET, NULL), INT4MM_ERR_ARGUMENT, "dim is 2");
  OK(int4mm_random(&x, 5, 0, -3, 3, NULL));
  int4mm_quantize_args args = {.src = &x, .packed = &packed, .scales = &scales, .dim = 1, .check = 1};
  OK(int4mm_quantize(&args));
  OK(dequantize(&x, &packed, &scales, 1, INT4MM_TWOS_COMPLEMENT));
  ((float *)x.data)[26] = NAN;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_VALUE, "src holds NaN at row 2, column 0");
  args.dim = 0;
  FAILS(int4mm_quantize(&args), INT4MM_ERR_ARGUMENT, "dim 0");
  test_quantize_errors();
  test_group_errors();
  release_all((int4mm_tensor *[]){&plain, &packed, &back, &x, &scales, NULL});
}

int main(void) {
  CHECK(!strcmp(int4mm_version(), INT4MM_VERSION));
  CHECK(!strcmp(int4mm_last_error(), ""));
  for (int i = 0; i < 40; i++) {
    uint32_t r[4];
    int4mm_philox(2, (uint64_t)i, 0, r);
    test_product(1 + r[0] % 40, 1 + r[1] % 40, 8 * (r[2] % 60), (uint64_t)i);
  }
  test_product(0, 5, 8, 1);
  test_product(5, 0, 8, 1);
  test_strides();
  test_memory();
  test_adopted();
  test_views_and_copies();
  test_narrowing();
  test_descriptors();
  test_single_rows();
  test_empty();
  test_errors();
  test_packing();
  CHECK(int4mm_allocated(INT4MM_CPU) == 0);
  return report();
}
