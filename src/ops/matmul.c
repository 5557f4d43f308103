/*
 * The product: the checks of its arguments, the choice of a target, and the call of a backend.
 */
#include <stdio.h>
#include <string.h>

#include "ops/common.h"
#include "ops/matmul.h"

/* ---- checks ---- */

static int32_t check_options(const int4mm_matmul_args *args) {
  int32_t status = int4mm_check_encoding("encoding_a", args->encoding_a);
  if (!status) status = int4mm_check_encoding("encoding_b", args->encoding_b);
  if (!status) status = int4mm_check_range("layout_b", args->layout_b, 0, 1, "0 for [K/8, N] or 1 for [N, K/8]");
  if (!status) status = int4mm_check_range("backend", args->backend, 0, 2, "0 for auto, 1 for CPU or 2 for CUDA");
  if (!status)
    status = int4mm_check_range("strassen", args->strassen, -1, 2, "0 for the rule, 1 or 2 levels, or -1 for none");
  if (!status && args->kernel && args->backend == INT4MM_USE_CPU)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\" but the backend is the CPU: it names a CUDA kernel",
                         args->kernel);
  return status;
}

/* Whether an extent of b is K as a has it, where a's words are k8 long. */
static bool is_k_of(const int4mm_tensor *a, int64_t k8, int64_t extent) {
  if (a->packing && a->packed_k) return extent == a->packed_k;
  return k8 && extent / 8 == k8 && extent % 8 == 0;
}

/* What to add where K/8 differs: an extent of K itself, not of K/8, comes from packing along the other dimension. */
static const char *other_dim(const int4mm_matmul_call *c, int64_t k8_a, int64_t k8_b) {
  const int4mm_tensor *a = c->args->a_packed, *b = c->args->b_packed;
  if (b->packing == INT4MM_PACKED_DIM1 && is_k_of(a, k8_a, b->shape[0]))
    return "; b was packed along dim 1, so it is [N, K/8]: pack a weight [K, N] along dim 0";
  if (b->packing == INT4MM_PACKED_DIM0 && is_k_of(a, k8_a, b->shape[1]))
    return "; b was packed along dim 0, so it is [K/8, N]: pack a weight [N, K] along dim 1";
  if (!b->packing && k8_a && k8_b / 8 == k8_a && k8_b % 8 == 0)
    return c->nk ? "; was b packed along dim 1?" : "; was b packed along dim 0?";
  if (!a->packing && k8_b && k8_a / 8 == k8_b && k8_a % 8 == 0) return "; was a packed along dim 1?";
  return "";
}

int32_t int4mm_take_weight(int4mm_matmul_call *c) {
  const int4mm_matmul_args *args = c->args;
  const int4mm_tensor *b = args->b_packed;
  int32_t layout_b = args->layout_b, status = int4mm_check_words("b_packed", b);
  if (status) return status;
  c->encoding_b = args->encoding_b;
  c->panels = b->layout == INT4MM_PANELS;
  if (c->panels && (layout_b || c->encoding_b))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is prepacked, so [K/8, N] and two's complement whatever it was "
                                            "made from: leave layout_b and encoding_b at their defaults");
  status = int4mm_take_encoding("encoding_b", &c->encoding_b, "b_packed", b);
  if (!status) status = int4mm_take_layout_b(&layout_b, b);
  c->nk = layout_b == INT4MM_B_NK;
  return status;
}

/* How A is packed, as its mark says, or the option. */
static int32_t take_a(int4mm_matmul_call *c) {
  const int4mm_tensor *a = c->args->a_packed;
  int32_t status = int4mm_check_rows("a_packed", a);
  if (!status && a->rank != 2)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "a_packed is %s, expected a matrix: int32 words [M, K/8], or int8, float16, bfloat16 or "
                         "float32 [M, K]",
                         int4mm_describe(a).s);
  if (!status && a->dtype != INT4MM_INT32 && c->args->encoding_a)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "encoding_a is %s, but a_packed is %s: it is for packed words",
                         int4mm_encoding_name(c->args->encoding_a), int4mm_describe(a).s);
  if (status || a->dtype != INT4MM_INT32) return status;
  if (a->packing == INT4MM_PACKED_DIM0) {
    bool swapped = c->args->b_packed && c->args->b_packed->packing == INT4MM_PACKED_DIM1;
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "a_packed was packed along dim 0, expected [M, K/8]: pack A [M, K] along "
                       "dim 1%s",
                       swapped ? "; or were a_packed and b_packed swapped?" : "");
  }
  c->rotate_a = a->packing ? a->packed_rotate : 0;
  c->encoding_a = c->args->encoding_a;
  return int4mm_take_encoding("encoding_a", &c->encoding_a, "a_packed", a);
}

/* Words that hold as many values as A has along k. */
static int64_t words_of(const int4mm_tensor *a) {
  int64_t k = a->shape[1];
  return a->dtype == INT4MM_INT32 ? k : k / 8 + (k % 8 != 0);
}

/* K as A and a mark have it, which may end at different places in the last word. */
static int32_t check_packed_k(const int4mm_tensor *a, const int4mm_tensor *b, const char *name_a) {
  int64_t in_a = a->dtype != INT4MM_INT32 ? a->shape[1]
                 : a->packing             ? a->packed_k
                                          : 0,
          in_b = b->packing ? b->packed_k : 0;
  if (!in_a || !in_b || in_a == in_b) return INT4MM_OK;
  return int4mm_fail(
      INT4MM_ERR_ARGUMENT,
      "b_packed was packed from K = %lld values but %s %s K = %lld: K differs, though both are %lld words",
      (long long)in_b, name_a, a->packing && strcmp(name_a, "x") ? "from" : "has", (long long)in_a,
      (long long)words_of(a));
}

/* That quantising has not rotated both by different blocks, which a product does not undo. Where it rotated one alone
 * the floats of the other may have been rotated before. */
static int32_t check_rotation(int32_t in_a, const int4mm_tensor *b, const char *name_a) {
  int32_t in_b = b->packing ? b->packed_rotate : 0;
  if (!in_a || !in_b || in_a == in_b) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed was quantised with rotate = %d but %s with %d: both need the same",
                     (int)in_b, name_a, (int)in_a);
}

/* K of words with a scale for each column, before anything else is told of it; for the others int4mm_check_weight. */
static int32_t check_k8(const int4mm_matmul_args *args, const char *name, const int4mm_tensor *shown, int64_t k8) {
  bool grouped = args->scale_b && args->scale_b->rank == 2;
  if (args->a_packed->dtype != INT4MM_INT32 || k8 <= INT4MM_MAX_K / 8) return INT4MM_OK;
  if (grouped && k8 <= INT64_MAX / 8) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "%s is %s, so K/8 is %lld, expected at most %d: a sum of K products of up to 64 must fit int32, "
                     "so K may be at most %d",
                     name, int4mm_describe(shown).s, (long long)k8, INT4MM_MAX_K / 8, INT4MM_MAX_K);
}

/* Vectors of floats whose lengths fit crosswise. */
static int32_t check_swapped(const int4mm_matmul_args *args, int64_t M, int64_t N) {
  const int4mm_tensor *a = args->scale_a, *b = args->scale_b;
  if (!a || !b || M == N || a->rank != 1 || b->rank != 1 || a->shape[0] != N || b->shape[0] != M) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "scale_a is %s and scale_b %s, expected [%lld] and [%lld] float32: swap them",
                     int4mm_describe(a).s, int4mm_describe(b).s, (long long)M, (long long)N);
}

int32_t int4mm_check_product(int4mm_matmul_call *c, const char *name, const int4mm_tensor *shown) {
  const int4mm_tensor *a = c->args->a_packed, *b = c->args->b_packed;
  int64_t k8 = words_of(a), k8_b = b->shape[c->nk ? 1 : 0];
  if (k8 != k8_b)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is %s but %s is %s: K/8 differs (%lld and %lld)%s",
                       int4mm_describe(b).s, name, int4mm_describe(shown).s, (long long)k8, (long long)k8_b,
                       other_dim(c, k8, k8_b));
  int32_t status = check_k8(c->args, name, shown, k8);
  if (status) return status;
  c->M = a->shape[0], c->N = b->shape[c->nk ? 0 : 1], c->K = a->dtype == INT4MM_INT32 ? 8 * k8 : a->shape[1];
  status = check_packed_k(a, b, name);
  if (!status) status = check_rotation(c->rotate_a, b, name);
  if (!status) status = int4mm_check_same_device("b_packed", b, name, shown);
  if (!status) status = check_swapped(c->args, c->M, c->N);
  if (status) return status;
  return int4mm_check_weight(&c->weight, c->args, name, a->dtype, c->N, c->K, c->nk, c->encoding_b);
}

static int32_t check_operands(int4mm_matmul_call *c) {
  int32_t status = take_a(c);
  if (!status) status = int4mm_take_weight(c);
  return status ? status : int4mm_check_product(c, "a_packed", c->args->a_packed);
}

/* The scales of A: one for each row, and none of floats. */
static int32_t check_scale_a(const int4mm_matmul_args *args, const int4mm_matmul_call *c) {
  const int4mm_tensor *a = args->a_packed, *scale = args->scale_a;
  if (int4mm_is_out_dtype(a->dtype)) {
    if (!scale) return INT4MM_OK;
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "scale_a is %s, but a_packed is %s, floats, which have no scale: leave scale_a out, or quantize "
                       "a_packed first",
                       int4mm_describe(scale).s, int4mm_describe(a).s);
  }
  int32_t status = int4mm_check_vector("scale_a", scale, c->M, "scale per row of a_packed");
  return status ? status : int4mm_check_same_device("scale_a", scale, "a_packed", a);
}

static int32_t check_vectors(const int4mm_matmul_args *args, const int4mm_matmul_call *c) {
  const int4mm_tensor *a = args->a_packed;
  int32_t status = check_scale_a(args, c);
  if (!status && args->bias) status = int4mm_check_vector("bias", args->bias, c->N, "addend per column of b");
  const int4mm_tensor *others[] = {args->scale_b, args->zero_b, args->factor_b, args->bias};
  const char *names[] = {"scale_b", "zero_b", "factor_b", "bias"};
  for (int i = 0; i < 4 && !status; i++)
    if (others[i]) status = int4mm_check_same_device(names[i], others[i], "a_packed", a);
  return status;
}

int32_t int4mm_check_out_apart(const int4mm_matmul_args *args) {
  const struct {
    const char *name;
    const int4mm_tensor *t;
  } operands[] = {{"a_packed", args->a_packed}, {"b_packed", args->b_packed}, {"scale_a", args->scale_a},
                  {"scale_b", args->scale_b},   {"zero_b", args->zero_b},     {"factor_b", args->factor_b},
                  {"bias", args->bias}};
  int32_t status = INT4MM_OK;
  if (!args->out->rank) return status;
  for (size_t i = 0; i < sizeof operands / sizeof operands[0] && !status; i++)
    if (operands[i].t) status = int4mm_check_apart("out", args->out, operands[i].name, operands[i].t);
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

int32_t int4mm_check_matmul(const int4mm_matmul_args *args, int4mm_matmul_call *c) {
  if (int4mm_check_args(args ? args->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  *c = (int4mm_matmul_call){.args = args};
  int32_t status = check_options(args);
  if (!status) status = check_operands(c);
  if (!status) status = check_vectors(args, c);
  if (!status) status = int4mm_check_out(args->out, args->out_dtype, c->M, c->N);
  if (!status) status = int4mm_check_out_apart(args);
  if (!status) status = check_devices(args, c);
  return status;
}

/* ---- entry points ---- */

int32_t int4mm_finish_matmul(const int4mm_matmul_call *c, const int4mm_dispatch_target *target) {
  const int4mm_matmul_args *args = c->args;
  bool allocate = args->out->rank == 0;
  int32_t device = args->a_packed->device, status = INT4MM_OK;
  if (allocate)
    status = int4mm_tensor_alloc_on(args->out, 2, c->M, c->N, args->out_dtype, device,
                                    device == INT4MM_CPU ? NULL : args->stream);
  if (!status) status = int4mm_run_matmul(c, target);
  if (status && allocate) int4mm_tensor_release(args->out);
  return status;
}

int32_t int4mm_describe_matmul(const int4mm_matmul_call *c, const int4mm_dispatch_target *target, int4mm_plan *plan) {
  int4mm_plan made = {.device = INT4MM_CPU};
  int32_t status = int4mm_plan_matmul(c, target, &made);
  if (status) return status;
  *plan = made;
  if (target->reason) snprintf(plan->reason, sizeof plan->reason, "%s; %.*s", target->reason, 150, made.reason);
  return INT4MM_OK;
}

int32_t int4mm_matmul(const int4mm_matmul_args *args) {
  int4mm_matmul_call call;
  int4mm_dispatch_target target;
  int32_t status = int4mm_check_matmul(args, &call);
  if (!status) status = int4mm_choose_target(args, call.M, call.N, call.K, &target);
  return status ? status : int4mm_finish_matmul(&call, &target);
}

int32_t int4mm_matmul_plan(const int4mm_matmul_args *args, int4mm_plan *plan) {
  int4mm_matmul_call call;
  int4mm_dispatch_target target;
  if (!plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "plan is NULL");
  int32_t status = int4mm_check_matmul(args, &call);
  if (!status) status = int4mm_choose_target(args, call.M, call.N, call.K, &target);
  return status ? status : int4mm_describe_matmul(&call, &target, plan);
}
