/*
 * The error sentence of each thread.
 */
#ifndef INT4MM_CORE_ERROR_H
#define INT4MM_CORE_ERROR_H

#include "core/exact.h"
#include "int4mm.h"

/* Records this thread's error sentence and returns `status`. Every failure goes through here. */
int32_t int4mm_fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Between these two, failures of this thread keep their status but leave its sentence as it is: for giving back what a
 * failed call had taken. They nest. */
void int4mm_hold_error(void);
void int4mm_unhold_error(void);

#endif
