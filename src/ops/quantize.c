/*
 * Rotation, quantising to int4 or int8 by rows, columns or groups of them, and the way back.
 */
#include "cpu/backend.h"
#include "ops/common.h"
#include "ops/matmul.h"

static const char floats[] = "float32, float16 or bfloat16";

static int32_t check_same_shape(const char *name, const int4mm_tensor *t, const char *like_name,
                                const int4mm_tensor *like) {
  if (t->shape[0] == like->shape[0] && t->shape[1] == like->shape[1]) return INT4MM_OK;
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s but %s is %s: the shapes differ", name, int4mm_describe(t).s,
                     like_name, int4mm_describe(like).s);
}

/* Floats, and int4 words along dim or int8 of the same shape. */
static int32_t check_quantized(const char *name, const int4mm_tensor *plain, const int4mm_tensor *packed, int32_t dim,
                               int32_t encoding) {
  int32_t status = int4mm_check_tensor("packed", packed);
  if (status) return status;
  if (packed->dtype != INT4MM_INT8)
    return int4mm_check_packed_pair(name, plain, int4mm_is_out_dtype, floats, packed, dim, encoding);
  status = int4mm_check_matrix(name, plain, int4mm_is_out_dtype, floats);
  if (!status) status = int4mm_check_matrix("packed", packed, int4mm_is_integer_dtype, "int8");
  if (!status) status = int4mm_check_range("dim", dim, 0, 1, "0 or 1");
  if (!status) status = int4mm_check_encoding("encoding", encoding);
  if (!status) status = check_same_shape("packed", packed, name, plain);
  if (!status) status = int4mm_check_same_device("packed", packed, name, plain);
  return status ? status : int4mm_check_apart("packed", packed, name, plain);
}

/* ---- scales, zero points and factors ---- */

/* A call of either direction: floats, what they are quantised to, and what is beside it. */
typedef struct quantized {
  const char *name; /* of plain: src or dst */
  const int4mm_tensor *plain, *packed, *scales, *zeros, *factors;
  int64_t group;
  int32_t dim, encoding;
} quantized;

static int64_t groups_of(const quantized *z) {
  int64_t extent = z->plain->shape[z->dim];
  return z->group ? extent / z->group + (extent % z->group != 0) : 1;
}

static bool is_int8(int32_t dtype) {
  return dtype == INT4MM_INT8;
}

static bool is_float32(int32_t dtype) {
  return dtype == INT4MM_FLOAT32;
}

/* What has a value for each row (dim 1) or column (dim 0). */
static int32_t check_by_line(const char *name, const int4mm_tensor *t, const quantized *z, bool (*dtype_ok)(int32_t),
                             const char *dtype) {
  int32_t status = int4mm_check_rows(name, t);
  int64_t lines = z->plain->shape[1 - z->dim];
  if (!status && (t->rank != 1 || !dtype_ok(t->dtype) || t->shape[0] != lines))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is %s, expected [%lld] %s: one per %s of %s", name,
                         int4mm_describe(t).s, (long long)lines, dtype, z->dim ? "row" : "column", z->name);
  return status ? status : int4mm_check_same_device(name, t, z->name, z->plain);
}

/* The same for each of its groups. */
static int32_t check_by_group(const char *name, const int4mm_tensor *t, const quantized *z, bool (*dtype_ok)(int32_t),
                              const char *dtype) {
  if (!z->group) return check_by_line(name, t, z, dtype_ok, dtype);
  int32_t status = int4mm_check_rows(name, t);
  int64_t expect[2] = {z->plain->shape[0], z->plain->shape[1]};
  expect[z->dim] = groups_of(z);
  if (!status && (t->rank != 2 || !dtype_ok(t->dtype) || t->shape[0] != expect[0] || t->shape[1] != expect[1]))
    status = int4mm_fail(INT4MM_ERR_ARGUMENT,
                         "%s is %s, expected [%lld, %lld] %s: one per group of %lld values along dim %d of %s", name,
                         int4mm_describe(t).s, (long long)expect[0], (long long)expect[1], dtype, (long long)z->group,
                         (int)z->dim, z->name);
  return status ? status : int4mm_check_same_device(name, t, z->name, z->plain);
}

/* What may go together. */
static int32_t check_kind(const quantized *z) {
  int64_t K = z->plain->shape[z->dim];
  if (z->group < 0 || (z->group % 32 && z->group != K))
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "group is %lld, expected a multiple of 32, or all of K = %lld",
                       (long long)z->group, (long long)K);
  if (z->zeros && z->factors)
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "zeros and factors are both given: integer group scales have no zero points");
  if ((z->zeros || z->factors) && z->packed->dtype == INT4MM_INT8)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is given but packed is %s: expected int4, packed in int32",
                       z->zeros ? "zeros" : "factors", int4mm_describe(z->packed).s);
  if (z->factors && !z->group)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "factors is given but group is 0: expected the values of a group");
  return INT4MM_OK;
}

/* The scales of groups that are read may be of any float dtype. */
static int32_t check_scales(const quantized *z, bool read) {
  int32_t status = check_kind(z);
  if (status) return status;
  if (!z->group || z->factors)
    status = check_by_line("scales", z->scales, z, is_float32, "float32");
  else
    status = check_by_group("scales", z->scales, z, read ? int4mm_is_out_dtype : is_float32, read ? floats : "float32");
  if (!status && z->zeros) status = check_by_group("zeros", z->zeros, z, is_int8, "int8");
  if (!status && z->factors) status = check_by_group("factors", z->factors, z, is_int8, "int8");
  return status;
}

/* ---- groups ---- */

static bool has_groups(const quantized *z) {
  return z->group || z->zeros;
}

/* [G, columns] or [rows, G]; a vector is one group. */
static int4mm_matrix by_group(const int4mm_tensor *t, int32_t dim) {
  if (!t) return (int4mm_matrix){0};
  int4mm_matrix m = int4mm_as_matrix(t);
  if (t->rank == 1 && dim) m.rows = t->shape[0], m.cols = m.stride = 1;
  return m;
}

static int4mm_group_job make_group_job(const quantized *z) {
  int64_t extent = z->plain->shape[z->dim];
  int64_t group = z->group && z->group < extent ? z->group : extent;
  return (int4mm_group_job){.packed = int4mm_as_matrix(z->packed),
                            .plain = int4mm_as_matrix(z->plain),
                            .scales = by_group(z->scales, z->dim),
                            .zeros = by_group(z->zeros, z->dim),
                            .factors = by_group(z->factors, z->dim),
                            .group = group ? group : 1,
                            .dim = z->dim,
                            .xor_mask = int4mm_xor_mask_of(z->encoding)};
}

/* A [rows, cols] float32 matrix in scratch memory from *used on, which becomes its end. */
static int4mm_matrix place(char *memory, size_t *used, int64_t rows, int64_t cols) {
  int4mm_matrix m = {memory ? memory + *used : NULL, rows, cols, cols, INT4MM_FLOAT32};
  *used += ((size_t)rows * (size_t)cols * sizeof(float) + 255) / 256 * 256;
  return m;
}

/* Gives the job what it needs of scratch memory, which `rotate` is to fill; returns the bytes. With memory NULL it
 * counts alone. */
static size_t place_scratch(int4mm_group_job *job, int4mm_rotate_job *rotate, char *memory) {
  size_t used = 0;
  if (rotate->block) {
    rotate->dst = place(memory, &used, rotate->src.rows, rotate->src.cols);
    job->plain = rotate->dst;
  }
  if (job->factors.data) job->group_scales = place(memory, &used, job->factors.rows, job->factors.cols);
  return used;
}

static int32_t quantize_groups_on_cpu(int4mm_group_job *job, int4mm_rotate_job *rotate) {
  size_t bytes = place_scratch(job, rotate, NULL);
  char *memory = bytes ? int4mm_workspace_acquire((int64_t)bytes) : NULL;
  if (bytes && !memory) return INT4MM_ERR_MEMORY;
  (void)place_scratch(job, rotate, memory);
  if (rotate->block) int4mm_cpu_rotate(rotate);
  int32_t status = int4mm_cpu_quantize_groups(job);
  if (memory) int4mm_workspace_release(memory);
  return status;
}

static int32_t quantize_groups_on_gpu(const int4mm_dispatch_target *target, int4mm_group_job *job,
                                      int4mm_rotate_job *rotate, void *stream) {
  const int4mm_cuda_backend *cuda = target->cuda;
  size_t bytes = place_scratch(job, rotate, NULL);
  void *memory = NULL;
  int32_t status = bytes ? int4mm_take_scratch(target, bytes, &memory, stream) : INT4MM_OK;
  if (status) return status;
  (void)place_scratch(job, rotate, memory);
  if (rotate->block) status = cuda->rotate(target->device, rotate, stream);
  if (!status) status = cuda->quantize_groups(target->device, job, stream);
  return memory ? int4mm_free_scratch(target, memory, stream, status) : status;
}

/* Looks at the source before anything is enqueued or written. */
static int32_t quantize_groups(const quantized *z, const int4mm_quantize_args *args, int64_t *bad) {
  int4mm_group_job job = make_group_job(z);
  int4mm_rotate_job rotate = {.src = job.plain, .dim = z->dim, .block = args->rotate};
  job.clip = args->clip > 0 ? args->clip : 1, job.clip_mse = args->clip_mse != 0;
  if (z->plain->device == INT4MM_CPU) {
    *bad = int4mm_cpu_find_not_finite(&job.plain);
    return *bad >= 0 ? INT4MM_ERR_VALUE : quantize_groups_on_cpu(&job, &rotate);
  }
  int4mm_dispatch_target target = {.device = z->plain->device};
  const int4mm_tensor *tensors[] = {z->packed, z->plain, z->scales, z->zeros, z->factors};
  int32_t status = int4mm_open_cuda(&target.cuda, args->stream, tensors, 5);
  if (!status && args->check) {
    status = target.cuda->find_not_finite(target.device, &job.plain, bad, args->stream);
    if (!status && *bad >= 0) return INT4MM_ERR_VALUE;
  }
  return status ? status : quantize_groups_on_gpu(&target, &job, &rotate, args->stream);
}

/* ---- quantize ---- */

/* That what is written lies apart. */
static int32_t check_outputs_apart(const quantized *z) {
  const struct {
    const char *name;
    const int4mm_tensor *t;
  } tensors[] = {
      {z->name, z->plain}, {"packed", z->packed}, {"scales", z->scales}, {"zeros", z->zeros}, {"factors", z->factors}};
  int32_t status = INT4MM_OK;
  for (int i = 2; i < 5; i++)
    for (int j = 0; j < i && !status; j++)
      if (tensors[i].t && tensors[j].t)
        status = int4mm_check_apart(tensors[i].name, tensors[i].t, tensors[j].name, tensors[j].t);
  return status;
}

static int32_t check_quantize(const int4mm_quantize_args *a, quantized *z) {
  if (int4mm_check_args(a ? a->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  *z = (quantized){"src", a->src, a->packed, a->scales, a->zeros, a->factors, a->group, a->dim, a->encoding};
  int32_t status = check_quantized("src", a->src, a->packed, a->dim, a->encoding);
  if (!status) status = check_scales(z, false);
  if (!status) status = check_outputs_apart(z);
  if (!status && a->rotate) status = int4mm_check_block("rotate", a->rotate, "src", a->src, a->dim);
  return status ? status : int4mm_check_clip(a->clip, a->clip_mse);
}

static int32_t quantize_lines(const int4mm_quantize_args *args, int64_t *bad) {
  const int4mm_tensor *src = args->src, *packed = args->packed, *scales = args->scales;
  bool check = args->check || src->device == INT4MM_CPU;
  int4mm_pack_job job = int4mm_make_pack_job(packed, src, scales, args->dim, args->encoding, check);
  job.rotate = args->rotate, job.clip = args->clip > 0 ? args->clip : 1, job.clip_mse = args->clip_mse != 0;
  if (src->device == INT4MM_CPU) return int4mm_cpu_quantize(&job, bad);
  const int4mm_cuda_backend *cuda;
  int32_t status = int4mm_open_cuda(&cuda, args->stream, (const int4mm_tensor *[]){packed, src, scales}, 3);
  return status ? status : cuda->quantize(src->device, &job, bad, args->stream);
}

int32_t int4mm_quantize(const int4mm_quantize_args *args) {
  int64_t bad = 0;
  quantized z;
  int32_t status = check_quantize(args, &z);
  if (status) return status;
  status = has_groups(&z) ? quantize_groups(&z, args, &bad) : quantize_lines(args, &bad);
  if (!status && args->packed->dtype == INT4MM_INT32) {
    int4mm_set_mark(args->packed, args->dim, args->encoding, args->src->shape[args->dim], args->rotate);
    if (args->zeros) args->packed->packed_with = INT4MM_WITH_ZEROS;
    if (args->factors) args->packed->packed_with = INT4MM_WITH_FACTORS;
  }
  if (status != INT4MM_ERR_VALUE) return status;
  return int4mm_fail_value("src", args->src, bad, "only finite numbers can be quantised", args->stream);
}

/* ---- rotate ---- */

int32_t int4mm_rotate(const int4mm_tensor *dst, const int4mm_tensor *src, int32_t dim, int32_t block, void *stream) {
  int32_t status = int4mm_check_matrix("src", src, int4mm_is_out_dtype, floats);
  if (!status) status = int4mm_check_matrix("dst", dst, int4mm_is_out_dtype, floats);
  if (!status) status = int4mm_check_range("dim", dim, 0, 1, "0 or 1");
  if (!status) status = check_same_shape("dst", dst, "src", src);
  if (!status) status = int4mm_check_same_device("dst", dst, "src", src);
  if (!status) status = int4mm_check_block("block", block, "src", src, dim);
  if (!status) status = int4mm_check_apart_or_same("dst", dst, "src", src);
  if (status) return status;
  int4mm_rotate_job job = {int4mm_as_matrix(dst), int4mm_as_matrix(src), dim, block};
  if (src->device == INT4MM_CPU) {
    int4mm_cpu_rotate(&job);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  status = int4mm_open_cuda(&cuda, stream, (const int4mm_tensor *[]){dst, src}, 2);
  return status ? status : cuda->rotate(src->device, &job, stream);
}

/* ---- dequantize ---- */

static int32_t check_dequantize(const int4mm_dequantize_args *a, quantized *z) {
  if (int4mm_check_args(a ? a->reserved : NULL)) return INT4MM_ERR_ARGUMENT;
  *z = (quantized){"dst", a->dst, a->packed, a->scales, a->zeros, a->factors, a->group, a->dim, a->encoding};
  int32_t status = check_quantized("dst", a->dst, a->packed, a->dim, a->encoding);
  if (!status) status = check_scales(z, true);
  if (!status)
    status = int4mm_check_packed_with("packed", a->packed, "zeros", a->zeros, "factors", a->factors || a->group);
  if (!status) status = int4mm_check_apart("dst", a->dst, "scales", a->scales);
  if (!status && a->zeros) status = int4mm_check_apart("dst", a->dst, "zeros", a->zeros);
  if (!status && a->factors) status = int4mm_check_apart("dst", a->dst, "factors", a->factors);
  return status ? status : int4mm_check_read_mark("dst", a->dst, a->packed, a->dim, a->encoding);
}

int32_t int4mm_dequantize(const int4mm_dequantize_args *args) {
  quantized z;
  int32_t status = check_dequantize(args, &z);
  if (status) return status;
  const int4mm_tensor *dst = args->dst;
  int4mm_group_job groups = make_group_job(&z);
  int4mm_pack_job lines = int4mm_make_pack_job(args->packed, dst, args->scales, args->dim, args->encoding, false);
  if (dst->device == INT4MM_CPU) {
    has_groups(&z) ? int4mm_cpu_dequantize_groups(&groups) : int4mm_cpu_dequantize(&lines);
    return INT4MM_OK;
  }
  const int4mm_cuda_backend *cuda;
  const int4mm_tensor *tensors[] = {dst, args->packed, args->scales, args->zeros, args->factors};
  status = int4mm_open_cuda(&cuda, args->stream, tensors, 5);
  if (status) return status;
  return has_groups(&z) ? cuda->dequantize_groups(dst->device, &groups, args->stream)
                        : cuda->dequantize(dst->device, &lines, args->stream);
}
