/*
 * What the core's files share about tensors: checks with their messages, storage, and getting ready for a stream.
 */
#ifndef INT4MM_TENSOR_H
#define INT4MM_TENSOR_H

#include "core/dtype.h"
#include "core/error.h"
#include "core/problem.h"
#include "cuda/table.h"

int4mm_matrix int4mm_as_matrix(const int4mm_tensor *t);

/* Room for int4mm_describe and int4mm_device_name. */
typedef struct int4mm_text {
  char s[80];
} int4mm_text;

/* "[32, 256] int32" */
int4mm_text int4mm_describe(const int4mm_tensor *t);
/* "cpu" or "cuda:0" */
int4mm_text int4mm_device_name(int32_t device);

/* A live, well-formed tensor, or ERR_ARGUMENT: "a_packed is NULL", "a_packed was freed". */
int32_t int4mm_check_tensor(const char *name, const int4mm_tensor *t);
/* The same, and with elements to read: not a prepacked weight. */
int32_t int4mm_check_rows(const char *name, const int4mm_tensor *t);
/* Fails unless `a` and `b` are on one device. */
int32_t int4mm_check_same_device(const char *name_a, const int4mm_tensor *a, const char *name_b,
                                 const int4mm_tensor *b);
/* Fails when `out`, which is to be written, shares an element with `t`. */
int32_t int4mm_check_apart(const char *name_out, const int4mm_tensor *out, const char *name, const int4mm_tensor *t);
int32_t int4mm_check_encoding(const char *name, int32_t encoding);

/* Contiguous rows [rows, cols]; what int4mm_tensor_alloc does, for a caller on `stream`. */
int32_t int4mm_tensor_alloc_on(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                               int32_t device, void *stream);
/* A tensor of panels for a [k8, N] weight on the CPU, `words` int32 in all. */
int32_t int4mm_tensor_alloc_panels(int4mm_tensor *t, int64_t k8, int64_t N, int64_t words);
/* Before work that touches these tensors (NULLs are skipped) goes to `stream` of a GPU: orders their allocation before
 * it and their release after it. `runs_foreign`, if not NULL, receives whether the stream is foreign and captures
 * nothing. */
int32_t int4mm_use_on_stream(const int4mm_cuda_backend *cuda, int32_t device, void *stream,
                             const int4mm_tensor *const *tensors, int count, bool *runs_foreign);

/* int4mm_tensor_copy for arguments that are known to be right. */
int32_t int4mm_copy_checked(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream);

#endif
