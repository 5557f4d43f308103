/*
 * The table of functions through which the core reaches the CUDA library, a library of its own (src/cuda/, kernels/).
 */
#ifndef INT4MM_CUDA_TABLE_H
#define INT4MM_CUDA_TABLE_H

#include "core/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct int4mm_cuda_backend {
  uint32_t abi; /* INT4MM_CUDA_ABI of the generated int4mm_abi.h: a library built from other headers is refused */
  /* Opens the driver once. OK, or INT4MM_ERR_UNAVAILABLE with the reason through `fail`. */
  int32_t (*open)(int32_t (*fail)(int32_t status, const char *format, ...));
  int32_t (*device_count)(int32_t *count);
  int32_t (*device_info)(int32_t device, int4mm_gpu_info *info);
  int32_t (*arch)(int32_t device, int32_t *arch, int32_t *sms); /* cached, cheap */
  /* What the kernels for every architecture were compiled for, as this device runs them; cached, cheap. */
  int32_t (*code_arch)(int32_t device, int32_t *code_arch);
  /* From a stream-ordered pool, usable at once on `stream` (NULL: on every blocking stream); ERR_MEMORY when full. */
  int32_t (*alloc)(int32_t device, size_t bytes, void *stream, void **data);
  void (*free)(int32_t device, void *data,
               bool foreign); /* foreign: was used on a stream that `stream_state` says is */
  /* foreign: work there is not ordered with the default stream (non-blocking streams). */
  int32_t (*stream_state)(int32_t device, void *stream, bool *foreign, bool *capturing);
  /* Makes a foreign stream wait for what the default stream was given so far: before a tensor's first use there. */
  int32_t (*stream_join)(int32_t device, void *stream);
  /* Rows of `width` bytes; a device may be INT4MM_CPU. Waits when a side is. */
  int32_t (*copy)(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                  size_t src_pitch, size_t width, size_t rows, void *stream);
  int32_t (*fill_bytes)(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows, void *stream);
  int32_t (*synchronize)(int32_t device);
  int32_t (*stream_create)(int32_t device, void **stream);
  int32_t (*stream_destroy)(int32_t device, void *stream);
  int32_t (*stream_synchronize)(int32_t device, void *stream);
  /* foreign: stream_state says so of the stream, and that it captures nothing. */
  int32_t (*matmul)(int32_t device, const int4mm_problem *problem, const int4mm_plan *plan, void *stream, bool foreign);
  int32_t (*pack)(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
  int32_t (*quantize)(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
  int32_t (*unpack)(int32_t device, const int4mm_pack_job *job, void *stream);
  int32_t (*dequantize)(int32_t device, const int4mm_pack_job *job, void *stream);
  int32_t (*random)(int32_t device, const int4mm_random_job *job, void *stream);
  int32_t (*transpose)(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                       void *stream);
  /* Stream-ordered scratch memory for one call (a transposed weight); also inside a graph capture. */
  int32_t (*scratch)(int32_t device, size_t bytes, void **data, void *stream);
  int32_t (*scratch_free)(int32_t device, void *data, void *stream);
} int4mm_cuda_backend;

/* The one symbol of the CUDA library. */
typedef const int4mm_cuda_backend *(*int4mm_cuda_backend_fn)(void);
#define INT4MM_CUDA_SYMBOL "int4mm_cuda_backend_table"

/* The table, opened on first need (dlopen of libint4mm_cuda.so beside this library, or INT4MM_CUDA_LIBRARY); NULL with
 * the reason recorded when there is none. A failure to open is remembered; thread-safe. */
const int4mm_cuda_backend *int4mm_cuda(void);

#ifdef __cplusplus
}
#endif
#endif
