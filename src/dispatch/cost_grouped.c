/*
 * grouped: products with group scales and W4A16 by the wgmma kernels of sm_90. The constants are fitted to measurements
 * on an H100 (132 SMs); times are in ns, of calls that follow each other.
 */
#include <stdio.h>

#include "core/dtype.h"
#include "core/problem.h"
#include "dispatch/registry.h"

enum {
  CALL_TIME = 3500,      /* a call, beside its tiles */
  READ_RATE = 2800,      /* bytes a ns */
  LONGEST_GROUP = 131071 /* of integers: bytes of both operands may be 16 times their values */
};

static const int64_t max_extent = (int64_t)INT32_MAX - 1023, max_stride = ((int64_t)1 << 36) - 1;

static bool is_float(const int4mm_gpu_problem *p) {
  return p->dtype_a == INT4MM_FLOAT16 || p->dtype_a == INT4MM_BFLOAT16;
}

/* Values of k that share a scale. */
static int64_t group_of(const int4mm_gpu_problem *p) {
  return p->scaling == INT4MM_GROUP_SCALES && p->group < p->K ? p->group : p->K;
}

static const char *kind_unsupported(const int4mm_gpu_problem *p) {
  if (p->dtype_a == INT4MM_INT32) return "is not for int4 activations";
  if (p->dtype_a == INT4MM_FLOAT32) return "is not for float32 activations";
  if (p->scaling == INT4MM_GROUP_FACTORS) return "is not for integer group scales";
  if (!is_float(p) && p->scaling != INT4MM_GROUP_SCALES) return "is for group scales and W4A16";
  return NULL;
}

static const char *group_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  int64_t group = group_of(p);
  if (group == 32 && is_float(p) && kernel->tile_m > 64 && group < p->K)
    return "needs groups of at least 64 values with float activations";
  if (group == 32 || group == 64 || group == 128 || (group == p->K && p->K <= INT4MM_BLOCK_K)) return NULL;
  if (group % 128 && group < p->K) return "needs groups of 32, 64 or a multiple of 128 values";
  if (is_float(p)) return NULL;
  if (kernel->tile_m > 64) return "needs groups of 32, 64 or 128 values with integer activations";
  return group > LONGEST_GROUP ? "needs groups below 131072 values with integer activations" : NULL;
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const char *reason = kind_unsupported(p);
  if (reason) return reason;
  if (p->M < 1 || p->N < 1 || p->K < 1) return "needs an M, N and K above 0";
  if (p->M > max_extent || p->N > max_extent || p->K > max_extent) return "needs an M, N and K below 2147482625";
  if (p->lda > max_stride || p->ldb > max_stride) return "needs strides of a_packed and b_packed below 2^36";
  if (p->layout_b != INT4MM_B_KN) return "needs a b_packed that is [K/8, N]";
  if (!int4mm_plan_aligned16(p)) return "needs rows of a_packed and b_packed that start on 16 bytes";
  if (int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX / 8) return "has too many tiles";
  return group_unsupported(kernel, p);
}

/* The time of a k-block without its groups, of the promotion of each of them, and of what else there is to a tile, for
 * W4A8 and W4A16. 1024 x 4096 x 14336 with groups of 128 takes 142 us in W4A8, 413 with groups of 32, and 196 in
 * W4A16. For the smaller tiles all of it is latency: 64 x 128 takes 15 and 19 us for up to 132 tiles
 * of K = 4096, in W4A8 30 with groups of 32; 64 x 64 takes 13 and 15, and a quarter more with two CTAs to an SM. */
typedef struct grouped_cost {
  int64_t k_block, group, tile;
} grouped_cost;

static const grouped_cost large[] = {{150, 740, 3500}, {1150, 230, 3500}},
                          small[] = {{183, 151, 1200}, {285, 180, 1200}},
                          smallest[] = {{165, 135, 1200}, {220, 140, 1200}};

/* The time of all tiles, and how many CTAs compute them. */
static int64_t tiles_time(const int4mm_gpu_problem *p, const grouped_cost *cost, int64_t tiles, bool pairable,
                          int64_t *ctas) {
  int64_t group = group_of(p), groups = group < INT4MM_BLOCK_K && group ? INT4MM_BLOCK_K / group : 1; /* of a k-block */
  bool pairs = pairable && tiles > p->sms;
  int64_t resident = pairs ? p->sms * 2 : p->sms;
  *ctas = tiles < resident ? tiles : resident;
  int64_t k_block = cost->k_block + groups * cost->group;
  int64_t time =
      int4mm_plan_add(int4mm_plan_mul(int4mm_plan_k_blocks(p), pairs ? k_block * 5 / 4 : k_block), cost->tile);
  return int4mm_plan_mul(int4mm_plan_ceil_div(tiles, resident), time);
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const grouped_cost *cost = (kernel->tile_m > 64 ? large : kernel->tile_n > 64 ? small : smallest) + is_float(p);
  int64_t tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n), ctas;
  int64_t time = tiles_time(p, cost, tiles, kernel->tile_n == 64, &ctas);
  plan->tile_k = INT4MM_BLOCK_K;
  plan->ctas = int4mm_plan_ctas(ctas);
  time = int4mm_plan_add(CALL_TIME, time);
  int64_t reading = CALL_TIME + int4mm_plan_mul(p->K / 2, p->N) / READ_RATE;
  return time > reading ? time : reading;
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  snprintf(text, size, "%lld tiles of %d x %d for %d CTAs on %d SMs, groups of %lld promoted to float32",
           (long long)int4mm_plan_tiles(p, plan->tile_m, plan->tile_n), plan->tile_m, plan->tile_n, plan->ctas,
           (int)p->sms, (long long)group_of(p));
}

const int4mm_family int4mm_family_grouped = {unsupported, plan, explain, INT4MM_COPIES_NONE};
