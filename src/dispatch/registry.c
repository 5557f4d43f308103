/*
 * The table of CUDA kernels and what the families share.
 */
#include "dispatch/registry.h"

#include <stdio.h>

#include "core/dtype.h"
#include "core/problem.h"

#define INT4MM_KERNEL(name, min_arch, max_arch, tile_m, tile_n, stages, family)                                        \
  {#name, min_arch, max_arch, tile_m, tile_n, stages, &int4mm_family_##family},
const int4mm_kernel int4mm_kernels_cuda[] = {
#include "common/kernels.inc"
};
#undef INT4MM_KERNEL

const int32_t int4mm_kernel_count = (int32_t)(sizeof int4mm_kernels_cuda / sizeof int4mm_kernels_cuda[0]);

const char *int4mm_cuda_kernel_at(int32_t index) {
  return index >= 0 && index < int4mm_kernel_count ? int4mm_kernels_cuda[index].name : NULL;
}

int64_t int4mm_plan_ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}

static int64_t at_most_cost(int64_t x) {
  return x < INT4MM_COST_ANY ? x : INT4MM_COST_ANY - 1;
}

int64_t int4mm_plan_mul(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT4MM_COST_ANY - 1 : at_most_cost(product);
}

int64_t int4mm_plan_add(int64_t a, int64_t b) {
  int64_t sum;
  return __builtin_add_overflow(a, b, &sum) ? INT4MM_COST_ANY - 1 : at_most_cost(sum);
}

int32_t int4mm_plan_ctas(int64_t n) {
  return n < 1 ? 1 : n < INT32_MAX ? (int32_t)n : INT32_MAX;
}

int64_t int4mm_plan_row_tiles(const int4mm_gpu_problem *p, int32_t m) {
  return p->experts ? int4mm_expert_tiles(p->M, p->experts, m) : int4mm_plan_ceil_div(p->M, m);
}

int64_t int4mm_plan_tiles(const int4mm_gpu_problem *p, int32_t m, int32_t n) {
  return int4mm_plan_mul(int4mm_plan_row_tiles(p, m), int4mm_plan_ceil_div(p->N, n));
}

/* Experts that have rows, if they are shared out evenly. */
static int64_t experts_at_work(const int4mm_gpu_problem *p) {
  return p->experts < p->M ? p->experts : p->M;
}

int64_t int4mm_plan_likely_row_tiles(const int4mm_gpu_problem *p, int32_t m) {
  if (!p->experts) return int4mm_plan_row_tiles(p, m);
  int64_t experts = experts_at_work(p), rows = p->M / m + experts / 2;
  return rows > experts ? rows : experts;
}

int64_t int4mm_plan_likely_tiles(const int4mm_gpu_problem *p, int32_t m, int32_t n) {
  return int4mm_plan_mul(int4mm_plan_likely_row_tiles(p, m), int4mm_plan_ceil_div(p->N, n));
}

int64_t int4mm_plan_bytes_of_b(const int4mm_gpu_problem *p) {
  int64_t bytes = int4mm_plan_mul(p->K / 2, p->N);
  return p->experts ? int4mm_plan_mul(experts_at_work(p), bytes) : bytes;
}

int64_t int4mm_plan_k_blocks(const int4mm_gpu_problem *p) {
  return int4mm_plan_ceil_div(p->K, INT4MM_BLOCK_K);
}

bool int4mm_plan_is_elementary(const int4mm_gpu_problem *p) {
  return p->dtype_a == INT4MM_INT32 && p->scaling == INT4MM_PER_COLUMN && !p->zeros;
}

int64_t int4mm_plan_k_step(int32_t dtype_a) {
  return dtype_a == INT4MM_INT32 ? 32 : dtype_a == INT4MM_INT8 ? 1 : 8;
}

bool int4mm_plan_aligned16_a(const int4mm_gpu_problem *p) {
  return p->align_a >= 16 && p->lda % (16 / (int64_t)int4mm_dtype_size(p->dtype_a)) == 0;
}

bool int4mm_plan_aligned16_b(const int4mm_gpu_problem *p) {
  return p->align_b >= 16 && p->ldb % 4 == 0;
}

bool int4mm_plan_aligned16(const int4mm_gpu_problem *p) {
  return int4mm_plan_aligned16_a(p) && int4mm_plan_aligned16_b(p);
}

int64_t int4mm_plan_bytes_of_a(const int4mm_gpu_problem *p) {
  int64_t elements = int4mm_plan_mul(p->M, p->dtype_a == INT4MM_INT32 ? p->K / 8 : p->K);
  return int4mm_plan_mul(elements, (int64_t)int4mm_dtype_size(p->dtype_a));
}

static int64_t copy_of(int64_t bytes) {
  const int64_t call = 2000, rate = 1000; /* bytes a ns */
  return int4mm_plan_add(call, bytes / rate);
}

int64_t int4mm_plan_copy_of_a(const int4mm_gpu_problem *p) {
  return copy_of(int4mm_plan_bytes_of_a(p));
}

int64_t int4mm_plan_copy_of_b(const int4mm_gpu_problem *p) {
  return copy_of(int4mm_plan_bytes_of_b(p));
}

/* ---- shared K ---- */

int64_t int4mm_plan_share_k(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_sharing_time *time,
                            int64_t tiles, int64_t at_once, int64_t stages, int4mm_plan *plan) {
  const int64_t max_split = 32, max_waves = 64; /* beside more waves, what they leave over is nothing */
  const int64_t waves = tiles / at_once, whole = waves * at_once, shared = tiles - whole;
  plan->ctas = int4mm_plan_ctas(tiles), plan->split_k = 1, plan->whole_tiles = 0;
  int64_t best = time(kernel, p, (int4mm_sharing){0, tiles, 1});
  if (!shared || waves >= max_waves) return best;
  const int64_t most = at_once / shared;
  for (int64_t parts = most < max_split ? most : max_split; parts > 1; parts /= 2) {
    const int64_t split = int4mm_plan_ceil_div(stages, int4mm_plan_ceil_div(stages, parts));
    const int64_t ns = split > 1 ? time(kernel, p, (int4mm_sharing){whole, shared, split}) : best;
    if (ns >= best) continue;
    best = ns, plan->split_k = (int32_t)split, plan->whole_tiles = (int32_t)whole;
    plan->ctas = int4mm_plan_ctas(whole + shared * split);
  }
  return best;
}

int32_t int4mm_plan_shared_tiles(const int4mm_plan *plan) {
  return (plan->ctas - plan->whole_tiles) / plan->split_k;
}

int32_t int4mm_plan_all_tiles(const int4mm_plan *plan) {
  return plan->whole_tiles + int4mm_plan_shared_tiles(plan);
}

const char *int4mm_plan_sharing(const int4mm_plan *plan, char *text, size_t size) {
  if (!plan->whole_tiles) return "";
  snprintf(text, size, ", the last %d by %d CTAs each", int4mm_plan_shared_tiles(plan), plan->split_k);
  return text;
}
