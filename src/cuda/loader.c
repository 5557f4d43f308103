/*
 * Finding and opening the CUDA library, once, on first need. `require` and CPU work never come here, so a process may
 * fork freely until it has asked for CUDA.
 */
#define _GNU_SOURCE /* dladdr, secure_getenv */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/error.h"
#include "core/graph.h"
#include "cuda/table.h"
#include "int4mm_abi.h"

#define CUDA_LIBRARY "libint4mm_cuda.so"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic(const int4mm_cuda_backend *) backend; /* NULL: not open yet, or `reason` says why */
static char reason[1024];
static atomic_bool forked;
static char own_path[PATH_MAX];

/* Resolved when this library is loaded: the path may be relative, and the process may change its directory later. */
__attribute__((constructor)) static void find_own_path(void) {
  Dl_info info;
  if (!dladdr((const void *)&once, &info) || !info.dli_fname || !realpath(info.dli_fname, own_path)) own_path[0] = '\0';
}

/* A CUDA context does not survive fork(): in a child, CUDA that the parent opened is gone for good. */
static void in_child(void) {
  if (atomic_load(&backend)) atomic_store(&forked, true);
}

static int32_t library_path(char *path, size_t size) {
  const char *forced = secure_getenv("INT4MM_CUDA_LIBRARY"); /* names code, so a setuid program does not listen to it */
  const char *slash = strrchr(own_path, '/');
  int length = forced && *forced
                   ? snprintf(path, size, "%s", forced)
                   : snprintf(path, size, "%.*s" CUDA_LIBRARY, slash ? (int)(slash - own_path) + 1 : 0, own_path);
  return length >= 0 && (size_t)length < size ? INT4MM_OK : INT4MM_ERR_SYSTEM;
}

/* OK with *table, or ERR_UNAVAILABLE with the reason recorded. The library is never closed again: its kernels may
 * still run. */
static int32_t open_library(const int4mm_cuda_backend **table) {
  char path[PATH_MAX + sizeof CUDA_LIBRARY];
  int4mm_cuda_backend_fn get;
  struct stat file;
  if (library_path(path, sizeof path))
    return int4mm_fail(INT4MM_ERR_UNAVAILABLE, "the path of " CUDA_LIBRARY " is too long");
  if (strchr(path, '/') && stat(path, &file))
    return int4mm_fail(INT4MM_ERR_UNAVAILABLE, "no CUDA build of int4mm: there is no %s", path);
  /* LuaRocks installs the files that a rockspec names: where CUDA was not built this one is empty. */
  if (strchr(path, '/') && file.st_size == 0)
    return int4mm_fail(INT4MM_ERR_UNAVAILABLE, "no CUDA build of int4mm: %s is empty", path);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return int4mm_fail(INT4MM_ERR_UNAVAILABLE, "the CUDA library does not load: %s", dlerror());
  void *symbol = dlsym(library, INT4MM_CUDA_SYMBOL);
  memcpy(&get, &symbol, sizeof get); /* ISO C knows no cast from an object to a function pointer */
  const int4mm_cuda_backend *found = symbol ? get() : NULL;
  if (!found) {
    int4mm_fail(INT4MM_ERR_UNAVAILABLE, "%s is not a CUDA library of int4mm", path);
  } else if (found->abi != INT4MM_CUDA_ABI) {
    int4mm_fail(INT4MM_ERR_UNAVAILABLE, "%s is of another int4mm: its interface is %u, this library's is %u", path,
                (unsigned)found->abi, (unsigned)INT4MM_CUDA_ABI);
  } else {
    int32_t status = found->open(int4mm_fail);
    if (!status) *table = found;
    return status;
  }
  dlclose(library);
  return INT4MM_ERR_UNAVAILABLE;
}

static void open_once(void) {
  const int4mm_cuda_backend *table = NULL;
  if (open_library(&table))
    snprintf(reason, sizeof reason, "%s", int4mm_last_error());
  else if (pthread_atfork(NULL, NULL, in_child))
    snprintf(reason, sizeof reason, "no memory to register a fork handler");
  else
    atomic_store(&backend, table);
}

const int4mm_cuda_backend *int4mm_cuda_if_open(void) {
  const int4mm_cuda_backend *open = atomic_load_explicit(&backend, memory_order_acquire);
  return atomic_load_explicit(&forked, memory_order_relaxed) ? NULL : open;
}

const int4mm_cuda_backend *int4mm_cuda(void) {
  pthread_once(&once, open_once);
  const int4mm_cuda_backend *open = int4mm_cuda_if_open();
  if (open) return open;
  if (!atomic_load(&forked))
    int4mm_fail(INT4MM_ERR_UNAVAILABLE, "CUDA is not available: %s", reason);
  else
    int4mm_fail(INT4MM_ERR_UNAVAILABLE, "CUDA is not available: this process was forked from one that had opened CUDA; "
                                        "open it after the fork");
  return NULL;
}

/* ---- devices and streams ---- */

static int32_t null_argument(const char *name) {
  return int4mm_fail(INT4MM_ERR_ARGUMENT, "%s is NULL", name);
}

int32_t int4mm_cuda_for(int32_t device, const int4mm_cuda_backend **cuda) {
  *cuda = NULL;
  if (device < 0) return int4mm_fail(INT4MM_ERR_ARGUMENT, "device is %d: CUDA devices count from 0", (int)device);
  *cuda = int4mm_cuda();
  return *cuda ? INT4MM_OK : INT4MM_ERR_UNAVAILABLE;
}

int32_t int4mm_cuda_available(void) {
  return int4mm_cuda() ? INT4MM_OK : INT4MM_ERR_UNAVAILABLE;
}

int32_t int4mm_cuda_device_count(int32_t *count) {
  const int4mm_cuda_backend *cuda;
  if (!count) return null_argument("count");
  int32_t status = int4mm_cuda_for(0, &cuda);
  return cuda ? cuda->device_count(count) : status;
}

int32_t int4mm_stream_create(int32_t device, void **stream) {
  const int4mm_cuda_backend *cuda;
  if (!stream) return null_argument("stream");
  int32_t status = int4mm_cuda_for(device, &cuda);
  return cuda ? cuda->stream_create(device, stream) : status;
}

int32_t int4mm_stream_destroy(int32_t device, void *stream) {
  const int4mm_cuda_backend *cuda;
  if (!stream) return int4mm_fail(INT4MM_ERR_ARGUMENT, "stream is NULL: the default stream cannot be destroyed");
  int32_t status = int4mm_cuda_for(device, &cuda);
  return cuda ? cuda->stream_destroy(device, stream) : status;
}

int32_t int4mm_stream_synchronize(int32_t device, void *stream) {
  const int4mm_cuda_backend *cuda;
  int32_t status = int4mm_cuda_for(device, &cuda);
  return cuda ? cuda->stream_synchronize(device, stream) : status;
}

int32_t int4mm_synchronize(int32_t device) {
  const int4mm_cuda_backend *cuda;
  if (device == INT4MM_CPU) return INT4MM_OK;
  int32_t status = int4mm_cuda_for(device, &cuda);
  if (status) return status;
  if (int4mm_is_capturing(device)) /* CUDA would give up the capture */
    return int4mm_fail(INT4MM_ERR_ARGUMENT,
                       "cannot wait for cuda:%d while a CUDA graph is being captured there: wait before or after",
                       (int)device);
  return cuda->synchronize(device);
}
