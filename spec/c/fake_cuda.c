/*
 * A CUDA library that cannot be used, so that every reason can be seen without a GPU. Point INT4MM_CUDA_LIBRARY at it
 * and name the reason in INT4MM_FAKE_CUDA: no_driver, old_driver, no_device or other_abi; no_table is a library that
 * has the symbol and nothing behind it. The words of the first three are the CUDA library's own.
 *
 * A shared library: cc -shared -fPIC -Isrc -o fake_cuda.so spec/c/fake_cuda.c
 */
#include <stdlib.h>
#include <string.h>

#include "core.h"

static bool asked_for(const char *reason) {
  const char *asked = getenv("INT4MM_FAKE_CUDA");
  return asked && !strcmp(asked, reason);
}

static int32_t refuse(int32_t (*fail)(int32_t status, const char *format, ...)) {
  if (asked_for("no_driver"))
    return fail(INT4MM_ERR_UNAVAILABLE, "no NVIDIA driver (libcuda.so.1 is not found or does not load)");
  if (asked_for("old_driver"))
    return fail(INT4MM_ERR_UNAVAILABLE, "the NVIDIA driver is too old: it serves CUDA %d.%d, this build needs %d.%d",
                11, 4, 13, 0);
  return fail(INT4MM_ERR_UNAVAILABLE, "no CUDA device");
}

INT4MM_API const int4mm_cuda_backend *int4mm_cuda_backend_table(void);
const int4mm_cuda_backend *int4mm_cuda_backend_table(void) {
  static int4mm_cuda_backend table = {.abi = INT4MM_CUDA_ABI, .open = refuse};
  if (asked_for("other_abi")) table.abi = INT4MM_CUDA_ABI + 1;
  return asked_for("no_table") ? NULL : &table;
}
