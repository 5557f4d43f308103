/*
 * Copying as other operations use it.
 */
#ifndef INT4MM_OPS_COPY_H
#define INT4MM_OPS_COPY_H

#include "int4mm.h"

/* int4mm_tensor_copy for arguments that are known to be right. */
int32_t int4mm_copy_checked(const int4mm_tensor *dst, const int4mm_tensor *src, void *stream);

#endif
