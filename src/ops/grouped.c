/*
 * Grouped products: the checks of what belongs to several experts, each as a product of its own (matmul.c).
 */
#include <string.h>

#include "ops/common.h"
#include "ops/matmul.h"

enum {
  MOST_ROWS = INT32_MAX - 1024, /* of all experts: offsets and the kernels' tiles count them in 32 bits */
  MOST_EXPERTS = 1 << 20        /* which CTAs search */
};

/* ---- views ---- */

static int4mm_tensor narrow_rows(const int4mm_tensor *t, int64_t first, int64_t rows) {
  int4mm_tensor view = *t;
  view.shape[0] = rows;
  if (t->data) view.data = (char *)t->data + (size_t)(first * t->stride) * int4mm_dtype_size(t->dtype);
  return view;
}

/* Row `row` as a vector, which has no mark. */
static int4mm_tensor row_of(const int4mm_tensor *t, int64_t row) {
  int4mm_tensor view = narrow_rows(t, row, 1);
  view.packing = INT4MM_UNMARKED;
  view.rank = 1, view.shape[0] = t->shape[1], view.shape[1] = view.stride = 1;
  return view;
}

/* Expert e's share of the rows; of words along them its mark says how many values these hold. */
static int4mm_tensor share_of(const int4mm_tensor *t, int64_t experts, int64_t e) {
  const int64_t rows = t->shape[0] / experts, k = t->packed_k;
  int4mm_tensor view = narrow_rows(t, e * rows, rows);
  if (t->packing == INT4MM_PACKED_DIM0 && k) view.packed_k = k / experts;
  return view;
}

/* Sets args->member of the expert's arguments to a view, or leaves it NULL. */
#define VIEW(member, view)                                                                                             \
  if (flat->member) expert->member = (view), expert->args.member = &expert->member

/* With all rows of A and out. */
static void view_weight(int4mm_expert *expert, const int4mm_matmul_call *c, int64_t e) {
  const int4mm_matmul_args *flat = c->args;
  const int64_t E = c->experts;
  expert->args = *flat;
  VIEW(b_packed, share_of(flat->b_packed, E, e));
  VIEW(scale_b, c->row_scales ? row_of(flat->scale_b, e) : share_of(flat->scale_b, E, e));
  VIEW(zero_b, c->row_scales ? row_of(flat->zero_b, e) : share_of(flat->zero_b, E, e));
  VIEW(factor_b, share_of(flat->factor_b, E, e));
  VIEW(bias, row_of(flat->bias, e));
}

void int4mm_make_expert(int4mm_expert *expert, const int4mm_matmul_call *c, int64_t e, int64_t first, int64_t rows) {
  const int4mm_matmul_args *flat = c->args;
  view_weight(expert, c, e);
  VIEW(a_packed, narrow_rows(flat->a_packed, first, rows));
  VIEW(scale_a, narrow_rows(flat->scale_a, first, rows));
  VIEW(out, narrow_rows(flat->out, first, rows));
}
#undef VIEW

int64_t int4mm_first_row(const int4mm_matmul_call *c, int64_t e) {
  return c->offsets ? ((const int32_t *)c->offsets->data)[e] : c->M / c->experts * e;
}

int4mm_experts int4mm_place_experts(const int4mm_matmul_call *c, const int4mm_problem *p) {
  const int4mm_weight *w = &c->weight;
  const int4mm_matmul_args *args = c->args;
  const int64_t E = c->experts;
  int4mm_experts x = {.count = (int32_t)E, .offsets = c->offsets ? c->offsets->data : NULL, .rows = c->M / E};
  x.b = (c->nk ? c->N : int4mm_words_of_k(p)) * p->b.stride;
  x.scales = c->row_scales ? args->scale_b->stride : 0;
  /* rearranged from [E * N, G] they are [G, E * N] */
  x.group_scales = w->scales_ng ? p->b.group_scales.cols / E : w->groups * p->b.group_scales.stride;
  x.factors = w->factors_ng ? p->b.factors.cols / E : w->groups * p->b.factors.stride;
  x.zeros = w->zeros_ng ? p->b.zeros.cols / E : w->groups * p->b.zeros.stride;
  x.bias = args->bias ? args->bias->stride : 0;
  return x;
}

/* ---- checks ---- */

static int32_t check_offsets(const int4mm_tensor *offsets, int64_t experts) {
  int32_t status = int4mm_check_rows("offsets", offsets);
  if (!status && (offsets->rank != 1 || offsets->dtype != INT4MM_INT32 || offsets->shape[0] < 2))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "offsets is %s, expected [E + 1] int32: where each expert's rows begin, and the end",
                         int4mm_describe(offsets).s);
  if (status || !experts || experts == offsets->shape[0] - 1) return status;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "offsets is %s, which is of %lld experts, but there are %lld",
                     int4mm_describe(offsets).s, (long long)offsets->shape[0] - 1, (long long)experts);
}

/* How many experts there are. */
static int32_t take_experts(int4mm_matmul_call *c, int64_t experts) {
  int32_t status = c->offsets ? check_offsets(c->offsets, experts) : INT4MM_OK;
  if (status) return status;
  if (experts < (c->offsets ? 0 : 1))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "experts is %lld, expected 1 or more", (long long)experts);
  c->experts = c->offsets ? c->offsets->shape[0] - 1 : experts;
  if (c->experts <= MOST_EXPERTS) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "there are %lld experts, expected at most %d", (long long)c->experts,
                     MOST_EXPERTS);
}

/* That a tensor, if there is one, is a matrix of as many rows for each expert; with `rows`, of so many. */
static int32_t check_share(const char *name, const int4mm_tensor *t, int64_t experts, int64_t rows) {
  int32_t status = t ? int4mm_check_rows(name, t) : INT4MM_OK;
  if (status || !t) return status;
  if (t->rank != 2)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "%s is %s, expected a matrix, the rows of each of %lld experts below the "
                       "other's",
                       name, int4mm_describe(t).s, (long long)experts);
  if (rows && t->shape[0] != experts * rows)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected a row for each of %lld experts", name,
                       int4mm_describe(t).s, (long long)experts);
  if (t->shape[0] % experts)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, whose rows are not as many for each of %lld experts", name,
                       int4mm_describe(t).s, (long long)experts);
  return INT4MM_OK;
}

static int32_t check_shares(int4mm_matmul_call *c) {
  const int4mm_matmul_args *args = c->args;
  const int64_t E = c->experts;
  int32_t status = args->b_packed ? int4mm_check_tensor("b_packed", args->b_packed) : INT4MM_OK;
  if (!status && args->b_packed && args->b_packed->layout == INT4MM_PANELS)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is prepacked, expected words: a grouped product takes those");
  if (!status) status = check_share("b_packed", args->b_packed, E, 0);
  if (!status) status = check_share("scale_b", args->scale_b, E, 0);
  if (!status) status = check_share("factor_b", args->factor_b, E, 0);
  if (status) return status;
  const int4mm_tensor *scale = args->scale_b;
  bool float32_rows = scale && scale->dtype == INT4MM_FLOAT32 && scale->shape[0] == E;
  c->row_scales = float32_rows && (!args->group || args->factor_b);
  status = check_share("zero_b", args->zero_b, E, c->row_scales ? 1 : 0);
  return status ? status : check_share("bias", args->bias, E, 1);
}

/* That words along the rows hold as many values for each expert. */
static int32_t check_mark(const char *name, const int4mm_tensor *t, int64_t experts) {
  if (!t || t->packing != INT4MM_PACKED_DIM0 || !t->packed_k || experts == 1) return INT4MM_OK;
  if (t->packed_k % 8 == 0 && t->packed_k / 8 == t->shape[0]) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "%s was packed from %lld values along dim 0, which fill no whole words for each of %lld "
                     "experts: pack each expert's and take the marks away",
                     name, (long long)t->packed_k, (long long)experts);
}

/* Offsets and values that can be read here. */
static int32_t check_values(const int4mm_matmul_call *c) {
  const int4mm_matmul_args *args = c->args;
  int4mm_matmul_call unused;
  int4mm_expert expert;
  int32_t status = INT4MM_OK;
  if (args->a_packed->device != INT4MM_CPU) return status;
  for (int64_t e = 0, before = 0; c->offsets && e <= c->experts; e++) {
    int64_t offset = int4mm_first_row(c, e);
    if (offset < before || offset > c->M)
      return int4mm_fail(INT4MM_ERR_VALUE, "offsets holds %lld at index %lld (counted from 0): expected %lld to %lld",
                         (long long)offset, (long long)e, (long long)before, (long long)c->M);
    before = offset;
  }
  if (!args->zero_b && !args->factor_b) return status;
  for (int64_t e = 1; e < c->experts && !status; e++) {
    view_weight(&expert, c, e);
    status = int4mm_check_matmul(&expert.args, &unused);
    if (status) status = int4mm_fail(status, "expert %lld (counted from 0): %s", (long long)e, int4mm_last_error());
  }
  return status;
}

static int32_t check_grouped(const int4mm_matmul_args *args, const int4mm_tensor *offsets, int64_t experts,
                             int4mm_matmul_call *c) {
  if (int4mm_check_args(args ? args->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  int4mm_matmul_call grouped = {.args = args, .offsets = offsets};
  int4mm_expert first;
  int32_t status = take_experts(&grouped, experts);
  if (!status) status = check_shares(&grouped);
  if (!status) status = check_mark("b_packed", args->b_packed, grouped.experts);
  if (!status) status = check_mark("zero_b", args->zero_b, grouped.experts);
  if (status) return status;
  view_weight(&first, &grouped, 0);
  if ((status = int4mm_check_matmul(&first.args, c)))
    return int4mm_fail(status, "for each of %lld experts: %s", (long long)grouped.experts, int4mm_last_error());
  c->args = args, c->experts = c->weight.experts = grouped.experts, c->offsets = offsets;
  c->row_scales = grouped.row_scales;
  if (c->M > MOST_ROWS)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "a_packed is %s, expected at most %d rows",
                       int4mm_describe(args->a_packed).s, MOST_ROWS);
  if (!offsets && c->M % c->experts)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "a_packed is %s, whose rows are not as many for each of %lld experts: give offsets",
                       int4mm_describe(args->a_packed).s, (long long)c->experts);
  if (c->row_scales && args->zero_b && c->weight.zero_words)
    status = int4mm_take_zero_mark(&c->weight, args->zero_b, c->N);
  if (!status && offsets) status = int4mm_check_same_device("offsets", offsets, "a_packed", args->a_packed);
  if (!status && offsets && args->out->rank) status = int4mm_check_apart("out", args->out, "offsets", offsets);
  if (!status) status = int4mm_check_out_apart(args);
  return status ? status : check_values(c);
}

/* ---- entry points ---- */

int32_t int4mm_grouped_matmul(const int4mm_matmul_args *args, const int4mm_tensor *offsets, int64_t experts) {
  int4mm_matmul_call call;
  int4mm_dispatch_target target;
  int32_t status = check_grouped(args, offsets, experts, &call);
  if (!status) status = int4mm_choose_target(args, call.M, call.N, call.K, &target);
  return status ? status : int4mm_finish_matmul(&call, &target);
}

int32_t int4mm_grouped_matmul_plan(const int4mm_matmul_args *args, const int4mm_tensor *offsets, int64_t experts,
                                   int4mm_plan *plan) {
  int4mm_matmul_call call;
  int4mm_dispatch_target target;
  if (!plan) return int4mm_fail(INT4MM_ERR_ARGUMENT, "plan is NULL");
  int32_t status = check_grouped(args, offsets, experts, &call);
  if (!status) status = int4mm_choose_target(args, call.M, call.N, call.K, &target);
  return status ? status : int4mm_describe_matmul(&call, &target, plan);
}
