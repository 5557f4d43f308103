/*
 * turing: the tensor cores of sm_75 (kernels/sm75/mma.cu), which later architectures run but have better kernels than.
 * Nothing here was measured on such a card. The time of a tile is what its mma and its shared memory take at the
 * device's clock, and how near a kernel comes to that is a guess, as is what a CTA takes beside. Times are in ns, of
 * calls that follow each other.
 */
#include <stdio.h>

#include "core/dtype.h"
#include "core/problem.h"
#include "dispatch/gpu.h"
#include "dispatch/registry.h"

enum {
  TURING = 75,
  CALL_TIME = 3000,        /* a call, beside its tiles */
  CTA_CLOCKS = 3000,       /* a CTA's first copies and its epilogue */
  SHARED_RATE = 64,        /* bytes a clock of an SM, taken to be half of later ones' */
  LONGEST_SUM = 128,       /* of floats: values of k until they are promoted */
  MAX_GROUPED_K = 1 << 20, /* where a group is found by a multiplication */
  COPY_TIME = 2000,        /* of a copy of A, */
  ADD_TIME = 3000,         /* of a kernel that adds the sums of parts of K, beside their bytes */
  PART_K = 256,            /* values of k that are whole stages of every tile */
  ALONE_PERCENT = 60,      /* of the bound that a CTA alone on its SM reaches */
  PAIR_PERCENT = 75,       /* and two */
  MEMORY_PERCENT = 80      /* of the memory's rate at which B is read */
};

static bool is_real(const int4mm_gpu_problem *p) {
  return p->dtype_a == INT4MM_FLOAT16;
}

/* Sums are promoted to float32 totals group by group. */
static bool has_chain(const int4mm_gpu_problem *p) {
  return is_real(p) || p->scaling == INT4MM_GROUP_SCALES;
}

/* Values of k that share a scale. */
static int64_t group_of(const int4mm_gpu_problem *p) {
  return p->scaling != INT4MM_PER_COLUMN && p->group < p->K ? p->group : p->K;
}

static const char *kind_unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const bool elementary = int4mm_plan_is_elementary(p);
  if (p->dtype_a == INT4MM_BFLOAT16) return "has no code for bfloat16, which sm_75 does not multiply";
  if (p->dtype_a == INT4MM_FLOAT32) return "has no code for an A of float32";
  if (is_real(p) && p->scaling == INT4MM_GROUP_FACTORS) return "has no code for floats with integer group scales";
  if (p->dtype_a == INT4MM_INT32 && (p->scaling == INT4MM_GROUP_FACTORS || p->zeros))
    return "needs int8 activations for such weights";
  if (!elementary && kernel->tile_m == 64) return "has no code for this kind of operands";
  if (p->scaling != INT4MM_PER_COLUMN && p->K > MAX_GROUPED_K) return "needs a K of at most 2^20 with groups";
  if (p->dtype_a != INT4MM_INT8) return NULL;
  if (p->scaling == INT4MM_GROUP_SCALES) return group_of(p) >= INT4MM_WIDE_K ? "needs groups below 131072" : NULL;
  return p->K >= INT4MM_WIDE_K ? "needs a K below 131072" : NULL;
}

static const char *unsupported(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const int64_t max_extent = INT32_MAX - 1023; /* rows and columns are counted in 32 bits */
  const char *reason = kind_unsupported(kernel, p);
  if (reason) return reason;
  if (p->M < 1 || p->N < 1 || p->K < 32) return "needs an M and N above 0 and a K of at least 32";
  if (p->M > max_extent || p->N > max_extent) return "needs an M and N below 2147482625";
  if (p->K > INT4MM_MAX_K) return "needs a K below 2^25";
  if (p->K % 32) return "needs a K that is a multiple of 32";
  if (p->align_b < 16 || p->ldb % 4) return "needs rows of b_packed that start on 16 bytes";
  if (p->layout_b == INT4MM_B_KN && p->N % 4) return "needs an N that is a multiple of 4";
  return int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n) > INT32_MAX ? "has too many tiles" : NULL;
}

/* ---- the estimate ---- */

/* Bits of a value of A. */
static int64_t bits_of_a(const int4mm_gpu_problem *p) {
  return p->dtype_a == INT4MM_INT32 ? 4 : is_real(p) ? 16 : 8;
}

/* Two CTAs share an SM: but for the large tiles of the kinds whose warps have 64 x 32. */
static bool is_paired(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  return kernel->tile_m < 128 || (p->scaling == INT4MM_PER_COLUMN && !p->zeros && !is_real(p));
}

/* Clocks of an SM for a k-block of a tile: of its tensor cores or of its shared memory, to which A and B are copied and
 * from which each warp reads its rows and columns; and of the promotion, three instructions for a sum. */
static int64_t k_block_clocks(const int4mm_kernel *kernel, const int4mm_gpu_problem *p) {
  const int4mm_architecture *turing = int4mm_architecture_of(TURING);
  const int64_t m = kernel->tile_m, n = kernel->tile_n, a_bits = bits_of_a(p);
  const int64_t macs = a_bits == 4 ? turing->int4_macs : a_bits == 8 ? turing->int8_macs : turing->fp16_macs;
  const int64_t warp_m = m < 64 ? m : 64, warp_n = m == 128 && is_paired(kernel, p) ? 64 : 32;
  const int64_t bits = m * a_bits * (1 + n / warp_n) + n * 4 * (1 + m / warp_m);
  int64_t mma = m * n * INT4MM_BLOCK_K / macs, shared = bits * INT4MM_BLOCK_K / 8 / SHARED_RATE;
  int64_t group = group_of(p), sums = group < LONGEST_SUM ? LONGEST_SUM / group : 1;
  if (!is_real(p) && group > LONGEST_SUM) sums = 0; /* few */
  return (mma > shared ? mma : shared) + (has_chain(p) ? sums * m * n * 3 / 128 : 0);
}

static int64_t clocks_to_ns(const int4mm_gpu_problem *p, int64_t clocks) {
  int32_t clock = p->clock ? p->clock : int4mm_architecture_of(TURING)->clock;
  return int4mm_plan_mul(clocks, 1000) / clock;
}

/* A wave of `resident` CTAs to an SM, each with so many k-blocks. */
static int64_t wave_time(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int64_t k_blocks, int resident) {
  int64_t clocks = int4mm_plan_mul(k_blocks, k_block_clocks(kernel, p) * resident);
  clocks = int4mm_plan_mul(clocks, 100) / (resident > 1 ? PAIR_PERCENT : ALONE_PERCENT);
  return clocks_to_ns(p, int4mm_plan_add(clocks, CTA_CLOCKS));
}

static int64_t waves_time(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int64_t tiles, int64_t k_blocks) {
  int64_t one = wave_time(kernel, p, k_blocks, 1), two = wave_time(kernel, p, k_blocks, 2);
  if (!is_paired(kernel, p)) return int4mm_plan_mul(int4mm_plan_ceil_div(tiles, p->sms), one);
  int64_t rest = tiles % (2 * (int64_t)p->sms);
  return int4mm_plan_add(int4mm_plan_mul(tiles / (2 * (int64_t)p->sms), two), rest > p->sms ? two : rest ? one : 0);
}

/* Bytes a ns. */
static int64_t memory_of(const int4mm_gpu_problem *p) {
  return p->memory ? p->memory : int4mm_architecture_of(TURING)->memory;
}

/* Of the tiles, and of adding sums. */
static int64_t sharing_time(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_sharing s) {
  if (s.split == 1) return waves_time(kernel, p, s.shared, int4mm_plan_k_blocks(p));
  const int64_t part = int4mm_plan_ceil_div(int4mm_plan_ceil_div(p->K, PART_K), s.split) * PART_K / INT4MM_BLOCK_K;
  const int64_t ctas = s.shared * s.split, bytes = ctas * p->M * p->N / (s.whole + s.shared) * 8;
  return waves_time(kernel, p, s.whole, int4mm_plan_k_blocks(p)) + waves_time(kernel, p, ctas, part) + ADD_TIME +
         bytes / memory_of(p);
}

static int64_t plan(const int4mm_kernel *kernel, const int4mm_gpu_problem *p, int4mm_plan *plan) {
  int64_t memory = memory_of(p), tiles = int4mm_plan_tiles(p, kernel->tile_m, kernel->tile_n);
  const int64_t stages = has_chain(p) ? 1 : int4mm_plan_ceil_div(p->K, PART_K); /* exact in any order: shared */
  int64_t time =
      int4mm_plan_share_k(kernel, p, sharing_time, tiles, is_paired(kernel, p) ? 2 * p->sms : p->sms, stages, plan);
  plan->tile_k = INT4MM_BLOCK_K;
  int64_t reading = int4mm_plan_mul(int4mm_plan_mul(p->K / 2, p->N), 100) / (memory * MEMORY_PERCENT);
  time = time < reading ? reading + time / 8 : time + reading / 8; /* they overlap, not quite */
  if (!int4mm_plan_aligned16_a(p)) time = int4mm_plan_add(time, COPY_TIME + int4mm_plan_bytes_of_a(p) * 2 / memory);
  if (p->arch > TURING) return INT4MM_COST_ANY + 2; /* never faster than what there is for it */
  return int4mm_plan_add(CALL_TIME, time);
}

static void explain(const int4mm_gpu_problem *p, const int4mm_plan *plan, char *text, size_t size) {
  const char *type = is_real(p) ? "float16" : p->dtype_a == INT4MM_INT8 ? "int8" : "int4";
  char sharing[48];
  int used = snprintf(text, size, "%d tiles of %d x %d on %d SMs by %s mma.sync%s%s%s", int4mm_plan_all_tiles(plan),
                      plan->tile_m, plan->tile_n, (int)p->sms, type, int4mm_plan_sharing(plan, sharing, sizeof sharing),
                      p->layout_b == INT4MM_B_NK ? ", B along k" : "", int4mm_plan_aligned16_a(p) ? "" : ", A copied");
  if (p->scaling == INT4MM_GROUP_SCALES && used > 0 && (size_t)used < size)
    snprintf(text + used, size - (size_t)used, ", groups of %lld promoted to float32", (long long)group_of(p));
}

const int4mm_family int4mm_family_turing = {unsupported, plan, explain, INT4MM_COPIES_A, false, true};
