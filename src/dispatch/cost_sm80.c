/*
 * skinny: few rows, and from sm_80 on whatever no other fast kernel serves. The cost is fitted to an H200; on other
 * GPUs it is scaled (dispatch/gpu.h).
 */
#include <stdio.h>

#include "core/problem.h"
#include "dispatch/gpu.h"
#include "dispatch/registry.h"

enum {
  WAVE_TIME = 2000,    /* ns of each wave of CTAs but the first */
  FITTED_MEMORY = 4800 /* GB/s of the memory that the rates are of */
};

/* `call` is the time of a call beside reading B, `rate` the bytes of B read per ns: 1, 16, 32 and 64 rows of
 * 4096 x 4096 take 4.1, 4.7, 6.1 and 8.4 us, of 14336 x 4096 8.9, 9.9, 12.5 and 22; 1, 16 and 32 rows of 4096 x 14336
 * take 9.1, 10.0 and 13.2; 144 rows of 512 x 11008, four waves of skinny_32, 16. skinny_64 is slower where K is short
 * and storing counts, 9.5 and 11.9 for 33 and 64 rows of 512 x 28672, and nearest to being taken there: its `call` is
 * for that. */
typedef struct skinny_cost {
  int32_t rows;
  int64_t call, rate;
  int32_t max_warps;
  int32_t reading[5]; /* percent of the time of reading B that it takes by general_kind */
  int64_t cta_rate; /* bytes of B a ns of a CTA, however many SMs idle: 64 x 65536 x 256 without clusters takes 74 us */
} skinny_cost;

static const skinny_cost costs[] = {{8, 2300, 4150, 16, {100, 120, 125, 125, 140}, 46},
                                    {16, 2700, 3850, 16, {100, 120, 155, 190, 145}, 42},
                                    {32, 2600, 2950, 16, {100, 100, 100, 100, 100}, 34},
                                    {64, 4000, 1470, 8, {80, 130, 215, 215, 200}, 15}};

/* Of a grouped product, whose CTAs have few warps, half of them side by side: several CTAs on an SM hide each other's
 * beginning and end. On an H100, W4A4 with 64 rows of 64 experts of 2048 x 1408 takes 26 us, with 8 warps 32, and with
 * 16 of 8 experts of 14336 x 4096 86 and 103. With slots (is_chain) 8 are better, since these are many in an SM: 80 us,
 * not 93, for W4A8 with groups of 128 and 8 rows of 8 experts of 4096 x 14336. */
enum { EXPERT_CTAS = 2, EXPERT_STAGES = 2, EXPERT_WARPS = 4, EXPERT_WARPS_CHAIN = 8 };

static const skinny_cost *cost_of(const int4mm_kernel *kernel) {
  const skinny_cost *cost = costs;
  while (cost->rows < kernel->tile_m) cost++;
  return cost;
}

/* Bytes of shared memory that a CTA takes at most. */
static int64_t shared_of(const int4mm_gpu_problem *p) {
  return p->experts ? int4mm_gpu_shared(p) / EXPERT_CTAS - 1024 : int4mm_gpu_shared(p);
}

static int32_t ctas_of(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, const int4mm_plan *plan) {
  int64_t stripes = int4mm_plan_ceil_div(p->N, plan->tile_n);
  int64_t ctas = int4mm_plan_mul(stripes, int4mm_plan_row_tiles(p, kernel->tile_m));
  return int4mm_plan_ctas(int4mm_plan_mul(ctas, plan->split_k));
}

/* ---- operands of every kind (kernels/sm80/skinny_general.cuh) ---- */

/* What such a plan counts with, in bytes of shared memory. */
typedef struct general_bytes {
  int64_t stage, slot; /* of a warp: a stage; what a k-block keeps for a chain over group scales, 0 without */
} general_bytes;

/* Segments of a k-block that no group's border divides. */
static int64_t segments_of(const int4mm_gpu_problem *p) {
  if (p->scaling == INT4MM_PER_COLUMN || p->group >= p->K || p->group % 128 == 0) return 1;
  return p->group % 64 == 0 ? 2 : 4;
}

/* What a kernel does with its sums, which decides its speed: 16 rows of 4096 x 14336 take 12.0 us on an H100 with int8
 * and a scale for each column, 13 with factors, 13.0 with group scales of 128 values (GROUPS), 13.4 with zero points as
 * well and 32 with groups of 64 (CHAIN, and more for each segment of a k-block), 14.4 with floats; 64 rows of 4096 x
 * 4096 7.6, 10.6, 16.4 and 13. */
typedef enum general_kind { PLAIN, FACTORS, GROUPS, CHAIN, FLOATS } general_kind;

static bool is_float(const int4mm_gpu_problem *p) {
  return p->dtype_a != INT4MM_INT32 && p->dtype_a != INT4MM_INT8;
}

/* What most weights are: a scale for each column, with an A of floats, or of int8 and no zero points, or group scales,
 * of floats for whole k-blocks and of integers for one. */
static bool is_usual(const int4mm_gpu_problem *p) {
  if (p->scaling == INT4MM_GROUP_FACTORS) return false;
  if (p->scaling == INT4MM_PER_COLUMN)
    return is_float(p) || (p->dtype_a == INT4MM_INT8 && p->K < INT4MM_WIDE_K && !p->zeros);
  return is_float(p) ? p->group % INT4MM_BLOCK_K == 0 : p->group == INT4MM_BLOCK_K;
}

static general_kind kind_of(const int4mm_gpu_problem *p) {
  if (is_float(p)) return FLOATS;
  if (p->scaling == INT4MM_GROUP_SCALES) return is_usual(p) ? GROUPS : CHAIN;
  return p->scaling == INT4MM_GROUP_FACTORS || p->K >= INT4MM_WIDE_K ? FACTORS : PLAIN;
}

/* Bytes of B a ns on this GPU: what its memory gives, as it does for the fewest rows, or what its tensor cores keep up
 * with at `percent` of the time. */
static int64_t rate_of(const skinny_cost *cost, const int4mm_gpu_problem *p, int32_t percent) {
  int64_t reading = int4mm_gpu_memory_rate(p, FITTED_MEMORY, costs[0].rate), rate = cost->rate * 100 / percent;
  bool int4 = p->dtype_a == INT4MM_INT32 && !int4mm_gpu_unpacks(p); /* skinny_fragments.cuh */
  int4mm_mma type = kind_of(p) == FLOATS ? INT4MM_MMA_FP16 : int4 ? INT4MM_MMA_INT4 : INT4MM_MMA_INT8;
  int64_t mma = int4mm_gpu_mma_rate(p, type, rate);
  return mma < reading ? mma : reading;
}

/* The time of reading B, for each block of rows anew, at `percent` of what it takes W4A4. */
static int64_t reading_time(const skinny_cost *cost, const int4mm_gpu_problem *p, const int4mm_plan *plan,
                            int64_t row_tiles, int32_t percent) {
  const int64_t bytes = int4mm_plan_mul(p->K / 2, p->N);
  int64_t stripe = int4mm_plan_mul(p->K / 2, p->N < plan->tile_n ? p->N : plan->tile_n) / plan->split_k;
  int64_t all = int4mm_plan_mul(row_tiles, bytes / rate_of(cost, p, percent));
  int64_t one = int4mm_gpu_clock_time(p, int4mm_plan_mul(stripe, percent) / 100 / cost->cta_rate);
  return all > one ? all : one;
}

/* Whether sums have slots in shared memory, from which a chain takes them. */
static bool is_chain(const int4mm_gpu_problem *p) {
  return kind_of(p) == GROUPS || kind_of(p) == CHAIN;
}

static general_bytes general_bytes_of(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  int64_t segments = segments_of(p), rows = p->M < kernel->tile_m && kind_of(p) == CHAIN ? p->M : kernel->tile_m;
  int64_t words = p->dtype_a == INT4MM_INT32 ? 1 : p->dtype_a == INT4MM_INT8 ? 2 : 4;
  int64_t parameters =
      kind_of(p) != PLAIN && (p->scaling != INT4MM_PER_COLUMN || p->zeros) ? (segments * 160 + 255) / 256 * 256 : 0;
  general_bytes bytes = {.stage =
                             INT4MM_SKINNY_B_BYTES + kernel->tile_m / 8 * words * INT4MM_SKINNY_A_BYTES + parameters,
                         .slot = is_chain(p) ? segments * (rows + 1) * INT4MM_SKINNY_COLUMNS * 4 : 0};
  return bytes;
}

/* Whether there is code for [N, K/8]: up to 16 rows. */
static bool has_nk(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  return kernel->tile_m <= 16 && !p->experts;
}

/* Whether stages have two k-blocks, so that whole lines of [N, K/8] are copied: on an H100 1 x 14336 x 4096 takes
 * 11.5 us so, not 12.3, and 1 x 4096 x 4096 of W4A8 4.85, not 5.0. */
static bool copies_lines(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  return p->layout_b == INT4MM_B_NK && kernel->tile_m <= 16;
}

/* Bytes in which a stripe's warps hand their sums on, where they do. */
static int64_t ring_bytes_of(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  return kind_of(p) == GROUPS ? kernel->tile_m * INT4MM_SKINNY_COLUMNS * 4 : 0;
}

/* Warps that share K at least. */
static int64_t chain_warps_of(const int4mm_kernel *kernel) {
  return kernel->tile_m == 8 ? INT4MM_SKINNY_CHAIN_WARPS_8 : INT4MM_SKINNY_CHAIN_WARPS;
}

static const char *general_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const general_bytes bytes = general_bytes_of(kernel, p);
  bool usual = is_usual(p) && !(p->zeros && kernel->tile_m == 64);
  if (kernel->tile_m == 32 || (!usual && (kernel->tile_m == 8 ? !bytes.slot : kernel->tile_m == 64 && bytes.slot)))
    return "has no code for this kind of operands";
  if (p->experts && (!is_usual(p) || p->zeros || (is_float(p) && kernel->tile_m == 64)))
    return "has no code for grouped products of this kind of operands";
  if (p->dtype_a == INT4MM_FLOAT32) return "has no code for an A of float32";
  int64_t least = chain_warps_of(kernel) * 2 * (bytes.stage + (kind_of(p) == CHAIN ? bytes.slot : 0));
  if (bytes.slot && least + ring_bytes_of(kernel, p) > shared_of(p))
    return "needs more shared memory than there is for group scales";
  if (p->layout_b != INT4MM_B_KN && !has_nk(kernel, p)) return "needs a B of [K/8, N] for this kind of operands";
  if (!int4mm_plan_aligned16(p)) return "needs rows that start on 16 bytes for this kind of operands";
  if (p->ldb > INT4MM_SKINNY_GENERAL_MAX_STRIDE)
    return "needs rows of B of at most 2^24 words for this kind of operands";
  return p->K > INT4MM_SKINNY_GENERAL_MAX_K ? "needs a K of at most 2^20 for this kind of operands" : NULL;
}

/* The slots of a stripe that such a plan has place for: in a CHAIN two rounds' at least. By groups they are all of K's,
 * of one stripe, or none: then the warps are a ring. */
static int64_t slots_of(const int4mm_gpu_problem *p, int64_t warps_n, int64_t warps_k, const general_bytes *bytes) {
  int64_t rounds = int4mm_plan_ceil_div(int4mm_plan_k_blocks(p), warps_k);
  if (kind_of(p) == CHAIN) return (rounds < 2 ? rounds : 2) * warps_k;
  if (warps_n > 1 || warps_k * (2 * bytes->stage + rounds * bytes->slot) > shared_of(p)) return 0;
  return rounds * warps_k;
}

/* How many stripes all CTAs of all waves take one after another, `warps_n` a CTA. */
static int64_t length_of_waves(const int4mm_gpu_problem *p, int64_t warps_n) {
  int64_t ctas = int4mm_plan_ceil_div(p->N, warps_n * INT4MM_SKINNY_COLUMNS);
  return int4mm_plan_ceil_div(ctas, p->sms) * warps_n;
}

/* Warps along the columns, `most` or fewer, with which the waves are shortest: 16 x 3584 x 18944 with groups of 128
 * takes 17.7 us by 198 CTAs of 3, and 21.5 by 148 of 4. */
static int64_t for_short_waves(const int4mm_gpu_problem *p, int64_t most) {
  int64_t best = most;
  for (int64_t n = most - 1; n > 1; n--)
    if (length_of_waves(p, n) < length_of_waves(p, best)) best = n;
  return best;
}

/* As plan() says, with as many stages as fit. A chain needs some warps along K, and it has no cluster. */
static int64_t general_plan(const skinny_cost *cost, const int4mm_kernel *kernel, const int4mm_gpu_problem *p,
                            int4mm_plan *plan) {
  const int64_t columns = INT4MM_SKINNY_COLUMNS, limit = shared_of(p);
  const int64_t blocks = kind_of(p) == PLAIN && copies_lines(kernel, p) ? INT4MM_SKINNY_NK_BLOCKS : 1,
                steps = int4mm_plan_ceil_div(int4mm_plan_k_blocks(p), blocks);
  general_bytes bytes = general_bytes_of(kernel, p);
  bytes.stage *= blocks;
  int64_t warps_n = 1, warps_k = bytes.slot ? chain_warps_of(kernel) : 1, max_warps = cost->max_warps, max_warps_n = 8,
          max_warps_k = int4mm_plan_k_blocks(p) < 64 ? 8 : 16,
          enough = p->sms;                                 /* CTAs side by side, for which warps_n is 1 */
  const int64_t least_slots = kind_of(p) == CHAIN ? 2 : 0; /* of a warp */
  if (p->experts) enough = 1, max_warps = bytes.slot ? EXPERT_WARPS_CHAIN : EXPERT_WARPS, max_warps_n = max_warps / 2;
  while (max_warps > warps_k &&
         max_warps * (2 * bytes.stage + least_slots * bytes.slot) + ring_bytes_of(kernel, p) > limit)
    max_warps = blocks > 1 ? max_warps - 1 : max_warps / 2; /* 16 x 3072 x 12288 of W4A8 by 12: 8.3 us, by 6 9.0 */
  while (warps_n < max_warps_n && (warps_n + 1) * warps_k <= max_warps &&
         int4mm_plan_ceil_div(p->N, warps_n * columns) > enough)
    warps_n++;
  if (!p->experts) warps_n = for_short_waves(p, warps_n);
  while (warps_n * warps_k * 2 <= max_warps && warps_k < steps && warps_k < max_warps_k) warps_k *= 2;
  int64_t row_tiles = int4mm_plan_likely_row_tiles(p, kernel->tile_m), warps = warps_n * warps_k;
  int64_t ctas = int4mm_plan_mul(int4mm_plan_ceil_div(p->N, warps_n * columns), row_tiles);
  int64_t slots = bytes.slot ? slots_of(p, warps_n, warps_k, &bytes) : 0;
  int64_t kept = warps_n * (slots ? slots * bytes.slot : ring_bytes_of(kernel, p));
  plan->split_k = 1;
  if (int4mm_gpu_has_clusters(p) && !bytes.slot)
    while (plan->split_k < 8 && ctas * plan->split_k * 2 <= p->sms && steps * blocks >= warps_k * plan->split_k * 4)
      plan->split_k *= 2;
  /* more cost more than they gain: 64 rows of float16 and 4096 x 4096 take 13 us with two and 17 with three */
  const int64_t most = kind_of(p) == GROUPS || (kind_of(p) == FLOATS && kernel->tile_m == 8) ? 12 : 8;
  plan->stages = kernel->tile_m == 64 || (kind_of(p) != PLAIN && warps > most) ? 2 : 3;
  if (kernel->tile_m == 8 && kind_of(p) != PLAIN && warps <= 8) plan->stages = 4; /* 1 x 4096 x 4096: 5 us, not 5.2 */
  if (p->experts) plan->stages = EXPERT_STAGES;
  if (kind_of(p) == FLOATS && p->layout_b == INT4MM_B_NK) plan->stages = 2; /* 16 x 4096 x 4096: 5.8 us, not 6.0 */
  if (blocks > 1) plan->stages = INT4MM_SKINNY_NK_STAGES;
  while (plan->stages > 2 && warps * plan->stages * bytes.stage + kept > limit) plan->stages--;
  plan->tile_n = (int32_t)(warps_n * columns);
  plan->tile_k = (int32_t)warps_k * INT4MM_BLOCK_K;
  plan->ctas = ctas_of(kernel, p, plan);
  int32_t percent = cost->reading[kind_of(p)];
  if (kind_of(p) == CHAIN) percent += percent * (segments_of(p) - 1) / 2;
  int64_t waves = int4mm_plan_ceil_div(ctas, p->sms * (p->experts ? EXPERT_CTAS : 1)) - 1;
  return int4mm_plan_add(int4mm_plan_add(cost->call, reading_time(cost, p, plan, row_tiles, percent)),
                         int4mm_plan_mul(waves, WAVE_TIME));
}

/* ---- the family ---- */

/* Of W4A4 with a scale for each column. */
static const char *experts_unsupported(const int4mm_gpu_problem *p) {
  if (!p->experts) return NULL;
  if (p->K >= INT4MM_WIDE_K) return "needs a K below 131072 for grouped products";
  return int4mm_plan_aligned16(p) ? NULL : "needs rows that start on 16 bytes for grouped products";
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  if (p->code_arch < 80) return "needs code for sm_80 or later";
  if (p->M < 1 || p->N < 1 || p->K < 1) return "needs an M, N and K above 0";
  if (int4mm_plan_row_tiles(p, kernel->tile_m) > UINT16_MAX) return "has a grid of at most 65535 blocks of rows";
  const char *reason = int4mm_plan_is_elementary(p) ? experts_unsupported(p) : general_unsupported(kernel, p);
  if (reason) return reason;
  return p->N > INT32_MAX / 16 ? "needs an N below 2^27" : NULL;
}

/* The depth that is built for a problem, and the k-blocks of a stage. */
static int32_t stages_of(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int64_t *blocks) {
  *blocks = 1;
  if (!int4mm_plan_aligned16(p) || p->K >= INT4MM_WIDE_K) return INT4MM_SKINNY_GENERAL_STAGES;
  bool one_stripe = p->N <= (int64_t)p->sms * INT4MM_SKINNY_COLUMNS && !p->experts; /* a CTA */
  if (!copies_lines(kernel, p))
    return kernel->tile_m <= 16 && one_stripe ? INT4MM_SKINNY_ROTATED_STAGES : kernel->stages;
  *blocks = INT4MM_SKINNY_NK_BLOCKS;
  return INT4MM_SKINNY_NK_STAGES;
}

/* Warps along the columns until the CTAs fit the SMs, the others along K, and a cluster where CTAs are few: only where
 * the code was compiled for an architecture that has clusters. */
static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const skinny_cost *cost = cost_of(kernel);
  if (!int4mm_plan_is_elementary(p)) return general_plan(cost, kernel, p, plan);
  int64_t blocks, warps_n = 1, warps_k = 1, max_warps = cost->max_warps, max_warps_n = 8, enough = p->sms;
  if (p->experts) enough = 1, max_warps = EXPERT_WARPS, max_warps_n = max_warps / 2;
  plan->stages = stages_of(kernel, p, &blocks);
  const int64_t columns = INT4MM_SKINNY_COLUMNS, steps = int4mm_plan_ceil_div(int4mm_plan_k_blocks(p), blocks);
  int64_t max_warps_k = int4mm_plan_k_blocks(p) < 64 ? 8 : 16; /* 1 x 4096 x 4096: 4.4 us, with 16 4.8 */
  int64_t warp_bytes = plan->stages * blocks * (INT4MM_SKINNY_B_BYTES + kernel->tile_m / 8 * INT4MM_SKINNY_A_BYTES);
  while (max_warps > int4mm_gpu_shared(p) / warp_bytes) max_warps /= 2;
  while (warps_n < max_warps_n && warps_n < max_warps && int4mm_plan_ceil_div(p->N, warps_n * columns) > enough)
    warps_n++;
  while (warps_n * warps_k * 2 <= max_warps && warps_k < steps && warps_k < max_warps_k) warps_k *= 2;
  int64_t row_tiles = int4mm_plan_likely_row_tiles(p, kernel->tile_m);
  int64_t ctas = int4mm_plan_mul(int4mm_plan_ceil_div(p->N, warps_n * columns), row_tiles);
  plan->split_k = 1;
  if (int4mm_gpu_has_clusters(p))
    while (plan->split_k < 8 && ctas * plan->split_k * 2 <= p->sms && steps * blocks >= warps_k * plan->split_k * 4)
      plan->split_k *= 2;
  plan->tile_n = (int32_t)(warps_n * columns);
  plan->tile_k = (int32_t)warps_k * INT4MM_BLOCK_K;
  plan->ctas = ctas_of(kernel, p, plan);
  int64_t waves = p->experts ? 0 : int4mm_plan_ceil_div(ctas, p->sms * (kernel->tile_m <= 16 ? 2 : 1)) - 1;
  return int4mm_plan_add(int4mm_plan_add(cost->call, reading_time(cost, p, plan, row_tiles, 100)),
                         int4mm_plan_mul(waves, WAVE_TIME));
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  int warps_k = plan->tile_k / INT4MM_BLOCK_K;
  snprintf(text, size,
           "B streamed through registers for %d rows at a time: %d CTAs of %d x %d warps, K split over %d%s",
           plan->tile_m, plan->ctas, plan->tile_n / INT4MM_SKINNY_COLUMNS, warps_k, warps_k * plan->split_k,
           p->layout_b == INT4MM_B_NK ? ", B along k" : "");
}

const int4mm_family int4mm_family_skinny = {unsupported, plan, explain, INT4MM_COPIES_NONE, true, false};
