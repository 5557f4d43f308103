/*
 * Everything a device does, bit for bit against the CPU: products by every kernel, packing, quantising, copies, and the
 * errors of mixed devices. Uses the library that INT4MM_CUDA_LIBRARY names: the real one on a machine with a GPU, else,
 * by default, fake_cuda.so beside this program, which plays a device in host memory.
 *
 *   device_smoke [products] [seed]
 */
#include "device.h"

/* ---- products ---- */

enum { OPERANDS = 5 };

typedef struct operands {
  int4mm_tensor t[OPERANDS]; /* a_packed, b_packed, scale_a, scale_b, bias */
} operands;

static operands on_device(const operands *o, int32_t device) {
  operands copy;
  for (int i = 0; i < OPERANDS; i++) copy.t[i] = moved(&o->t[i], device);
  return copy;
}

static void release(operands *o) {
  for (int i = 0; i < OPERANDS; i++) int4mm_tensor_release(&o->t[i]);
}

static int4mm_matmul_args arguments(operands *o, int4mm_tensor *out, int32_t backend) {
  return (int4mm_matmul_args){.a_packed = &o->t[0],
                              .b_packed = &o->t[1],
                              .scale_a = &o->t[2],
                              .scale_b = &o->t[3],
                              .out = out,
                              .out_dtype = INT4MM_FLOAT16,
                              .backend = backend};
}

/* Random operands; sometimes all -8, and scales that are zero, subnormal, huge, infinite and NaN. */
static operands draw_operands(int64_t M, int64_t N, int64_t K, bool nk) {
  static const float odd[] = {0.0f, -0.0f, -1.0f, 1e-40f, 1e30f, -INFINITY, NAN, 0x1p-24f, 65504.0f};
  operands o = {{make(M, K / 8, INT4MM_INT32, INT4MM_CPU),
                 nk ? make(N, K / 8, INT4MM_INT32, INT4MM_CPU) : make(K / 8, N, INT4MM_INT32, INT4MM_CPU),
                 make(M, VECTOR, INT4MM_FLOAT32, INT4MM_CPU), make(N, VECTOR, INT4MM_FLOAT32, INT4MM_CPU),
                 make(N, VECTOR, INT4MM_FLOAT32, INT4MM_CPU)}};
  bool least = draw(10) == 0;
  for (int i = 0; i < OPERANDS; i++) {
    OK(int4mm_random(&o.t[i], seed + drawn, (uint32_t)i, -0.05f, 0.1f, NULL));
    if (i < 2 && least) OK(int4mm_tensor_fill_bytes(&o.t[i], 0x88, NULL));
    if (i >= 2 && draw(3) == 0)
      for (int64_t n = 0; n < o.t[i].shape[0]; n += 1 + draw(4)) ((float *)o.t[i].data)[n] = odd[draw(9)];
  }
  return o;
}

/* One kernel (NULL: the best) into a poisoned output. */
static void check_kernel(operands *gpu, const int4mm_matmul_args *like, const int4mm_tensor *expected,
                         const char *kernel, void *stream) {
  int4mm_tensor out = make(expected->shape[0], expected->shape[1], expected->dtype, 0);
  int4mm_matmul_args args = *like;
  args.a_packed = &gpu->t[0], args.b_packed = &gpu->t[1], args.scale_a = &gpu->t[2], args.scale_b = &gpu->t[3];
  args.bias = like->bias ? &gpu->t[4] : NULL;
  args.out = &out, args.kernel = kernel, args.stream = stream, args.backend = INT4MM_USE_CUDA;
  OK(int4mm_tensor_fill_bytes(&out, 0xff, NULL));
  int32_t status = int4mm_matmul(&args);
  if (status != INT4MM_ERR_UNSUPPORTED || !kernel) {
    OK(status);
    OK(int4mm_stream_synchronize(0, stream));
    bool equal = same(expected, &out);
    if (!equal)
      printf("%s: M = %" PRId64 ", N = %" PRId64 ", K = %" PRId64 ", dtype %d, encodings %d %d, layout %d\n",
             kernel ? kernel : "best", expected->shape[0], expected->shape[1], 8 * gpu->t[0].shape[1],
             (int)expected->dtype, (int)args.encoding_a, (int)args.encoding_b, (int)args.layout_b);
    CHECK(equal);
  }
  int4mm_tensor_release(&out);
}

static void test_product(int64_t M, int64_t N, int64_t K, void *stream) {
  bool nk = draw(2) == 0;
  operands cpu = draw_operands(M, N, K, nk), gpu = on_device(&cpu, 0);
  int4mm_tensor expected = {0};
  int4mm_matmul_args args = arguments(&cpu, &expected, INT4MM_USE_CPU);
  args.layout_b = nk, args.encoding_a = (int32_t)draw(2), args.encoding_b = (int32_t)draw(2);
  args.out_dtype = INT4MM_FLOAT16 + (int32_t)draw(3);
  if (draw(2)) args.bias = &cpu.t[4];
  OK(int4mm_matmul(&args));
  check_kernel(&gpu, &args, &expected, NULL, stream);
  for (int32_t i = 0; int4mm_cuda_kernel_at(i); i++)
    check_kernel(&gpu, &args, &expected, int4mm_cuda_kernel_at(i), stream);
  int4mm_tensor staged = {0};
  int4mm_matmul_args over = args; /* CPU operands given to the device */
  over.backend = INT4MM_USE_CUDA, over.out = &staged;
  OK(int4mm_matmul(&over));
  CHECK(staged.device == INT4MM_CPU && same(&expected, &staged));
  int4mm_tensor_release(&staged);
  int4mm_tensor_release(&expected);
  release(&cpu);
  release(&gpu);
}

static void test_products(int64_t count) {
  void *stream;
  OK(int4mm_stream_create(0, &stream));
  for (int64_t i = 0; i < count; i++) {
    int64_t big = draw(10) == 0;
    test_product(draw(big ? 300 : 70), draw(big ? 500 : 70), 8 * draw(draw(4) ? 40 : 513), draw(2) ? stream : NULL);
  }
  test_product(1, 3, 200000, NULL);
  test_product(17, 33, 8 * 40000, stream);
  OK(int4mm_stream_destroy(0, stream));
}

/* The largest K, all -8: the accumulator reaches 2^31 - 512. */
static void test_largest_k(void) {
  int64_t K = INT4MM_MAX_K / 8 * 8;
  operands cpu = draw_operands(1, 1, K, false);
  for (int i = 0; i < 2; i++) OK(int4mm_tensor_fill_bytes(&cpu.t[i], 0x88, NULL));
  for (int i = 2; i < 4; i++) *(float *)cpu.t[i].data = 1.0f;
  operands gpu = on_device(&cpu, 0);
  int4mm_tensor expected = make(1, 1, INT4MM_FLOAT32, INT4MM_CPU);
  *(float *)expected.data = (float)(64 * K);
  int4mm_matmul_args args = arguments(&gpu, &expected, INT4MM_USE_CUDA);
  args.out_dtype = INT4MM_FLOAT32;
  check_kernel(&gpu, &args, &expected, NULL, NULL);
  for (int32_t i = 0; int4mm_cuda_kernel_at(i); i++)
    check_kernel(&gpu, &args, &expected, int4mm_cuda_kernel_at(i), NULL);
  int4mm_tensor_release(&expected);
  release(&cpu);
  release(&gpu);
}

/* ---- packing, quantising, numbers ---- */

static void test_pack(void) {
  int64_t rows = draw(50) + 1, cols = draw(50) + 1;
  int32_t dim = (int32_t)draw(2), encoding = (int32_t)draw(2), dtype = draw(2) ? INT4MM_INT8 : INT4MM_INT32;
  int64_t packed_rows = dim ? rows : (rows + 7) / 8, packed_cols = dim ? (cols + 7) / 8 : cols;
  int4mm_tensor words = make(packed_rows, packed_cols, INT4MM_INT32, INT4MM_CPU);
  OK(int4mm_random(&words, seed + drawn, 7, 0, 0, NULL));
  int4mm_tensor plain = make(rows, cols, dtype, INT4MM_CPU), words_gpu = moved(&words, 0);
  int4mm_tensor plain_gpu = make(rows, cols, dtype, 0), again = make(packed_rows, packed_cols, INT4MM_INT32, 0);
  OK(int4mm_unpack(&plain, &words, dim, encoding, NULL));
  OK(int4mm_unpack(&plain_gpu, &words_gpu, dim, encoding, NULL));
  CHECK(same(&plain, &plain_gpu));
  OK(int4mm_pack(&words, &plain, dim, encoding, NULL));
  OK(int4mm_pack(&again, &plain_gpu, dim, encoding, NULL));
  CHECK(same(&words, &again));
  int64_t r = draw(rows), c = draw(cols);
  if (dtype == INT4MM_INT8)
    ((int8_t *)plain.data)[r * plain.stride + c] = -9;
  else
    ((int32_t *)plain.data)[r * plain.stride + c] = -9;
  OK(int4mm_tensor_copy(&plain_gpu, &plain, NULL));
  char where[80];
  snprintf(where, sizeof where, "src holds -9 at row %" PRId64 ", column %" PRId64, r, c);
  FAILS(int4mm_pack(&again, &plain_gpu, dim, encoding, NULL), INT4MM_ERR_VALUE, where);
  int4mm_tensor *all[] = {&words, &plain, &words_gpu, &plain_gpu, &again};
  for (int i = 0; i < 5; i++) int4mm_tensor_release(all[i]);
}

static void test_quantize(void) {
  static const float factors[] = {1.0f, 0.0f, 1e-42f, 5e37f};
  int64_t rows = draw(70) + 1, cols = draw(70) + 1;
  int32_t dim = (int32_t)draw(2), encoding = (int32_t)draw(2), dtype = INT4MM_FLOAT16 + (int32_t)draw(3);
  int64_t packed_rows = dim ? rows : (rows + 7) / 8, packed_cols = dim ? (cols + 7) / 8 : cols;
  float factor = factors[dtype == INT4MM_FLOAT32 ? draw(4) : 0];
  int4mm_tensor numbers = make(rows, cols, INT4MM_FLOAT32, INT4MM_CPU), x = make(rows, cols, dtype, INT4MM_CPU);
  OK(int4mm_random(&numbers, seed + drawn, 8, -2 * factor, 3 * factor, NULL));
  OK(int4mm_tensor_copy(&x, &numbers, NULL));
  int4mm_tensor words = make(packed_rows, packed_cols, INT4MM_INT32, INT4MM_CPU),
                scales = make(dim ? rows : cols, VECTOR, INT4MM_FLOAT32, INT4MM_CPU);
  int4mm_tensor x_gpu = moved(&x, 0), words_gpu = moved(&words, 0), scales_gpu = moved(&scales, 0);
  int4mm_quantize_args here = {
      .src = &x, .packed = &words, .scales = &scales, .dim = dim, .encoding = encoding, .check = 1};
  int4mm_quantize_args there = {
      .src = &x_gpu, .packed = &words_gpu, .scales = &scales_gpu, .dim = dim, .encoding = encoding};
  OK(int4mm_quantize(&here));
  there.check = (int32_t)draw(2);
  OK(int4mm_quantize(&there));
  CHECK(same(&words, &words_gpu) && same(&scales, &scales_gpu));
  OK(dequantize(&x, &words, &scales, dim, encoding));
  OK(dequantize(&x_gpu, &words_gpu, &scales_gpu, dim, encoding));
  CHECK(same(&x, &x_gpu));
  *(float *)numbers.data = NAN;
  OK(int4mm_tensor_copy(&x, &numbers, NULL));
  OK(int4mm_tensor_copy(&x_gpu, &x, NULL));
  there.check = 1;
  FAILS(int4mm_quantize(&there), INT4MM_ERR_VALUE, "src holds NaN at row 0, column 0");
  int4mm_tensor *all[] = {&numbers, &x, &words, &scales, &x_gpu, &words_gpu, &scales_gpu};
  for (int i = 0; i < 7; i++) int4mm_tensor_release(all[i]);
}

static void test_random(void) {
  int32_t dtype = draw(2) ? INT4MM_INT32 : INT4MM_FLOAT32;
  int4mm_tensor cpu = make(draw(40) + 1, draw(40) + 1, dtype, INT4MM_CPU), gpu = moved(&cpu, 0);
  OK(int4mm_random(&cpu, seed, 11, -1.5f, 2.5f, NULL));
  OK(int4mm_random(&gpu, seed, 11, -1.5f, 2.5f, NULL));
  CHECK(same(&cpu, &gpu));
  int4mm_tensor_release(&cpu);
  int4mm_tensor_release(&gpu);
}

/* A weight prepacked on the device gives the same product whatever its source was. */
static void test_prepack(void) {
  operands cpu = draw_operands(9, 21, 160, true), gpu = on_device(&cpu, 0);
  int4mm_tensor expected = {0}, kn = {0}, again = {0}, panels = {0};
  int4mm_matmul_args args = arguments(&cpu, &expected, INT4MM_USE_CPU);
  args.layout_b = INT4MM_B_NK, args.encoding_b = INT4MM_OFFSET;
  OK(int4mm_matmul(&args));
  OK(int4mm_prepack(&kn, &gpu.t[1], INT4MM_B_NK, INT4MM_OFFSET));
  OK(int4mm_tensor_mark(&kn, INT4MM_UNMARKED, 0, 0));
  OK(int4mm_prepack(&again, &kn, INT4MM_B_KN, INT4MM_OFFSET)); /* flips a KN weight, and the next flips it back */
  OK(int4mm_tensor_mark(&again, INT4MM_UNMARKED, 0, 0));
  int4mm_tensor_release(&gpu.t[1]);
  OK(int4mm_prepack(&gpu.t[1], &again, INT4MM_B_KN, INT4MM_OFFSET));
  args.layout_b = INT4MM_B_KN, args.encoding_b = INT4MM_TWOS_COMPLEMENT;
  check_kernel(&gpu, &args, &expected, NULL, NULL);
  OK(int4mm_prepack(&panels, &cpu.t[1], INT4MM_B_NK, INT4MM_OFFSET));
  args.b_packed = &panels, args.backend = INT4MM_USE_CUDA;
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "b_packed is prepacked for the CPU");
  FAILS(int4mm_tensor_copy(&kn, &panels, NULL), INT4MM_ERR_ARGUMENT, "src is prepacked");
  int4mm_tensor *all[] = {&expected, &kn, &again, &panels};
  for (int i = 0; i < 4; i++) int4mm_tensor_release(all[i]);
  release(&cpu);
  release(&gpu);
}

/* ---- places ---- */

static void test_places(void) {
  int32_t devices = 0;
  operands cpu = draw_operands(8, 16, 64, false), gpu = on_device(&cpu, 0);
  int4mm_tensor out = {0}, on_gpu = make(8, 16, INT4MM_FLOAT16, 0), on_cpu = make(8, 16, INT4MM_FLOAT16, INT4MM_CPU);
  int4mm_matmul_args args = arguments(&gpu, &on_cpu, INT4MM_USE_CUDA);
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "out is on cpu but a_packed is on cuda:0");
  args.out = &out, args.scale_b = &cpu.t[3];
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "scale_b is on cpu but a_packed is on cuda:0");
  args = arguments(&gpu, &out, INT4MM_USE_CPU);
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "a_packed is on cuda:0 but the backend is the CPU");
  args = arguments(&gpu, &out, INT4MM_AUTO), args.kernel = "fastest";
  FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "kernel is \"fastest\"");
  args.kernel = NULL;
  OK(int4mm_matmul(&args));
  CHECK(out.device == 0 && out.dtype == INT4MM_FLOAT16);
  int4mm_matmul_args to_gpu = arguments(&cpu, &on_gpu, INT4MM_AUTO), on_host = arguments(&cpu, &on_cpu, INT4MM_AUTO);
  OK(int4mm_matmul(&to_gpu));
  OK(int4mm_matmul(&on_host));
  CHECK(same(&on_cpu, &on_gpu) && same(&on_cpu, &out));
  int4mm_plan plan;
  OK(int4mm_matmul_plan(&to_gpu, &plan));
  CHECK(plan.device == 0);
  OK(int4mm_matmul_plan(&on_host, &plan));
  CHECK(plan.device == INT4MM_CPU); /* too small to copy over */
  OK(int4mm_cuda_device_count(&devices));
  if (devices > 1) {
    operands second = on_device(&gpu, 1);
    int4mm_tensor there = {0};
    args = arguments(&gpu, &out, INT4MM_AUTO), args.b_packed = &second.t[1];
    FAILS(int4mm_matmul(&args), INT4MM_ERR_ARGUMENT, "b_packed is on cuda:1 but a_packed is on cuda:0");
    args = arguments(&second, &there, INT4MM_AUTO);
    OK(int4mm_matmul(&args));
    CHECK(there.device == 1 && same(&on_cpu, &there));
    int4mm_tensor_release(&there);
    release(&second);
  }
  int4mm_tensor *all[] = {&out, &on_gpu, &on_cpu};
  for (int i = 0; i < 3; i++) int4mm_tensor_release(all[i]);
  release(&cpu);
  release(&gpu);
}

/* ---- layers ---- */

/* What a layer is made of: x, the weight, its scales, bias, residual. */
enum { LAYER_TENSORS = 5 };

static int4mm_linear_args layer_arguments(int4mm_tensor *t, int4mm_tensor *out, const int4mm_linear_args *like) {
  int4mm_linear_args args = *like;
  args.x = &t[0], args.b_packed = &t[1], args.scale_b = &t[2], args.out = out;
  args.bias = t[3].rank ? &t[3] : NULL, args.residual = t[4].rank ? &t[4] : NULL;
  return args;
}

/* One layer, by every kernel that serves its shape, into poisoned outputs. */
static void test_layer(void) {
  static const int32_t blocks[] = {0, 4, 16, 64, 256, 512, 1024},
                       floats[] = {INT4MM_FLOAT32, INT4MM_FLOAT16, INT4MM_BFLOAT16};
  int32_t block = blocks[draw(7)];
  int64_t M = draw(3) ? 1 + draw(9) : 1 + draw(200), N = 1 + draw(300);
  int64_t K = block ? block * (1 + draw(1 + 2048 / block)) : 8 * (1 + draw(200));
  bool nk = draw(2);
  int4mm_tensor cpu[LAYER_TENSORS] = {make(M, K, floats[draw(3)], INT4MM_CPU),
                                      nk ? make(N, (K + 7) / 8, INT4MM_INT32, INT4MM_CPU)
                                         : make((K + 7) / 8, N, INT4MM_INT32, INT4MM_CPU),
                                      make(N, VECTOR, INT4MM_FLOAT32, INT4MM_CPU)};
  if (draw(2)) cpu[3] = make(N, VECTOR, INT4MM_FLOAT32, INT4MM_CPU);
  if (draw(2)) cpu[4] = make(M, N, floats[draw(3)], INT4MM_CPU);
  int4mm_tensor gpu[LAYER_TENSORS] = {{0}}, expected = {0};
  for (int i = 0; i < LAYER_TENSORS; i++) {
    if (!cpu[i].rank) continue;
    int4mm_tensor wide = make(cpu[i].shape[0], cpu[i].rank == 1 ? VECTOR : cpu[i].shape[1],
                              i == 1 ? INT4MM_INT32 : INT4MM_FLOAT32, INT4MM_CPU);
    OK(int4mm_random(&wide, seed + drawn, (uint32_t)i, -1.0f, 1.0f, NULL));
    OK(int4mm_tensor_copy(&cpu[i], &wide, NULL));
    int4mm_tensor_release(&wide);
    gpu[i] = moved(&cpu[i], 0);
  }
  const int4mm_linear_args like = {.out_dtype = floats[draw(3)],
                                   .layout_b = nk ? INT4MM_B_NK : INT4MM_B_KN,
                                   .rotate = block,
                                   .clip = draw(2) ? 0.8f : 0.0f,
                                   .activation = (int32_t)draw(5)};
  int4mm_linear_args args = layer_arguments(cpu, &expected, &like);
  OK(int4mm_linear(&args));
  for (int32_t k = -1; k < 0 || int4mm_cuda_kernel_at(k); k++) {
    int4mm_tensor out = make(M, N, like.out_dtype, 0);
    OK(int4mm_tensor_fill_bytes(&out, 0xa5, NULL));
    args = layer_arguments(gpu, &out, &like);
    args.kernel = k < 0 ? NULL : int4mm_cuda_kernel_at(k);
    int32_t status = int4mm_linear(&args);
    CHECK(status == INT4MM_OK || (k >= 0 && status == INT4MM_ERR_UNSUPPORTED));
    if (status == INT4MM_OK) CHECK(same(&expected, &out));
    int4mm_tensor_release(&out);
  }
  int4mm_tensor_release(&expected);
  for (int i = 0; i < LAYER_TENSORS; i++) int4mm_tensor_release(&cpu[i]), int4mm_tensor_release(&gpu[i]);
}

static void test_memory(void) {
  int4mm_gpu_info info;
  int4mm_tensor t = {0};
  OK(int4mm_cuda_device_info(0, &info));
  printf("%s, sm_%d, %d SMs\n", info.name, (int)info.arch, (int)info.sms);
  FAILS(int4mm_tensor_alloc(&t, 2, info.total_memory, 2, INT4MM_INT8, 0), INT4MM_ERR_MEMORY, "out of memory on cuda:0");
  FAILS(int4mm_tensor_alloc(&t, 2, 1, 1, INT4MM_INT8, 63), INT4MM_ERR_ARGUMENT, "there is no device cuda:63");
  CHECK(t.rank == 0 && int4mm_allocated(0) == 0);
  for (int i = 0; i < 1000; i++) { /* more than the device holds, were it not given back */
    OK(int4mm_tensor_alloc(&t, 2, info.total_memory / 256, 1, INT4MM_INT8, 0));
    CHECK(int4mm_allocated(0) == info.total_memory / 256);
    int4mm_tensor_release(&t);
  }
}

int main(int argc, char **argv) {
  int64_t products = argc > 1 ? strtoll(argv[1], NULL, 10) : 60;
  if (argc > 2) seed = strtoull(argv[2], NULL, 10);
  if (!open_device(argv[0])) return 1;
  test_memory();
  test_products(products);
  test_largest_k();
  for (int i = 0; i < 20; i++) test_pack(), test_quantize(), test_random();
  for (int i = 0; i < 40; i++) test_layer();
  test_prepack();
  test_places();
  OK(int4mm_synchronize(0));
  CHECK(int4mm_allocated(0) == 0 && int4mm_allocated(INT4MM_CPU) == 0);
  return report();
}
