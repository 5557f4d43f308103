/*
 * A product between its checks (matmul.c) and its backends (matmul_run.c).
 */
#ifndef INT4MM_OPS_MATMUL_H
#define INT4MM_OPS_MATMUL_H

#include "core/tensor.h"
#include "dispatch/target.h"
#include "ops/weight.h"

/* A call that was found valid: a product, or a layer around one. */
typedef struct int4mm_matmul_call {
  const int4mm_matmul_args *args;
  int64_t M, N, K; /* K as in int4mm_problem */
  int4mm_weight weight;
  int32_t rotate_a;                /* the block that A was rotated by, as far as is known; 0: not, or not known */
  int32_t encoding_a, encoding_b;  /* as the marks say, or the arguments */
  bool panels;                     /* b_packed is prepacked */
  bool nk;                         /* b_packed is [N, K/8] */
  const int4mm_pack_job *quantize; /* a layer: makes a_packed and scale_a; NULL: they are there */
  const int4mm_rotate_job *rotate; /* a layer of floats: makes a_packed; or NULL */
  int64_t experts;                 /* a grouped product of so many, of which M counts all rows; 0: a plain one */
  const int4mm_tensor *offsets;    /* of its experts' rows; NULL: equal shares */
  bool row_scales;                 /* its scale_b is [E, N], a scale for each column */
  int32_t activation;              /* int4mm_activation */
  const int4mm_tensor *residual;   /* or NULL */
} int4mm_matmul_call;

/* The weight of a call: words, and how they lie, as their mark says, or the arguments. */
int32_t int4mm_take_weight(int4mm_matmul_call *call);
/* That a_packed and b_packed, as they were taken, have one K and one device, and that the weight's scales fit; M, N, K
 * and weight. Errors call A `name` and show the tensor that it is, or is made from. */
int32_t int4mm_check_product(int4mm_matmul_call *call, const char *name, const int4mm_tensor *shown);

/* The checks of int4mm_matmul, with what they find. */
int32_t int4mm_check_matmul(const int4mm_matmul_args *args, int4mm_matmul_call *call);
/* That no operand lies in out. */
int32_t int4mm_check_out_apart(const int4mm_matmul_args *args);
/* Allocates out where it is released, and runs a call on its target. */
int32_t int4mm_finish_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target);
/* int4mm_plan_matmul, and words for why it is this target. */
int32_t int4mm_describe_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target, int4mm_plan *plan);

/* Scratch memory of a target that is a GPU, in the order of the stream. */
int32_t int4mm_take_scratch(const int4mm_dispatch_target *target, size_t bytes, void **scratch, void *stream);
/* Frees it after a call that ended with `status`, and returns that: the call's own failure is the one to tell. */
int32_t int4mm_free_scratch(const int4mm_dispatch_target *target, void *scratch, void *stream, int32_t status);
/* Runs it on its target, out being allocated. */
int32_t int4mm_run_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target);
/* What int4mm_run_matmul would do; out may be still to be allocated. */
int32_t int4mm_plan_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target, int4mm_plan *plan);

/* ---- grouped products (grouped.c) ---- */

/* One expert's product, whose tensors are views of the call's. */
typedef struct int4mm_expert {
  int4mm_matmul_args args;
  int4mm_tensor a_packed, b_packed, scale_a, scale_b, zero_b, factor_b, bias, out;
} int4mm_expert;

/* That of expert e with `rows` rows of A and out, from `first` on. */
void int4mm_make_expert(int4mm_expert *expert, const int4mm_matmul_call *call, int64_t e, int64_t first, int64_t rows);
/* The first row of expert e, from offsets on the CPU; e = experts: the row after the last one's. */
int64_t int4mm_first_row(const int4mm_matmul_call *call, int64_t e);
/* How a backend finds the experts in a problem whose weight is placed. */
int4mm_experts int4mm_place_experts(const int4mm_matmul_call *call, const int4mm_problem *problem);

#endif
