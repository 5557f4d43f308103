/*
 * The product: the checks of its arguments, the choice of a target, and the call of a backend.
 */
#include <stdio.h>

#include "ops/common.h"
#include "ops/matmul.h"

/* ---- checks ---- */

static int32_t check_vector(const char *name, const int4mm_tensor *t, int64_t length, const char *what) {
  int32_t status = int4mm_check_rows(name, t);
  if (!status && (t->rank != 1 || t->dtype != INT4MM_FLOAT32 || t->shape[0] != length))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected [%lld] float32: one %s", name, int4mm_describe(t).s,
                         (long long)length, what);
  return status;
}

static int32_t check_options(const int4mm_matmul_args *args) {
  int32_t status = int4mm_check_encoding("encoding_a", args->encoding_a);
  if (!status) status = int4mm_check_encoding("encoding_b", args->encoding_b);
  if (!status) status = int4mm_check_range("layout_b", args->layout_b, 0, 1, "0 for [K/8, N] or 1 for [N, K/8]");
  if (!status) status = int4mm_check_range("backend", args->backend, 0, 2, "0 for auto, 1 for CPU or 2 for CUDA");
  if (!status) status = int4mm_check_range("strassen", args->strassen, -1, 2, "-1 for the rule or 0 to 2 levels");
  if (!status && args->kernel && args->backend == INT4MM_USE_CPU)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\" but the backend is the CPU: it names a CUDA kernel",
                         args->kernel);
  return status;
}

/* What to add where K/8 differs: an extent of K itself, not of K/8, comes from packing along the other dimension. */
static const char *other_dim(int64_t k8_a, int64_t k8_b, bool nk) {
  if (k8_a && k8_b / 8 == k8_a && k8_b % 8 == 0)
    return nk ? "; was b packed along dim 1?" : "; was b packed along dim 0?";
  if (k8_b && k8_a / 8 == k8_b && k8_a % 8 == 0) return "; was a packed along dim 1?";
  return "";
}

/* a_packed and b_packed, and with them M, N and K. */
static int32_t check_operands(const int4mm_matmul_args *args, int4mm_matmul_call *c) {
  const int4mm_tensor *a = args->a_packed, *b = args->b_packed;
  int32_t status = int4mm_check_rows("a_packed", a);
  if (!status) status = int4mm_check_words("a_packed", a);
  if (!status) status = int4mm_check_words("b_packed", b);
  if (status) return status;
  c->panels = b->layout == INT4MM_PANELS;
  c->nk = args->layout_b == INT4MM_B_NK;
  if (c->panels && (c->nk || args->encoding_b != INT4MM_TWOS_COMPLEMENT))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is prepacked, so [K/8, N] and two's complement whatever it was "
                                            "made from: leave layout_b and encoding_b at their defaults");
  int64_t k8 = a->shape[1], k8_b = b->shape[c->nk ? 1 : 0];
  if (k8 != k8_b)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is %s but a_packed is %s: K/8 differs (%lld and %lld)%s",
                       int4mm_describe(b).s, int4mm_describe(a).s, (long long)k8, (long long)k8_b,
                       other_dim(k8, k8_b, c->nk));
  if (k8 > INT4MM_MAX_K / 8)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "a_packed is %s, so K/8 is %lld, expected at most %d: a sum of K products "
                       "of up to 64 must fit int32, so K may be at most %d",
                       int4mm_describe(a).s, (long long)k8, INT4MM_MAX_K / 8, INT4MM_MAX_K);
  c->M = a->shape[0], c->N = b->shape[c->nk ? 0 : 1], c->K = 8 * k8;
  return int4mm_check_same_device("b_packed", b, "a_packed", a);
}

static int32_t check_vectors(const int4mm_matmul_args *args, const int4mm_matmul_call *c) {
  const int4mm_tensor *a = args->a_packed;
  int32_t status = check_vector("scale_a", args->scale_a, c->M, "scale per row of a_packed");
  if (!status) status = check_vector("scale_b", args->scale_b, c->N, "scale per column of b");
  if (!status && args->bias) status = check_vector("bias", args->bias, c->N, "addend per column of b");
  if (!status) status = int4mm_check_same_device("scale_a", args->scale_a, "a_packed", a);
  if (!status) status = int4mm_check_same_device("scale_b", args->scale_b, "a_packed", a);
  if (!status && args->bias) status = int4mm_check_same_device("bias", args->bias, "a_packed", a);
  return status;
}

/* out where it is given, out_dtype where it is not. */
static int32_t check_out(const int4mm_matmul_args *args, const int4mm_matmul_call *c) {
  const int4mm_tensor *out = args->out;
  int32_t status;
  if (!out) return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is NULL: give a tensor, or a released one to be allocated");
  if (out->rank == 0) {
    if (int4mm_is_out_dtype(args->out_dtype)) return INT4MM_OK;
    if (!int4mm_dtype_size(args->out_dtype))
      return int4mm_fail(INT4MM_ERR_ARGUMENT, "out_dtype is %d, which is not an int4mm_dtype", (int)args->out_dtype);
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "out_dtype is %s, expected float16, bfloat16 or float32",
                       int4mm_dtype_name(args->out_dtype));
  }
  if ((status = int4mm_check_rows("out", out))) return status;
  if (out->rank != 2 || out->shape[0] != c->M || out->shape[1] != c->N || !int4mm_is_out_dtype(out->dtype))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is %s, expected [%lld, %lld] float16, bfloat16 or float32",
                       int4mm_describe(out).s, (long long)c->M, (long long)c->N);
  const struct {
    const char *name;
    const int4mm_tensor *t;
  } operands[] = {{"a_packed", args->a_packed},
                  {"b_packed", args->b_packed},
                  {"scale_a", args->scale_a},
                  {"scale_b", args->scale_b},
                  {"bias", args->bias}};
  for (size_t i = 0; i < sizeof operands / sizeof operands[0] && !status; i++)
    if (operands[i].t) status = int4mm_check_apart("out", out, operands[i].name, operands[i].t);
  return status;
}

/* That the backend that is asked for can work on the devices of the tensors. */
static int32_t check_devices(const int4mm_matmul_args *args, const int4mm_matmul_call *c) {
  const int4mm_tensor *out = args->out->rank ? args->out : NULL;
  bool on_cpu = args->a_packed->device == INT4MM_CPU;
  if (!on_cpu && args->backend == INT4MM_USE_CPU)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "a_packed is on %s but the backend is the CPU: copy the operands first",
                       int4mm_device_name(args->a_packed->device).s);
  if (out && out->device != args->a_packed->device && !(on_cpu && args->backend != INT4MM_USE_CPU))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is on %s but a_packed is on %s", int4mm_device_name(out->device).s,
                       int4mm_device_name(args->a_packed->device).s);
  bool cuda = args->backend == INT4MM_USE_CUDA || (out && out->device != INT4MM_CPU) || args->kernel;
  if (c->panels && cuda)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is prepacked for the CPU: a CUDA call takes the words it was "
                                            "made from");
  return INT4MM_OK;
}

static int32_t check_call(const int4mm_matmul_args *args, int4mm_matmul_call *c) {
  if (!args) return int4mm_fail(INT4MM_ERR_ARGUMENT, "args is NULL");
  *c = (int4mm_matmul_call){.args = args};
  int32_t status = check_options(args);
  if (!status) status = check_operands(args, c);
  if (!status) status = check_vectors(args, c);
  if (!status) status = check_out(args, c);
  if (!status) status = check_devices(args, c);
  return status;
}

/* ---- entry points ---- */

int32_t int4mm_matmul(const int4mm_matmul_args *args) {
  int4mm_matmul_call call;
  int4mm_dispatch_target target;
  int32_t status = check_call(args, &call);
  if (!status) status = int4mm_choose_target(args, call.M, call.N, call.K, &target);
  if (status) return status;
  bool allocate = args->out->rank == 0;
  int32_t device = args->a_packed->device;
  if (allocate)
    status = int4mm_tensor_alloc_on(args->out, 2, call.M, call.N, args->out_dtype, device,
                                    device == INT4MM_CPU ? NULL : args->stream);
  if (!status) status = int4mm_run_matmul(&call, &target);
  if (status && allocate) int4mm_tensor_release(args->out);
  return status;
}

int32_t int4mm_matmul_plan(const int4mm_matmul_args *args, int4mm_plan *plan) {
  int4mm_matmul_call call;
  int4mm_dispatch_target target;
  int4mm_plan made = {.device = INT4MM_CPU};
  if (!plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "plan is NULL");
  int32_t status = check_call(args, &call);
  if (!status) status = int4mm_choose_target(args, call.M, call.N, call.K, &target);
  if (!status) status = int4mm_plan_matmul(&call, &target, &made);
  if (status) return status;
  *plan = made;
  if (target.reason) snprintf(plan->reason, sizeof plan->reason, "%s; %.*s", target.reason, 150, made.reason);
  return INT4MM_OK;
}
