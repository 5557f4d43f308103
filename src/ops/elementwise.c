/*
 * What a model needs between products: maps of elements, and softmax, norms and argmax of rows.
 */
#include <math.h>

#include "cpu/backend.h"
#include "ops/common.h"

static const char floats[] = "float32, float16 or bfloat16";

static int32_t check_floats(const char *name, const int4mm_tensor *t) {
  int32_t status = int4mm_check_rows(name, t);
  if (status || int4mm_is_out_dtype(t->dtype)) return status;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected %s", name, int4mm_describe(t).s, floats);
}

static bool is_same_shape(const int4mm_tensor *a, const int4mm_tensor *b) {
  return a->rank == b->rank && a->shape[0] == b->shape[0] && a->shape[1] == b->shape[1];
}

/* Columns of a matrix, elements of a vector. */
static int64_t columns(const int4mm_tensor *t) {
  return t->shape[t->rank - 1];
}

static bool is_row_of(const int4mm_tensor *vector, const int4mm_tensor *src) {
  return vector->rank == 1 && vector->shape[0] == columns(src);
}

/* src and out of floats, of one shape, on one device. */
static int32_t check_src_out(const int4mm_tensor *src, const int4mm_tensor *out) {
  int32_t status = check_floats("src", src);
  if (!status) status = check_floats("out", out);
  if (!status && !is_same_shape(out, src))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "out is %s but src is %s: the shapes differ", int4mm_describe(out).s,
                         int4mm_describe(src).s);
  return status ? status : int4mm_check_same_device("out", out, "src", src);
}

static bool is_empty(const int4mm_tensor *t) {
  return !t->shape[0] || !t->shape[1];
}

/* ---- maps ---- */

static int32_t check_other(const int4mm_map_args *a) {
  if (!a->other) return INT4MM_OK;
  if (a->op != INT4MM_ADD && a->op != INT4MM_MUL)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "other is given, but op is %d, which has one operand", (int)a->op);
  int32_t status = check_floats("other", a->other);
  if (!status && !is_same_shape(a->other, a->src) && !is_row_of(a->other, a->src))
    status =
        int4mm_fail(INT4MM_ERR_ARGUMENT, "other is %s but src is %s: expected the same shape, or [%lld] for each row",
                    int4mm_describe(a->other).s, int4mm_describe(a->src).s, (long long)columns(a->src));
  if (!status) status = int4mm_check_same_device("other", a->other, "src", a->src);
  return status ? status : int4mm_check_apart_or_same("out", a->out, "other", a->other);
}

static int32_t check_map(const int4mm_map_args *a) {
  if (int4mm_check_args(a ? a->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  int32_t status =
      int4mm_check_range("op", a->op, INT4MM_RELU, INT4MM_MUL, "an int4mm_activation from 1 on or an int4mm_map_op");
  if (!status) status = check_src_out(a->src, a->out);
  if (!status) status = int4mm_check_apart_or_same("out", a->out, "src", a->src);
  return status ? status : check_other(a);
}

int32_t int4mm_map(const int4mm_map_args *args) {
  int32_t status = check_map(args);
  if (status || is_empty(args->src)) return status;
  const int4mm_tensor *src = args->src, *other = args->other;
  int4mm_map_job job = {
      .dst = int4mm_as_matrix(args->out), .src = int4mm_as_matrix(src), .number = args->number, .op = args->op};
  if (other) job.other = int4mm_as_matrix(other);
  if (other && other->rank == 1) job.other.stride = 0;
  if (src->device == INT4MM_CPU) {
    int4mm_cpu_map(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = int4mm_open_cuda(&cuda, args->stream, (const int4mm_tensor *[]){args->out, src, other}, 3);
  return status ? status : cuda->map(src->device, &job, args->stream);
}

/* ---- rows ---- */

/* Where `t` is given, an operand that the operation has, of one float for each column. */
static int32_t check_vector(const char *name, const int4mm_tensor *t, const int4mm_rowwise_args *a, bool has) {
  if (!t) return INT4MM_OK;
  if (!has) return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is given, but op is %d, which has none", name, (int)a->op);
  int32_t status = check_floats(name, t);
  if (!status && !is_row_of(t, a->src))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected [%lld] %s: one for each column of src", name,
                         int4mm_describe(t).s, (long long)columns(a->src), floats);
  if (!status) status = int4mm_check_same_device(name, t, "src", a->src);
  return status ? status : int4mm_check_apart("out", a->out, name, t);
}

static int32_t check_argmax(const int4mm_tensor *src, const int4mm_tensor *out) {
  int32_t status = check_floats("src", src);
  if (!status) status = int4mm_check_rows("out", out);
  if (status) return status;
  int64_t rows = src->rank == 2 ? src->shape[0] : 1;
  if (out->rank != 1 || out->dtype != INT4MM_INT32 || out->shape[0] != rows)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "out is %s, expected [%lld] int32: one for each row of src",
                       int4mm_describe(out).s, (long long)rows);
  if (columns(src) < 1 || columns(src) > INT32_MAX)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "src is %s, expected rows of 1 to 2147483647 elements",
                       int4mm_describe(src).s);
  status = int4mm_check_same_device("out", out, "src", src);
  return status ? status : int4mm_check_apart("out", out, "src", src);
}

static int32_t check_rowwise(const int4mm_rowwise_args *a) {
  if (int4mm_check_args(a ? a->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  int32_t status = int4mm_check_range("op", a->op, INT4MM_SOFTMAX, INT4MM_ARGMAX, "an int4mm_rowwise_op");
  bool layer_norm = a->op == INT4MM_LAYER_NORM, norm = layer_norm || a->op == INT4MM_RMS_NORM;
  if (!status) status = a->op == INT4MM_ARGMAX ? check_argmax(a->src, a->out) : check_src_out(a->src, a->out);
  if (!status && a->op != INT4MM_ARGMAX) status = int4mm_check_apart_or_same("out", a->out, "src", a->src);
  if (!status) status = check_vector("weight", a->weight, a, norm);
  if (!status) status = check_vector("bias", a->bias, a, layer_norm);
  if (!status && norm && !(a->eps >= 0 && a->eps < INFINITY))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "eps is %g, expected a finite number, 0 or more", (double)a->eps);
  return status;
}

int32_t int4mm_rowwise(const int4mm_rowwise_args *args) {
  int32_t status = check_rowwise(args);
  if (status || is_empty(args->src)) return status;
  const int4mm_tensor *src = args->src;
  int4mm_rowwise_job job = {
      .dst = int4mm_as_matrix(args->out), .src = int4mm_as_matrix(src), .eps = args->eps, .op = args->op};
  if (args->weight) job.weight = int4mm_as_matrix(args->weight);
  if (args->bias) job.bias = int4mm_as_matrix(args->bias);
  if (src->device == INT4MM_CPU) {
    int4mm_cpu_rowwise(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  const int4mm_tensor *tensors[] = {args->out, src, args->weight, args->bias};
  status = int4mm_open_cuda(&cuda, args->stream, tensors, 4);
  return status ? status : cuda->rowwise(src->device, &job, args->stream);
}
