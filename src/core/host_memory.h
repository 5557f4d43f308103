/*
 * Host memory for tensors.
 */
#ifndef INT4MM_CORE_HOST_MEMORY_H
#define INT4MM_CORE_HOST_MEMORY_H

#include "core/storage.h"

/* int4mm_device_ops.alloc: 64-byte aligned, from 4 MiB on in huge pages where the system has them. `stream` is not
 * looked at. */
int32_t int4mm_host_alloc(int4mm_storage *storage, void *stream);

#endif
