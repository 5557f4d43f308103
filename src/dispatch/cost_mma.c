/*
 * mma: large M on GPUs that have no kernel of their own. The constants are fitted to an H100 (132 SMs), where the int8
 * tensor cores of mma.sync give 1,335 TOPS, and stand in for the other architectures until they are measured, as those
 * of skinny do. Code for an architecture below 90 multiplies int4, which by the datasheets of sm_80, 86, 87 and 89 is
 * twice as fast as int8: that is derived, not measured. Times are in ns, of calls that follow each other.
 */
#include <stdio.h>

#include "core/problem.h"
#include "dispatch/registry.h"

enum {
  FIRST_INT8_ARCH = 90, /* from here on code multiplies int8 (kernels/sm80/mma.cuh) */
  CALL_TIME = 1500      /* a call, beside its tiles */
};

/* The time of a k-block of a tile by int8, and what else there is to a tile. `per_sm` CTAs side by side share the time
 * of the k-blocks. */
typedef struct mma_cost {
  int32_t tile_m, tile_n, per_sm;
  int64_t k_block, tile;
} mma_cost;

static const mma_cost costs[] = {{128, 256, 1, 1063, 2600}, {128, 128, 1, 560, 2200}, {64, 64, 1, 180, 1300}};

static const mma_cost *cost_of(const int4mm_kernel *kernel) {
  const mma_cost *cost = costs;
  while (cost->tile_m != kernel->tile_m || cost->tile_n != kernel->tile_n) cost++;
  return cost;
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const int64_t max_extent = INT32_MAX - 1023; /* rows and columns are counted in 32 bits */
  if (!int4mm_plan_is_elementary(p)) return "is for W4A4 with a scale for each column";
  if (p->code_arch < 80) return "needs code for sm_80 or later";
  if (p->M < 1 || p->N < 1 || p->K < 32) return "needs an M and N above 0 and a K of at least 32";
  if (p->M > max_extent || p->N > max_extent) return "needs an M and N below 2147482625";
  if (p->K % 32) return "needs a K that is a multiple of 32";
  if (p->code_arch >= FIRST_INT8_ARCH && p->K >= INT4MM_WIDE_K) return "needs a K below 131072";
  if (!int4mm_plan_aligned16(p)) return "needs rows of a_packed and b_packed that start on 16 bytes";
  if (p->layout_b == INT4MM_B_KN && p->N % 4) return "needs an N that is a multiple of 4";
  return int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX ? "has too many tiles" : NULL;
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const mma_cost *cost = cost_of(kernel);
  int64_t tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n);
  int64_t k_block = p->code_arch >= FIRST_INT8_ARCH ? cost->k_block : cost->k_block / 2;
  int64_t tile = int4mm_plan_k_blocks(p) * k_block + cost->tile;
  plan->tile_k = INT4MM_BLOCK_K;
  plan->ctas = int4mm_plan_ctas(tiles);
  return int4mm_plan_add(CALL_TIME, int4mm_plan_mul(int4mm_plan_ceil_div(tiles, p->sms * cost->per_sm), tile));
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  snprintf(text, size, "%d tiles of %d x %d on %d SMs by %s mma.sync%s", plan->ctas, plan->tile_m, plan->tile_n,
           (int)p->sms, p->code_arch >= FIRST_INT8_ARCH ? "int8" : "int4",
           p->layout_b == INT4MM_B_NK ? ", B along k" : "");
}

const int4mm_family int4mm_family_mma = {unsupported, plan, explain, false};
