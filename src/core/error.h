/*
 * The error sentence of each thread.
 */
#ifndef INT4MM_CORE_ERROR_H
#define INT4MM_CORE_ERROR_H

#include "core/exact.h"
#include "int4mm.h"

/* Records this thread's error sentence and returns `status`. Every failure goes through here. */
int32_t int4mm_fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
