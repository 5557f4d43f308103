/*
 * mma: large M on GPUs that have no kernel of their own, and operands for which these have none. The constants are
 * fitted to an H100 (132 SMs), where the int8 tensor cores of mma.sync give 1,325 TOPS; on other GPUs they are scaled
 * (dispatch/gpu.h). Code for an architecture below 90 multiplies int4. Times are in ns, of calls that follow each
 * other.
 */
#include <stdio.h>

#include "core/dtype.h"
#include "core/problem.h"
#include "dispatch/gpu.h"
#include "dispatch/registry.h"

enum {
  CALL_TIME = 2200,       /* a call, beside its tiles */
  WEIGHT_RATE = 1500,     /* bytes of B a ns: 64 x 4096 x 14336 takes 21 us, */
  COPY_RATE = 1000,       /* and of a copy of A or B, */
  FITTED_MEMORY = 3350,   /* with a memory of so many GB/s; */
  COPY_TIME = 2000,       /* of the copy's call */
  ADD_TIME = 1300,        /* of a kernel that adds the sums of parts of K, */
  ADD_RATE = 2700,        /* and bytes of these sums a ns, written and read, */
  PROMOTION_TIME = 350,   /* of the sums of 128 x 128 for each group of a k-block but the first */
  MAX_GROUPED_K = 1 << 20 /* where a group is found by a multiplication */
};

/* What a kernel multiplies and what becomes of its sums: packed words, int8 and floats, each with a scale for each
 * column or for each group; int8 also with weights b - z or b f. */
typedef enum mma_kind { WORDS, WORDS_GROUPS, BYTES, BYTES_AFFINE, BYTES_GROUPS, REALS, REALS_GROUPS } mma_kind;

static mma_kind kind_of(const int4mm_gpu_problem *p) {
  const bool groups = p->scaling == INT4MM_GROUP_SCALES, affine = p->scaling == INT4MM_GROUP_FACTORS || p->zeros;
  if (p->dtype_a == INT4MM_INT32) return groups ? WORDS_GROUPS : WORDS;
  if (p->dtype_a == INT4MM_INT8) return groups ? BYTES_GROUPS : affine ? BYTES_AFFINE : BYTES;
  return groups || p->K > INT4MM_MMA_LONG_K ? REALS_GROUPS : REALS;
}

/* What a tile's CTA takes of k at a time (Tile::BK); the time of a k-block of a tile and of what else there is to a
 * tile, for a CTA alone on its SM and, where an SM has two, for two side by side. W4A4 by int8: M x K x N take, with
 * each tile in this order: 8192^3 1117 and 1140 us; 4096^3 149, 146, - and 234; 2048^3 21.7 and 21.5;
 * 1024^3 11.8, 7.0, 5.4 and 7.9; 512 x 4096 x 4096 37, 21.4, - and 32; 256 x 4096 x 4096 37, 20.8, 12.9 and 15.8; 128 x
 * 4096 x 4096 37, 20.7, 12.5 and 8.5. W4A8 and W4A16, with the tiles that they have: 4096^3 164, 190 and 249 us, and
 * 300, 342 and 475; 512 x 4096 x 4096 43, 45 and 34, and 73, 73 and 58; 128 x 4096 x 4096 42, 37 and 16, and 74, 55 and
 * 19; 4096^3 with groups of 128 267 and 428, and 462 and 639. */
typedef struct mma_cost {
  mma_kind kind;
  int32_t tile_m, tile_n, stage_k;
  bool pairs;
  int64_t k_block_one, tile_one, k_block_two, tile_two;
} mma_cost;

static const mma_cost costs[] = {{WORDS, 128, 256, 256, false, 1016, 4300, 0, 0},
                                 {WORDS, 128, 128, 128, true, 599, 0, 1081, 2000},
                                 {WORDS, 128, 64, 256, false, 312, 670, 0, 0},
                                 {WORDS, 64, 64, 512, false, 175, 900, 0, 0},
                                 {WORDS_GROUPS, 128, 128, 256, false, 1240, 1500, 0, 0},
                                 {WORDS_GROUPS, 64, 64, 128, true, 640, 1000, 800, 1500},
                                 {BYTES, 128, 256, 128, false, 1260, 1500, 0, 0},
                                 {BYTES, 128, 128, 128, true, 1150, 2000, 1450, 2000},
                                 {BYTES, 64, 64, 128, true, 440, 1000, 475, 1000},
                                 {BYTES_AFFINE, 128, 128, 128, false, 1030, 1300, 0, 0},
                                 {BYTES_AFFINE, 64, 64, 128, true, 720, 1000, 740, 1000},
                                 {BYTES_GROUPS, 128, 128, 128, false, 1020, 1000, 0, 0},
                                 {BYTES_GROUPS, 64, 64, 128, true, 640, 1000, 820, 1000},
                                 {REALS, 128, 256, 64, false, 2250, 1500, 0, 0},
                                 {REALS, 128, 128, 64, true, 2270, 1000, 2650, 2000},
                                 {REALS, 64, 64, 64, true, 560, 1000, 895, 1500},
                                 {REALS_GROUPS, 128, 128, 64, false, 1780, 1500, 0, 0},
                                 {REALS_GROUPS, 64, 64, 64, true, 950, 1000, 1250, 1500}};

/* NULL: there is no code for that kind with that tile. */
static const mma_cost *cost_of(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const mma_kind kind = kind_of(p);
  for (size_t i = 0; i < sizeof costs / sizeof costs[0]; i++)
    if (costs[i].kind == kind && costs[i].tile_m == kernel->tile_m && costs[i].tile_n == kernel->tile_n)
      return &costs[i];
  return NULL;
}

static bool is_int8(const int4mm_gpu_problem *p) {
  return int4mm_gpu_unpacks(p) || p->dtype_a == INT4MM_INT8; /* kernels/sm80/mma.cuh */
}

/* Values of k that share a scale. */
static int64_t group_of(const int4mm_gpu_problem *p) {
  return p->scaling != INT4MM_PER_COLUMN && p->group < p->K ? p->group : p->K;
}

/* Whether A, or B, is copied first (int4mm_wants_copy_of_a, _of_b). */
static bool copies_a(const int4mm_gpu_problem *p) {
  return !int4mm_plan_aligned16_a(p) || p->K % int4mm_plan_k_step(p->dtype_a);
}
static bool copies_b(const int4mm_gpu_problem *p) {
  if (!int4mm_plan_aligned16_b(p)) return true;
  return p->layout_b == INT4MM_B_KN ? p->N % 4 != 0 : p->dtype_a == INT4MM_INT32 && p->K % 32;
}

static const char *kind_unsupported(const int4mm_gpu_problem *p) {
  const bool real = kind_of(p) >= REALS;
  if (p->dtype_a == INT4MM_FLOAT32) return "has no code for an A of float32";
  if (real && p->scaling == INT4MM_GROUP_FACTORS) return "has no code for floats with integer group scales";
  if (p->dtype_a == INT4MM_INT32 && !int4mm_plan_is_elementary(p)) {
    if (is_int8(p) || p->scaling == INT4MM_GROUP_FACTORS || p->zeros) return "needs int8 activations for such weights";
    if (p->group % 64 && p->group < p->K) return "needs groups of a multiple of 64 values with int4 activations";
    if (group_of(p) >= 65536) return "needs groups below 65536 values with int4 activations";
  }
  if (kind_of(p) == BYTES_GROUPS && group_of(p) >= 256 && p->group % 128 && p->group < p->K)
    return "needs groups below 256 or of a multiple of 128 values";
  if (p->scaling != INT4MM_PER_COLUMN && p->K > MAX_GROUPED_K) return "needs a K of at most 2^20 with groups";
  if (!real && is_int8(p) && (p->scaling == INT4MM_GROUP_SCALES ? group_of(p) : p->K) >= INT4MM_WIDE_K)
    return p->scaling == INT4MM_GROUP_SCALES ? "needs groups below 131072" : "needs a K below 131072";
  return NULL;
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const int64_t max_extent = INT32_MAX - 1023; /* rows and columns are counted in 32 bits */
  if (p->code_arch < 80) return "needs code for sm_80 or later";
  const char *reason = kind_unsupported(p);
  if (reason) return reason;
  if (!cost_of(kernel, p)) return "has no code for this kind of operands";
  if (p->M < 1 || p->N < 1 || p->K < 1) return "needs an M, N and K above 0";
  if (p->M > max_extent || p->N > max_extent) return "needs an M and N below 2147482625";
  if (p->K > INT4MM_MAX_K) return "needs a K below 2^25";
  if (p->experts && kernel->tile_m != kernel->tile_n) return "has no code for grouped products";
  if (p->experts && copies_b(p)) return "needs aligned rows of b_packed for grouped products";
  return int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX ? "has too many tiles" : NULL;
}

/* The time that a k-block of a tile takes more for groups of less than it: 4096^3 of W4A8 with groups of 32 takes 537
 * us with 128 x 128 and 640 with 64 x 64. */
static int64_t promotion_time(const mma_cost *cost, const int4mm_gpu_problem *p) {
  int64_t groups = p->scaling == INT4MM_GROUP_SCALES && p->group < INT4MM_BLOCK_K ? INT4MM_BLOCK_K / p->group : 1;
  return (groups - 1) * PROMOTION_TIME * cost->tile_m * cost->tile_n / (128 * 128);
}

/* Tiles of so many k-blocks go over the SMs in waves, with two CTAs for each of them as long as there are enough. */
static int64_t waves_time(const mma_cost *cost, const int4mm_gpu_problem *p, int64_t tiles, int64_t k_blocks) {
  int4mm_mma mma = p->dtype_a == INT4MM_INT32 && !is_int8(p)                 ? INT4MM_MMA_INT4
                   : p->dtype_a == INT4MM_INT32 || p->dtype_a == INT4MM_INT8 ? INT4MM_MMA_INT8
                                                                             : INT4MM_MMA_FP16;
  const int64_t more = promotion_time(cost, p);
  const int64_t k_block_one = cost->k_block_one + more, k_block_two = cost->k_block_two + more * 8 / 5;
  int64_t one = int4mm_gpu_mma_time(p, mma, k_blocks * k_block_one) + int4mm_gpu_clock_time(p, cost->tile_one);
  int64_t two = int4mm_gpu_mma_time(p, mma, k_blocks * k_block_two) + int4mm_gpu_clock_time(p, cost->tile_two);
  if (!cost->pairs) return int4mm_plan_mul(int4mm_plan_ceil_div(tiles, p->sms), one);
  int64_t rest = tiles % (2 * p->sms);
  return int4mm_plan_add(int4mm_plan_mul(tiles / (2 * p->sms), two), rest > p->sms ? two : rest ? one : 0);
}

/* The product's time, at least that of reading B, and that of adding sums. 128 x 14336 x 1024 takes 20.4 us with 32
 * tiles of 64 x 64, 13.6 with K in 2 parts and 10.2 in 4; 64 x 65536 x 256 82 us, 15 in 8, 10.5 in 16 and 9.8 in 32;
 * W4A8 of 128 x 4096 x 4096 15.9 and in 2 parts 14.4. With more sums it does not pay: 2048 x 2048 x 256 takes 7.7 us
 * and in 2 parts 10.2. 192 x 14336 x 3072, 12 tiles of 64 x 64 behind 132, takes 41 us and with these in 10 parts 27;
 * 1536 x 14336 x 3072, 24 of 128 x 128 behind 264, 192 and in 5 parts 148. */
static int64_t sharing_time(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_sharing s) {
  const mma_cost *cost = cost_of(kernel, p);
  const int64_t stages = int4mm_plan_ceil_div(p->K, cost->stage_k), tiles = int4mm_plan_add(s.whole, s.shared);
  int64_t reading = int4mm_plan_bytes_of_b(p) / int4mm_gpu_memory_rate(p, FITTED_MEMORY, WEIGHT_RATE);
  int64_t time = waves_time(cost, p, s.split > 1 ? s.whole : tiles, int4mm_plan_k_blocks(p));
  if (s.split > 1) {
    const int64_t part = int4mm_plan_ceil_div(stages, s.split) * cost->stage_k / INT4MM_BLOCK_K;
    time += waves_time(cost, p, s.shared * s.split, part);
  }
  if (time < reading) time = reading;
  if (s.split == 1) return time;
  int64_t bytes = s.split * p->M * p->N * s.shared / tiles * 8;
  return time + int4mm_gpu_clock_time(p, ADD_TIME) + bytes / int4mm_gpu_memory_rate(p, FITTED_MEMORY, ADD_RATE);
}

/* Stages of K that CTAs may share, where sums are exact in any order; else one. */
static int64_t shared_stages(const mma_cost *cost, const int4mm_gpu_problem *p) {
  const bool exact = cost->kind == WORDS || cost->kind == BYTES || cost->kind == BYTES_AFFINE;
  return exact && !p->experts ? int4mm_plan_ceil_div(p->K, cost->stage_k) : 1;
}

/* What copies of operands take. */
static int64_t copying_time(const int4mm_gpu_problem *p) {
  const int64_t rate = int4mm_gpu_memory_rate(p, FITTED_MEMORY, COPY_RATE);
  int64_t time = copies_a(p) ? COPY_TIME + int4mm_plan_bytes_of_a(p) / rate : 0;
  if (copies_b(p)) time = int4mm_plan_add(time, COPY_TIME + int4mm_plan_mul(p->K, p->N) / 2 / rate);
  return time;
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const int64_t element = p->out_dtype == INT4MM_FLOAT32 ? 4 : 2;
  const mma_cost *cost = cost_of(kernel, p);
  const int64_t tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n);
  const int64_t likely_tiles = int4mm_plan_likely_tiles(p, kernel->tile_m, kernel->tile_n);
  int64_t time = int4mm_plan_share_k(kernel, p, sharing_time, likely_tiles, cost->pairs ? 2 * p->sms : p->sms,
                                     shared_stages(cost, p), plan);
  plan->tile_k = INT4MM_BLOCK_K;
  if (plan->split_k == 1) plan->ctas = int4mm_plan_ctas(tiles);
  if (p->align_out < 16 || p->ldo % (16 / element)) time = int4mm_plan_add(time, time / 8); /* as wgmma's: not fitted */
  time = int4mm_plan_add(time, copying_time(p));
  return int4mm_plan_add(CALL_TIME, time);
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  const bool real = kind_of(p) >= REALS;
  const char *type = real ? int4mm_dtype_name(p->dtype_a) : is_int8(p) ? "int8" : "int4";
  char sharing[48];
  int used = snprintf(text, size, "%d tiles of %d x %d on %d SMs by %s mma.sync%s%s%s%s", int4mm_plan_all_tiles(plan),
                      plan->tile_m, plan->tile_n, (int)p->sms, type, int4mm_plan_sharing(plan, sharing, sizeof sharing),
                      p->layout_b == INT4MM_B_NK ? ", B along k" : "", copies_a(p) ? ", A copied" : "",
                      copies_b(p) ? ", B copied" : "");
  if (p->scaling == INT4MM_GROUP_SCALES && used > 0 && (size_t)used < size)
    snprintf(text + used, size - (size_t)used, ", groups of %lld promoted to float32", (long long)group_of(p));
}

const int4mm_family int4mm_family_mma = {unsupported, plan, explain, INT4MM_COPIES_AB, true, true};
