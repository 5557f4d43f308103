/*
 * Which CUDA kernel a product takes: a pure function of the problem, so that it can be read, tested and explained
 * without a GPU. The kernels do not choose and the launchers trust the plan.
 *
 * On sm_90 every kernel that can serve is given an estimate of its time, and the least wins, so that no rule for a
 * range of shapes ends in a cliff. The constants of the estimates are fitted to measurements on an H200 (132 SMs) and
 * stand beside what they were fitted to; the estimates are within about 10% of them, which is all that a comparison
 * needs.
 */
#include <stdio.h>
#include <string.h>

#include "core.h"

enum { STEP_K = 128 /* values of k that the fast kernels take at a time */, STREAM_COLUMNS = 32 /* of a warp */ };

/* `step` and `tile` are the time of a step and of a tile's epilogue in ns, from 4096^3 to 16384^3, 512 x 8192 x 28672
 * and 128 x 4096 x 4096 (M, K, N). */
typedef struct hopper_tile {
  const char *name;
  int32_t m, n;
  int64_t step, tile;
  int32_t stages;
} hopper_tile;

static const hopper_tile hopper_tiles[] = {{"hopper_256x128", 256, 128, 600, 1500, 6},
                                           {"hopper_128x128", 128, 128, 410, 1000, 8},
                                           {"hopper_128x64", 128, 64, 350, 1000, 8},
                                           {"hopper_64x128", 64, 128, 310, 1000, 8},
                                           {"hopper_64x64", 64, 64, 270, 1000, 12}};

/* `rate` is the bytes of B read per ns, from 1, 16, 32 and 64 rows of 4096 x 14336. */
typedef struct stream_shape {
  const char *name;
  int32_t rows;
  int64_t rate;
  int32_t stages, max_warps;
} stream_shape;

static const stream_shape stream_shapes[] = {{"stream_8", 8, 3900, 3, 16},
                                             {"stream_16", 16, 3060, 3, 16},
                                             {"stream_32", 32, 2200, 2, 16},
                                             {"stream_64", 64, 1020, 2, 8}};

enum {
  HOPPER_TILES = sizeof hopper_tiles / sizeof hopper_tiles[0],
  STREAM_SHAPES = sizeof stream_shapes / sizeof stream_shapes[0],
  FIRST_STREAM = 2,
  FIRST_HOPPER = FIRST_STREAM + STREAM_SHAPES,
  KERNELS = FIRST_HOPPER + HOPPER_TILES
};

const char *int4mm_cuda_kernel_at(int32_t index) {
  if (index < 0 || index >= KERNELS) return NULL;
  if (index >= FIRST_HOPPER) return hopper_tiles[index - FIRST_HOPPER].name;
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
  return a && b > INT64_MAX / a ? INT64_MAX : a * b;
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
 * estimate in ns. */
static int64_t plan_stream(const int4mm_gpu_problem *p, const stream_shape *s, int4mm_plan *plan) {
  int64_t steps = ceil_div(p->K, STEP_K), warps_n = 1, warps_k = 1;
  /* only these have a build for rows off 16 bytes and for long K */
  plan->stages = aligned16(p) && p->K < INT4MM_WIDE_K ? s->stages : 4;
  int64_t fit = shared_limit(p->arch) / (plan->stages * (2048 + s->rows / 8 * 512));
  int64_t max_warps = s->max_warps;
  while (max_warps > fit) max_warps /= 2;
  while (warps_n < 8 && warps_n < max_warps && ceil_div(p->N, warps_n * STREAM_COLUMNS) > p->sms) warps_n *= 2;
  while (warps_n * warps_k < max_warps && warps_k < steps) warps_k *= 2;
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
  return 2500 + times(blocks, times(p->K / 2, p->N) / s->rate) + (blocks - 1) * 1500; /* 512^3: 6.7 us, not 3.5 */
}

/* ---- hopper: sm_90 alone ---- */

static const char *hopper_refusal(const int4mm_gpu_problem *p, const hopper_tile *t) {
  if (p->arch != 90) return "needs sm_90";
  if (p->M < 1 || p->N < 1 || p->K < 8) return "needs an M, N and K above 0";
  if (!aligned16(p)) return "needs rows of a_packed and b_packed that start on 16 bytes";
  if (p->K >= INT4MM_WIDE_K && !(t->m == 64 && t->n == 64)) return "needs a K below 131072";
  return times(ceil_div(p->M, t->m), ceil_div(p->N, t->n)) > INT32_MAX / 8 ? "has too many tiles" : NULL;
}

/* Whole waves of tiles; or, where tiles are few, a pair of CTAs for each, which split K and then add up 4 bytes of
 * partial sums for every output (28 ns per KB). Larger clusters were slower: 19.6 us against 10.4 at 128 x 4096 x 4096.
 * Returns the estimate in ns. */
static int64_t plan_hopper(const int4mm_gpu_problem *p, const hopper_tile *t, int4mm_plan *plan) {
  int64_t tiles = ceil_div(p->M, t->m) * ceil_div(p->N, t->n), steps = ceil_div(p->K, STEP_K);
  int64_t whole = 2500 + ceil_div(tiles, p->sms) * (steps * t->step + t->tile);
  int64_t split = 2500 + ceil_div(steps, 2) * t->step + t->tile + 900 + 28 * (t->m * t->n * 4 >> 10);
  bool pairs = split < whole && tiles * 2 <= p->sms && steps >= 4;
  plan->kernel = INT4MM_KERNEL_HOPPER;
  plan->tile_m = t->m;
  plan->tile_n = t->n;
  plan->tile_k = STEP_K;
  plan->stages = t->stages;
  plan->split_k = pairs ? 2 : 1;
  plan->ctas = to_ctas(pairs ? tiles * 2 : min64(tiles, p->sms));
  return pairs ? split : whole;
}

/* ---- the choice ---- */

/* Plans one kernel by its index, without the words. NULL and the estimate, or why it cannot serve. */
static const char *plan_kernel(const int4mm_gpu_problem *p, int32_t index, int4mm_plan *plan, int64_t *time) {
  int4mm_plan made = {.stages = 1, .split_k = 1, .ctas = 1};
  const char *refusal = NULL;
  *time = INT64_MAX;
  if (index >= FIRST_HOPPER) {
    const hopper_tile *tile = &hopper_tiles[index - FIRST_HOPPER];
    if (!(refusal = hopper_refusal(p, tile))) *time = plan_hopper(p, tile, &made);
  } else if (index >= FIRST_STREAM) {
    const stream_shape *shape = &stream_shapes[index - FIRST_STREAM];
    if (!(refusal = stream_refusal(p, shape))) *time = plan_stream(p, shape, &made);
  } else if (index == INT4MM_KERNEL_TILED) {
    plan_tiled(p, &made);
  } else {
    plan_simple(p, &made);
  }
  if (refusal) return refusal;
  strcpy(made.name, int4mm_cuda_kernel_at(index));
  *plan = made;
  return NULL;
}

static int32_t forced(const int4mm_gpu_problem *p, const char *kernel, int4mm_plan *plan) {
  for (int32_t i = 0; i < KERNELS; i++) {
    if (strcmp(kernel, int4mm_cuda_kernel_at(i))) continue;
    int64_t time;
    const char *refusal = plan_kernel(p, i, plan, &time);
    if (!refusal) return INT4MM_OK;
    return int4mm_fail(INT4MM_ERR_UNSUPPORTED, "the kernel %s %s", kernel, refusal);
  }
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "kernel is \"%s\", expected one of those that int4mm_cuda_kernel_at lists",
                     kernel);
}

int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  if (kernel) return forced(problem, kernel, plan);
  int64_t least = INT64_MAX, time;
  int4mm_plan made;
  for (int32_t i = FIRST_STREAM; i < KERNELS; i++)
    if (!plan_kernel(problem, i, &made, &time) && time < least) least = time, *plan = made;
  if (least == INT64_MAX)
    plan_kernel(problem, times(problem->M, problem->N) < 64 * 64 ? INT4MM_KERNEL_SIMPLE : INT4MM_KERNEL_TILED, plan,
                &time);
  return INT4MM_OK;
}

/* The reason of a plan in words. */
static void explain(const int4mm_gpu_problem *p, int4mm_plan *plan) {
  char *text = plan->reason;
  size_t size = sizeof plan->reason;
  int64_t tiles = plan->tile_m ? times(ceil_div(p->M, plan->tile_m), ceil_div(p->N, plan->tile_n)) : 0;
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
    snprintf(text, size, "%lld tiles of %d x %d on %d SMs, K split over %d: %lld wave(s)", (long long)tiles,
             plan->tile_m, plan->tile_n, p->sms, plan->split_k, (long long)ceil_div(tiles * plan->split_k, p->sms));
}

int32_t int4mm_choose_cuda(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan) {
  if (!problem || !plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", problem ? "plan" : "problem");
  int32_t status = int4mm_choose_kernel(problem, kernel, plan);
  if (!status) explain(problem, plan);
  return status;
}
