/*
 * Which CUDA kernel a product takes. Every kernel that can serve is given an estimate of its time, and the lowest wins,
 * so that no rule for a range of shapes ends in a cliff.
 */
#include "dispatch/choose.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/check.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/problem.h"
#include "dispatch/gpu.h"
#include "dispatch/registry.h"

/* What a problem may name: at most what is far above any GPU, so that products with it fit. */
enum { MAX_SMS = 65536, MAX_CLOCK = 100000 /* MHz */, MAX_MEMORY = 1000000 /* GB/s */, LEAST_SHARED = 48 << 10 };

static int runs_on(const int4mm_kernel *kernel, int32_t arch) {
  return arch >= kernel->min_arch && arch <= kernel->max_arch;
}

/* Why a kernel that runs on the problem's architecture cannot serve it, or NULL. */
static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  if (p->experts && !kernel->family->experts) return "has no code for grouped products";
  return kernel->family->unsupported(kernel, p);
}

/* The plan of one kernel without name and reason, and its cost. */
static int64_t make_plan(int32_t index, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const int4mm_kernel *kernel = &int4mm_kernels_cuda[index];
  plan->kernel = index;
  plan->tile_m = kernel->tile_m, plan->tile_n = kernel->tile_n, plan->tile_k = 0;
  plan->stages = kernel->stages, plan->split_k = plan->ctas = 1, plan->whole_tiles = 0;
  return kernel->family->plan(kernel, p, plan);
}

static int32_t take(int32_t index, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  int4mm_plan made = {0};
  (void)make_plan(index, p, &made);
  strcpy(made.name, int4mm_kernels_cuda[index].name);
  *plan = made;
  return INT4MM_OK;
}

/* ---- an int4 A made int8, for kernels whose other operands leave them no room to unpack both, and for code that would
 * multiply int4 by an emulated instruction ---- */

enum {
  WIDENING_TIME = 2200,  /* ns of a call that widens A, */
  WIDENING_RATE = 1400,  /* and values a ns, with 1.5 bytes each: what copying reaches on an H100, */
  WIDENING_MEMORY = 3350 /* whose memory has so many GB/s */
};

static bool may_widen(const int4mm_gpu_problem *p) {
  bool pays = !int4mm_plan_is_elementary(p) || int4mm_gpu_emulates_int4(p);
  return p->dtype_a == INT4MM_INT32 && pays && p->M > 0 && p->N > 0;
}

/* The same problem with such a copy of A, as src/ops/ makes it. */
static int4mm_gpu_problem widen(const int4mm_gpu_problem *p) {
  int4mm_gpu_problem wide = *p;
  wide.dtype_a = INT4MM_INT8, wide.encoding_a = INT4MM_TWOS_COMPLEMENT;
  wide.lda = (p->K + 127) / 128 * 128, wide.align_a = 256;
  return wide;
}

static int64_t widening_time(const int4mm_gpu_problem *p) {
  return WIDENING_TIME + int4mm_plan_mul(p->M, p->K) / int4mm_gpu_memory_rate(p, WIDENING_MEMORY, WIDENING_RATE);
}

static int32_t take_forced(const char *name, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  for (int32_t i = 0; i < int4mm_kernel_count; i++) {
    const int4mm_kernel *kernel = &int4mm_kernels_cuda[i];
    if (strcmp(name, kernel->name)) continue;
    if (!runs_on(kernel, p->arch))
      return int4mm_fail(INT4MM_ERR_UNSUPPORTED, "the kernel %s needs sm_%d%s, this is sm_%d%s", name,
                         (int)kernel->min_arch, kernel->max_arch == kernel->min_arch ? "" : " or later", (int)p->arch,
                         p->arch == int4mm_hidden_above() ? " by INT4MM_CUDA_ARCH" : "");
    const char *reason = unsupported(kernel, p);
    if (!reason) return take(i, p, plan);
    int4mm_gpu_problem wide = widen(p);
    if (!may_widen(p) || unsupported(kernel, &wide))
      return int4mm_fail(INT4MM_ERR_UNSUPPORTED, "the kernel %s %s", name, reason);
    (void)take(i, &wide, plan);
    plan->widened = 1;
    return INT4MM_OK;
  }
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\", expected one of those that int4mm_cuda_kernel_at lists",
                     name);
}

/* The kernel that takes the least time, and that time; -1 where none serves. */
static int32_t find_cheapest(const int4mm_gpu_problem *p, int64_t *lowest) {
  int32_t best = -1;
  int4mm_plan unused;
  *lowest = INT64_MAX;
  for (int32_t i = 0; i < int4mm_kernel_count; i++) {
    const int4mm_kernel *kernel = &int4mm_kernels_cuda[i];
    if (!runs_on(kernel, p->arch) || unsupported(kernel, p)) continue;
    int64_t cost = make_plan(i, p, &unused);
    if (cost < *lowest) *lowest = cost, best = i;
  }
  return best;
}

int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  if (kernel) return take_forced(kernel, problem, plan);
  int64_t cost, wide_cost;
  int32_t best = find_cheapest(problem, &cost);
  if (may_widen(problem)) {
    int4mm_gpu_problem wide = widen(problem);
    int32_t best_wide = find_cheapest(&wide, &wide_cost);
    if (best_wide >= 0 && wide_cost < INT4MM_COST_ANY && int4mm_plan_add(wide_cost, widening_time(problem)) < cost) {
      (void)take(best_wide, &wide, plan);
      plan->widened = 1;
      return INT4MM_OK;
    }
  }
  if (best >= 0) return take(best, problem, plan);
  return int4mm_fail(INT4MM_ERR_UNSUPPORTED, "no kernel serves sm_%d", (int)problem->arch);
}

static bool is_aligned16(const int4mm_operand *o) {
  return (uintptr_t)o->data % 16 == 0 && o->stride * (int64_t)int4mm_dtype_size(o->dtype) % 16 == 0;
}

bool int4mm_wants_copy_of_a(const int4mm_problem *problem, const int4mm_plan *plan) {
  const int copies = int4mm_kernels_cuda[plan->kernel].family->copies;
  const bool whole = copies != INT4MM_COPIES_AB || problem->K % int4mm_plan_k_step(problem->a.dtype) == 0;
  return copies && !(whole && is_aligned16(&problem->a));
}

bool int4mm_wants_copy_of_b(const int4mm_problem *problem, const int4mm_plan *plan) {
  const int copies = int4mm_kernels_cuda[plan->kernel].family->copies;
  const bool whole = problem->b.layout == INT4MM_MN_MAJOR ? problem->N % 4 == 0
                                                          : problem->a.dtype != INT4MM_INT32 || problem->K % 32 == 0;
  if (copies == INT4MM_COPIES_A_LONG && problem->b.layout == INT4MM_K_MAJOR && problem->M >= INT4MM_COPY_B_ROWS)
    return !is_aligned16(&problem->b);
  return copies == INT4MM_COPIES_AB && !(whole && is_aligned16(&problem->b));
}

/* Narrow's CTAs take half an SM, beside those of the call before: on an H100 128 x 4104 x 4096 takes 9.1 us so,
 * for 9.9, where those of hopper take 17.9 for 17.8 with 512 rows. */
bool int4mm_starts_early(const int4mm_plan *plan) {
  return int4mm_kernels_cuda[plan->kernel].family == &int4mm_family_narrow;
}

bool int4mm_takes_even_odd(const int4mm_problem *problem, const int4mm_plan *plan) {
  return int4mm_kernels_cuda[plan->kernel].family == &int4mm_family_grouped && !problem->experts.count &&
         problem->K % 32 == 0;
}

int64_t int4mm_sums_bytes(const int4mm_problem *problem, const int4mm_plan *plan) {
  if (plan->split_k <= 1 || !int4mm_kernels_cuda[plan->kernel].family->sums) return 0;
  const int64_t areas = plan->whole_tiles ? int4mm_plan_shared_tiles(plan) : 1;
  const int64_t sums = int4mm_sum_rows(problem, plan) * int4mm_sums_stride(problem, plan);
  return plan->split_k * areas * sums * (int64_t)sizeof(int32_t);
}

/* ---- the public function ---- */

static int32_t check_number(const char *name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %lld, expected from %lld to %lld", name, (long long)value,
                     (long long)min, (long long)max);
}

static int32_t check_alignment(const char *name, int32_t value) {
  if (value >= 1 && value <= 256 && !(value & (value - 1))) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %d, expected a power of two from 1 to 256", name, (int)value);
}

static int32_t check_problem(const int4mm_gpu_problem *p) {
  const int64_t max_size = (int64_t)1 << 60;
  int32_t status = check_number("sms", p->sms, 1, MAX_SMS);
  if (!status) status = check_number("clock", p->clock, 0, MAX_CLOCK);
  if (!status) status = check_number("memory", p->memory, 0, MAX_MEMORY);
  if (!status && p->shared) status = check_number("shared", p->shared, LEAST_SHARED, INT32_MAX);
  if (!status) status = check_number("M", p->M, 0, max_size);
  if (!status) status = check_number("N", p->N, 0, max_size);
  if (!status) status = check_number("K", p->K, 0, p->dtype_a ? max_size : INT4MM_MAX_K);
  bool words = p->dtype_a == INT4MM_INT32;
  int64_t k8 = p->K / 8 + (p->K % 8 != 0);
  if (!status && words && p->K % 8)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "K is %lld, expected a multiple of 8", (long long)p->K);
  if (!status && !int4mm_dtype_size(p->dtype_a))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "dtype_a is %d, which is not an int4mm_dtype", (int)p->dtype_a);
  if (!status) status = check_number("scaling", p->scaling, INT4MM_PER_COLUMN, INT4MM_GROUP_FACTORS);
  if (!status) status = check_number("group", p->group, 0, max_size);
  if (!status && p->scaling && p->K && !p->group)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "group is 0, but scaling has groups");
  if (!status) status = check_number("experts", p->experts, 0, 1 << 20);
  if (!status) status = check_number("zeros", p->zeros, 0, p->scaling == INT4MM_GROUP_FACTORS ? 0 : 1);
  if (!status) status = check_number("lda", p->lda, words ? k8 : p->K, max_size);
  if (!status) status = check_number("layout_b", p->layout_b, INT4MM_B_KN, INT4MM_B_NK);
  if (!status) status = check_number("ldb", p->ldb, p->layout_b == INT4MM_B_NK ? k8 : p->N, max_size);
  if (!status) status = check_number("ldo", p->ldo, p->N, max_size);
  if (!status) status = check_alignment("align_a", p->align_a);
  if (!status) status = check_alignment("align_b", p->align_b);
  if (!status) status = check_alignment("align_out", p->align_out);
  if (!status && !int4mm_is_out_dtype(p->out_dtype))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "out_dtype is %s, expected float16, bfloat16 or float32",
                         int4mm_dtype_name(p->out_dtype));
  return status;
}

/* As far as there is room. */
__attribute__((format(printf, 2, 3))) static void add_reason(int4mm_plan *plan, const char *format, ...) {
  size_t used = strlen(plan->reason);
  va_list arguments;
  va_start(arguments, format);
  (void)vsnprintf(plan->reason + used, sizeof plan->reason - used, format, arguments);
  va_end(arguments);
}

enum { SCALED_FROM = 80 /* for older ones there is nothing to scale: their kernels were measured nowhere */ };

/* Where the times come from that a kernel was chosen by. */
static void explain_estimate(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const int4mm_architecture *card = int4mm_architecture_of(p->arch);
  bool told = p->clock && p->memory; /* by the device */
  if (int4mm_gpu_is_measured(p))
    add_reason(plan, "; by times measured on sm_%d", (int)p->arch);
  else
    add_reason(plan, "; by times %s %d MHz and %d GB/s%s%s",
               p->arch < SCALED_FROM ? "derived for" : "scaled from sm_90 to", p->clock ? p->clock : card->clock,
               p->memory ? p->memory : card->memory, told ? "" : " of ", told ? "" : card->card);
}

int32_t int4mm_choose_cuda(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  if (!problem || !plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", problem ? "plan" : "problem");
  const int64_t reserved[4] = {problem->reserved[0], problem->reserved[1]};
  if (int4mm_check_args(reserved)) return INT4MM_ERR_ARGUMENT;
  int4mm_gpu_problem p = *problem;
  if (!p.code_arch) p.code_arch = p.arch;
  if (!p.sms) p.sms = int4mm_architecture_of(p.arch)->sms;
  int32_t status = check_problem(&p);
  if (!status) status = int4mm_choose_kernel(&p, kernel, plan);
  if (status) return status;
  if (plan->widened) p = widen(&p);
  int4mm_kernels_cuda[plan->kernel].family->explain(&p, plan, plan->reason, sizeof plan->reason);
  if (p.experts) add_reason(plan, "; at most so many, for %d experts", (int)p.experts);
  if (plan->widened) add_reason(plan, "; A is widened to int8 first");
  if (!kernel && int4mm_kernels_cuda[plan->kernel].family != &int4mm_family_elementary) explain_estimate(&p, plan);
  return INT4MM_OK;
}
