/*
 * A layer: the checks of its arguments, its quantised activations, and the product around which it is built.
 */
#include "core/dtype.h"
#include "cpu/backend.h"
#include "dispatch/devices.h"
#include "ops/common.h"
#include "ops/matmul.h"

/* ---- workspace: the quantised x [M, stride], then its scales [M]; or the rotated x ---- */

typedef struct workspace {
  int32_t dtype;        /* of the quantised or rotated x: int32 words, int8, or float32, which serves all floats */
  int64_t stride;       /* elements of a row */
  int64_t scales_start; /* bytes before the scales */
  int64_t bytes;
} workspace;

/* Rows start on 16 bytes as the fast kernels want it, long ones on 128: their copies of 64 bytes would touch three or
 * four sectors of 32. bytes is 0 where M or K is negative or they are too large to count. */
static workspace plan_workspace(int64_t M, int64_t K, int32_t activations) {
  workspace w = {.dtype = activations == INT4MM_ACTIVATIONS_INT4   ? INT4MM_INT32
                          : activations == INT4MM_ACTIVATIONS_INT8 ? INT4MM_INT8
                                                                   : INT4MM_FLOAT32};
  if (M < 0 || K < 0 || K > INT64_MAX / 16) return w;
  bool words = w.dtype == INT4MM_INT32;
  int64_t line = words ? 256 : w.dtype == INT4MM_INT8 ? 128 : 64, unit = K > line ? line : 32; /* values */
  w.stride = (K + unit - 1) / unit * unit / (words ? 8 : 1);
  if (__builtin_mul_overflow(M, w.stride * (int64_t)int4mm_dtype_size(w.dtype), &w.scales_start) ||
      w.scales_start > INT64_MAX - 255)
    return w;
  w.scales_start = (w.scales_start + 255) / 256 * 256;
  if (M > (INT64_MAX - w.scales_start) / 4) return w;
  w.bytes = w.scales_start + (w.dtype == INT4MM_FLOAT32 ? 0 : M * 4);
  return w;
}

int64_t int4mm_linear_workspace(int64_t M, int64_t K, int32_t activations) {
  if (activations < INT4MM_ACTIVATIONS_INT4 || activations > INT4MM_ACTIVATIONS_FLOAT) return 0;
  return plan_workspace(M, K, activations).bytes;
}

/* ---- checks ---- */

/* A call in the making: the product's arguments, with a descriptor of A that has no data yet. */
typedef struct layer {
  const int4mm_linear_args *args;
  int4mm_tensor a_packed, scale_a;
  int4mm_matmul_args product_args;
  int4mm_matmul_call call;
  workspace workspace;
} layer;

static int32_t check_options(const int4mm_linear_args *args) {
  int32_t status = int4mm_check_encoding("encoding_b", args->encoding_b);
  if (!status) status = int4mm_check_range("layout_b", args->layout_b, 0, 1, "0 for [K/8, N] or 1 for [N, K/8]");
  if (!status)
    status = int4mm_check_range("activation", args->activation, 0, INT4MM_GELU_TANH, "an int4mm_activation, 0 to 4");
  if (!status)
    status = int4mm_check_range("activations", args->activations, 0, INT4MM_ACTIVATIONS_FLOAT,
                                "an int4mm_activations, 0 to 2");
  if (!status && args->rotate) status = int4mm_check_block("rotate", args->rotate, "x", args->x, 1);
  bool clips = args->clip != 0 || args->clip_mse;
  if (!status && args->activations == INT4MM_ACTIVATIONS_FLOAT && clips)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "clip is given, but the activations stay floats: it is for quantising");
  return status ? status : int4mm_check_clip(args->clip, args->clip_mse);
}

/* What is read or written besides x and the weight. */
static int32_t check_others(const layer *l) {
  const int4mm_linear_args *args = l->args;
  int64_t M = l->call.M, N = l->call.N;
  int32_t status = INT4MM_OK;
  if (args->bias) status = int4mm_check_vector("bias", args->bias, N, "addend per column of b");
  if (!status && args->residual) status = int4mm_check_floats("residual", args->residual, M, N);
  if (!status) status = int4mm_check_out(args->out, args->out_dtype, M, N);
  if (status || !args->workspace) return status;
  const int4mm_tensor *w = args->workspace;
  status = int4mm_check_rows("workspace", w);
  if (!status && (w->rank != 1 || w->dtype != INT4MM_INT8 || w->shape[0] < l->workspace.bytes))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "workspace is %s, expected a vector of int8, %lld or more",
                         int4mm_describe(w).s, (long long)l->workspace.bytes);
  if (!status && (uintptr_t)w->data % 16)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "workspace does not start at a multiple of 16 bytes");
  return status;
}

/* That all tensors are where x is, and that what is written lies apart from the rest. */
static int32_t check_places(const layer *l) {
  const int4mm_linear_args *args = l->args;
  const struct {
    const char *name;
    const int4mm_tensor *t;
  } tensors[] = {{"x", args->x},
                 {"b_packed", args->b_packed},
                 {"scale_b", args->scale_b},
                 {"zero_b", args->zero_b},
                 {"factor_b", args->factor_b},
                 {"bias", args->bias},
                 {"residual", args->residual},
                 {"workspace", args->workspace},
                 {"out", args->out->rank ? args->out : NULL}};
  enum { COUNT = sizeof tensors / sizeof tensors[0], WORKSPACE = COUNT - 2, OUT = COUNT - 1 };
  int32_t status = INT4MM_OK;
  for (int i = 1; i < COUNT && !status; i++)
    if (tensors[i].t) status = int4mm_check_same_device(tensors[i].name, tensors[i].t, "x", args->x);
  for (int i = 0; i < WORKSPACE && !status; i++)
    if (tensors[i].t && args->workspace)
      status = int4mm_check_apart("workspace", args->workspace, tensors[i].name, tensors[i].t);
  for (int i = 0; i < OUT && !status; i++)
    if (tensors[i].t && args->out->rank) status = int4mm_check_apart("out", args->out, tensors[i].name, tensors[i].t);
  return status;
}

/* Whether the product's A is made in the workspace, from x. */
static bool uses_workspace(const int4mm_linear_args *args) {
  return args->activations != INT4MM_ACTIVATIONS_FLOAT || args->rotate;
}

/* The product's A: x itself, or what is made of it, without data. */
static void describe_a(layer *l) {
  const int4mm_tensor *x = l->args->x;
  l->workspace = plan_workspace(x->shape[0], x->shape[1], l->args->activations);
  l->a_packed = *x;
  if (!uses_workspace(l->args)) return;
  bool words = l->workspace.dtype == INT4MM_INT32, floats = l->workspace.dtype == INT4MM_FLOAT32;
  l->a_packed = (int4mm_tensor){.shape = {x->shape[0], words ? (x->shape[1] + 7) / 8 : x->shape[1]},
                                .stride = l->workspace.stride,
                                .rank = 2,
                                .dtype = floats ? x->dtype : l->workspace.dtype,
                                .device = x->device};
  if (words) int4mm_set_mark(&l->a_packed, 1, INT4MM_TWOS_COMPLEMENT, x->shape[1], l->args->rotate);
  l->scale_a =
      (int4mm_tensor){.shape = {x->shape[0], 1}, .stride = 1, .rank = 1, .dtype = INT4MM_FLOAT32, .device = x->device};
}

/* What to give in place of an x that is no matrix of floats. */
static int32_t check_x(const int4mm_tensor *x) {
  const char *expected = "float32, float16 or bfloat16";
  if (x && (x->dtype == INT4MM_INT32 || x->dtype == INT4MM_INT8))
    expected = "float32, float16 or bfloat16: give the activations themselves, the call quantises them";
  else if (x && x->rank == 1)
    expected = "float32, float16 or bfloat16: one row is a matrix [1, K]";
  return int4mm_check_matrix("x", x, int4mm_is_out_dtype, expected);
}

static int32_t check_layer(layer *l, const int4mm_linear_args *args) {
  if (int4mm_check_args(args ? args->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  *l = (layer){.args = args};
  int32_t status = check_x(args->x);
  if (!status) status = check_options(args);
  if (status) return status;
  describe_a(l);
  l->product_args = (int4mm_matmul_args){.a_packed = &l->a_packed,
                                         .b_packed = args->b_packed,
                                         .scale_a = args->activations == INT4MM_ACTIVATIONS_FLOAT ? NULL : &l->scale_a,
                                         .scale_b = args->scale_b,
                                         .zero_b = args->zero_b,
                                         .factor_b = args->factor_b,
                                         .group = args->group,
                                         .bias = args->bias,
                                         .out = args->out,
                                         .out_dtype = args->out_dtype,
                                         .encoding_b = args->encoding_b,
                                         .layout_b = args->layout_b,
                                         .kernel = args->kernel,
                                         .stream = args->stream};
  l->call = (int4mm_matmul_call){
      .args = &l->product_args, .rotate_a = args->rotate, .activation = args->activation, .residual = args->residual};
  status = int4mm_take_weight(&l->call);
  if (!status) status = int4mm_check_product(&l->call, "x", args->x);
  if (!status) status = check_others(l);
  if (!status) status = check_places(l);
  if (!status && args->x->device == INT4MM_CPU && args->kernel)
    status =
        int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\" but x is on the CPU: it names a CUDA kernel", args->kernel);
  return status;
}

/* ---- running ---- */

/* x quantised into the workspace at `memory`, then the product. */
static int32_t run_quantized(layer *l, const int4mm_dispatch_target *target, char *memory) {
  const int4mm_linear_args *args = l->args;
  l->a_packed.data = memory, l->scale_a.data = memory + l->workspace.scales_start;
  int4mm_pack_job quantize = int4mm_make_pack_job(&l->a_packed, args->x, &l->scale_a, 1, INT4MM_TWOS_COMPLEMENT, false);
  quantize.rotate = args->rotate, quantize.clip = args->clip > 0 ? args->clip : 1;
  quantize.clip_mse = args->clip_mse != 0;
  l->call.quantize = &quantize;
  int32_t status = int4mm_run_matmul(&l->call, target);
  l->call.quantize = NULL;
  return status;
}

/* x as it is, or rotated into the workspace at `memory`, then the product. */
static int32_t run_floats(layer *l, const int4mm_dispatch_target *target, char *memory) {
  int4mm_rotate_job rotate = {.src = int4mm_as_matrix(l->args->x), .dim = 1, .block = l->args->rotate};
  if (memory) {
    l->a_packed.data = memory;
    rotate.dst = int4mm_as_matrix(&l->a_packed);
    l->call.rotate = &rotate;
  }
  int32_t status = int4mm_run_matmul(&l->call, target);
  l->call.rotate = NULL;
  return status;
}

static int32_t run(layer *l, const int4mm_dispatch_target *target, char *memory) {
  if (l->args->activations == INT4MM_ACTIVATIONS_FLOAT) return run_floats(l, target, memory);
  return run_quantized(l, target, memory);
}

static int32_t run_on_cpu(layer *l) {
  const int4mm_dispatch_target target = {.device = INT4MM_CPU};
  if (!uses_workspace(l->args)) return run(l, &target, NULL);
  if (l->args->workspace) return run(l, &target, l->args->workspace->data);
  void *memory = int4mm_workspace_acquire(l->workspace.bytes);
  if (!memory) return INT4MM_ERR_MEMORY;
  int32_t status = run(l, &target, memory);
  int4mm_workspace_release(memory);
  return status;
}

static int32_t run_on_gpu(layer *l) {
  const int4mm_linear_args *args = l->args;
  int4mm_dispatch_target target = {.device = args->x->device};
  /* now, so that nothing comes between the quantising and the product in the stream */
  int32_t status =
      int4mm_open_cuda(&target.cuda, args->stream,
                       (const int4mm_tensor *[]){args->x, args->b_packed, args->scale_b, args->zero_b, args->factor_b,
                                                 args->bias, args->residual, args->out, args->workspace},
                       9);
  if (status || !uses_workspace(args)) return status ? status : run(l, &target, NULL);
  if (args->workspace) return run(l, &target, args->workspace->data);
  void *memory;
  status = int4mm_take_scratch(&target, (size_t)l->workspace.bytes, &memory, args->stream);
  if (status) return status;
  return int4mm_free_scratch(&target, memory, args->stream, run(l, &target, memory));
}

int32_t int4mm_linear(const int4mm_linear_args *args) {
  layer l;
  int32_t status = check_layer(&l, args);
  if (status) return status;
  bool allocate = args->out->rank == 0, on_cpu = args->x->device == INT4MM_CPU;
  if (allocate)
    status = int4mm_tensor_alloc_on(args->out, 2, l.call.M, l.call.N, args->out_dtype, args->x->device,
                                    on_cpu ? NULL : args->stream);
  if (!status && l.call.M && l.call.N) status = on_cpu ? run_on_cpu(&l) : run_on_gpu(&l);
  if (status && allocate) int4mm_tensor_release(args->out);
  return status;
}
