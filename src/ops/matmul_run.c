/*
 * A valid product on its target: the problem as backends see it, and the steps around their kernels.
 */
#include <stdio.h>
#include <string.h>

#include "core/graph.h"
#include "cpu/backend.h"
#include "dispatch/choose.h"
#include "dispatch/devices.h"
#include "dispatch/gpu.h"
#include "dispatch/tuning.h"
#include "ops/copy.h"
#include "ops/matmul.h"

/* ---- the problem ---- */

/* An operand as a backend sees it, without what turns its numbers into values. */
static int4mm_operand make_operand(const int4mm_tensor *t, int32_t layout, int32_t encoding) {
  int4mm_matrix m = int4mm_as_matrix(t);
  return (int4mm_operand){.data = m.data,
                          .rows = m.rows,
                          .cols = m.cols,
                          .stride = m.stride,
                          .dtype = m.dtype,
                          .layout = layout,
                          .xor_mask = int4mm_xor_mask_of(encoding)};
}

/* The problem as a backend sees it, with b as it lies in memory and its scales still to be placed
 * (int4mm_place_weight); out has no data where it is still to be allocated. */
static int4mm_problem make_problem(const int4mm_matmul_call *c) {
  const int4mm_matmul_args *args = c->args;
  const int4mm_tensor *out = args->out;
  int32_t layout_b = c->panels ? INT4MM_PANELS_N : c->nk ? INT4MM_K_MAJOR : INT4MM_MN_MAJOR;
  int4mm_problem p = {.M = c->M,
                      .N = c->N,
                      .K = c->K,
                      .a = make_operand(args->a_packed, INT4MM_K_MAJOR, c->encoding_a),
                      .b = make_operand(args->b_packed, layout_b, c->encoding_b),
                      .bias = args->bias ? args->bias->data : NULL,
                      .activation = c->activation,
                      .residual = c->residual ? int4mm_as_matrix(c->residual) : (int4mm_matrix){0},
                      .out =
                          out->rank ? int4mm_as_matrix(out) : (int4mm_matrix){NULL, c->M, c->N, c->N, args->out_dtype},
                      .strassen = args->strassen == 0  ? -1
                                  : args->strassen < 0 ? 0
                                                       : args->strassen};
  p.a.scales = args->scale_a ? args->scale_a->data : NULL, p.a.group = c->K, p.a.groups = 1;
  /* One row has no next one, however far away: data that starts on 16 bytes is as good as aligned rows. */
  int64_t vector = 16 / (int64_t)int4mm_dtype_size(p.a.dtype);
  if (c->M <= 1) p.a.stride = (p.a.cols + vector - 1) / vector * vector;
  return p;
}

/* ---- the CPU ---- */

/* Makes A of a layer, then multiplies. */
static int32_t multiply_on_cpu(const int4mm_matmul_call *c, const int4mm_problem *problem) {
  int64_t unchecked;
  int32_t status = c->quantize ? int4mm_cpu_quantize(c->quantize, &unchecked) : INT4MM_OK;
  if (c->rotate) int4mm_cpu_rotate(c->rotate);
  return status ? status : int4mm_cpu_matmul(problem);
}

static int32_t run_one_cpu(const int4mm_matmul_call *c) {
  const int4mm_dispatch_target cpu = {.device = INT4MM_CPU};
  int4mm_problem problem = make_problem(c);
  int64_t bytes = int4mm_weight_scratch(&c->weight, c->args, c->N);
  void *scratch = NULL;
  if (!c->M || !c->N) return INT4MM_OK;
  if (bytes && !(scratch = int4mm_workspace_acquire(bytes))) return INT4MM_ERR_MEMORY;
  int32_t status = int4mm_place_weight(&c->weight, c->args, c->N, &cpu, scratch, &problem.b);
  if (!status) status = multiply_on_cpu(c, &problem);
  if (scratch) int4mm_workspace_release(scratch);
  return status;
}

static void zero_rows(const int4mm_tensor *out, int64_t first, int64_t rows) {
  const size_t size = int4mm_dtype_size(out->dtype);
  for (int64_t m = first; m < first + rows; m++)
    memset((char *)out->data + (size_t)(m * out->stride) * size, 0, (size_t)out->shape[1] * size);
}

/* One expert after the other. */
static int32_t run_experts_cpu(const int4mm_matmul_call *c) {
  const int64_t first = int4mm_first_row(c, 0), last = int4mm_first_row(c, c->experts);
  int32_t status = INT4MM_OK;
  if (!c->M || !c->N) return status;
  zero_rows(c->args->out, 0, first), zero_rows(c->args->out, last, c->M - last);
  for (int64_t e = 0; e < c->experts && !status; e++) {
    int64_t from = int4mm_first_row(c, e), rows = int4mm_first_row(c, e + 1) - from;
    int4mm_expert expert;
    int4mm_matmul_call one = *c;
    if (!rows) continue;
    int4mm_make_expert(&expert, c, e, from, rows);
    one.args = &expert.args, one.M = rows, one.experts = 0, one.weight.experts = 1;
    status = run_one_cpu(&one);
  }
  return status;
}

static int32_t run_cpu(const int4mm_matmul_call *c) {
  return c->experts ? run_experts_cpu(c) : run_one_cpu(c);
}

/* ---- CUDA ---- */

static int32_t alignment_of(const void *address) {
  uintptr_t bits = (uintptr_t)address | 256;
  return (int32_t)(bits & -bits);
}

typedef int32_t chooser(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

/* The choice, of the tuned kernel where there is one that serves the problem. */
static int32_t choose_tuned(const int4mm_gpu_traits *gpu, const int4mm_gpu_problem *g, const char *kernel,
                            chooser *choose, int4mm_plan *plan) {
  const char *tuned = kernel ? NULL : int4mm_tuned_kernel(gpu, g);
  int4mm_hold_error();
  int32_t status = tuned ? choose(g, tuned, plan) : INT4MM_ERR_UNSUPPORTED;
  int4mm_unhold_error();
  const char *why = status ? "" : "; the fastest when it was tuned";
  if (status) status = choose(g, kernel, plan);
  size_t used = status ? 0 : strlen(plan->reason); /* none, where nobody reads it */
  if (used && !kernel && int4mm_is_tuned_elsewhere(gpu)) why = "; the tuning is of another GPU";
  if (used) snprintf(plan->reason + used, sizeof plan->reason - used, "%s", why);
  return status;
}

static int32_t plan_cuda(const int4mm_dispatch_target *target, const int4mm_problem *p, const char *kernel,
                         chooser *choose, int4mm_plan *plan) {
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
                          .encoding_b = p->b.xor_mask ? INT4MM_OFFSET : INT4MM_TWOS_COMPLEMENT,
                          .layout_b = p->b.layout == INT4MM_K_MAJOR ? INT4MM_B_NK : INT4MM_B_KN,
                          .dtype_a = p->a.dtype,
                          .scaling = int4mm_scaling_of(p),
                          .group = p->b.group,
                          .zeros = p->b.zeros.data != NULL,
                          .experts = p->experts.count};
  int4mm_gpu_traits gpu;
  int32_t status = int4mm_gpu_traits_of(target->cuda, target->device, &gpu);
  if (status) return status;
  g.arch = gpu.arch, g.sms = gpu.sms, g.clock = gpu.clock, g.memory = gpu.memory, g.shared = gpu.shared;
  status = target->cuda->code_arch(target->device, &g.code_arch);
  if (!status) status = choose_tuned(&gpu, &g, kernel, choose, plan);
  if (!status) plan->device = target->device;
  return status;
}

int32_t int4mm_take_scratch(const int4mm_dispatch_target *target, size_t bytes, void **scratch, void *stream) {
  *scratch = int4mm_graph_take_scratch(target->device, stream, bytes);
  return *scratch ? INT4MM_OK : target->cuda->scratch(target->device, bytes, scratch, stream);
}

int32_t int4mm_free_scratch(const int4mm_dispatch_target *target, void *scratch, void *stream, int32_t status) {
  if (int4mm_graph_free_scratch(target->device, stream, scratch)) return status;
  if (!status) return target->cuda->scratch_free(target->device, scratch, stream);
  int4mm_hold_error();
  (void)target->cuda->scratch_free(target->device, scratch, stream);
  int4mm_unhold_error();
  return status;
}

/* Launches a plan, with memory for the sums of its parts of K; where there is none, K stays whole. */
static int32_t launch_kernel(const int4mm_dispatch_target *target, const int4mm_pack_job *quantize,
                             const int4mm_problem *problem, const int4mm_plan *plan, void *stream, bool non_blocking) {
  const int4mm_cuda_backend *cuda = target->cuda;
  const int64_t bytes = int4mm_sums_bytes(problem, plan);
  int4mm_problem p = *problem;
  void *sums = NULL;
  if (!bytes) return cuda->matmul(target->device, quantize, problem, plan, stream, non_blocking);
  int4mm_hold_error();
  if (int4mm_take_scratch(target, (size_t)bytes, &sums, stream)) sums = NULL;
  int4mm_unhold_error();
  p.sums = sums;
  int32_t status = cuda->matmul(target->device, quantize, &p, plan, stream, non_blocking);
  return sums ? int4mm_free_scratch(target, sums, stream, status) : status;
}

/* Runs a plan on a copy of A, in `dtype`, whose rows start on 128 bytes: on 16, as the kernels want, copies of 64 bytes
 * would touch three or four sectors of 32 (4096 x 4104 x 4096: 115 us). `quantize`, or NULL, makes A first,
 * or straight in the copy where that is wider. */
static int32_t launch_on_copy(const int4mm_dispatch_target *target, const int4mm_pack_job *quantize,
                              const int4mm_problem *problem, int32_t dtype, const int4mm_plan *plan, void *stream,
                              bool non_blocking) {
  const int4mm_cuda_backend *cuda = target->cuda;
  int4mm_problem p = *problem;
  int64_t size = (int64_t)int4mm_dtype_size(dtype), line = 128 / size, unchecked;
  int64_t cols = dtype == p.a.dtype ? p.a.cols : p.K;
  int4mm_matrix copy = {NULL, p.M, cols, (cols + line - 1) / line * line, dtype};
  int32_t status = int4mm_take_scratch(target, (size_t)(p.M * copy.stride * size), &copy.data, stream);
  if (status) return status;
  int4mm_pack_job widening;
  bool widens = dtype != p.a.dtype, at_once = quantize && widens;
  bool even_odd = widens && int4mm_takes_even_odd(problem, plan);
  if (at_once) widening = *quantize, widening.packed = copy, widening.widened = true, widening.even_odd = even_odd;
  if (quantize && !at_once) status = cuda->quantize(target->device, quantize, &unchecked, stream);
  int4mm_matrix src = {(void *)p.a.data, p.M, p.a.cols, p.a.stride, p.a.dtype};
  uint32_t xor_mask = src.dtype == INT4MM_INT32 ? p.a.xor_mask : 0;
  bool early_b = at_once || !int4mm_starts_early(plan);
  if (!status && !at_once) status = cuda->align_rows(target->device, &copy, &src, xor_mask, even_odd, early_b, stream);
  p.a.xor_mask ^= xor_mask, p.after_a = true, p.early_b = early_b;
  p.a.data = copy.data, p.a.stride = copy.stride, p.a.cols = cols, p.a.dtype = dtype, p.a.even_odd = even_odd;
  if (!status) status = launch_kernel(target, at_once ? &widening : NULL, &p, plan, stream, non_blocking);
  return int4mm_free_scratch(target, copy.data, stream, status);
}

/* Runs a plan, on copies of A where it wants them. */
static int32_t launch_plan(const int4mm_dispatch_target *target, const int4mm_problem *problem,
                           const int4mm_matmul_call *c, const int4mm_plan *plan, bool non_blocking) {
  void *stream = c->args->stream;
  if (plan->widened) return launch_on_copy(target, c->quantize, problem, INT4MM_INT8, plan, stream, non_blocking);
  if (int4mm_wants_copy_of_a(problem, plan))
    return launch_on_copy(target, c->quantize, problem, problem->a.dtype, plan, stream, non_blocking);
  if (!c->quantize || problem->a.dtype != INT4MM_INT8 || !int4mm_takes_even_odd(problem, plan))
    return launch_kernel(target, c->quantize, problem, plan, stream, non_blocking);
  int4mm_problem p = *problem;
  int4mm_pack_job quantize = *c->quantize;
  p.a.even_odd = quantize.even_odd = true;
  return launch_kernel(target, &quantize, &p, plan, stream, non_blocking);
}

/* The same on a copy of B in two's complement, whose rows start on 128 bytes. */
static int32_t launch_on_copy_of_b(const int4mm_dispatch_target *target, const int4mm_problem *problem,
                                   const int4mm_matmul_call *c, const int4mm_plan *plan, bool non_blocking) {
  void *stream = c->args->stream;
  int4mm_problem p = *problem;
  int4mm_matrix src = {(void *)p.b.data, p.b.rows, p.b.cols, p.b.stride, INT4MM_INT32}, copy = src;
  copy.stride = (src.cols + 31) / 32 * 32;
  int32_t status = int4mm_take_scratch(target, (size_t)(copy.rows * copy.stride * 4), &copy.data, stream);
  if (status) return status;
  status = target->cuda->align_rows(target->device, &copy, &src, p.b.xor_mask, false, true, stream);
  p.b.data = copy.data, p.b.stride = copy.stride, p.b.xor_mask = 0;
  if (!status) status = launch_plan(target, &p, c, plan, non_blocking);
  return int4mm_free_scratch(target, copy.data, stream, status);
}

static int32_t launch(const int4mm_dispatch_target *target, const int4mm_problem *problem, const int4mm_matmul_call *c,
                      bool non_blocking) {
  int4mm_plan plan = {0};
  int32_t status = plan_cuda(target, problem, c->args->kernel, int4mm_choose_kernel, &plan);
  if (status || !problem->M || !problem->N) return status;
  if (int4mm_wants_copy_of_b(problem, &plan)) return launch_on_copy_of_b(target, problem, c, &plan, non_blocking);
  return launch_plan(target, problem, c, &plan, non_blocking);
}

/* The problem with its weight placed, and A of a layer of floats rotated. A product without outputs is checked like any
 * other: its kernel is chosen. */
static int32_t place_and_launch(const int4mm_matmul_call *c, const int4mm_dispatch_target *target, void *scratch,
                                bool non_blocking) {
  int4mm_problem problem = make_problem(c);
  int32_t status = int4mm_place_weight(&c->weight, c->args, c->N, target, scratch, &problem.b);
  if (c->experts) problem.experts = int4mm_place_experts(c, &problem);
  if (!status && c->rotate && c->M) status = target->cuda->rotate(target->device, c->rotate, c->args->stream);
  return status ? status : launch(target, &problem, c, non_blocking);
}

/* Everything is on the target already. */
static int32_t run_on_gpu(const int4mm_matmul_call *c, const int4mm_dispatch_target *target) {
  const int4mm_matmul_args *args = c->args;
  int64_t bytes = c->M && c->N ? int4mm_weight_scratch(&c->weight, args, c->N) : 0;
  void *scratch = NULL;
  bool non_blocking;
  int32_t status =
      int4mm_use_on_stream(target->cuda, target->device, args->stream,
                           (const int4mm_tensor *[]){args->a_packed, args->b_packed, args->scale_a, args->scale_b,
                                                     args->zero_b, args->factor_b, args->bias, c->offsets, args->out},
                           9, &non_blocking);
  if (!status && bytes) status = int4mm_take_scratch(target, (size_t)bytes, &scratch, args->stream);
  if (status) return status;
  status = place_and_launch(c, target, scratch, non_blocking);
  return scratch ? int4mm_free_scratch(target, scratch, args->stream, status) : status;
}

/* A copy of a CPU operand on the GPU; nothing for a NULL one. */
static int32_t stage(int4mm_tensor *staged, const int4mm_tensor *t, int32_t device, void *stream) {
  if (!t) return INT4MM_OK;
  int32_t status = int4mm_tensor_alloc_on(staged, t->rank, t->shape[0], t->shape[1], t->dtype, device, stream);
  return status ? status : int4mm_copy_checked(staged, t, stream);
}

/* Operands on the CPU: copies over, multiplies, copies back unless out is on the GPU, and returns when done. */
static int32_t run_staged(const int4mm_matmul_call *c, const int4mm_dispatch_target *target) {
  const int4mm_matmul_args *args = c->args;
  enum { OPERANDS = 8 };
  const int4mm_tensor *from[OPERANDS] = {args->a_packed, args->b_packed, args->scale_a, args->scale_b,
                                         args->zero_b,   args->factor_b, args->bias,    c->offsets};
  int4mm_tensor staged[OPERANDS] = {{0}}, result = {0};
  bool out_on_cpu = args->out->device == INT4MM_CPU;
  int32_t status = INT4MM_OK;
  for (int i = 0; i < OPERANDS && !status; i++) status = stage(&staged[i], from[i], target->device, args->stream);
  if (!status && out_on_cpu)
    status = int4mm_tensor_alloc_on(&result, 2, c->M, c->N, args->out->dtype, target->device, args->stream);
  if (!status) {
    int4mm_matmul_args on_gpu = *args;
    int4mm_matmul_call moved = *c;
    const int4mm_tensor **to[OPERANDS] = {&on_gpu.a_packed, &on_gpu.b_packed, &on_gpu.scale_a, &on_gpu.scale_b,
                                          &on_gpu.zero_b,   &on_gpu.factor_b, &on_gpu.bias,    &moved.offsets};
    for (int i = 0; i < OPERANDS; i++) *to[i] = from[i] ? &staged[i] : NULL;
    on_gpu.out = out_on_cpu ? &result : args->out;
    moved.args = &on_gpu;
    status = run_on_gpu(&moved, target);
  }
  if (!status)
    status = out_on_cpu ? int4mm_copy_checked(args->out, &result, args->stream)
                        : target->cuda->stream_synchronize(target->device, args->stream);
  for (int i = 0; i < OPERANDS; i++) int4mm_tensor_release(&staged[i]);
  int4mm_tensor_release(&result);
  return status;
}

/* ---- a target ---- */

int32_t int4mm_run_matmul(const int4mm_matmul_call *c, const int4mm_dispatch_target *target) {
  if (!target->cuda) return run_cpu(c);
  if (c->args->a_packed->device != INT4MM_CPU) return run_on_gpu(c, target);
  int32_t status = run_staged(c, target);
  bool cannot = status == INT4MM_ERR_MEMORY || status == INT4MM_ERR_UNAVAILABLE; /* no room, or no code for this GPU */
  return cannot && target->may_fall_back ? run_cpu(c) : status;
}

int32_t int4mm_plan_matmul(const int4mm_matmul_call *c, const int4mm_dispatch_target *target, int4mm_plan *plan) {
  int4mm_problem problem = make_problem(c);
  (void)int4mm_place_weight(&c->weight, c->args, c->N, target, NULL, &problem.b);
  if (c->experts) problem.experts = int4mm_place_experts(c, &problem);
  if (!target->cuda) {
    if (c->experts) problem.M = (c->M + c->experts - 1) / c->experts; /* that it has on average */
    int4mm_cpu_plan(&problem, plan);
    return INT4MM_OK;
  }
  if (c->args->a_packed->device == INT4MM_CPU) { /* as run_staged lays them out: contiguous, on fresh allocations */
    problem.a.data = NULL, problem.a.stride = problem.a.cols;
    problem.b.data = NULL, problem.b.stride = problem.b.cols;
    if (!c->args->out->rank || c->args->out->device == INT4MM_CPU) problem.out.data = NULL, problem.out.stride = c->N;
  }
  return plan_cuda(target, &problem, c->args->kernel, int4mm_choose_cuda, plan);
}
