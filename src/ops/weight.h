/*
 * What turns the words of a weight into numbers: its scales, groups and zero points, as a call gives them and as
 * backends take them.
 */
#ifndef INT4MM_OPS_WEIGHT_H
#define INT4MM_OPS_WEIGHT_H

#include "core/problem.h"
#include "dispatch/target.h"

/* Of a weight whose tensors were found valid. Backends take matrices as [G, N] and zero points as int8: the others are
 * made so for each call. */
typedef struct int4mm_weight {
  int32_t scaling;                      /* int4mm_scaling */
  int64_t group, groups;                /* as in int4mm_operand */
  bool scales_ng, factors_ng, zeros_ng; /* given as [N, G] */
  bool zero_words;                      /* zero points are given as words */
  uint32_t zero_xor_mask;               /* of these */
  int64_t experts;                      /* so many such weights, one below the other: 1 but for a grouped product */
} int4mm_weight;

/* Checks scale_b, zero_b, factor_b and group of `args` for a product of N columns and K values, whose A has `dtype_a`,
 * and a weight [N, K/8] (nk) in `encoding`; and that sums over K fit. Errors call A `name`. */
int32_t int4mm_check_weight(int4mm_weight *weight, const int4mm_matmul_args *args, const char *name, int32_t dtype_a,
                            int64_t N, int64_t K, bool nk, int32_t encoding);
/* That words with a mark hold the zero points of N outputs, eight to a word; their encoding is the mark's. */
int32_t int4mm_take_zero_mark(int4mm_weight *weight, const int4mm_tensor *zeros, int64_t N);
/* Whether int4mm_place_weight needs memory: its bytes, or 0. */
int64_t int4mm_weight_scratch(const int4mm_weight *weight, const int4mm_matmul_args *args, int64_t N);
/* Sets scales, groups and zero points of b as backends take them; what has to be rearranged goes to `scratch`, on the
 * target's device, in the order of the stream. Without scratch b is described, with data that is not to be read. */
int32_t int4mm_place_weight(const int4mm_weight *weight, const int4mm_matmul_args *args, int64_t N,
                            const int4mm_dispatch_target *target, void *scratch, int4mm_operand *b);

#endif
