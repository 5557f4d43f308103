/*
 * The structs of DLPack (https://dmlc.github.io/dlpack), version 1, by which libraries hand tensors to each other
 * without a copy. Written here after the published ABI, with its names; the public header names the two outer ones
 * only, so that a program may include DLPack's own header beside it.
 */
#ifndef INT4MM_CORE_DLPACK_H
#define INT4MM_CORE_DLPACK_H

#include <stddef.h>
#include <stdint.h>

enum { DL_MAJOR = 1, DL_MINOR = 0 }; /* what int4mm_to_dlpack_versioned writes; any 1.x is read */

/* DLDeviceType, as far as it is read here. */
enum { DL_CPU = 1, DL_CUDA = 2, DL_CUDA_HOST = 3 };

typedef struct dl_device {
  int32_t type;
  int32_t id;
} dl_device;

/* DLDataTypeCode, as far as it is read here. */
enum { DL_INT = 0, DL_FLOAT = 2, DL_BFLOAT = 4 };

typedef struct dl_dtype {
  uint8_t code, bits;
  uint16_t lanes;
} dl_dtype;

typedef struct dl_tensor {
  void *data;
  dl_device device;
  int32_t ndim;
  dl_dtype dtype;
  int64_t *shape;
  int64_t *strides; /* in elements; NULL: row-major without gaps */
  uint64_t byte_offset;
} dl_tensor;

typedef struct DLManagedTensor {
  dl_tensor tensor;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensor *self); /* may be NULL */
} dl_managed;

/* The bits of `flags`. */
enum { DL_READ_ONLY = 1, DL_IS_COPIED = 2 };

typedef struct DLManagedTensorVersioned {
  uint32_t major, minor;
  void *manager_ctx;
  void (*deleter)(struct DLManagedTensorVersioned *self); /* may be NULL */
  uint64_t flags;
  dl_tensor tensor;
} dl_managed_versioned;

_Static_assert(sizeof(dl_dtype) == 4 && offsetof(dl_tensor, shape) == 8 + sizeof(void *) + 8, "DLTensor's layout");
_Static_assert(offsetof(dl_managed_versioned, tensor) == 16 + 2 * sizeof(void *), "DLManagedTensorVersioned's layout");

#endif
