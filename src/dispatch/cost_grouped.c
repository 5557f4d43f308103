/*
 * grouped: products with group scales, of int8 activations and W4A16 by the wgmma kernels of sm_90 that take weights
 * from registers. The constants are fitted to measurements on an H100 (132 SMs); times are in ns, of calls
 * that follow each other.
 */
#include <stdio.h>

#include "core/dtype.h"
#include "core/problem.h"
#include "dispatch/registry.h"

enum {
  CALL_TIME = 3500,    /* a call, beside its tiles, */
  COLUMNS_TIME = 2050, /* and with a scale for each column */
  READ_RATE = 2400,    /* bytes of B a ns: 16 and 64 x 4096 x 14336 take 16.3 us */
  L2_RATE = 7000,      /* bytes of tiles of both operands a ns, with groups or floats: 384 x 11008 x 4096 takes 64.8 us
                          by tiles of 64 x 64, 53.8 by 128 x 128 */
  NOT_HIDDEN = 8,      /* of reading and multiplying the shorter one's share that the other does not hide, with groups
                          or floats: 32 x 4096 x 28672 takes 28.4 us by tiles of 32 x 64, and 33.1 by 64 x 128 */
  LONGEST_GROUP = 131071 /* of integers: bytes of both operands may be 16 times their values */
};

static const int64_t max_extent = (int64_t)INT32_MAX - 1023, max_stride = ((int64_t)1 << 36) - 1;

static bool is_float(const int4mm_gpu_problem *p) {
  return p->dtype_a == INT4MM_FLOAT16 || p->dtype_a == INT4MM_BFLOAT16;
}

/* Integers with one scale for a column: with zero points, factors or neither. */
static bool is_per_column(const int4mm_gpu_problem *p) {
  return !is_float(p) && p->scaling != INT4MM_GROUP_SCALES;
}

/* Values of k that share a scale. */
static int64_t group_of(const int4mm_gpu_problem *p) {
  return p->scaling == INT4MM_GROUP_SCALES && p->group < p->K ? p->group : p->K;
}

static const char *kind_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  if (p->dtype_a == INT4MM_INT32) return "is not for int4 activations";
  if (p->dtype_a == INT4MM_FLOAT32) return "is not for float32 activations";
  if (p->experts && kernel->tile_m == 32) return "has no code for grouped products";
  if (is_float(p) && p->scaling == INT4MM_GROUP_FACTORS)
    return "is not for integer group scales with float activations";
  if (is_per_column(p) && kernel->tile_m <= 64) return "is not for integer activations with a scale for each column";
  if (is_per_column(p) && p->K >= INT4MM_WIDE_K) return "needs a K below 131072 with a scale for each column";
  return NULL;
}

static const char *group_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  int64_t group = group_of(p);
  if (is_per_column(p)) return NULL;
  if (p->experts && group < 128 && group < p->K && kernel->tile_m > 128)
    return "needs groups of at least 128 values for grouped products";
  if (group == 32 && is_float(p) && kernel->tile_m > 128 && group < p->K)
    return "needs groups of at least 64 values with float activations";
  if (group == 32 || group == 64 || group == 128 || (group == p->K && p->K <= INT4MM_BLOCK_K)) return NULL;
  if (group % 128 && group < p->K) return "needs groups of 32, 64 or a multiple of 128 values";
  if (is_float(p)) return NULL;
  if (kernel->tile_m > 64) return "needs groups of 32, 64 or 128 values with integer activations";
  return group > LONGEST_GROUP ? "needs groups below 131072 values with integer activations" : NULL;
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const char *reason = kind_unsupported(kernel, p);
  if (reason) return reason;
  if (p->M < 1 || p->N < 1 || p->K < 1) return "needs an M, N and K above 0";
  if (p->M > max_extent || p->N > max_extent || p->K > max_extent) return "needs an M, N and K below 2147482625";
  if (p->lda > max_stride || p->ldb > max_stride) return "needs strides of a_packed and b_packed below 2^36";
  if (p->layout_b == INT4MM_B_NK && p->N % 2) return "needs an even N for [N, K/8]";
  if (p->layout_b == INT4MM_B_NK && p->experts) return "needs a b_packed that is [K/8, N] for experts";
  if (!int4mm_plan_aligned16_b(p)) return "needs rows of b_packed that start on 16 bytes";
  if (int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX / 8) return "has too many tiles";
  if (p->experts > INT4MM_TABLE_EXPERTS) return "is for grouped products of at most 256 experts";
  if (p->experts && p->K > max_extent / INT4MM_TABLE_EXPERTS) return "needs a K below 2^23 for grouped products";
  return group_unsupported(kernel, p);
}

/* The time of a k-block without its groups, of the promotion of each of them, and of what else there is to a tile. On
 * an H100, in us, with each tile that is near the fastest:
 *
 *                          256 x 128   128 x 128    64 x 128    64 x 64    32 x 64
 *   W4A8, groups of 128
 *     1024 x 4096 x 4096        34.6        42.7        54.4
 *     512 x 4096 x 4096         36.9        24.3        29.4
 *     256 x 4096 x 4096                     22.3        15.3
 *     128 x 4096 x 4096                                 15.0       10.3       13.1
 *     64 x 4096 x 4096                                  15.4        9.7        8.0
 *     groups of 64, of 32                                    13.9, 19.1 11.7, 13.5
 *     groups of 256                                                13.6       13.0
 *   groups of 64, of 32
 *     1024 x 4096 x 4096  46.8, 72.5  55.5, 79.0
 *   W4A16, groups of 128
 *     1024 x 4096 x 14336        191         190         272
 *     512 x 4096 x 4096         45.7        26.6        36.4
 *     256 x 3072 x 12288        39.7        42.9        44.0
 *     64 x 4096 x 4096                                  19.0       13.4       12.1
 *   W4A8, a scale for each column
 *     1024 x 4096 x 4096        24.2        27.2
 *     512 x 4096 x 4096         23.8        14.6
 *     with zero points          24.8        17.4
 *     with factors              23.8        18.9
 */
typedef struct grouped_cost {
  int64_t k_block, group, tile;
} grouped_cost;

typedef struct tile_costs {
  grouped_cost groups, floats, columns;
  int64_t zeros, factors; /* of a k-block more, with a scale for each column */
} tile_costs;

static const tile_costs tile_256x128 = {{530, 360, 4500}, {1190, 150, 3500}, {640, 0, 2200}, 20, 20},
                        tile_128x128 = {{417, 168, 1700}, {670, 120, 1500}, {335, 0, 2300}, 70, 135},
                        tile_64x128 = {{183, 151, 1200}, {285, 180, 1200}, {0}, 0, 0},
                        tile_64x64 = {{113, 87, 1200}, {205, 68, 1200}, {0}, 0, 0},
                        tile_64x64_runs = {{80, 87, 1200}, {0}, {0}, 0, 0},
                        tile_32x64 = {{160, 29, 1200}, {150, 56, 600}, {0}, 0, 0},
                        tile_32x64_runs = {{74, 29, 1200}, {0}, {0}, 0, 0},
                        tile_64x64_pairs = {{165, 107, 1200}, {220, 140, 1200}, {0}, 0, 0},
                        tile_32x64_pairs = {{150, 108, 1200}, {0}, {0}, 0, 0};

/* Whether a tile of 64 columns has one consumer, and an SM two CTAs: elsewhere several share its k-blocks. */
static bool is_paired(const int4mm_gpu_problem *p) {
  return p->experts || (!is_float(p) && group_of(p) > INT4MM_BLOCK_K);
}

/* Whether those who share a tile's k-blocks take several at a time. */
static bool has_runs(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  return kernel->tile_n == 64 && !is_paired(p) && !is_float(p) && group_of(p) == INT4MM_BLOCK_K;
}

static const tile_costs *costs_of(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  if (kernel->tile_m == 256) return &tile_256x128;
  if (kernel->tile_m == 128) return &tile_128x128;
  if (kernel->tile_n == 128) return &tile_64x128;
  if (kernel->tile_m == 64)
    return is_paired(p) ? &tile_64x64_pairs : has_runs(kernel, p) ? &tile_64x64_runs : &tile_64x64;
  return is_paired(p) ? &tile_32x64_pairs : has_runs(kernel, p) ? &tile_32x64_runs : &tile_32x64;
}

static const grouped_cost *cost_of(const int4mm_gpu_problem *p, const tile_costs *costs) {
  if (is_per_column(p)) return &costs->columns;
  return is_float(p) ? &costs->floats : &costs->groups;
}

static int64_t k_block_time(const int4mm_gpu_problem *p, const tile_costs *costs) {
  if (is_per_column(p))
    return costs->columns.k_block + (p->scaling == INT4MM_GROUP_FACTORS ? costs->factors : p->zeros ? costs->zeros : 0);
  int64_t group = group_of(p), groups = group < INT4MM_BLOCK_K && group ? INT4MM_BLOCK_K / group : 1; /* of a k-block */
  return cost_of(p, costs)->k_block + groups * cost_of(p, costs)->group;
}

/* Bytes of both operands that a tile reads. */
static int64_t bytes_of_tile(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const int64_t a = (int64_t)kernel->tile_m * INT4MM_BLOCK_K * (is_float(p) ? 2 : 1);
  return int4mm_plan_mul(int4mm_plan_k_blocks(p), a + kernel->tile_n * INT4MM_BLOCK_WORDS * 4);
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  const tile_costs *costs = costs_of(kernel, p);
  int64_t tiles = int4mm_plan_likely_tiles(p, kernel->tile_m, kernel->tile_n), k_block = k_block_time(p, costs);
  bool pairs = tiles > p->sms && kernel->tile_n == 64 && is_paired(p);
  int64_t resident = pairs ? p->sms * 2 : p->sms;
  if (pairs) k_block = k_block * 4 / 3; /* beside another CTA's */
  int64_t time = int4mm_plan_add(int4mm_plan_mul(int4mm_plan_k_blocks(p), k_block), cost_of(p, costs)->tile);
  time = int4mm_plan_add(is_per_column(p) ? COLUMNS_TIME : CALL_TIME,
                         int4mm_plan_mul(int4mm_plan_ceil_div(tiles, resident), time));
  int64_t reading = CALL_TIME + int4mm_plan_bytes_of_b(p) / READ_RATE;
  if (!is_per_column(p)) {
    /* 32 x 4096 x 14336 takes 18.0 us by tiles of 64 rows, and 64 rows 16.4 */
    if (2 * p->M <= kernel->tile_m) time = int4mm_plan_add(time, time / 10);
    int64_t traffic = CALL_TIME + int4mm_plan_mul(tiles, bytes_of_tile(kernel, p)) / L2_RATE;
    time = time > traffic ? time : traffic;
    time = time > reading ? int4mm_plan_add(time, reading / NOT_HIDDEN) : int4mm_plan_add(reading, time / NOT_HIDDEN);
  }
  plan->tile_k = INT4MM_BLOCK_K;
  plan->ctas = int4mm_plan_ctas(tiles < resident ? tiles : resident);
  return int4mm_plan_add(time > reading ? time : reading, int4mm_plan_aligned16_a(p) ? 0 : int4mm_plan_copy_of_a(p));
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  char scales[64] = "a scale for each column";
  if (!is_per_column(p)) snprintf(scales, sizeof scales, "groups of %lld promoted to float32", (long long)group_of(p));
  snprintf(text, size, "%lld tiles of %d x %d for %d CTAs on %d SMs, %s%s%s",
           (long long)int4mm_plan_tiles(p, plan->tile_m, plan->tile_n), plan->tile_m, plan->tile_n, plan->ctas,
           (int)p->sms, scales, p->layout_b == INT4MM_B_NK ? ", B along k" : "",
           int4mm_plan_aligned16_a(p) ? "" : ", A copied");
}

const int4mm_family int4mm_family_grouped = {unsupported, plan, explain, INT4MM_COPIES_A, true, false};
