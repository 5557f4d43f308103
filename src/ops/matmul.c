/*
 * The product: checks, the choice of a device, and the call of a backend.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/tensor.h"
#include "cpu/backend.h"
#include "dispatch/choose.h"
#include "dispatch/devices.h"
#include "ops/copy.h"

/* A call that was found valid. */
typedef struct call {
  const int4mm_matmul_args *args;
  int64_t M, N, K;
  int32_t operand_device;
  bool panels; /* b_packed is prepacked */
  bool nk;     /* b_packed is [N, K/8] */
} call;

/* ---- checks ---- */

static int32_t check_words(const char *name, const int4mm_tensor *t) {
  int32_t status = int4mm_check_tensor(name, t);
  if (!status && (t->rank != 2 || t->dtype != INT4MM_INT32))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected a matrix of int32, eight int4 to a word", name,
                         int4mm_describe(t).s);
  return status;
}

static int32_t check_vector(const char *name, const int4mm_tensor *t, int64_t length, const char *what) {
  int32_t status = int4mm_check_rows(name, t);
  if (!status && (t->rank != 1 || t->dtype != INT4MM_FLOAT32 || t->shape[0] != length))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected [%lld] float32: one %s", name, int4mm_describe(t).s,
                         (long long)length, what);
  return status;
}

static int32_t check_range(const char *name, int32_t value, int32_t low, int32_t high, const char *meaning) {
  if (value >= low && value <= high) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d, expected %s", name, (int)value, meaning);
}

static int32_t check_options(const int4mm_matmul_args *args) {
  int32_t status = int4mm_check_encoding("encoding_a", args->encoding_a);
  if (!status) status = int4mm_check_encoding("encoding_b", args->encoding_b);
  if (!status) status = check_range("layout_b", args->layout_b, 0, 1, "0 for [K/8, N] or 1 for [N, K/8]");
  if (!status) status = check_range("backend", args->backend, 0, 2, "0 for auto, 1 for CPU or 2 for CUDA");
  if (!status) status = check_range("strassen", args->strassen, -1, 2, "-1 for the rule or 0 to 2 levels");
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
static int32_t check_operands(const int4mm_matmul_args *args, call *c) {
  const int4mm_tensor *a = args->a_packed, *b = args->b_packed;
  int32_t status = int4mm_check_rows("a_packed", a);
  if (!status) status = check_words("a_packed", a);
  if (!status) status = check_words("b_packed", b);
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
  c->operand_device = a->device;
  return int4mm_check_same_device("b_packed", b, "a_packed", a);
}

static int32_t check_vectors(const int4mm_matmul_args *args, const call *c) {
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
static int32_t check_out(const int4mm_matmul_args *args, const call *c) {
  const int4mm_tensor *out = args->out;
  int32_t status;
  if (!out) return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is NULL: give a tensor, or a released one to be allocated");
  if (out->rank == 0) {
    if (int4mm_is_out_dtype(args->out_dtype)) return INT4MM_OK;
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

/* That the backend asked for can work where the tensors are. */
static int32_t check_places(const int4mm_matmul_args *args, const call *c) {
  const int4mm_tensor *out = args->out->rank ? args->out : NULL;
  bool on_cpu = c->operand_device == INT4MM_CPU;
  if (!on_cpu && args->backend == INT4MM_USE_CPU)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "a_packed is on %s but the backend is the CPU: copy the operands first",
                       int4mm_device_name(c->operand_device).s);
  if (out && out->device != c->operand_device && !(on_cpu && args->backend != INT4MM_USE_CPU))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is on %s but a_packed is on %s", int4mm_device_name(out->device).s,
                       int4mm_device_name(c->operand_device).s);
  bool cuda = args->backend == INT4MM_USE_CUDA || (out && out->device != INT4MM_CPU) || args->kernel;
  if (c->panels && cuda)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is prepacked for the CPU: a CUDA call takes the words it was "
                                            "made from");
  return INT4MM_OK;
}

static int32_t check_call(const int4mm_matmul_args *args, call *c) {
  if (!args) return int4mm_fail(INT4MM_ERR_ARGUMENT, "args is NULL");
  *c = (call){.args = args};
  int32_t status = check_options(args);
  if (!status) status = check_operands(args, c);
  if (!status) status = check_vectors(args, c);
  if (!status) status = check_out(args, c);
  if (!status) status = check_places(args, c);
  return status;
}

/* ---- where it runs ---- */

/* Multiplications and additions per second and thread that the CPU path sustains on large matrices, measured on one
 * Zen 4 core at 3.7 GHz (the others scaled by their width). */
static double cpu_rate(const char *isa) {
  if (!strcmp(isa, "avx512vnni") || !strcmp(isa, "avxvnni")) return 400e9;
  if (!strcmp(isa, "avx2")) return 250e9;
  if (!strcmp(isa, "neon_i8mm")) return 300e9;
  if (!strcmp(isa, "neon_dot")) return 150e9;
  return 8e9;
}

/* Whether operands on the CPU are multiplied sooner on a GPU, copies counted. Decided from the size alone, so that a
 * small product never opens the driver. The product itself costs a GPU little beside the copies: it counts as the rate
 * of the slowest kernels on a middling card. */
static bool gpu_pays(int64_t M, int64_t N, int64_t K, double cpu_ops_per_second) {
  const double copy_rate = 20e9;      /* bytes per second over PCIe 4.0 x16, pageable memory */
  const double gpu_rate = 20e12;      /* operations per second */
  const double gpu_overhead = 150e-6; /* five copies and an allocation, each with its synchronisation */
  double m = (double)M, n = (double)N, k = (double)K, operations = 2 * m * n * k;
  double bytes = (m + n) * k / 2 + 4 * (m + n) + 2 * m * n;
  return gpu_overhead + bytes / copy_rate + operations / gpu_rate < operations / cpu_ops_per_second;
}

typedef struct place {
  const int4mm_cuda_backend *cuda; /* NULL: the CPU */
  int32_t device;
  bool may_fall_back; /* the GPU was a choice of ours: where it has no memory or cannot run it, the CPU serves */
  const char *why;    /* where there was a choice, else NULL */
} place;

static int32_t choose_place(const call *c, place *where) {
  const int4mm_matmul_args *args = c->args;
  int32_t out_device = args->out->rank ? args->out->device : INT4MM_CPU;
  *where = (place){.device = INT4MM_CPU};
  if (c->operand_device != INT4MM_CPU)
    where->device = c->operand_device;
  else if (out_device != INT4MM_CPU)
    where->device = out_device;
  else if (args->backend == INT4MM_USE_CUDA || args->kernel)
    where->device = 0;
  if (where->device != INT4MM_CPU) return (where->cuda = int4mm_cuda()) ? INT4MM_OK : INT4MM_ERR_UNAVAILABLE;

  if (args->backend == INT4MM_USE_CPU || c->panels) return INT4MM_OK;
  where->why = "too small for copies to a GPU to pay";
  if (!gpu_pays(c->M, c->N, c->K, cpu_rate(int4mm_cpu_isa()) * int4mm_get_num_threads())) return INT4MM_OK;
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  int32_t arch, sms;
  where->why = "no GPU can be used";
  if (cuda && !cuda->arch(0, &arch, &sms)) /* one that is too old or busy cannot */
    *where =
        (place){.cuda = cuda, .device = 0, .may_fall_back = true, .why = "large enough for copies to a GPU to pay"};
  return INT4MM_OK;
}

/* ---- the CPU ---- */

static uint32_t xor_mask_of(int32_t encoding) {
  return encoding == INT4MM_OFFSET ? INT4MM_ENCODING_XOR : 0;
}

/* Packed words as a backend sees them: K values along rows or columns, a scale for each of the others. */
static int4mm_operand make_operand(const int4mm_tensor *words, const int4mm_tensor *scales, int32_t layout,
                                   int32_t encoding, int64_t K) {
  return (int4mm_operand){.data = words->data,
                          .rows = words->shape[0],
                          .cols = words->shape[1],
                          .stride = words->stride,
                          .dtype = words->dtype,
                          .layout = layout,
                          .xor_mask = xor_mask_of(encoding),
                          .scales = scales->data,
                          .group = K};
}

/* The problem as a backend sees it, with b as it lies in memory; out has no data where it is still to be allocated. */
static int4mm_problem make_problem(const call *c) {
  const int4mm_matmul_args *args = c->args;
  const int4mm_tensor *out = args->out;
  int32_t layout_b = c->panels ? INT4MM_PANELS_N : c->nk ? INT4MM_K_MAJOR : INT4MM_MN_MAJOR;
  return (int4mm_problem){.M = c->M,
                          .N = c->N,
                          .K = c->K,
                          .a = make_operand(args->a_packed, args->scale_a, INT4MM_K_MAJOR, args->encoding_a, c->K),
                          .b = make_operand(args->b_packed, args->scale_b, layout_b, args->encoding_b, c->K),
                          .bias = args->bias ? args->bias->data : NULL,
                          .out = out->rank ? int4mm_as_matrix(out)
                                           : (int4mm_matrix){NULL, c->M, c->N, c->N, args->out_dtype},
                          .strassen = args->strassen};
}

/* Points the problem at b transposed to [K/8, N] words, two's complement, in `words`. */
static void take_transposed(int4mm_problem *p, const uint32_t *words) {
  int4mm_operand *b = &p->b;
  b->words = words, b->rows = p->K / 8, b->cols = b->stride = p->N;
  b->layout = INT4MM_MN_MAJOR, b->xor_mask = 0;
}

static int32_t run_cpu(const call *c) {
  int4mm_problem problem = make_problem(c);
  int4mm_tensor transposed = {0};
  if (c->nk) {
    int32_t status = int4mm_tensor_alloc(&transposed, 2, c->K / 8, c->N, INT4MM_INT32, INT4MM_CPU);
    if (status) return status;
    int4mm_matrix from = int4mm_as_matrix(c->args->b_packed), to = int4mm_as_matrix(&transposed);
    int4mm_cpu_transpose(&to, &from, problem.b.xor_mask);
    take_transposed(&problem, transposed.data);
  }
  int32_t status = int4mm_cpu_matmul(&problem);
  int4mm_tensor_release(&transposed);
  return status;
}

/* ---- CUDA ---- */

static int32_t alignment_of(const void *address) {
  uintptr_t bits = (uintptr_t)address | 256;
  return (int32_t)(bits & -bits);
}

typedef int32_t chooser(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

static int32_t plan_cuda(const place *where, const int4mm_problem *p, const char *kernel, chooser *choose,
                         int4mm_plan *plan) {
  int4mm_gpu_problem g = {.M = p->M,
                          .N = p->N,
                          .K = p->K,
                          .lda = p->a.stride,
                          .ldb = p->b.stride,
                          .ldo = p->out.stride,
                          .align_a = alignment_of(p->a.data),
                          .align_b = alignment_of(p->b.data),
                          .align_out = alignment_of(p->out.data),
                          .out_dtype = p->out.dtype,
                          .encoding_a = p->a.xor_mask ? INT4MM_OFFSET : INT4MM_TWOS_COMPLEMENT,
                          .encoding_b = p->b.xor_mask ? INT4MM_OFFSET : INT4MM_TWOS_COMPLEMENT};
  int32_t status = where->cuda->arch(where->device, &g.arch, &g.sms);
  if (!status) status = where->cuda->code_arch(where->device, &g.code_arch);
  if (!status) status = choose(&g, kernel, plan);
  if (!status) plan->device = where->device;
  return status;
}

static int32_t launch(const place *where, const int4mm_problem *problem, const int4mm_matmul_args *args,
                      bool non_blocking) {
  int4mm_plan plan = {0};
  int32_t status = plan_cuda(where, problem, args->kernel, int4mm_choose_kernel, &plan);
  if (status || !problem->M || !problem->N) return status;
  return where->cuda->matmul(where->device, problem, &plan, args->stream, non_blocking);
}

/* Frees scratch memory after a call that ended with `status`; the call's own failure is the one to tell. */
static int32_t free_scratch(const place *where, void *scratch, void *stream, int32_t status) {
  if (!status) return where->cuda->scratch_free(where->device, scratch, stream);
  int4mm_hold_error();
  (void)where->cuda->scratch_free(where->device, scratch, stream);
  int4mm_unhold_error();
  return status;
}

/* Everything is on where->device already. */
static int32_t run_on_gpu(const call *c, const place *where) {
  const int4mm_matmul_args *args = c->args;
  const int4mm_cuda_backend *cuda = where->cuda;
  int4mm_problem problem = make_problem(c);
  void *scratch = NULL;
  bool non_blocking;
  int32_t status = int4mm_use_on_stream(
      cuda, where->device, args->stream,
      (const int4mm_tensor *[]){args->a_packed, args->b_packed, args->scale_a, args->scale_b, args->bias, args->out}, 6,
      &non_blocking);
  size_t words = (size_t)(c->K / 8) * (size_t)c->N;
  if (!status && c->nk && words) {
    int4mm_matrix from = int4mm_as_matrix(args->b_packed);
    status = cuda->scratch(where->device, words * sizeof(uint32_t), &scratch, args->stream);
    int4mm_matrix to = {scratch, c->K / 8, c->N, c->N, INT4MM_INT32};
    if (!status) status = cuda->transpose(where->device, &to, &from, problem.b.xor_mask, args->stream);
  }
  if (c->nk) take_transposed(&problem, scratch);
  if (!status) status = launch(where, &problem, args, non_blocking);
  if (scratch) status = free_scratch(where, scratch, args->stream, status);
  return status;
}

/* A copy of a CPU operand on the GPU; nothing for a NULL one. */
static int32_t stage(int4mm_tensor *staged, const int4mm_tensor *t, int32_t device, void *stream) {
  if (!t) return INT4MM_OK;
  int32_t status = int4mm_tensor_alloc_on(staged, t->rank, t->shape[0], t->shape[1], t->dtype, device, stream);
  return status ? status : int4mm_copy_checked(staged, t, stream);
}

/* Operands on the CPU: copies over, multiplies, copies back unless out is on the GPU, and returns when done. */
static int32_t run_staged(const call *c, const place *where) {
  const int4mm_matmul_args *args = c->args;
  const int4mm_tensor *from[5] = {args->a_packed, args->b_packed, args->scale_a, args->scale_b, args->bias};
  int4mm_tensor staged[5] = {{0}}, result = {0};
  bool out_on_cpu = args->out->device == INT4MM_CPU;
  int32_t status = INT4MM_OK;
  for (int i = 0; i < 5 && !status; i++) status = stage(&staged[i], from[i], where->device, args->stream);
  if (!status && out_on_cpu)
    status = int4mm_tensor_alloc_on(&result, 2, c->M, c->N, args->out->dtype, where->device, args->stream);
  if (!status) {
    int4mm_matmul_args on_gpu = *args;
    on_gpu.a_packed = &staged[0], on_gpu.b_packed = &staged[1];
    on_gpu.scale_a = &staged[2], on_gpu.scale_b = &staged[3];
    on_gpu.bias = args->bias ? &staged[4] : NULL;
    on_gpu.out = out_on_cpu ? &result : args->out;
    call moved = *c;
    moved.args = &on_gpu;
    status = run_on_gpu(&moved, where);
  }
  if (!status)
    status = out_on_cpu ? int4mm_copy_checked(args->out, &result, args->stream)
                        : where->cuda->stream_synchronize(where->device, args->stream);
  for (int i = 0; i < 5; i++) int4mm_tensor_release(&staged[i]);
  int4mm_tensor_release(&result);
  return status;
}

/* ---- entry points ---- */

static int32_t run(const call *c, const place *where) {
  if (!where->cuda) return run_cpu(c);
  if (c->operand_device != INT4MM_CPU) return run_on_gpu(c, where);
  int32_t status = run_staged(c, where);
  bool cannot = status == INT4MM_ERR_MEMORY || status == INT4MM_ERR_UNAVAILABLE; /* no room, or no code for this GPU */
  return cannot && where->may_fall_back ? run_cpu(c) : status;
}

int32_t int4mm_matmul(const int4mm_matmul_args *args) {
  call c;
  place where;
  int32_t status = check_call(args, &c);
  if (!status) status = choose_place(&c, &where);
  if (status) return status;
  bool allocate = args->out->rank == 0;
  if (allocate)
    status = int4mm_tensor_alloc_on(args->out, 2, c.M, c.N, args->out_dtype, c.operand_device,
                                    c.operand_device == INT4MM_CPU ? NULL : args->stream);
  if (!status) status = run(&c, &where);
  if (status && allocate) int4mm_tensor_release(args->out);
  return status;
}

int32_t int4mm_matmul_plan(const int4mm_matmul_args *args, int4mm_plan *plan) {
  call c;
  place where;
  if (!plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "plan is NULL");
  int32_t status = check_call(args, &c);
  if (!status) status = choose_place(&c, &where);
  if (status) return status;
  int4mm_problem problem = make_problem(&c);
  int4mm_plan made = {.device = INT4MM_CPU};
  if (c.nk) take_transposed(&problem, NULL);
  if (!where.cuda) {
    int4mm_cpu_plan(&problem, &made);
  } else {
    if (c.operand_device == INT4MM_CPU) { /* as run_staged lays them out: contiguous, on fresh allocations */
      problem.a.data = NULL, problem.a.stride = c.K / 8;
      problem.b.data = NULL, problem.b.stride = c.N;
      if (!args->out->rank || args->out->device == INT4MM_CPU) problem.out.data = NULL, problem.out.stride = c.N;
    }
    status = plan_cuda(&where, &problem, args->kernel, int4mm_choose_cuda, &made);
  }
  if (status) return status;
  *plan = made;
  if (where.why) snprintf(plan->reason, sizeof plan->reason, "%s; %.*s", where.why, 150, made.reason);
  return INT4MM_OK;
}

/* ---- prepacking ---- */

/* [K/8, N] words, two's complement, contiguous on the device of `b`. */
static int32_t copy_as_kn(int4mm_tensor *dst, const int4mm_tensor *b, bool nk, uint32_t xor_mask) {
  int64_t k8 = b->shape[nk ? 1 : 0], N = b->shape[nk ? 0 : 1];
  int32_t status = int4mm_tensor_alloc(dst, 2, k8, N, INT4MM_INT32, b->device);
  if (status || !k8 || !N) return status;
  int4mm_matrix from = int4mm_as_matrix(b), to = int4mm_as_matrix(dst);
  if (!nk) {
    status = int4mm_copy_checked(dst, b, NULL);
    if (status || !xor_mask) return status;
    /* what is left is an XOR: transposing the copy's words as one row into one column, where they are */
    from = (int4mm_matrix){dst->data, 1, k8 * N, k8 * N, INT4MM_INT32};
    to = (int4mm_matrix){dst->data, k8 * N, 1, 1, INT4MM_INT32};
  }
  if (b->device == INT4MM_CPU) {
    int4mm_cpu_transpose(&to, &from, xor_mask);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  return cuda ? cuda->transpose(b->device, &to, &from, xor_mask, NULL) : INT4MM_ERR_UNAVAILABLE;
}

/* Panels of `b` on the CPU, transposed first when it is [N, K/8]. */
static int32_t make_panels(int4mm_tensor *dst, const int4mm_tensor *b, bool nk, uint32_t xor_mask) {
  int4mm_tensor kn = {0};
  int32_t status = nk ? copy_as_kn(&kn, b, true, xor_mask) : INT4MM_OK;
  const int4mm_tensor *words = nk ? &kn : b;
  if (!status)
    status = int4mm_tensor_alloc_panels(dst, words->shape[0], words->shape[1],
                                        int4mm_cpu_panel_words(words->shape[0], words->shape[1]));
  if (!status)
    int4mm_cpu_prepack(dst->data, words->data, words->stride, words->shape[0], words->shape[1], nk ? 0 : xor_mask);
  int4mm_tensor_release(&kn);
  return status;
}

int32_t int4mm_prepack(int4mm_tensor *prepacked, const int4mm_tensor *b_packed, int32_t layout_b, int32_t encoding) {
  if (!prepacked) return int4mm_fail(INT4MM_ERR_ARGUMENT, "prepacked is NULL");
  if (prepacked->rank) return int4mm_fail(INT4MM_ERR_ARGUMENT, "prepacked already holds a tensor: release it first");
  int32_t status = int4mm_check_rows("b_packed", b_packed);
  if (!status) status = check_words("b_packed", b_packed);
  if (!status) status = check_range("layout_b", layout_b, 0, 1, "0 for [K/8, N] or 1 for [N, K/8]");
  if (!status) status = int4mm_check_encoding("encoding", encoding);
  if (status) return status;
  bool nk = layout_b == INT4MM_B_NK;
  int4mm_tensor made = {0};
  status = b_packed->device == INT4MM_CPU ? make_panels(&made, b_packed, nk, xor_mask_of(encoding))
                                          : copy_as_kn(&made, b_packed, nk, xor_mask_of(encoding));
  if (status)
    int4mm_tensor_release(&made);
  else
    *prepacked = made;
  return status;
}
