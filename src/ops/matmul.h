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
  int32_t activation;              /* int4mm_activation */
  const int4mm_tensor *residual;   /* or NULL */
} int4mm_matmul_call;

/* The weight of a call: words, and how they lie, as their mark says, or the arguments. */
int32_t int4mm_take_weight(int4mm_matmul_call *call);
/* That a_packed and b_packed, as they were taken, have one K and one device, and that the weight's scales fit; M, N, K
 * and weight. Errors call A `name` and show the tensor that it is, or is made from. */
int32_t int4mm_check_product(int4mm_matmul_call *call, const char *name, const int4mm_tensor *shown);

/* Frees scratch memory of a target after a call that ended with `status`, and returns that: the call's own failure is
 * the one to tell. */
int32_t int4mm_free_scratch(const int4mm_dispatch_target *target, void *scratch, void *stream, int32_t status);
/* Runs it on its target, out being allocated. */
int32_t int4mm_run_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target);
/* What int4mm_run_matmul would do; out may be still to be allocated. */
int32_t int4mm_plan_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target, int4mm_plan *plan);

#endif
