/*
 * Tensors as the library's own files make and read them.
 */
#ifndef INT4MM_CORE_TENSOR_H
#define INT4MM_CORE_TENSOR_H

#include "core/check.h"
#include "core/dtype.h"
#include "core/error.h"
#include "core/problem.h"

int4mm_matrix int4mm_as_matrix(const int4mm_tensor *t);

/* Contiguous rows [rows, cols]; what int4mm_tensor_alloc does, for a caller on `stream`. */
int32_t int4mm_tensor_alloc_on(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                               int32_t device, void *stream);
/* A tensor of panels for a [k8, N] weight on the CPU, `words` int32 in all. */
int32_t int4mm_tensor_alloc_panels(int4mm_tensor *t, int64_t k8, int64_t N, int64_t words);

/* The mark of words that were packed along dim 0 or 1. */
void int4mm_set_mark(int4mm_tensor *t, int32_t dim, int32_t encoding, int64_t k, int32_t rotate);
void int4mm_clear_mark(int4mm_tensor *t);
/* That of src, or none, for the same values along dim 0 or 1. */
void int4mm_copy_mark(int4mm_tensor *dst, const int4mm_tensor *src, int32_t dim);

#endif
