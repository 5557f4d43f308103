/*
 * mma: large M on GPUs that have no kernel of their own. The constants are fitted to an H100 (132 SMs), where the int8
 * tensor cores of mma.sync give 1,325 TOPS; on other GPUs they are scaled (dispatch/gpu.h). Code for an architecture
 * below 90 multiplies int4. Times are in ns, of calls that follow each other.
 */
#include <stdio.h>

#include "core/problem.h"
#include "dispatch/gpu.h"
#include "dispatch/registry.h"

enum {
  FIRST_INT8_ARCH = 90, /* from here on code multiplies int8 (kernels/sm80/mma.cuh) */
  CALL_TIME = 2200,     /* a call, beside its tiles */
  WEIGHT_RATE = 1500,   /* bytes of B a ns: 64 x 4096 x 14336 takes 21 us, */
  FITTED_MEMORY = 3350  /* with a memory of so many GB/s */
};

/* The time of a k-block of a tile by int8 and of what else there is to a tile, for a CTA alone on its SM and, where an
 * SM has two, for two side by side. M x K x N take, with each tile in this order: 8192^3 1117 and 1140 us; 4096^3 149,
 * 146, - and 234; 2048^3 21.7 and 21.5; 1024^3 11.8, 7.0, 5.4 and 7.9; 512 x 4096 x 4096 37, 21.4, - and 32; 256 x
 * 4096 x 4096 37, 20.8, 12.9 and 15.8; 128 x 4096 x 4096 37, 20.7, 12.5 and 8.5. */
typedef struct mma_cost {
  int32_t tile_m, tile_n;
  bool pairs;
  int64_t k_block_one, tile_one, k_block_two, tile_two;
} mma_cost;

static const mma_cost costs[] = {{128, 256, false, 1016, 4300, 0, 0},
                                 {128, 128, true, 599, 0, 1081, 2000},
                                 {128, 64, false, 312, 670, 0, 0},
                                 {64, 64, false, 175, 900, 0, 0}};

static const mma_cost *cost_of(const int4mm_kernel *kernel) {
  const mma_cost *cost = costs;
  while (cost->tile_m != kernel->tile_m || cost->tile_n != kernel->tile_n) cost++;
  return cost;
}

static bool is_int8(const int4mm_gpu_problem *p) {
  return p->code_arch >= FIRST_INT8_ARCH;
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const int64_t max_extent = INT32_MAX - 1023; /* rows and columns are counted in 32 bits */
  if (!int4mm_plan_is_elementary(p)) return "is for W4A4 with a scale for each column";
  if (p->code_arch < 80) return "needs code for sm_80 or later";
  if (p->M < 1 || p->N < 1 || p->K < 32) return "needs an M and N above 0 and a K of at least 32";
  if (p->M > max_extent || p->N > max_extent) return "needs an M and N below 2147482625";
  if (p->K % 32) return "needs a K that is a multiple of 32";
  if (is_int8(p) && p->K >= INT4MM_WIDE_K) return "needs a K below 131072";
  if (!int4mm_plan_aligned16(p)) return "needs rows of a_packed and b_packed that start on 16 bytes";
  if (p->layout_b == INT4MM_B_KN && p->N % 4) return "needs an N that is a multiple of 4";
  return int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX ? "has too many tiles" : NULL;
}

/* Tiles go over the SMs in waves, with two CTAs for each of them as long as there are enough. */
static int64_t waves_time(const mma_cost *cost, const int4mm_gpu_problem *p, int64_t tiles) {
  int4mm_mma mma = is_int8(p) ? INT4MM_MMA_INT8 : INT4MM_MMA_INT4;
  int64_t k_blocks = int4mm_plan_k_blocks(p);
  int64_t one = int4mm_gpu_mma_time(p, mma, k_blocks * cost->k_block_one) + int4mm_gpu_clock_time(p, cost->tile_one);
  int64_t two = int4mm_gpu_mma_time(p, mma, k_blocks * cost->k_block_two) + int4mm_gpu_clock_time(p, cost->tile_two);
  if (!cost->pairs) return int4mm_plan_mul(int4mm_plan_ceil_div(tiles, p->sms), one);
  int64_t rest = tiles % (2 * p->sms);
  return int4mm_plan_add(int4mm_plan_mul(tiles / (2 * p->sms), two), rest > p->sms ? two : rest ? one : 0);
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const int64_t element = p->out_dtype == INT4MM_FLOAT32 ? 4 : 2;
  int64_t tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n);
  int64_t time = waves_time(cost_of(kernel), p, tiles);
  int64_t reading = int4mm_plan_mul(p->K / 2, p->N) / int4mm_gpu_memory_rate(p, FITTED_MEMORY, WEIGHT_RATE);
  if (time < reading) time = reading;
  if (p->align_out < 16 || p->ldo % (16 / element)) time = int4mm_plan_add(time, time / 8); /* as wgmma's: not fitted */
  plan->tile_k = INT4MM_BLOCK_K;
  plan->ctas = int4mm_plan_ctas(tiles);
  return int4mm_plan_add(CALL_TIME, time);
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  snprintf(text, size, "%d tiles of %d x %d on %d SMs by %s mma.sync%s", plan->ctas, plan->tile_m, plan->tile_n,
           (int)p->sms, is_int8(p) ? "int8" : "int4", p->layout_b == INT4MM_B_NK ? ", B along k" : "");
}

const int4mm_family int4mm_family_mma = {unsupported, plan, explain, false};
