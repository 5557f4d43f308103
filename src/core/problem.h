/*
 * Work as a backend receives it: an operand, a product, a packing or quantising job. Plain data that C and CUDA share.
 *
 * Division of labour: src/ops/ checks the arguments of a call and src/dispatch/ chooses; a backend gets work that is
 * known to be valid and either does it, says INT4MM_ERR_UNSUPPORTED ("another kernel must"), or fails. A backend never
 * checks again.
 */
#ifndef INT4MM_CORE_PROBLEM_H
#define INT4MM_CORE_PROBLEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/exact.h"
#include "int4mm.h"

/* XORed into a packed word to turn one nibble encoding into the other. */
#define INT4MM_ENCODING_XOR 0x88888888u

/* What turns a word in this encoding into two's complement, and back. */
static inline uint32_t int4mm_xor_mask_of(int32_t encoding) {
  return encoding == INT4MM_OFFSET ? INT4MM_ENCODING_XOR : 0;
}

/* K from which kernels that multiply nibbles at 16 times their value need operands of their true size, so that int32
 * holds the sums (kernels/common/unpack.cuh). */
#define INT4MM_WIDE_K 131072

/* A tensor as backends see it: a vector is one row. */
typedef struct int4mm_matrix {
  void *data;
  int64_t rows, cols;
  int64_t stride; /* elements from row to row */
  int32_t dtype;
} int4mm_matrix;

/* How an operand lies in memory, in CUTLASS's words. */
typedef enum int4mm_operand_layout {
  INT4MM_K_MAJOR = 0,  /* a row of data for each m or n, its words along k: a_packed */
  INT4MM_MN_MAJOR = 1, /* a row of data for each word of k, its words along n: b_packed */
  INT4MM_PANELS_N = 2  /* CPU: from int4mm_cpu_prepack; the stride has no meaning */
} int4mm_operand_layout;

/* One operand of a product: where its numbers are and what turns them into values. A has scales alone. Matrices
 * [count, N] are one row for each group; without data there is none. */
typedef struct int4mm_operand {
  union {
    const void *data;
    const uint32_t *words; /* dtype int32: eight int4 to a word */
  };
  int64_t rows, cols, stride; /* of data, in elements of dtype */
  int32_t dtype;              /* int32 words; of A also int8, float16, bfloat16 and float32 */
  int32_t layout;             /* int4mm_operand_layout */
  uint32_t xor_mask;          /* XORed into a word gives two's complement: 0 or INT4MM_ENCODING_XOR */
  const float *scales;        /* one for each m or n; NULL for an A of floats and for a B with group_scales */
  int64_t group;              /* values of k to a group: K, or a multiple of 32 */
  int64_t groups;             /* how many there are, ceil(K / group); 1 where K is 0 */
  int4mm_matrix group_scales; /* float32, float16 or bfloat16 */
  int4mm_matrix factors;      /* int8, 1 to 15: multiply the values of a group */
  int4mm_matrix zeros;        /* int8: zero points, taken from the values */
  bool even_odd;              /* CUDA, int8 A: of every 32 values those of even k come first; K % 32 is 0 */
} int4mm_operand;

static inline bool int4mm_is_panels(const int4mm_operand *o) {
  return o->layout == INT4MM_PANELS_N;
}
static inline bool int4mm_is_k_major(const int4mm_operand *o) {
  return o->layout == INT4MM_K_MAJOR;
}

/* Whose rows are whose in a grouped product: its M counts the rows of all experts, its operand b is the first one's,
 * and the others' data follow at these distances, in elements. Rows of no expert have results of 0. */
typedef struct int4mm_experts {
  int32_t count;          /* 0: a plain product */
  const int32_t *offsets; /* [count + 1], and what it holds is not to be trusted: see int4mm_grouped_matmul. Or NULL: */
  int64_t rows;           /* each has so many */
  int64_t b, scales, group_scales, factors, zeros, bias;
} int4mm_experts;

/* The most tiles of tile_m rows, none with rows of two experts, that M rows of `experts` can take. */
static inline int64_t int4mm_expert_tiles(int64_t M, int64_t experts, int64_t tile_m) {
  int64_t tiles = M / tile_m + experts + 2; /* rows before and after the experts' are two more parts */
  return tiles < M ? tiles : M;
}

/* A product, checked, with what follows it, as int4mm_matmul and int4mm_linear have it:
 *   out[m, n] = round(activation(y[m, n] + bias[n]) + residual[m, n]).
 * M, N and K may be 0. */
typedef struct int4mm_problem {
  int64_t M, N, K;        /* K counts values; of words of A a multiple of 8 */
  int4mm_operand a;       /* K-major: [M, K/8] words, or [M, K] of another dtype */
  int4mm_operand b;       /* [ceil(K/8), N] words, MN-major, or [N, ceil(K/8)], K-major; on the CPU also panels */
  const float *bias;      /* [N] or NULL */
  int32_t activation;     /* int4mm_activation */
  int4mm_matrix residual; /* [M, N] of a float dtype; no data: none */
  int4mm_matrix out;      /* [M, N] float16, bfloat16 or float32 */
  int32_t strassen;       /* CPU: -1 by rule, else levels */
  int4mm_experts experts; /* CUDA: a grouped product; on the CPU each expert's is a problem of its own */
  bool after_a;           /* CUDA: the kernel before this one in the stream makes A, */
  bool early_b;           /* and starts this one after it has waited for all before it: B may be read at once */
  int32_t *sums;          /* CUDA: scratch for the sums of a plan's parts of K (int4mm_sums_bytes), or NULL: then a
                             kernel that would need it does not split K */
} int4mm_problem;

/* problem->sums has, for each part of K, the sums of the output or, behind whole waves of tiles, those of each tile
 * whose K is in parts: so many rows, with so many elements from one to the next. */
static inline int32_t int4mm_sum_rows(const int4mm_problem *problem, const int4mm_plan *plan) {
  return plan->whole_tiles ? plan->tile_m : (int32_t)problem->M;
}
static inline int64_t int4mm_sums_stride(const int4mm_problem *problem, const int4mm_plan *plan) {
  return plan->whole_tiles ? plan->tile_n : (problem->N + 7) / 8 * 8;
}

/* Words of B along k; values past K in the last one have no counterpart in A. */
static inline int64_t int4mm_words_of_k(const int4mm_problem *p) {
  return p->K / 8 + (p->K % 8 != 0);
}

/* W4A4 with a scale for each column alone: neither groups nor zero points. */
static inline bool int4mm_is_elementary(const int4mm_problem *p) {
  return p->a.dtype == INT4MM_INT32 && !p->b.group_scales.data && !p->b.factors.data && !p->b.zeros.data;
}

/* A is floats, so that nothing is exact. */
static inline bool int4mm_is_w4a16(const int4mm_problem *p) {
  return p->a.dtype != INT4MM_INT32 && p->a.dtype != INT4MM_INT8;
}

/* int4mm_scaling of B. */
static inline int32_t int4mm_scaling_of(const int4mm_problem *p) {
  return p->b.group_scales.data ? INT4MM_GROUP_SCALES : p->b.factors.data ? INT4MM_GROUP_FACTORS : INT4MM_PER_COLUMN;
}

/* Whether something follows the scales and the bias. */
static inline bool int4mm_is_layer(const int4mm_problem *p) {
  return p->activation || p->residual.data;
}

/* Pack, unpack, quantize, dequantize. `dim` is the packed dimension of `plain`, 0 or 1. Rows and columns along dim are
 * whole, one group each. */
typedef struct int4mm_pack_job {
  int4mm_matrix packed; /* int32 words; quantize: also int8, of the shape of plain */
  int4mm_matrix plain;  /* int8 or int32; a float type for (de)quantising */
  float *scales;        /* (de)quantising only: one per row (dim 1) or column (dim 0) of plain */
  int32_t dim;
  uint32_t xor_mask; /* into a two's complement word before it is stored (after it is read) */
  bool check;        /* pack, quantize: look for bad values */
  int32_t rotate;    /* quantize: blocks of so many values along dim are rotated first; 0: none */
  float clip;        /* quantize: in (0, 1], multiplies the absmax */
  bool clip_mse;     /* quantize: the clip of least squared error instead */
  bool even_odd;     /* quantize, CUDA, to int8 or widened: as in int4mm_operand */
  bool widened;      /* quantize, CUDA, dim 1: to int4 values in an int8 packed, whose rows start on 8 bytes and have
                        room for a multiple of 8 */
} int4mm_pack_job;

/* Quantising and its way back where rows or columns along dim are cut into groups of `group` values, or have zero
 * points: what int4mm_quantize says, without rotation and without a look for values that are not finite. Matrices for
 * groups are [G, columns] for dim 0 and [rows, G] for dim 1. */
typedef struct int4mm_group_job {
  int4mm_matrix packed; /* int32 words along dim, or int8 of plain's shape */
  int4mm_matrix plain;  /* a float type */
  int4mm_matrix scales; /* quantising: float32. One for each group, or with factors one row (dim 0) or column (dim 1) */
  int4mm_matrix zeros, factors; /* int8; no data: none */
  int4mm_matrix group_scales;   /* quantising with factors: float32 for each group, to be overwritten */
  int64_t group;                /* a multiple of 32, or all values along dim; 1 at least */
  int32_t dim;
  uint32_t xor_mask;
  float clip;
  bool clip_mse;
} int4mm_group_job;

/* What has a value for each group, and how many groups there are. */
static inline const int4mm_matrix *int4mm_by_group(const int4mm_group_job *job) {
  return job->factors.data ? &job->factors : &job->scales;
}

/* dst = src, rotated in blocks along dim. Float dtypes; in place where data, stride and dtype agree. */
typedef struct int4mm_rotate_job {
  int4mm_matrix dst, src;
  int32_t dim, block;
} int4mm_rotate_job;

/* dst = op(src) or src op other; in place where data, stride and dtype agree. There are elements. */
typedef struct int4mm_map_job {
  int4mm_matrix dst, src;
  int4mm_matrix other; /* stride 0 for one row that serves all; data NULL: `number` in its place */
  float number;
  int32_t op; /* int4mm_activation, int4mm_map_op */
} int4mm_map_job;

/* dst = op of each row of src; in place as above. There are elements. */
typedef struct int4mm_rowwise_job {
  int4mm_matrix dst; /* argmax: one row of int32 */
  int4mm_matrix src;
  int4mm_matrix weight, bias; /* one row each; data NULL: none */
  float eps;
  int32_t op; /* int4mm_rowwise_op */
} int4mm_rowwise_job;

/* dst = rows (dim 0) or columns (dim 1) of src, by index. There are elements. */
typedef struct int4mm_gather_job {
  int4mm_matrix dst, src; /* of one dtype, apart in memory */
  const int32_t *indices; /* one for each row or column of dst */
  int32_t dim;
  uint32_t outside; /* the bits, repeated to fill a word, of what an index outside src gives */
} int4mm_gather_job;

typedef struct int4mm_random_job {
  int4mm_matrix dst; /* int32 or float32 */
  uint64_t seed;
  uint32_t sequence;
  float low, high;
} int4mm_random_job;

#endif
