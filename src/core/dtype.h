/*
 * Element types.
 */
#ifndef INT4MM_CORE_DTYPE_H
#define INT4MM_CORE_DTYPE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/exact.h"
#include "int4mm.h"

/* Bytes of one element; 0 for an unknown dtype. */
size_t int4mm_dtype_size(int32_t dtype);
const char *int4mm_dtype_name(int32_t dtype);

/* What a product may be stored as; also the float types. */
static inline bool int4mm_is_out_dtype(int32_t dtype) {
  return dtype == INT4MM_FLOAT16 || dtype == INT4MM_BFLOAT16 || dtype == INT4MM_FLOAT32;
}

static inline bool int4mm_is_integer_dtype(int32_t dtype) {
  return dtype == INT4MM_INT32 || dtype == INT4MM_INT8;
}

#endif
