/*
 * Scales, groups and zero points of a weight: their checks, and the one form that backends take.
 */
#include "ops/weight.h"

#include "core/dtype.h"
#include "cpu/backend.h"
#include "dispatch/devices.h"
#include "ops/common.h"

/* ---- checks ---- */

/* How a tensor that belongs to a weight is to lie: what it is called, its columns N or words of eight of them. */
typedef struct shape {
  const char *name, *what;
  const int4mm_tensor *t;
  int64_t columns;
  bool nk;
} shape;

/* The groups of a matrix [G, columns], or with nk [columns, G]; -1 where it is neither. Where it could be both a mark
 * tells. */
static int64_t groups_of(const shape *s, bool *ng) {
  bool straight = s->t->shape[1] == s->columns;
  *ng = s->nk && s->t->shape[0] == s->columns && (!straight || s->t->packing == INT4MM_PACKED_DIM0);
  return *ng ? s->t->shape[1] : straight ? s->t->shape[0] : -1;
}

static int32_t fail_shape(const shape *s) {
  bool turned = !s->nk && s->t->rank == 2 && s->t->shape[0] == s->columns;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected %s%s%s", s->name, int4mm_describe(s->t).s, s->what,
                     s->nk ? " or the same transposed" : "",
                     turned ? ": it lies as for a weight [N, K/8]; transpose it" : "");
}

/* A matrix of one row for each group, and how many groups that makes. */
static int32_t check_groups(const shape *s, bool dtype_ok, int64_t *groups, bool *ng) {
  *groups = s->t->rank == 2 && dtype_ok ? groups_of(s, ng) : -1;
  return *groups < 0 ? fail_shape(s) : INT4MM_OK;
}

/* That a matrix beside the one that the groups were counted by has as many. */
static int32_t check_same_groups(const shape *s, bool dtype_ok, int64_t groups, bool *ng) {
  int64_t found;
  int32_t status = check_groups(s, dtype_ok, &found, ng);
  if (status || found == groups) return status;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, which has %lld groups, but there are %lld", s->name,
                     int4mm_describe(s->t).s, (long long)found, (long long)groups);
}

/* Values of k to a group: as given, or K / G. Of words K counts the values of the last one that may be padding. */
static int32_t take_group(int4mm_weight *w, const int4mm_matmul_args *args, const char *name, int64_t K) {
  int64_t group = args->group, padding = args->a_packed->dtype == INT4MM_INT32 ? 7 : 0;
  if (group < 0 || (group % 32 && (group > K || group < K - padding)))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "group is %lld, expected a multiple of 32, or all of K = %lld",
                       (long long)group, (long long)K);
  if (group % 32) group = K;
  if (!group && w->groups == 1) group = K;
  if (!group && w->groups && K % w->groups == 0 && K / w->groups % 32 == 0) group = K / w->groups;
  int64_t expected = group ? K / group + (K % group != 0) : -1;
  if (w->groups == expected || (!K && !w->groups)) {
    w->group = group && group < K ? group : K;
    return INT4MM_OK;
  }
  if (!args->group)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "%s has %lld groups, which do not divide K = %lld into multiples of 32: give group", name,
                       (long long)w->groups, (long long)K);
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s has %lld groups, expected %lld: K is %lld and group %lld", name,
                     (long long)w->groups, (long long)expected, (long long)K, (long long)group);
}

static int32_t check_scales(int4mm_weight *w, const int4mm_matmul_args *args, int64_t N, int64_t K, bool nk) {
  const int4mm_tensor *scales = args->scale_b, *factors = args->factor_b;
  int32_t status = int4mm_check_rows("scale_b", scales);
  if (!status && factors) status = int4mm_check_rows("factor_b", factors);
  if (status) return status;
  w->group = K, w->groups = 1;
  if (scales->rank == 2) {
    const shape s = {"scale_b", "[N] float32, or a row of N float32, float16 or bfloat16 for each group", scales, N,
                     nk};
    w->scaling = INT4MM_GROUP_SCALES;
    status = check_groups(&s, int4mm_is_out_dtype(scales->dtype), &w->groups, &w->scales_ng);
    if (!status && factors)
      status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                           "factor_b is given, but scale_b is %s: factors of groups go with a "
                           "scale for each column, [%lld] float32",
                           int4mm_describe(scales).s, (long long)N);
    return status ? status : take_group(w, args, "scale_b", K);
  }
  status = int4mm_check_vector("scale_b", scales, N, "scale per column of b");
  if (!status && factors) {
    const shape s = {"factor_b", "a row of N int8 for each group", factors, N, nk};
    w->scaling = INT4MM_GROUP_FACTORS;
    status = check_groups(&s, factors->dtype == INT4MM_INT8, &w->groups, &w->factors_ng);
    return status ? status : take_group(w, args, "factor_b", K);
  }
  if (!status && args->group)
    status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "group is %lld, but scale_b is %s, one for each column: it is for scales of groups",
                         (long long)args->group, int4mm_describe(scales).s);
  return status;
}

int32_t int4mm_take_zero_mark(int4mm_weight *w, const int4mm_tensor *zeros, int64_t N) {
  if (!zeros->packing) return INT4MM_OK;
  int32_t dim = w->zeros_ng ? 0 : 1;
  w->zero_xor_mask = int4mm_xor_mask_of(zeros->encoding);
  if (zeros->packing != dim + 1)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "zero_b was packed along dim %d, expected along dim %d: eight outputs to a word",
                       (int)zeros->packing - 1, (int)dim);
  if (!zeros->packed_k || zeros->packed_k == N) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "zero_b holds %lld values along dim %d, expected %lld: one for each output",
                     (long long)zeros->packed_k, (int)dim, (long long)N);
}

static int32_t check_zeros(int4mm_weight *w, const int4mm_matmul_args *args, int64_t N, bool nk, int32_t encoding) {
  const int4mm_tensor *zeros = args->zero_b;
  if (!zeros) return INT4MM_OK;
  int32_t status = int4mm_check_rows("zero_b", zeros);
  if (status) return status;
  if (w->scaling == INT4MM_GROUP_FACTORS)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "zero_b is given beside factor_b: a weight with factors is symmetric");
  w->zero_words = zeros->dtype == INT4MM_INT32;
  w->zero_xor_mask = int4mm_xor_mask_of(encoding);
  bool dtype_ok = w->zero_words || zeros->dtype == INT4MM_INT8;
  int64_t columns = w->zero_words ? N / 8 + (N % 8 != 0) : N;
  const shape s = {"zero_b", "int8 of scale_b's shape, or int32 words of eight along N", zeros, columns, nk};
  if (w->scaling == INT4MM_GROUP_SCALES)
    status = check_same_groups(&s, dtype_ok, w->groups, &w->zeros_ng);
  else if (zeros->rank != 1 || !dtype_ok || zeros->shape[0] != columns)
    status = fail_shape(&s);
  return status ? status : int4mm_take_zero_mark(w, zeros, N);
}

_Static_assert(INT4MM_MAX_K == INT32_MAX / (8 * 8) && INT4MM_MAX_K_INT8 == INT32_MAX / (128 * 8) &&
                   INT4MM_MAX_K_FACTORS == INT32_MAX / (8 * 120) &&
                   INT4MM_MAX_K_INT8_FACTORS == INT32_MAX / (128 * 120),
               "check_sums says otherwise");

/* Whether sums of products fit int32: over a group where it has a scale of its own, else over K. */
static int32_t check_sums(const int4mm_weight *w, const int4mm_matmul_args *args, const char *name, int32_t dtype_a,
                          int64_t K) {
  if (dtype_a != INT4MM_INT32 && dtype_a != INT4MM_INT8) return INT4MM_OK;
  int a = dtype_a == INT4MM_INT8 ? 128 : 8, b = 8; /* the largest magnitudes; b: times a factor, or less a zero point */
  if (w->scaling == INT4MM_GROUP_FACTORS) b = 8 * 15;
  if (args->zero_b) b = w->zero_words ? 15 : 128;
  int64_t most = INT32_MAX / (a * b), k = w->scaling == INT4MM_GROUP_SCALES ? w->group : K;
  if (k <= most) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT,
                     "%s has %s = %lld, expected at most %lld: a sum of so many products of up to %d must fit int32",
                     name, k == K ? "K" : "a group", (long long)k, (long long)most, a * b);
}

/* The first value of an int8 tensor outside low .. high, as a row-major index; -1: none. */
static int64_t find_outside(const int4mm_tensor *t, int low, int high) {
  const int8_t *row = t->data;
  for (int64_t r = 0; r < t->shape[0]; r++, row += t->stride)
    for (int64_t c = 0; c < t->shape[1]; c++)
      if (row[c] < low || row[c] > high) return r * t->shape[1] + c;
  return -1;
}

/* What can be read here at once. */
static int32_t check_values(const char *name, const int4mm_tensor *t, int low, int high, const char *expected) {
  if (!t || t->device != INT4MM_CPU || t->dtype != INT4MM_INT8) return INT4MM_OK;
  int64_t bad = find_outside(t, low, high);
  return bad < 0 ? INT4MM_OK : int4mm_fail_value(name, t, bad, expected, NULL);
}

int32_t int4mm_check_weight(int4mm_weight *w, const int4mm_matmul_args *args, const char *name, int32_t dtype_a,
                            int64_t N, int64_t K, bool nk, int32_t encoding) {
  *w = (int4mm_weight){.scaling = INT4MM_PER_COLUMN, .experts = 1};
  int32_t status = check_scales(w, args, N, K, nk);
  if (!status) status = check_zeros(w, args, N, nk, encoding);
  if (!status)
    status = int4mm_check_packed_with("b_packed", args->b_packed, "zero_b", args->zero_b, "factor_b",
                                      w->scaling != INT4MM_PER_COLUMN);
  if (!status) status = check_sums(w, args, name, dtype_a, K);
  if (!status) status = check_values("zero_b", args->zero_b, -120, 119, "zero points lie in -120 .. 119");
  if (!status) status = check_values("factor_b", args->factor_b, 1, 15, "factors lie in 1 .. 15");
  return status;
}

/* ---- the form that backends take ---- */

/* Where rearranged copies are made. */
typedef struct place {
  const int4mm_dispatch_target *target;
  void *stream;
  char *next; /* free scratch memory */
} place;

/* Bytes of a matrix; so many that they cannot be had where there are more. */
static int64_t bytes_of(int64_t groups, int64_t columns, int32_t dtype) {
  const int64_t most = INT64_MAX / 8;
  int64_t bytes;
  if (__builtin_mul_overflow(groups, columns, &bytes) || bytes > most / 4) return most;
  return (bytes * (int64_t)int4mm_dtype_size(dtype) + 255) / 256 * 256;
}

static int4mm_matrix take_memory(place *at, int64_t groups, int64_t columns, int32_t dtype) {
  int4mm_matrix m = {at->next, groups, columns, columns, dtype};
  at->next += bytes_of(groups, columns, dtype);
  return m;
}

static int32_t transpose(place *at, int4mm_matrix *m) {
  int4mm_matrix to = take_memory(at, m->cols, m->rows, m->dtype);
  int32_t status = INT4MM_OK;
  if (!at->target->cuda)
    int4mm_cpu_transpose(&to, m);
  else
    status = at->target->cuda->transpose(at->target->device, &to, m, 0, at->stream);
  *m = to;
  return status;
}

static int32_t unpack_zeros(place *at, int4mm_matrix *m, int64_t columns, uint32_t xor_mask) {
  int4mm_pack_job job = {
      .packed = *m, .plain = take_memory(at, m->rows, columns, INT4MM_INT8), .dim = 1, .xor_mask = xor_mask};
  *m = job.plain;
  if (at->target->cuda) return at->target->cuda->unpack(at->target->device, &job, at->stream);
  int4mm_cpu_unpack(&job);
  return INT4MM_OK;
}

int64_t int4mm_weight_scratch(const int4mm_weight *w, const int4mm_matmul_args *args, int64_t N) {
  int64_t bytes = 0, rows = w->groups * w->experts;
  if (w->scales_ng) bytes += bytes_of(rows, N, args->scale_b->dtype);
  if (w->factors_ng) bytes += bytes_of(rows, N, INT4MM_INT8);
  if (w->zeros_ng) bytes += bytes_of(rows, w->zero_words ? N / 8 + 1 : N, args->zero_b->dtype);
  if (w->zero_words) bytes += bytes_of(rows, w->zeros_ng ? N + 7 : N, INT4MM_INT8);
  return bytes;
}

int32_t int4mm_place_weight(const int4mm_weight *w, const int4mm_matmul_args *args, int64_t N,
                            const int4mm_dispatch_target *target, void *scratch, int4mm_operand *b) {
  static float none; /* stands for scales of no groups, where K is 0, or memory of the GPU that is at hand */
  place at = {target, args->stream, scratch};
  int32_t status = INT4MM_OK;
  b->group = w->group, b->groups = w->groups;
  if (w->scaling == INT4MM_GROUP_SCALES)
    b->group_scales = int4mm_as_matrix(args->scale_b);
  else
    b->scales = args->scale_b->data;
  if (w->scaling == INT4MM_GROUP_FACTORS) b->factors = int4mm_as_matrix(args->factor_b);
  if (args->zero_b) b->zeros = int4mm_as_matrix(args->zero_b);
  if (w->scaling == INT4MM_GROUP_SCALES && !w->groups)
    b->group_scales.data = target->cuda && args->out->data ? args->out->data : &none;
  if (!scratch || !w->groups) return status;
  if (w->scales_ng) status = transpose(&at, &b->group_scales);
  if (!status && w->factors_ng) status = transpose(&at, &b->factors);
  if (!status && w->zeros_ng) status = transpose(&at, &b->zeros);
  if (!status && w->zero_words) {
    int64_t columns = w->zeros_ng && w->experts > 1 ? 8 * b->zeros.cols : N; /* then experts are side by side */
    status = unpack_zeros(&at, &b->zeros, columns, w->zero_xor_mask);
  }
  return status;
}
