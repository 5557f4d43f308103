/*
 * Every call of the C ABI that takes tensors, with descriptors that no function of the library made: ranks, dtypes,
 * devices and layouts that there are not, sizes and strides up to INT64_MAX, data that is misaligned or NULL. A call
 * has to serve or to refuse; a refused one writes nothing. Worth running under sanitizers, which see what else it does.
 *
 *   hostile_descriptors [calls [seed]]    20000 calls by default, from seed 1
 */
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"
#include "core/dtype.h"
#include "random.h"

enum { TENSORS = 7, BYTES = 8192 };

/* The memory of each tensor, and what it held before the call. */
static _Alignas(64) uint8_t memory[TENSORS][BYTES + 64], before[TENSORS][BYTES + 64];

static int64_t extent(void) {
  static const int64_t hostile[] = {-1,      INT64_MIN, INT64_MAX, INT64_MAX / 2, INT64_MAX / 8 + 1, (int64_t)1 << 36,
                                    33554432};
  return below(6) ? below(below(2) ? 3 : 40) : hostile[below(sizeof hostile / sizeof *hostile)];
}

static int32_t one_of(const int32_t *values, int64_t count) {
  return values[below(4) ? 0 : below(count)];
}

/* Bytes from the first element to the last; -1 where there are none. */
static double span(const int4mm_tensor *t) {
  double rows = (double)t->shape[0], cols = (double)t->shape[1], size = (double)int4mm_dtype_size(t->dtype);
  if (rows <= 0 || cols <= 0) return -1;
  if (t->layout == INT4MM_PANELS) return rows * (cols + 31) * 4;
  return ((rows - 1) * (double)t->stride + cols) * size;
}

/* Whatever the fields say, elements that a call may touch are inside the tensor's memory. */
static void make(int4mm_tensor *t, int i, int32_t rank, int32_t dtype, int64_t rows, int64_t cols) {
  static const int32_t ranks[] = {-1, 0, 3, 1, 2}, dtypes[] = {-1, 0, 1, 2, 3, 4, 5, INT32_MIN};
  static const int32_t devices[] = {-1, -2, 64, INT32_MIN, INT32_MAX}, layouts[] = {0, 1, 2, -1};
  static const int64_t offsets[] = {0, 64, 1, 2, 4, 3};
  bool valid = below(2);
  *t = (int4mm_tensor){.data = memory[i] + (below(8) ? 0 : offsets[below(6)]), .device = INT4MM_CPU};
  t->rank = valid || below(8) ? rank : ranks[below(5)];
  t->dtype = valid || below(8) ? dtype : dtypes[below(8)];
  t->device = valid ? INT4MM_CPU : one_of(devices, 5);
  t->layout = valid ? INT4MM_ROWS : one_of(layouts, 4);
  t->shape[0] = valid || below(8) ? rows : extent();
  t->shape[1] = t->rank == 1 ? 1 : valid || below(8) ? cols : extent();
  t->stride = t->rank == 1 || below(2) ? t->shape[1]
              : below(3)               ? (int64_t)((uint64_t)t->shape[1] + (uint64_t)below(5))
                                       : extent();
  if (t->shape[0] == 1 && t->rank == 2 && below(3) == 0) t->stride = INT64_MAX / (8 * (1 + below(4)));
  if (below(20) == 0) t->data = NULL;
  if (below(6) == 0) t->packing = below(8) ? (int32_t)below(3) : (int32_t)next();
  if (below(2)) t->encoding = below(8) ? (int32_t)below(2) : (int32_t)next();
  if (below(4) == 0)
    t->packed_k = below(2) ? (int64_t)(8 * (uint64_t)t->shape[t->packing == 2] - (uint64_t)below(8)) : extent();
  if (span(t) > BYTES) t->shape[0] = 0;
}

static int served, refused;

static void judge(int32_t status, const char *what) {
  *(status ? &refused : &served) += 1;
  bool known = status >= INT4MM_OK && status <= INT4MM_ERR_UNAVAILABLE;
  bool unchanged = status != INT4MM_ERR_ARGUMENT || !memcmp(memory, before, sizeof memory);
  if (!known || !unchanged) printf("%s: status %d%s\n", what, (int)status, unchanged ? "" : ", memory was written");
  CHECK(known && unchanged);
  CHECK(status == INT4MM_OK || int4mm_last_error()[0]);
}

static int32_t block(void) {
  static const int32_t blocks[] = {4, 8, 16, 1024, 3, -4, INT32_MIN, INT32_MAX, 2048};
  return below(3) ? 4 << below(3) : blocks[below(9)];
}

static float clip(void) {
  static const float clips[] = {0, 1, 0.5f, 1e-40f, -1, 2, INFINITY, NAN};
  return clips[below(2) ? below(3) : below(8)];
}

static void pack_call(int kind) {
  int4mm_tensor plain, packed, scales;
  int64_t rows = extent(), cols = extent();
  int32_t dim = below(8) ? (int32_t)below(2) : (int32_t)next(),
          encoding = below(8) ? (int32_t)below(2) : (int32_t)next();
  static const int32_t integers[] = {INT4MM_INT8, INT4MM_INT32}, floats[] = {4, 2, 3};
  make(&plain, 0, 2, kind < 2 ? integers[below(2)] : floats[below(3)], rows, cols);
  int64_t r = plain.shape[0], c = plain.shape[1];
  if (kind >= 2 && below(2)) { /* int8 */
    make(&packed, 1, 2, INT4MM_INT8, r, c);
  } else {
    make(&packed, 1, 2, INT4MM_INT32, dim == 0 ? r / 8 + (r % 8 > 0) : r, dim == 0 ? c : c / 8 + (c % 8 > 0));
  }
  make(&scales, 2, 1, INT4MM_FLOAT32, dim == 0 ? c : r, 1);
  memcpy(before, memory, sizeof memory);
  if (kind == 0) judge(int4mm_pack(&packed, &plain, dim, encoding, NULL), "pack");
  if (kind == 1) judge(int4mm_unpack(&plain, &packed, dim, encoding, NULL), "unpack");
  int4mm_quantize_args q = {.src = &plain,
                            .packed = &packed,
                            .scales = &scales,
                            .dim = dim,
                            .encoding = encoding,
                            .rotate = below(3) ? 0 : block(),
                            .clip = clip(),
                            .clip_mse = (int32_t)below(2),
                            .check = 1};
  if (kind == 2) judge(int4mm_quantize(&q), "quantize");
  if (kind == 3) judge(dequantize(&plain, &packed, &scales, dim, encoding), "dequantize");
}

/* With groups, zero points and factors. Extents are short: a group is then the last, and one alone, or there are two.
 */
static void group_call(void) {
  static const int32_t floats[] = {4, 2, 3};
  static const int64_t groups[] = {64, 96, INT64_MAX - 31, 33, -32, INT64_MIN, INT64_MAX};
  int4mm_tensor plain, packed, scales, zeros, factors;
  int32_t dim = (int32_t)below(2), kind = (int32_t)below(4); /* 1: zero points, 2: factors, 3: both */
  int64_t group = below(8) ? 32 * below(2) : groups[below(7)];
  make(&plain, 0, 2, floats[below(3)], extent(), extent());
  int64_t shape[2] = {plain.shape[0], plain.shape[1]}, words[2] = {shape[0], shape[1]};
  words[dim] = words[dim] / 8 + (words[dim] % 8 > 0);
  if (below(4)) {
    make(&packed, 1, 2, INT4MM_INT32, words[0], words[1]);
  } else {
    make(&packed, 1, 2, INT4MM_INT8, shape[0], shape[1]);
  }
  int64_t lines = shape[1 - dim];
  if (group > 0) shape[dim] = shape[dim] / group + (shape[dim] % group > 0);
  bool by_line = group <= 0 || (kind == 2 && below(8));
  make(&scales, 2, by_line ? 1 : 2, INT4MM_FLOAT32, by_line ? lines : shape[0], by_line ? 1 : shape[1]);
  make(&zeros, 3, group <= 0 ? 1 : 2, INT4MM_INT8, group <= 0 ? lines : shape[0], group <= 0 ? 1 : shape[1]);
  make(&factors, 4, 2, INT4MM_INT8, shape[0], shape[1]);
  int4mm_quantize_args q = {.src = &plain, .packed = &packed, .scales = &scales, .group = group, .dim = dim};
  q.zeros = kind & 1 ? &zeros : NULL, q.factors = kind & 2 ? &factors : NULL;
  q.rotate = below(3) ? 0 : block(), q.clip = below(2) ? 0 : clip(), q.clip_mse = (int32_t)below(2);
  memcpy(before, memory, sizeof memory);
  judge(int4mm_quantize(&q), "quantize in groups");
  memcpy(before, memory, sizeof memory);
  int4mm_dequantize_args back = {.dst = &plain, .packed = &packed, .scales = &scales, .group = group, .dim = dim};
  back.zeros = q.zeros, back.factors = q.factors;
  judge(int4mm_dequantize(&back), "dequantize in groups");
}

static void rotate_call(void) {
  static const int32_t floats[] = {4, 2, 3};
  int4mm_tensor dst, src;
  int32_t dim = below(8) ? (int32_t)below(2) : (int32_t)next();
  make(&src, 0, 2, floats[below(3)], below(2) ? 4 * below(6) : extent(), below(2) ? 4 * below(6) : extent());
  make(&dst, 1, 2, floats[below(3)], src.shape[0], src.shape[1]);
  memcpy(before, memory, sizeof memory);
  judge(int4mm_rotate(below(2) ? &dst : &src, &src, dim, block(), NULL), "rotate");
}

/* The extents of a vector's or a matrix's columns, and of its rows. */
static int64_t columns_of(const int4mm_tensor *t) {
  return t->shape[t->rank == 2];
}
static int64_t rows_of(const int4mm_tensor *t) {
  return t->rank == 2 ? t->shape[0] : 1;
}

static void map_call(void) {
  static const int32_t floats[] = {4, 2, 3};
  int4mm_tensor src, other, out;
  make(&src, 0, 1 + (int32_t)below(2), floats[below(3)], extent(), extent());
  if (below(2)) {
    make(&other, 1, src.rank, floats[below(3)], src.shape[0], src.shape[1]);
  } else {
    make(&other, 1, 1, floats[below(3)], columns_of(&src), 1);
  }
  make(&out, 2, src.rank, floats[below(3)], src.shape[0], src.shape[1]);
  int4mm_map_args args = {.src = &src, .out = below(3) ? &out : &src, .number = clip(), .op = (int32_t)below(12) - 1};
  if (args.op >= INT4MM_ADD ? below(4) : !below(8)) args.other = &other;
  if (below(20) == 0) args.op = (int32_t)next();
  memcpy(before, memory, sizeof memory);
  judge(int4mm_map(&args), "map");
}

static void rowwise_call(void) {
  static const int32_t floats[] = {4, 2, 3};
  int4mm_tensor src, weight, bias, out;
  int4mm_rowwise_args args = {.src = &src, .out = &out, .eps = clip(), .op = (int32_t)below(6) - 1};
  make(&src, 0, 1 + (int32_t)below(2), floats[below(3)], extent(), extent());
  make(&weight, 1, 1, floats[below(3)], columns_of(&src), 1);
  make(&bias, 2, 1, floats[below(3)], columns_of(&src), 1);
  if (args.op == INT4MM_ARGMAX) {
    make(&out, 3, 1, INT4MM_INT32, rows_of(&src), 1);
  } else {
    make(&out, 3, src.rank, floats[below(3)], src.shape[0], src.shape[1]);
    if (below(4) == 0) args.out = &src;
  }
  bool norm = args.op == INT4MM_LAYER_NORM || args.op == INT4MM_RMS_NORM;
  if (norm ? below(2) : !below(8)) args.weight = &weight;
  if (args.op == INT4MM_LAYER_NORM ? below(2) : !below(8)) args.bias = &bias;
  if (below(20) == 0) args.op = (int32_t)next();
  memcpy(before, memory, sizeof memory);
  judge(int4mm_rowwise(&args), "rowwise");
}

static void rearrange_call(void) {
  int4mm_tensor src, dst, indices;
  int32_t dim = below(8) ? (int32_t)below(2) : (int32_t)next(), dtype = (int32_t)below(5);
  make(&src, 0, below(8) ? 2 : 1, dtype, extent(), extent());
  make(&dst, 1, 2, dtype, src.shape[1], src.shape[0]);
  memcpy(before, memory, sizeof memory);
  judge(int4mm_transpose(&dst, &src, NULL), "transpose");
  make(&indices, 2, 1, INT4MM_INT32, extent(), 1);
  for (int64_t i = 0; i < BYTES / 4; i++)
    ((int32_t *)memory[2])[i] = below(200) ? (int32_t)below(src.shape[dim == 1]) : (int32_t)next();
  int64_t n = indices.shape[0];
  make(&dst, 1, src.rank, dtype, dim == 1 ? src.shape[0] : n, dim == 1 ? n : src.shape[1]);
  memcpy(before, memory, sizeof memory);
  int32_t status = int4mm_gather(&dst, &src, &indices, dim, NULL);
  CHECK(status != INT4MM_ERR_VALUE || !memcmp(memory, before, sizeof memory));
  judge(status, "gather");
}

static void tensor_call(void) {
  int4mm_tensor a, b, made = {0};
  make(&a, 0, 1 + (int32_t)below(2), (int32_t)below(5), extent(), extent());
  make(&b, 1, a.rank, below(2) ? a.dtype : (int32_t)below(5), a.shape[0], a.shape[1]);
  memcpy(before, memory, sizeof memory);
  judge(int4mm_tensor_copy(&a, &b, NULL), "copy");
  memcpy(before, memory, sizeof memory);
  judge(int4mm_random(&a, next(), next(), -1, 1, NULL), "random");
  memcpy(before, memory, sizeof memory);
  judge(int4mm_tensor_fill_bytes(&a, 7, NULL), "fill");
  memcpy(before, memory, sizeof memory);
  judge(int4mm_tensor_narrow(&made, &a, (int32_t)below(2), below(2) ? a.shape[0] : extent(), below(2) ? 0 : extent()),
        "narrow");
  int4mm_tensor_release(&made);
  judge(int4mm_tensor_view(&made, &a, 1 + (int32_t)below(2), below(2) ? a.shape[1] : extent(),
                           below(2) ? a.shape[0] : extent()),
        "view");
  CHECK(!made.rank || made.shape[0] * made.shape[1] == a.shape[0] * a.shape[1]);
  int4mm_tensor_release(&made);
  judge(int4mm_prepack(&made, &b, (int32_t)below(2), (int32_t)below(2)), "prepack");
  int4mm_tensor_release(&made);
}

static const int32_t outs[] = {4, 2, 3}; /* dtypes of floats */

/* Arguments over these tensors, the sixth of which is out, or there is none and `allocated` receives it. */
static int4mm_matmul_args over(int4mm_tensor *t, int4mm_tensor *allocated, bool nk) {
  return (int4mm_matmul_args){.a_packed = &t[0],
                              .b_packed = &t[1],
                              .scale_a = &t[2],
                              .scale_b = &t[3],
                              .bias = below(2) ? &t[4] : NULL,
                              .out = t[5].rank && below(2) ? &t[5] : allocated,
                              .out_dtype = outs[below(3)],
                              .layout_b = nk,
                              .backend = INT4MM_USE_CPU}; /* no GPU in this test */
}

static void matmul_call(void) {
  int4mm_tensor t[TENSORS], allocated = {0};
  int64_t M = below(2) ? 1 : below(70), N = below(2) ? 1 : below(70), k8 = below(3) ? below(5) : extent();
  bool nk = below(2);
  make(&t[0], 0, 2, INT4MM_INT32, M, k8);
  make(&t[1], 1, 2, INT4MM_INT32, nk ? N : k8, nk ? k8 : N);
  make(&t[2], 2, 1, INT4MM_FLOAT32, M, 1);
  make(&t[3], 3, 1, INT4MM_FLOAT32, N, 1);
  make(&t[4], 4, 1, INT4MM_FLOAT32, N, 1);
  make(&t[5], 5, 2, outs[below(3)], M, N);
  int4mm_matmul_args args = over(t, &allocated, nk);
  args.encoding_a = (int32_t)below(2);
  int32_t *options[] = {&args.out_dtype, &args.encoding_a, &args.encoding_b, &args.layout_b, &args.strassen};
  if (below(10) == 0) *options[below(5)] = (int32_t)next();
  memcpy(before, memory, sizeof memory);
  int4mm_plan plan;
  judge(int4mm_matmul_plan(&args, &plan), "plan");
  judge(int4mm_matmul(&args), "matmul");
  int4mm_tensor_release(&allocated);
}

static void grouped_call(void) {
  int4mm_tensor t[TENSORS], allocated = {0};
  int64_t E = 1 + below(4), M = below(40), N = 1 + below(20), k8 = below(3) ? below(5) : extent();
  bool nk = below(2), with_offsets = below(4);
  make(&t[0], 0, 2, INT4MM_INT32, below(8) ? M : extent(), k8);
  make(&t[1], 1, 2, INT4MM_INT32, (int64_t)((uint64_t)E * (uint64_t)(nk ? N : k8)), nk ? k8 : N);
  make(&t[2], 2, 1, INT4MM_FLOAT32, M, 1);
  make(&t[3], 3, 2, INT4MM_FLOAT32, E, N);
  make(&t[4], 4, 2, INT4MM_FLOAT32, E, N);
  make(&t[5], 5, 2, outs[below(3)], M, N);
  make(&t[6], 6, 1, INT4MM_INT32, below(8) ? E + 1 : extent(), 1);
  int32_t offset = 0;
  for (int64_t i = 0; i < BYTES / 4; i++)
    ((int32_t *)memory[6])[i] =
        below(200) ? (offset += i && offset < M ? (int32_t)below(M - offset + 1) : 0) : (int32_t)next();
  int4mm_matmul_args args = over(t, &allocated, nk);
  int64_t experts = with_offsets && below(2) ? 0 : below(8) ? E : extent();
  memcpy(before, memory, sizeof memory);
  int4mm_plan plan;
  judge(int4mm_grouped_matmul_plan(&args, with_offsets ? &t[6] : NULL, experts, &plan), "grouped plan");
  judge(int4mm_grouped_matmul(&args, with_offsets ? &t[6] : NULL, experts), "grouped");
  int4mm_tensor_release(&allocated);
}

int main(int argc, char **argv) {
  int calls = argc > 1 ? atoi(argv[1]) : 20000;
  state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  for (int i = 0; i < TENSORS; i++) memset(memory[i], 0x11 * i, sizeof memory[i]);
  for (int i = 0; i < calls; i++) {
    OK(int4mm_set_cpu_isa(int4mm_cpu_isa_at((int32_t)(i % 5)) ? int4mm_cpu_isa_at((int32_t)(i % 5)) : NULL));
    int kind = (int)below(12);
    if (kind < 4) pack_call(kind);
    if (kind == 4) tensor_call();
    if (kind == 5) matmul_call();
    if (kind == 6) rotate_call();
    if (kind == 7) map_call();
    if (kind == 8) rowwise_call();
    if (kind == 9) rearrange_call();
    if (kind == 10) group_call();
    if (kind == 11) grouped_call();
  }
  CHECK(!int4mm_cpu_isa_at(INT32_MIN) && !int4mm_cpu_isa_at(-1) && !int4mm_cpu_isa_at(INT32_MAX));
  CHECK(int4mm_allocated(INT4MM_CPU) == 0);
  printf("hostile_descriptors: %d calls served, %d refused\n", served, refused);
  CHECK(served > calls / 10 && refused > calls / 10);
  return report();
}
