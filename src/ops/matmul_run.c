/*
 * A valid product on its target: the problem as backends see it, and the steps around their kernels.
 */
#include "cpu/backend.h"
#include "dispatch/choose.h"
#include "dispatch/devices.h"
#include "ops/copy.h"
#include "ops/matmul.h"

/* ---- the problem ---- */

/* Packed words as a backend sees them: K values along rows or columns, a scale for each of the others. */
static int4mm_operand make_operand(const int4mm_tensor *words, const int4mm_tensor *scales, int32_t layout,
                                   int32_t encoding, int64_t K) {
  int4mm_matrix m = int4mm_as_matrix(words);
  return (int4mm_operand){.data = m.data,
                          .rows = m.rows,
                          .cols = m.cols,
                          .stride = m.stride,
                          .dtype = m.dtype,
                          .layout = layout,
                          .xor_mask = int4mm_xor_mask_of(encoding),
                          .scales = scales->data,
                          .group = K};
}

/* The problem as a backend sees it, with b as it lies in memory; out has no data where it is still to be allocated. */
static int4mm_problem make_problem(const int4mm_matmul_call *c) {
  const int4mm_matmul_args *args = c->args;
  const int4mm_tensor *out = args->out;
  int32_t layout_b = c->panels ? INT4MM_PANELS_N : c->nk ? INT4MM_K_MAJOR : INT4MM_MN_MAJOR;
  int4mm_problem p = {.M = c->M,
                      .N = c->N,
                      .K = c->K,
                      .a = make_operand(args->a_packed, args->scale_a, INT4MM_K_MAJOR, c->encoding_a, c->K),
                      .b = make_operand(args->b_packed, args->scale_b, layout_b, c->encoding_b, c->K),
                      .bias = args->bias ? args->bias->data : NULL,
                      .activation = c->activation,
                      .residual = c->residual ? int4mm_as_matrix(c->residual) : (int4mm_matrix){0},
                      .out =
                          out->rank ? int4mm_as_matrix(out) : (int4mm_matrix){NULL, c->M, c->N, c->N, args->out_dtype},
                      .strassen = args->strassen};
  /* One row has no next one, however far away: words that start on 16 bytes are as good as aligned rows. */
  if (c->M <= 1) p.a.stride = (p.a.cols + 3) / 4 * 4;
  return p;
}

/* ---- the CPU ---- */

static int32_t run_cpu(const int4mm_matmul_call *c) {
  int4mm_problem problem = make_problem(c);
  int64_t unchecked;
  if (!c->M || !c->N) return INT4MM_OK;
  int32_t status = c->quantize ? int4mm_cpu_quantize(c->quantize, &unchecked) : INT4MM_OK;
  return status ? status : int4mm_cpu_matmul(&problem);
}

/* ---- CUDA ---- */

static int32_t alignment_of(const void *address) {
  uintptr_t bits = (uintptr_t)address | 256;
  return (int32_t)(bits & -bits);
}

typedef int32_t chooser(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

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
                          .layout_b = p->b.layout == INT4MM_K_MAJOR ? INT4MM_B_NK : INT4MM_B_KN};
  int32_t status = target->cuda->arch(target->device, &g.arch, &g.sms);
  if (!status) status = target->cuda->code_arch(target->device, &g.code_arch);
  if (!status) status = choose(&g, kernel, plan);
  if (!status) plan->device = target->device;
  return status;
}

int32_t int4mm_free_scratch(const int4mm_dispatch_target *target, void *scratch, void *stream, int32_t status) {
  if (!status) return target->cuda->scratch_free(target->device, scratch, stream);
  int4mm_hold_error();
  (void)target->cuda->scratch_free(target->device, scratch, stream);
  int4mm_unhold_error();
  return status;
}

/* Runs a plan on a copy of A whose rows start on 128 bytes: on 16, as the kernels want, copies of 64 bytes would touch
 * three or four sectors of 32 (4096 x 4104 x 4096: 115 us). A layer's A lies as they want it (linear.c). */
static int32_t launch_on_copy(const int4mm_dispatch_target *target, const int4mm_problem *problem,
                              const int4mm_plan *plan, void *stream, bool non_blocking) {
  const int4mm_cuda_backend *cuda = target->cuda;
  int4mm_problem p = *problem;
  int64_t words = p.K / 8, stride = (words + 31) / 32 * 32;
  void *copy = NULL;
  int32_t status = cuda->scratch(target->device, (size_t)(p.M * stride) * sizeof(uint32_t), &copy, stream);
  if (status) return status;
  int4mm_matrix from = {(void *)p.a.data, p.M, words, p.a.stride, INT4MM_INT32};
  int4mm_matrix to = {copy, p.M, words, stride, INT4MM_INT32};
  status = cuda->align_rows(target->device, &to, &from, stream);
  p.a.data = copy, p.a.stride = stride;
  if (!status) status = cuda->matmul(target->device, NULL, &p, plan, stream, non_blocking);
  return int4mm_free_scratch(target, copy, stream, status);
}

static int32_t launch(const int4mm_dispatch_target *target, const int4mm_problem *problem, const int4mm_matmul_call *c,
                      bool non_blocking) {
  int4mm_plan plan = {0};
  void *stream = c->args->stream;
  int32_t status = plan_cuda(target, problem, c->args->kernel, int4mm_choose_kernel, &plan);
  if (status || !problem->M || !problem->N) return status;
  if (!c->quantize && int4mm_wants_copy_of_a(problem, &plan))
    return launch_on_copy(target, problem, &plan, stream, non_blocking);
  return target->cuda->matmul(target->device, c->quantize, problem, &plan, stream, non_blocking);
}

/* Everything is on the target already. A product without outputs is checked like any other: its kernel is chosen. */
static int32_t run_on_gpu(const int4mm_matmul_call *c, const int4mm_dispatch_target *target) {
  const int4mm_matmul_args *args = c->args;
  int4mm_problem problem = make_problem(c);
  bool non_blocking;
  int32_t status = int4mm_use_on_stream(
      target->cuda, target->device, args->stream,
      (const int4mm_tensor *[]){args->a_packed, args->b_packed, args->scale_a, args->scale_b, args->bias, args->out}, 6,
      &non_blocking);
  return status ? status : launch(target, &problem, c, non_blocking);
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
  const int4mm_tensor *from[5] = {args->a_packed, args->b_packed, args->scale_a, args->scale_b, args->bias};
  int4mm_tensor staged[5] = {{0}}, result = {0};
  bool out_on_cpu = args->out->device == INT4MM_CPU;
  int32_t status = INT4MM_OK;
  for (int i = 0; i < 5 && !status; i++) status = stage(&staged[i], from[i], target->device, args->stream);
  if (!status && out_on_cpu)
    status = int4mm_tensor_alloc_on(&result, 2, c->M, c->N, args->out->dtype, target->device, args->stream);
  if (!status) {
    int4mm_matmul_args on_gpu = *args;
    on_gpu.a_packed = &staged[0], on_gpu.b_packed = &staged[1];
    on_gpu.scale_a = &staged[2], on_gpu.scale_b = &staged[3];
    on_gpu.bias = args->bias ? &staged[4] : NULL;
    on_gpu.out = out_on_cpu ? &result : args->out;
    int4mm_matmul_call moved = *c;
    moved.args = &on_gpu;
    status = run_on_gpu(&moved, target);
  }
  if (!status)
    status = out_on_cpu ? int4mm_copy_checked(args->out, &result, args->stream)
                        : target->cuda->stream_synchronize(target->device, args->stream);
  for (int i = 0; i < 5; i++) int4mm_tensor_release(&staged[i]);
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
  if (!target->cuda) {
    int4mm_cpu_plan(&problem, plan);
    return INT4MM_OK;
  }
  if (c->args->a_packed->device == INT4MM_CPU) { /* as run_staged lays them out: contiguous, on fresh allocations */
    problem.a.data = NULL, problem.a.stride = c->K / 8;
    problem.b.data = NULL, problem.b.stride = problem.b.cols;
    if (!c->args->out->rank || c->args->out->device == INT4MM_CPU) problem.out.data = NULL, problem.out.stride = c->N;
  }
  return plan_cuda(target, &problem, c->args->kernel, int4mm_choose_cuda, plan);
}
