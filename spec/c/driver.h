/*
 * The driver API, for what the library offers no call for: streams and captures of a caller's own, its memory.
 */
#ifndef INT4MM_SPEC_DRIVER_H
#define INT4MM_SPEC_DRIVER_H

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

/* By their documented names and types. */
typedef struct driver {
  int (*stream_create)(void **stream, unsigned flags);
  int (*stream_destroy)(void *stream);
  int (*begin_capture)(void *stream, int mode);
  int (*end_capture)(void *stream, void **graph);
  int (*instantiate)(void **executable, void *graph, unsigned long long flags);
  int (*launch)(void *executable, void *stream);
  int (*executable_destroy)(void *executable);
  int (*graph_destroy)(void *graph);
  int (*primary_state)(int device, unsigned *flags, int *active);
  int (*context_current)(void **context);
  int (*alloc_host)(void **data, size_t bytes);
  int (*free_host)(void *data);
  int (*alloc_managed)(unsigned long long *data, size_t bytes, unsigned flags);
  int (*free_device)(unsigned long long data);
} driver;

/* False where there is no driver. */
static inline bool open_driver(driver *d) {
  static const char *const names[] = {"cuStreamCreate",
                                      "cuStreamDestroy_v2",
                                      "cuStreamBeginCapture_v2",
                                      "cuStreamEndCapture",
                                      "cuGraphInstantiateWithFlags",
                                      "cuGraphLaunch",
                                      "cuGraphExecDestroy",
                                      "cuGraphDestroy",
                                      "cuDevicePrimaryCtxGetState",
                                      "cuCtxGetCurrent",
                                      "cuMemAllocHost_v2",
                                      "cuMemFreeHost",
                                      "cuMemAllocManaged",
                                      "cuMemFree_v2"};
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  void *symbols[sizeof names / sizeof names[0]];
  _Static_assert(sizeof symbols == sizeof *d, "one name for each function");
  if (!library) return false;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
    if (!(symbols[i] = dlsym(library, names[i]))) return false;
  memcpy(d, symbols, sizeof *d);
  return true;
}

#endif
