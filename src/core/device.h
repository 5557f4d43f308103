/*
 * What the core needs of a device, as a table of functions: the core knows no backend. src/dispatch/devices.c registers
 * a table for the host and one for the GPUs.
 */
#ifndef INT4MM_CORE_DEVICE_H
#define INT4MM_CORE_DEVICE_H

#include <stddef.h>

#include "int4mm.h"

enum { INT4MM_MAX_DEVICES = 64 };

typedef struct int4mm_device_ops {
  /* OK, or the reason why no tensor can live on this device. */
  int32_t (*check)(int32_t device);
  /* Sets `data`, `release` and `context` of a storage whose device and bytes (at least 1) are set. ERR_MEMORY when the
   * device is full; the caller finds the words for that. */
  int32_t (*alloc)(int4mm_storage *storage, void *stream);
  /* ERR_ARGUMENT when `data` is known not to be memory of this device. */
  int32_t (*check_pointer)(int32_t device, const void *data);
  /* GPUs: as alloc, pinned host memory (the storage's device is the CPU, and bytes may be 0). NULL for the host. */
  int32_t (*alloc_pinned)(int4mm_storage *storage);
} int4mm_device_ops;

/* Once, when the library is loaded. */
void int4mm_register_devices(const int4mm_device_ops *host, const int4mm_device_ops *gpu);
/* The table of a device's kind, for any number that int4mm_check_device passes. */
const int4mm_device_ops *int4mm_device_ops_of(int32_t device);

#endif
