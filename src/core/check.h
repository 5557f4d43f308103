/*
 * Tensors and devices in words, and the checks that every call shares. Each check returns OK or fails with a sentence
 * that names the argument.
 */
#ifndef INT4MM_CORE_CHECK_H
#define INT4MM_CORE_CHECK_H

#include "int4mm.h"

/* Room for int4mm_describe and int4mm_device_name. */
typedef struct int4mm_text {
  char s[80];
} int4mm_text;

/* "[32, 256] int32" */
int4mm_text int4mm_describe(const int4mm_tensor *t);
/* "cpu" or "cuda:0" */
int4mm_text int4mm_device_name(int32_t device);

/* "twos_complement" or "offset" */
const char *int4mm_encoding_name(int32_t encoding);

/* That the arguments of a call are there (NULL: they are not) and those for later versions 0. */
int32_t int4mm_check_args(const int64_t reserved[4]);
/* A device number that there may be. */
int32_t int4mm_check_device(int32_t device);
/* Rank, shape, stride and dtype of a tensor to be, and that its bytes can be counted. */
int32_t int4mm_check_shape(int32_t rank, int64_t rows, int64_t cols, int64_t stride, int32_t dtype);
/* A zeroed or released tensor, to be filled. */
int32_t int4mm_check_vacant(const char *name, const int4mm_tensor *t);
/* A live, well-formed tensor, or ERR_ARGUMENT: "a_packed is NULL", "a_packed was freed". */
int32_t int4mm_check_tensor(const char *name, const int4mm_tensor *t);
/* The same, and with elements to read: not a prepacked weight. */
int32_t int4mm_check_rows(const char *name, const int4mm_tensor *t);
/* Fails unless `a` and `b` are on one device. */
int32_t int4mm_check_same_device(const char *name_a, const int4mm_tensor *a, const char *name_b,
                                 const int4mm_tensor *b);
/* Fails when `out`, which is to be written, shares an element with `t`. */
int32_t int4mm_check_apart(const char *name_out, const int4mm_tensor *out, const char *name, const int4mm_tensor *t);
/* Whether `t` may be marked so (int4mm_tensor_mark). */
int32_t int4mm_check_mark(const int4mm_tensor *t, int32_t packing, int32_t encoding, int64_t k);
int32_t int4mm_check_encoding(const char *name, int32_t encoding);

#endif
