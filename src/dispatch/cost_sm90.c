/*
 * narrow and hopper: the wgmma kernels of sm_90. The constants are fitted to measurements on an H200 (132 SMs) and
 * stand beside what they were fitted to (M x K x N); the estimates are within about 10% of them, which is all that a
 * comparison needs. Times are in ns, of calls that follow each other.
 */
#include <stdio.h>

#include "core/problem.h"
#include "dispatch/registry.h"

enum {
  LAUNCH_TIME = 2400,  /* a call, beside reading its operands */
  HOPPER_TIME = 2050,  /* a call of hopper, beside its tiles */
  EARLY_TIME = 1000,   /* what narrow's early start saves beside a copy of A */
  EXCHANGE_TIME = 300, /* between the CTAs of a pair */
  PAIR_TIME = 3200,    /* the same of hopper, which has an SM for each, so that the next call waits for both */
  WEIGHT_RATE = 3000   /* bytes a ns */
};

/* What the kernels hold in 32 bits: rows, columns, and the copy engine's strides of below 2^40 bytes, of every fourth
 * row. */
static const int64_t max_extent = (int64_t)INT32_MAX - 1023, max_stride = ((int64_t)1 << 36) - 1;

static const char *wgmma_unsupported(const int4mm_gpu_problem *p) {
  if (p->dtype_a != INT4MM_INT32 && p->dtype_a != INT4MM_INT8) return "is for activations of int4 and int8";
  if (p->scaling == INT4MM_GROUP_SCALES) return "is for a scale for each column, with integer group scales or without";
  if (p->M < 1 || p->N < 1 || p->K < 1) return "needs an M, N and K above 0";
  if (p->M > max_extent || p->N > max_extent) return "needs an M and N below 2147482625";
  if (p->lda > max_stride || p->ldb > max_stride) return "needs strides of a_packed and b_packed below 2^36";
  return NULL;
}

/* Whether B has integer group scales. */
static bool has_factors(const int4mm_gpu_problem *p) {
  return p->scaling == INT4MM_GROUP_FACTORS;
}

/* Zero points take a sum of each row of A, beside its products, and a product for each output. */
static int64_t with_zeros(const int4mm_gpu_problem *p, int64_t k_block) {
  return p->zeros ? k_block + k_block / 20 : k_block;
}

/* Whether rows of out start on 16 bytes, so that stores are the simpler ones; those of B as well, and of A. */
static bool is_out_aligned(const int4mm_gpu_problem *p) {
  int64_t element = p->out_dtype == INT4MM_FLOAT32 ? 4 : 2;
  return p->align_out >= 16 && p->ldo % (16 / element) == 0;
}
static bool is_aligned_beside_a(const int4mm_gpu_problem *p) {
  return int4mm_plan_aligned16_b(p) && is_out_aligned(p);
}
static bool is_aligned(const int4mm_gpu_problem *p) {
  return int4mm_plan_aligned16_a(p) && is_aligned_beside_a(p);
}

static int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}

/* Whether hopper takes a copy of B (int4mm_wants_copy_of_b): 4096 x 4104 x 4096 takes 104 us so, for 113, but 1024 rows
 * 34, for 32. */
static bool copies_b(const int4mm_gpu_problem *p) {
  return p->layout_b == INT4MM_B_NK && !int4mm_plan_aligned16_b(p) && p->M >= INT4MM_COPY_B_ROWS;
}

/* An estimate for aligned rows as it is for these: of other rows the words are read and stored one by one, and A, or B
 * as well, is copied first. 2048 x 4096 x 4096 takes 44 us, with N = 4097 50. */
static int64_t with_alignment(const int4mm_gpu_problem *p, int64_t time, int64_t copy_of_a, bool copy_b) {
  if (copy_b ? !is_out_aligned(p) : !is_aligned_beside_a(p)) time = int4mm_plan_add(time, time / 8);
  if (copy_b) time = int4mm_plan_add(time, int4mm_plan_copy_of_b(p));
  return int4mm_plan_aligned16_a(p) ? time : int4mm_plan_add(time, copy_of_a);
}

/* What reading the operands takes at least. */
static int64_t reading_time(const int4mm_gpu_problem *p) {
  return LAUNCH_TIME + int4mm_plan_add(int4mm_plan_bytes_of_b(p), int4mm_plan_bytes_of_a(p)) / WEIGHT_RATE;
}

static bool is_hopper(const int4mm_plan *plan) {
  return int4mm_kernels_cuda[plan->kernel].family == &int4mm_family_hopper;
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  snprintf(text, size, "%lld tiles of %d x %d for %d CTAs on %d SMs, K split over %d%s%s%s%s",
           (long long)int4mm_plan_tiles(p, plan->tile_m, plan->tile_n), plan->tile_m, plan->tile_n, plan->ctas,
           (int)p->sms, plan->split_k, p->layout_b == INT4MM_B_NK ? ", B along k" : "",
           is_aligned(p) ? "" : ", rows off 16 bytes", int4mm_plan_aligned16_a(p) ? "" : ", A copied",
           is_hopper(plan) && copies_b(p) ? ", B copied" : "");
}

/* ---- hopper: persistent CTAs, one an SM, that take their tiles in waves ---- */

/* The time of a k-block and of what else there is to a tile. With the larger tile, 2048^3 takes 14.7 us,
 * 1024 x 4096 x 4096 24.1, 4096^3 90 and 2048 x 4096 x 5120 67 (with the smaller 68); with the smaller, 512 x 2048 x
 * 4096 takes 9.6, 512 x 4096 x 4096 15.0, 1024 x 4096 x 5120 41.6 (with the larger 45.4). On an H100 with int8 A,
 * 1024 x 4096 x 4096 takes 28.1 with the larger, 32.5 with the smaller; with factors 33 and 43, whatever A is. */
typedef struct hopper_cost {
  int64_t k_block, k_block_int8, k_block_factors, tile; /* with an int8 A; with factors */
} hopper_cost;

static const hopper_cost hopper_256 = {576, 676, 820, 3250}, hopper_128 = {365, 416, 588, 1900};

/* Of a grouped product, whose weights lie one below the other: a copy past one's K or N comes from the next one. */
static const char *experts_unsupported(const int4mm_gpu_problem *p) {
  if (p->experts > INT4MM_TABLE_EXPERTS) return "is for grouped products of at most 256 experts";
  if (has_factors(p) || p->zeros) return "has no code for grouped products with integer group scales or zero points";
  if (p->K % INT4MM_BLOCK_K) return "needs a K that is a multiple of 128 for grouped products";
  if (p->layout_b == INT4MM_B_NK && p->N % 4)
    return "needs an N that is a multiple of 4 for grouped products of [N, K/8]";
  return is_aligned(p) ? NULL : "needs rows that start on 16 bytes for grouped products";
}

static const char *hopper_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const char *reason = wgmma_unsupported(p);
  if (!reason && p->experts) reason = experts_unsupported(p);
  if (reason) return reason;
  if (p->K >= INT4MM_WIDE_K) return "needs a K below 131072";
  if (kernel->tile_m == 256 && has_factors(p) && p->dtype_a != INT4MM_INT8)
    return "has no registers for int4 activations with integer group scales";
  return int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX / 8 ? "has too many tiles" : NULL;
}

/* Whether there is code for pairs of CTAs, which split K. Of A that is off 16 bytes there is a copy. */
static bool hopper_splits(const int4mm_gpu_problem *p) {
  return !has_factors(p) && !p->experts && is_aligned_beside_a(p);
}

/* Where tiles are few and K is long, a pair of CTAs for each tile. On an H100 256 x 14336 x 4096 takes 26.2 us with the
 * smaller tile, whole 43 (with narrow 32), 256 x 6144 x 4096 14.8 (15.4; in a layer narrow is faster), 256 x 4096 x
 * 4096 11.9 (11.3); with the larger tile 512 x 14336 x 4096 takes 40.2 (with the smaller, whole, 43.2). */
static int64_t hopper_plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const hopper_cost *cost = kernel->tile_m == 256 ? &hopper_256 : &hopper_128;
  int64_t tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n), k_blocks = int4mm_plan_k_blocks(p);
  int64_t k_block = with_zeros(p, has_factors(p)              ? cost->k_block_factors
                                  : p->dtype_a == INT4MM_INT8 ? cost->k_block_int8
                                                              : cost->k_block);
  int64_t waves = int4mm_plan_ceil_div(int4mm_plan_likely_tiles(p, kernel->tile_m, kernel->tile_n), p->sms);
  int64_t whole = waves * (k_blocks * k_block + cost->tile);
  int64_t split = int4mm_plan_ceil_div(k_blocks, 2) * k_block + cost->tile + PAIR_TIME;
  bool pairs = hopper_splits(p) && split < whole && 2 * tiles <= p->sms;
  plan->tile_k = INT4MM_BLOCK_K;
  plan->split_k = pairs ? 2 : 1;
  plan->ctas = int4mm_plan_ctas(pairs ? 2 * tiles : tiles < p->sms ? tiles : p->sms);
  return with_alignment(p, max64(reading_time(p), HOPPER_TIME + (pairs ? split : whole)), int4mm_plan_copy_of_a(p),
                        copies_b(p));
}

const int4mm_family int4mm_family_hopper = {hopper_unsupported,   hopper_plan, explain,
                                            INT4MM_COPIES_A_LONG, true,        false};

/* ---- narrow: a CTA a tile, up to two an SM ---- */

/* The time of a k-block by one CTA alone on its SM and by two side by side, and the rest of a call that leaves each SM
 * with one or with two: 512^3 takes 3.2 us with the larger tile and 2.3 with the smaller, 1024^3 5.0 and 5.4,
 * 256 x 4096 x 4096 11.4 and 12.5, 128 x 4096 x 4096 with a split K 7.4 and 9.2. With the smaller, 32 rows of
 * 2048 x 2048 and 4096 x 4096, split, take 3.3 and 5.4 us, and of 4096 x 14336 12.7. */
typedef struct narrow_cost {
  int64_t k_block_one, k_block_two, call_one, call_two;
} narrow_cost;

static const narrow_cost narrow_128 = {280, 456, 2400, 3000}, narrow_64 = {205, 301, 1350, 2900};

/* The same with int8 A: on an H100, 256 x 4096 x 4096 takes 11.9 us with the larger (W4A4 10.9) and 14.7 with the
 * smaller, 512 x 4096 x 4096 22.2 with the larger, 128 x 4096 x 4096 7.4 and 64 x 4096 x 4096 5.9, as W4A4. */
static const narrow_cost narrow_128_int8 = {297, 580, 2400, 3000}, narrow_64_int8 = {207, 367, 1350, 2900};

static const char *narrow_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const char *reason = wgmma_unsupported(p);
  if (reason) return reason;
  if (has_factors(p)) return "is for weights without integer group scales";
  if (p->K >= INT4MM_WIDE_K && p->zeros) return "needs a K below 131072 with zero points";
  if (p->K >= INT4MM_WIDE_K && kernel->tile_m > 64) return "needs a K below 131072";
  /* a grid is at most so high */
  return int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > UINT16_MAX ? "has too many tiles" : NULL;
}

/* The time of so many CTAs of `k_blocks` each, two at a time on an SM as long as there are enough. */
static int64_t narrow_time(const narrow_cost *cost, const int4mm_gpu_problem *p, int64_t ctas, int64_t k_blocks) {
  int64_t pairs = ctas / (2 * p->sms), rest = ctas % (2 * p->sms);
  int64_t one = k_blocks * with_zeros(p, cost->k_block_one) + cost->call_one,
          two = k_blocks * with_zeros(p, cost->k_block_two) + cost->call_two;
  return pairs * two + (rest > p->sms ? two : rest ? one : 0);
}

/* Where tiles are few, a pair of CTAs for each, which split K and then exchange sums. A copy of A takes less than
 * before other kernels (int4mm_starts_early): with K = 4104, 128 rows take 9.1 us, 256 12.6. */
static int64_t narrow_plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  bool int8 = p->dtype_a == INT4MM_INT8;
  const narrow_cost *cost =
      kernel->tile_m == 128 ? (int8 ? &narrow_128_int8 : &narrow_128) : (int8 ? &narrow_64_int8 : &narrow_64);
  int64_t tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n), k_blocks = int4mm_plan_k_blocks(p);
  int64_t whole = narrow_time(cost, p, tiles, k_blocks);
  int64_t split = narrow_time(cost, p, 2 * tiles, int4mm_plan_ceil_div(k_blocks, 2)) + EXCHANGE_TIME;
  int pairs = split < whole && 2 * tiles <= p->sms && k_blocks >= 8; /* with two CTAs an SM pairs are slower */
  plan->tile_k = INT4MM_BLOCK_K;
  plan->split_k = pairs ? 2 : 1;
  plan->ctas = int4mm_plan_ctas(pairs ? tiles * 2 : tiles);
  return with_alignment(p, max64(reading_time(p), pairs ? split : whole), int4mm_plan_copy_of_a(p) - EARLY_TIME, false);
}

const int4mm_family int4mm_family_narrow = {narrow_unsupported, narrow_plan, explain, INT4MM_COPIES_A, false, false};
