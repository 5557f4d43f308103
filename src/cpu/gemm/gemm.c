/*
 * The choice of a driver for a product.
 */
#include <stdio.h>

#include "cpu/gemm/gemm.h"

enum {
  MAX_GROUP8 = 4096, /* words of K in a group with a float scale: a k-block of the blocked driver holds whole groups */
  SKINNY_GROUP8 = 4096 /* the same in a slice of the skinny driver with dot products */
};

/* Dot products along K end with the addition of their lanes, which takes as long as some words of K for each row: by
 * measurements on one thread of an AVX512-VNNI machine, blocks are faster below that. */
static bool is_dot(const int4mm_kernels *kernels, const int4mm_problem *p) {
  return p->M <= kernels->dot_max_m && (p->M <= 2 || int4mm_words_of_k(p) >= 8 * p->M);
}

static bool is_skinny(const int4mm_kernels *kernels, const int4mm_problem *p) {
  if (int4mm_in_groups(kernels, p) && int4mm_is_k_major(&p->b))
    return p->M <= kernels->dot_groups_max_m && int4mm_group8(p) <= SKINNY_GROUP8;
  if (int4mm_in_groups(kernels, p)) return p->M <= kernels->skinny_groups_max_m;
  if (int4mm_is_panels(&p->b)) return p->M <= kernels->skinny_panel_max_m;
  if (int4mm_is_k_major(&p->b)) return is_dot(kernels, p);
  return p->M <= (int4mm_skinny_threads(p) > 1 ? kernels->skinny_max_m_threaded : kernels->skinny_max_m);
}

/* Exact products with groups that are longer than the drivers' k-blocks, which nobody makes, are left to scalar code.
 */
static bool is_served(const int4mm_problem *p) {
  return !p->b.group_scales.data || int4mm_group8(p) <= MAX_GROUP8;
}

int32_t int4mm_gemm(const int4mm_kernels *kernels, const int4mm_problem *p) {
  if (int4mm_is_w4a16(p)) return int4mm_gemm_float(kernels, p);
  if (!is_served(p)) return int4mm_cpu_scalar.matmul(NULL, p);
  bool skinny = is_skinny(kernels, p);
  if (int4mm_is_raw(kernels, p, skinny)) return int4mm_gemm_raw(kernels, p);
  if (skinny) return int4mm_gemm_skinny(kernels, p);
  int32_t levels = int4mm_strassen_levels(kernels, p);
  if (levels > 0) {
    int32_t status = int4mm_gemm_strassen(kernels, p, levels);
    if (status != INT4MM_ERR_MEMORY || p->strassen >= 0) return status;
  } /* chosen by rule, but its workspace is larger than the memory left */
  return int4mm_gemm_blocked(kernels, p);
}

/* ---- what it is, in words --------------------------------------------------------------------------------------- */

/* Columns of a tile of `dot`, 1 where the rows are divided. */
static int32_t tile_n_of_dot(const int4mm_kernels *kernels, int64_t M) {
  return (int32_t)int4mm_max64(1, kernels->dot_sums / int4mm_max64(1, M));
}

/* What a problem that is not elementary adds to the reason. */
static const char *groups_of_plan(const int4mm_kernels *kernels, const int4mm_problem *p) {
  if (int4mm_is_elementary(p)) return "";
  if (p->b.group_scales.data) return "; float32 totals, group by group, without Strassen";
  return int4mm_in_groups(kernels, p) ? "; int32 totals, group by group, without Strassen" : "; without Strassen";
}

void int4mm_gemm_plan(const int4mm_kernels *kernels, const int4mm_problem *p, int4mm_plan *plan) {
  int32_t levels = int4mm_strassen_levels(kernels, p);
  const char *groups = groups_of_plan(kernels, p);
  bool dot = int4mm_is_k_major(&p->b) && !int4mm_in_groups(kernels, p);
  plan->tile_m = kernels->mr;
  plan->tile_n = kernels->nr;
  if (int4mm_is_w4a16(p)) {
    bool few = p->M <= kernels->float_rows_max_m;
    if (few) plan->tile_m = (int32_t)p->M, plan->tile_n = kernels->skinny_columns;
    snprintf(plan->reason, sizeof plan->reason, "float32 sums: the weight becomes float32 %s; without Strassen",
             few ? "in registers" : "a strip of columns at a time");
  } else if (!is_served(p)) {
    plan->tile_m = plan->tile_n = 0;
    int4mm_cpu_scalar.plan(NULL, p, plan);
  } else if (int4mm_is_raw(kernels, p, is_skinny(kernels, p))) {
    snprintf(plan->reason, sizeof plan->reason, "few rows, a tile at a time: the weight is read where it is%s", groups);
  } else if (is_skinny(kernels, p)) {
    plan->tile_m = (int32_t)p->M;
    plan->tile_n = dot ? tile_n_of_dot(kernels, p->M) : kernels->skinny_columns;
    snprintf(plan->reason, sizeof plan->reason, "few rows: the weight is read once, unpacked in registers%s%s",
             int4mm_is_panels(&p->b) ? " (prepacked)" : "", groups);
  } else if (levels > 0) {
    snprintf(plan->reason, sizeof plan->reason, "large enough for %d level%s of exact Strassen", (int)levels,
             levels > 1 ? "s" : "");
  } else {
    snprintf(plan->reason, sizeof plan->reason, "blocked product of packed operands%s%s",
             int4mm_is_panels(&p->b) ? ", the weight prepacked" : "", groups);
  }
}
