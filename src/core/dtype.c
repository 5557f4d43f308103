/*
 * Sizes and names of element types.
 */
#include "core/dtype.h"

size_t int4mm_dtype_size(int32_t dtype) {
  switch (dtype) {
  case INT4MM_INT32:
  case INT4MM_FLOAT32:
    return 4;
  case INT4MM_FLOAT16:
  case INT4MM_BFLOAT16:
    return 2;
  case INT4MM_INT8:
    return 1;
  default:
    return 0;
  }
}

const char *int4mm_dtype_name(int32_t dtype) {
  static const char *const names[] = {"int32", "int8", "float16", "bfloat16", "float32"};
  return dtype >= 0 && dtype < (int32_t)(sizeof names / sizeof names[0]) ? names[dtype] : "unknown dtype";
}
