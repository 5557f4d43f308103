/*
 * Which CUDA kernel a product takes: a pure function of the problem, so that it can be read, tested and explained
 * without a GPU. The kernels do not choose and the launchers trust the plan.
 *
 * On sm_90 every kernel that can serve is given an estimate of its time, and the least wins, so that no rule for a
 * range of shapes ends in a cliff. The constants of the estimates are fitted to measurements on an H200 (132 SMs) and
 * stand beside what they were fitted to (M x K x N); the estimates are within about 10% of them, which is all that a
 * comparison needs. All times are in ns, of calls that follow each other.
 */
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "core/problem.h"
#include "dispatch/choose.h"

enum {
  STEP_K = 128,        /* values of k that the fast kernels take at a time */
  STREAM_COLUMNS = 32, /* of a warp */
  MOST_SMS = 65536     /* that a problem may name: far above any GPU's, and products with it fit */
};

enum {
  LAUNCH_TIME = 2400,  /* a call, beside reading its operands */
  HOPPER_TIME = 2050,  /* a call of hopper, beside its tiles */
  EXCHANGE_TIME = 300, /* between the CTAs of a pair */
  WAVE_TIME = 2000,    /* each wave of stream's CTAs but the first */
  WEIGHT_RATE = 3000   /* bytes a ns */
};

/* Persistent CTAs, one an SM, that take their tiles in waves: `step` and `tile` are the time of a step and of what else
 * there is to a tile. With the larger, 2048^3 takes 14.7 us, 1024 x 4096 x 4096 24.1, 4096^3 90 and 2048 x 4096 x 5120
 * 67 (with the smaller 68); with the smaller, 512 x 2048 x 4096 takes 9.6, 512 x 4096 x 4096 15.0, 1024 x 4096 x 5120
 * 41.6 (with the larger 45.4). */
typedef struct hopper_tile {
  const char *name;
  int32_t m, n;
  int64_t step, tile;
  int32_t stages;
} hopper_tile;

static const hopper_tile hopper_tiles[] = {{"hopper_256x128", 256, 128, 576, 3250, 6},
                                           {"hopper_128x128", 128, 128, 365, 1900, 7}};

/* A CTA a tile, up to two an SM. `one` and `two` are the time of a step by one CTA and by two side by side, the others
 * of a call that leaves each SM with one or with two: 512^3 takes 3.2 us with the larger and 2.3 with the smaller,
 * 1024^3 5.0 and 5.4, 256 x 4096 x 4096 11.4 and 12.5, 128 x 4096 x 4096 with a split K 7.4 and 9.2. With the smaller,
 * 32 rows of 2048 x 2048 and 4096 x 4096, split, take 3.3 and 5.4 us, and of 4096 x 14336 12.7. */
typedef struct narrow_tile {
  const char *name;
  int32_t m, n;
  int64_t one, two, call_one, call_two;
  int32_t stages;
} narrow_tile;

static const narrow_tile narrow_tiles[] = {{"narrow_128x64", 128, 64, 280, 456, 2400, 3000, 5},
                                           {"narrow_64x64", 64, 64, 205, 301, 1350, 2900, 6}};

/* `call` is the time of a call beside reading B, `rate` the bytes of B read per ns: 1, 16, 32 and 64 rows of
 * 4096 x 4096 take 4.1, 4.7, 6.1 and 8.4 us, of 14336 x 4096 8.9, 9.9, 12.5 and 22; 1, 16 and 32 rows of 4096 x 14336
 * take 9.1, 10.0 and 13.2; 144 rows of 512 x 11008, four waves of stream_32, 16. stream_64 is slower where K is short
 * and storing counts, 9.5 and 11.9 for 33 and 64 rows of 512 x 28672, and nearest to being taken there: its `call` is
 * for that. */
typedef struct stream_shape {
  const char *name;
  int32_t rows;
  int64_t call, rate;
  int32_t stages, max_warps;
} stream_shape;

static const stream_shape stream_shapes[] = {{"stream_8", 8, 2300, 4150, 2, 16},
                                             {"stream_16", 16, 2700, 3850, 3, 16},
                                             {"stream_32", 32, 2600, 2950, 2, 16},
                                             {"stream_64", 64, 4000, 1470, 2, 8}};

enum {
  STREAM_SHAPES = sizeof stream_shapes / sizeof stream_shapes[0],
  NARROW_TILES = sizeof narrow_tiles / sizeof narrow_tiles[0],
  HOPPER_TILES = sizeof hopper_tiles / sizeof hopper_tiles[0],
  FIRST_STREAM = 2,
  FIRST_NARROW = FIRST_STREAM + STREAM_SHAPES,
  FIRST_HOPPER = FIRST_NARROW + NARROW_TILES,
  KERNELS = FIRST_HOPPER + HOPPER_TILES
};

const char *int4mm_cuda_kernel_at(int32_t index) {
  if (index < 0 || index >= KERNELS) return NULL;
  if (index >= FIRST_HOPPER) return hopper_tiles[index - FIRST_HOPPER].name;
  if (index >= FIRST_NARROW) return narrow_tiles[index - FIRST_NARROW].name;
  if (index >= FIRST_STREAM) return stream_shapes[index - FIRST_STREAM].name;
  return index == INT4MM_KERNEL_SIMPLE ? "simple" : "tiled";
}

static int64_t ceil_div(int64_t a, int64_t b) {
  return a / b + (a % b != 0);
}
static int64_t min64(int64_t a, int64_t b) {
  return a < b ? a : b;
}
static int64_t max64(int64_t a, int64_t b) {
  return a > b ? a : b;
}
static int32_t to_ctas(int64_t n) {
  return (int32_t)max64(1, min64(n, INT32_MAX));
}

/* a * b, or a number above any limit here. */
static int64_t times(int64_t a, int64_t b) {
  int64_t product;
  return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

/* Bytes of shared memory that a CTA may have. */
static int64_t shared_limit(int32_t arch) {
  if (arch >= 90 && arch < 120) return 227 << 10;
  return arch == 80 || arch == 87 ? 163 << 10 : 99 << 10;
}

static bool aligned16(const int4mm_gpu_problem *p) {
  return p->align_a >= 16 && p->align_b >= 16 && p->lda % 4 == 0 && p->ldb % 4 == 0;
}

/* ---- simple and tiled: every problem, every architecture ---- */

static void plan_simple(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  plan->kernel = INT4MM_KERNEL_SIMPLE;
  plan->ctas = to_ctas(ceil_div(times(p->M, p->N), 256));
}

static void plan_tiled(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  plan->kernel = INT4MM_KERNEL_TILED;
  plan->tile_m = plan->tile_n = 16;
  plan->ctas = to_ctas(times(ceil_div(p->M, 16), ceil_div(p->N, 16)));
}

/* ---- stream: small M, and whatever hopper cannot serve, from sm_80 on ---- */

static const char *stream_refusal(const int4mm_gpu_problem *p, const stream_shape *s) {
  if (p->arch < 80) return "needs sm_80 or later";
  if (p->M < 1 || p->N < 1 || p->K < 8) return "needs an M, N and K above 0";
  if (ceil_div(p->M, s->rows) > 65535) return "has a grid of at most 65535 blocks of rows";
  return p->N > INT32_MAX / 16 ? "needs an N below 2^27" : NULL;
}

/* Warps along the columns until the CTAs fit the SMs, the others along K, and a cluster where CTAs are few. Returns the
 * estimate. */
static int64_t plan_stream(const int4mm_gpu_problem *p, const stream_shape *s, int4mm_plan *plan) {
  int64_t steps = ceil_div(p->K, STEP_K), warps_n = 1, warps_k = 1;
  bool one_stripe = p->N <= (int64_t)p->sms * STREAM_COLUMNS; /* a CTA: warps_n stays 1 */
  plan->stages = s->rows == 8 && one_stripe ? 3 : s->stages;
  if (!aligned16(p) || p->K >= INT4MM_WIDE_K) plan->stages = 4; /* the one depth that is built for these */
  int64_t fit = shared_limit(p->arch) / (plan->stages * (2048 + s->rows / 8 * 512));
  int64_t max_warps = s->max_warps, max_warps_k = steps < 64 ? 8 : 16; /* 1 x 4096 x 4096: 4.4 us, with 16 4.8 */
  while (max_warps > fit) max_warps /= 2;
  while (warps_n < 8 && warps_n < max_warps && ceil_div(p->N, warps_n * STREAM_COLUMNS) > p->sms) warps_n *= 2;
  while (warps_n * warps_k < max_warps && warps_k < steps && warps_k < max_warps_k) warps_k *= 2;
  int64_t blocks = ceil_div(p->M, s->rows), ctas = times(ceil_div(p->N, warps_n * STREAM_COLUMNS), blocks);
  plan->split_k = 1;
  if (p->arch >= 90)
    while (plan->split_k < 8 && ctas * plan->split_k * 2 <= p->sms && steps >= warps_k * plan->split_k * 4)
      plan->split_k *= 2;
  plan->kernel = INT4MM_KERNEL_STREAM;
  plan->tile_m = s->rows;
  plan->tile_n = (int32_t)warps_n * STREAM_COLUMNS;
  plan->tile_k = (int32_t)warps_k * STEP_K;
  plan->ctas = to_ctas(times(ctas, plan->split_k));
  return s->call + times(blocks, times(p->K / 2, p->N) / s->rate) +
         (ceil_div(ctas, p->sms * (s->rows <= 16 ? 2 : 1)) - 1) * WAVE_TIME;
}

/* ---- hopper and narrow: sm_90 alone ---- */

static int64_t tiles_of(const int4mm_gpu_problem *p, int32_t m, int32_t n) {
  return times(ceil_div(p->M, m), ceil_div(p->N, n));
}

static const char *wgmma_refusal(const int4mm_gpu_problem *p) {
  if (p->arch != 90) return "needs sm_90";
  if (p->M < 1 || p->N < 1 || p->K < 8) return "needs an M, N and K above 0";
  return aligned16(p) ? NULL : "needs rows of a_packed and b_packed that start on 16 bytes";
}

static const char *hopper_refusal(const int4mm_gpu_problem *p, const hopper_tile *t) {
  const char *refusal = wgmma_refusal(p);
  if (!refusal && p->K >= INT4MM_WIDE_K) return "needs a K below 131072";
  return !refusal && tiles_of(p, t->m, t->n) > INT32_MAX / 8 ? "has too many tiles" : refusal;
}

static const char *narrow_refusal(const int4mm_gpu_problem *p, const narrow_tile *t) {
  const char *refusal = wgmma_refusal(p);
  if (refusal) return refusal;
  if (p->K >= INT4MM_WIDE_K && t->m > 64) return "needs a K below 131072";
  if (p->N % 4) return "needs an N that is a multiple of 4";
  return tiles_of(p, t->m, t->n) > UINT16_MAX ? "has too many tiles" : NULL; /* a grid is at most so high */
}

/* What reading the operands takes at least. */
static int64_t reading_time(const int4mm_gpu_problem *p) {
  return LAUNCH_TIME + times(p->K / 2, p->N + p->M) / WEIGHT_RATE;
}

/* Whole waves of tiles. Returns the estimate. */
static int64_t plan_hopper(const int4mm_gpu_problem *p, const hopper_tile *t, int4mm_plan *plan) {
  int64_t tiles = tiles_of(p, t->m, t->n), steps = ceil_div(p->K, STEP_K);
  plan->kernel = INT4MM_KERNEL_HOPPER;
  plan->tile_m = t->m;
  plan->tile_n = t->n;
  plan->tile_k = STEP_K;
  plan->stages = t->stages;
  plan->ctas = to_ctas(min64(tiles, p->sms));
  return max64(reading_time(p), HOPPER_TIME + ceil_div(tiles, p->sms) * (steps * t->step + t->tile));
}

/* The time of so many CTAs of `steps` steps, two at a time on an SM as long as there are enough. */
static int64_t narrow_time(const int4mm_gpu_problem *p, const narrow_tile *t, int64_t ctas, int64_t steps) {
  int64_t pairs = ctas / (2 * p->sms), rest = ctas % (2 * p->sms);
  int64_t time = pairs * (steps * t->two + t->call_two);
  if (rest > p->sms) return time + steps * t->two + t->call_two;
  return rest ? time + steps * t->one + t->call_one : time;
}

/* A CTA a tile; or, where tiles are few, a pair of CTAs for each, which split K and then exchange sums. Returns the
 * estimate. */
static int64_t plan_narrow(const int4mm_gpu_problem *p, const narrow_tile *t, int4mm_plan *plan) {
  int64_t tiles = tiles_of(p, t->m, t->n), steps = ceil_div(p->K, STEP_K);
  int64_t whole = narrow_time(p, t, tiles, steps);
  int64_t split = narrow_time(p, t, 2 * tiles, ceil_div(steps, 2)) + EXCHANGE_TIME;
  bool pairs = split < whole && 2 * tiles <= p->sms && steps >= 8; /* with two CTAs an SM pairs are slower */
  plan->kernel = INT4MM_KERNEL_NARROW;
  plan->tile_m = t->m;
  plan->tile_n = t->n;
  plan->tile_k = STEP_K;
  plan->stages = t->stages;
  plan->split_k = pairs ? 2 : 1;
  plan->ctas = to_ctas(pairs ? tiles * 2 : tiles);
  return max64(reading_time(p), pairs ? split : whole);
}

/* ---- the choice ---- */

/* The numbers of a plan for one kernel, by its index, and what it would take. NULL, or why it cannot serve; `plan` is
 * written all the same. */
static const char *estimate(const int4mm_gpu_problem *p, int32_t index, int4mm_plan *plan, int64_t *time) {
  const char *refusal = NULL;
  *time = INT64_MAX;
  plan->tile_m = plan->tile_n = plan->tile_k = 0;
  plan->stages = plan->split_k = plan->ctas = 1;
  if (index >= FIRST_HOPPER) {
    const hopper_tile *tile = &hopper_tiles[index - FIRST_HOPPER];
    if (!(refusal = hopper_refusal(p, tile))) *time = plan_hopper(p, tile, plan);
  } else if (index >= FIRST_NARROW) {
    const narrow_tile *tile = &narrow_tiles[index - FIRST_NARROW];
    if (!(refusal = narrow_refusal(p, tile))) *time = plan_narrow(p, tile, plan);
  } else if (index >= FIRST_STREAM) {
    const stream_shape *shape = &stream_shapes[index - FIRST_STREAM];
    if (!(refusal = stream_refusal(p, shape))) *time = plan_stream(p, shape, plan);
  } else if (index == INT4MM_KERNEL_TILED) {
    plan_tiled(p, plan);
  } else {
    plan_simple(p, plan);
  }
  return refusal;
}

/* Plans one kernel by its index, without the reason. NULL, or why it cannot serve. */
static const char *plan_kernel(const int4mm_gpu_problem *p, int32_t index, int4mm_plan *plan) {
  int4mm_plan made = {0};
  int64_t time;
  const char *refusal = estimate(p, index, &made, &time);
  if (refusal) return refusal;
  strcpy(made.name, int4mm_cuda_kernel_at(index));
  *plan = made;
  return NULL;
}

static int32_t forced(const int4mm_gpu_problem *p, const char *kernel, int4mm_plan *plan) {
  for (int32_t i = 0; i < KERNELS; i++) {
    if (strcmp(kernel, int4mm_cuda_kernel_at(i))) continue;
    const char *refusal = plan_kernel(p, i, plan);
    if (!refusal) return INT4MM_OK;
    return int4mm_fail(INT4MM_ERR_UNSUPPORTED, "the kernel %s %s", kernel, refusal);
  }
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\", expected one of those that int4mm_cuda_kernel_at lists",
                     kernel);
}

int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  if (kernel) return forced(problem, kernel, plan);
  int32_t best = times(problem->M, problem->N) < 64 * 64 ? INT4MM_KERNEL_SIMPLE : INT4MM_KERNEL_TILED;
  int64_t least = INT64_MAX, time;
  int4mm_plan numbers;
  for (int32_t i = FIRST_STREAM; i < KERNELS; i++)
    if (!estimate(problem, i, &numbers, &time) && time < least) least = time, best = i;
  plan_kernel(problem, best, plan);
  return INT4MM_OK;
}

/* The reason of a plan in words. */
static void explain(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  char *text = plan->reason;
  size_t size = sizeof plan->reason;
  int64_t tiles = plan->tile_m ? tiles_of(p, plan->tile_m, plan->tile_n) : 0;
  if (plan->kernel == INT4MM_KERNEL_SIMPLE)
    snprintf(text, size, "a thread per output serves any shape; %lld outputs", (long long)times(p->M, p->N));
  else if (plan->kernel == INT4MM_KERNEL_TILED)
    snprintf(text, size, "16 x 16 tiles serve any shape on any architecture");
  else if (plan->kernel == INT4MM_KERNEL_STREAM)
    snprintf(text, size,
             "B streamed through registers for %d rows at a time: %d CTAs of %d x %d warps, K split over %d",
             plan->tile_m, plan->ctas, plan->tile_n / STREAM_COLUMNS, plan->tile_k / STEP_K,
             plan->tile_k / STEP_K * plan->split_k);
  else
    snprintf(text, size, "%lld tiles of %d x %d for %d CTAs on %d SMs, K split over %d", (long long)tiles, plan->tile_m,
             plan->tile_n, plan->ctas, p->sms, plan->split_k);
}

int32_t int4mm_choose_cuda(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  if (!problem || !plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", problem ? "plan" : "problem");
  if (problem->sms < 1 || problem->sms > MOST_SMS)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "sms is %d, expected from 1 to %d", (int)problem->sms, MOST_SMS);
  int32_t status = int4mm_choose_kernel(problem, kernel, plan);
  if (!status) explain(problem, plan);
  return status;
}
