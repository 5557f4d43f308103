/*
 * A product between its checks (matmul.c) and its backends (matmul_run.c).
 */
#ifndef INT4MM_OPS_MATMUL_H
#define INT4MM_OPS_MATMUL_H

#include "core/tensor.h"
#include "dispatch/target.h"

/* A call that was found valid. */
typedef struct int4mm_matmul_call {
  const int4mm_matmul_args *args;
  int64_t M, N, K;
  int32_t encoding_a, encoding_b; /* as the marks say, or the arguments */
  bool panels;                    /* b_packed is prepacked */
  bool nk;                        /* b_packed is [N, K/8] */
} int4mm_matmul_call;

/* Runs it on its target, out being allocated. */
int32_t int4mm_run_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target);
/* What int4mm_run_matmul would do; out may be still to be allocated. */
int32_t int4mm_plan_matmul(const int4mm_matmul_call *call, const int4mm_dispatch_target *target, int4mm_plan *plan);

#endif
