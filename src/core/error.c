/*
 * Status words and each thread's last error sentence.
 */
#define _GNU_SOURCE /* uselocale */
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"
#include "int4mm_abi.h"

enum { ERROR_BYTES = 1024 };

static _Thread_local char last_error[ERROR_BYTES];
static _Thread_local int held;

const char *int4mm_version(void) {
  return INT4MM_VERSION;
}

const char *int4mm_abi_hash(void) {
  return INT4MM_ABI_HASH;
}

const char *int4mm_strerror(int32_t status) {
  switch (status) {
  case INT4MM_OK:
    return "success";
  case INT4MM_ERR_ARGUMENT:
    return "invalid argument";
  case INT4MM_ERR_VALUE:
    return "value out of range";
  case INT4MM_ERR_MEMORY:
    return "out of memory";
  case INT4MM_ERR_UNAVAILABLE:
    return "not available here";
  case INT4MM_ERR_UNSUPPORTED:
    return "not supported by this kernel";
  case INT4MM_ERR_CUDA:
    return "CUDA error";
  case INT4MM_ERR_SYSTEM:
    return "system error";
  default:
    return "unknown status";
  }
}

const char *int4mm_last_error(void) {
  return last_error;
}

/* Numbers have a decimal point whatever the caller's locale. */
static void format_text(char *text, size_t size, const char *format, va_list args) {
  locale_t plain = newlocale(LC_NUMERIC_MASK, "C", NULL), callers = plain ? uselocale(plain) : NULL;
  vsnprintf(text, size, format, args);
  if (!plain) return;
  uselocale(callers);
  freelocale(plain);
}

int32_t int4mm_fail(int32_t status, const char *format, ...) {
  char text[ERROR_BYTES]; /* apart, since an argument may be the last error itself */
  va_list args;
  if (held) return status;
  va_start(args, format);
  format_text(text, sizeof text, format, args);
  va_end(args);
  memcpy(last_error, text, sizeof text);
  return status;
}

void int4mm_hold_error(void) {
  held++;
}

void int4mm_unhold_error(void) {
  held--;
}
