/*
 * Which CUDA kernel a product takes: a pure function of the problem, so that it can be read, tested and explained
 * without a GPU. The kernels do not choose and the launchers trust the plan.
 */
#include <stdio.h>
#include <string.h>

#include "core.h"

static const char *const kernel_names[] = {"simple", "tiled"};
enum { KERNELS = sizeof kernel_names / sizeof kernel_names[0] };

const char *int4mm_cuda_kernel_at(int32_t index) {
  return index >= 0 && index < KERNELS ? kernel_names[index] : NULL;
}

static int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

static void plan_simple(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  plan->ctas = (int32_t)ceil_div(p->M * p->N, 256);
  snprintf(plan->reason, sizeof plan->reason, "a thread per output serves any shape; %lld outputs",
           (long long)(p->M * p->N));
}

static void plan_tiled(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  plan->tile_m = plan->tile_n = 16;
  plan->ctas = (int32_t)(ceil_div(p->M, 16) * ceil_div(p->N, 16));
  snprintf(plan->reason, sizeof plan->reason, "16 x 16 tiles serve any shape on any architecture");
}

int32_t int4mm_choose_cuda(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  int4mm_plan chosen = {0};
  if (!problem || !plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", problem ? "plan" : "problem");
  chosen.split_k = chosen.stages = 1;
  chosen.kernel = problem->M * problem->N < 64 * 64 ? INT4MM_KERNEL_SIMPLE : INT4MM_KERNEL_TILED;
  if (kernel) {
    int32_t i = 0;
    while (i < KERNELS && strcmp(kernel, kernel_names[i])) i++;
    if (i == KERNELS) return int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\", which is not one of ours", kernel);
    chosen.kernel = i;
  }
  if (chosen.kernel == INT4MM_KERNEL_SIMPLE)
    plan_simple(problem, &chosen);
  else
    plan_tiled(problem, &chosen);
  snprintf(chosen.name, sizeof chosen.name, "%s", kernel_names[chosen.kernel]);
  *plan = chosen;
  return INT4MM_OK;
}
