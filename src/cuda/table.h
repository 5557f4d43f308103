/*
 * The table of functions through which the core reaches the CUDA library, a library of its own (src/cuda/, kernels/).
 */
#ifndef INT4MM_CUDA_TABLE_H
#define INT4MM_CUDA_TABLE_H

#include "core/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a stream is. */
typedef struct int4mm_stream_state {
  uint64_t id;       /* of a non-blocking stream that captures nothing: unlike the handle never given to another */
  bool non_blocking; /* the default stream is not ordered with it; said of every stream that captures */
  bool capturing;    /* it captures a CUDA graph, or for the default stream, another one's capture forbids its use */
  uint64_t capture;  /* the id of the capture that it is in, which no other capture ever has; 0: none */
} int4mm_stream_state;

/* Where an address lies. */
typedef struct int4mm_location {
  int32_t device; /* INT4MM_CPU for plain and pinned host memory */
  bool managed;   /* good for the host and every GPU */
  bool pinned;    /* host memory that is page-locked */
} int4mm_location;

/* What the choice of a kernel wants to know of a device; clock, memory and shared are as in int4mm_gpu_info. */
typedef struct int4mm_gpu_traits {
  const char *name; /* lasts */
  int32_t arch, sms, clock, memory, shared;
} int4mm_gpu_traits;

typedef struct int4mm_cuda_backend {
  uint32_t abi; /* INT4MM_CUDA_ABI of the generated int4mm_abi.h: a library built from other headers is refused */
  /* Opens the driver once. OK, or INT4MM_ERR_UNAVAILABLE with the reason through `fail`. */
  int32_t (*open)(int32_t (*fail)(int32_t status, const char *format, ...));
  int32_t (*device_count)(int32_t *count);
  int32_t (*device_info)(int32_t device, int4mm_gpu_info *info);
  int32_t (*traits)(int32_t device, int4mm_gpu_traits *traits); /* cached, cheap */
  /* What the kernels for every architecture were compiled for, as this device runs them; cached, cheap. */
  int32_t (*code_arch)(int32_t device, int32_t *code_arch);
  /* From a stream-ordered pool, usable at once on `stream` (NULL: on every blocking stream); ERR_MEMORY when full. */
  int32_t (*alloc)(int32_t device, size_t bytes, void *stream, void **data);
  /* non_blocking: it was used on a non-blocking stream, so the free follows the work recorded on those. Does not fail:
   * what cannot be freed now is freed later. */
  void (*free)(int32_t device, void *data, bool non_blocking);
  /* Where the driver says that an address is. Makes no context. */
  int32_t (*locate)(const void *data, int4mm_location *location);
  int32_t (*stream_state)(int32_t device, void *stream, int4mm_stream_state *state);
  /* Makes a non-blocking stream wait for what the default stream was given so far. */
  int32_t (*stream_join)(int32_t device, void *stream);
  /* Rows of `width` bytes; a device may be INT4MM_CPU. Waits when a side is. */
  int32_t (*copy)(int32_t dst_device, void *dst, size_t dst_pitch, int32_t src_device, const void *src,
                  size_t src_pitch, size_t width, size_t rows, void *stream);
  int32_t (*fill_bytes)(int32_t device, void *dst, size_t pitch, uint8_t byte, size_t width, size_t rows, void *stream);
  int32_t (*synchronize)(int32_t device);
  int32_t (*stream_create)(int32_t device, void **stream);
  int32_t (*stream_destroy)(int32_t device, void *stream);
  int32_t (*stream_synchronize)(int32_t device, void *stream);
  /* quantize: a layer's, which makes the problem's A first, and unchecked; or NULL. non_blocking: stream_state says so
   * of the stream, and that it captures nothing. */
  int32_t (*matmul)(int32_t device, const int4mm_pack_job *quantize, const int4mm_problem *problem,
                    const int4mm_plan *plan, void *stream, bool non_blocking);
  int32_t (*pack)(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
  int32_t (*quantize)(int32_t device, const int4mm_pack_job *job, int64_t *bad, void *stream);
  int32_t (*quantize_groups)(int32_t device, const int4mm_group_job *job, void *stream);
  /* *bad: the row-major index of the first element of src, of a float dtype, that is NaN or infinite, for which it
   * waits; -1 where there is none. */
  int32_t (*find_not_finite)(int32_t device, const int4mm_matrix *src, int64_t *bad, void *stream);
  int32_t (*rotate)(int32_t device, const int4mm_rotate_job *job, void *stream);
  int32_t (*unpack)(int32_t device, const int4mm_pack_job *job, void *stream);
  int32_t (*dequantize)(int32_t device, const int4mm_pack_job *job, void *stream);
  int32_t (*dequantize_groups)(int32_t device, const int4mm_group_job *job, void *stream);
  int32_t (*map)(int32_t device, const int4mm_map_job *job, void *stream);
  int32_t (*rowwise)(int32_t device, const int4mm_rowwise_job *job, void *stream);
  int32_t (*random)(int32_t device, const int4mm_random_job *job, void *stream);
  /* Of any dtype; xor_mask is for int32 words, else 0. */
  int32_t (*transpose)(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                       void *stream);
  int32_t (*gather)(int32_t device, const int4mm_gather_job *job, void *stream);
  /* dst = src ^ xor_mask, rows of any dtype of whom a product follows; the mask is for int32 words, else 0. Zeros
   * follow up to a multiple of 16 bytes, from where rows of dst start. Quicker than copy; a product with `early_b`
   * may follow where that is given here. An int8 dst, whose rows start on 8 bytes, gets the values of words,
   * even_odd as in int4mm_operand. */
  int32_t (*align_rows)(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                        bool even_odd, bool early_b, void *stream);
  /* Stream-ordered scratch memory for one call (a layer's workspace, a copy of A). Inside a graph capture it becomes
   * nodes of the graph, which takes a device with memory pools. */
  int32_t (*scratch)(int32_t device, size_t bytes, void **data, void *stream);
  int32_t (*scratch_free)(int32_t device, void *data, void *stream);
  /* Pinned host memory, of every device; ERR_MEMORY when there is none. */
  int32_t (*host_alloc)(size_t bytes, void **data);
  /* Once the work given so far to the devices of the mask (bit d: device d) is done, for which it waits, or later.
   * Does not fail. */
  void (*host_free)(void *data, uint64_t devices);
  /* Rows of `width` bytes between pinned host memory and a device, enqueued. */
  int32_t (*copy_async)(int32_t device, bool to_host, void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                        size_t width, size_t rows, void *stream);
  int32_t (*event_create)(int32_t device, void **event);
  int32_t (*event_destroy)(int32_t device, void *event);
  int32_t (*event_record)(int32_t device, void *event, void *stream);
  int32_t (*event_synchronize)(int32_t device, void *event);
  int32_t (*event_query)(int32_t device, void *event, bool *done);
  int32_t (*event_elapsed)(int32_t device, void *start, void *end, float *milliseconds);
  int32_t (*stream_wait)(int32_t device, void *stream, void *event);
  /* A new non-blocking stream that captures, and the id of its capture. */
  int32_t (*graph_begin)(int32_t device, void **stream, uint64_t *capture);
  /* Ends the capture and the stream, whatever it returns. *executable is what the others take; with `executable` NULL
   * what was captured is dropped. */
  int32_t (*graph_end)(int32_t device, void *stream, void **executable, int64_t *nodes);
  /* non_blocking: as for matmul. */
  int32_t (*graph_launch)(int32_t device, void *executable, void *stream, bool non_blocking);
  int32_t (*graph_destroy)(int32_t device, void *executable);
} int4mm_cuda_backend;

/* The one symbol of the CUDA library. */
typedef const int4mm_cuda_backend *(*int4mm_cuda_backend_fn)(void);
#define INT4MM_CUDA_SYMBOL "int4mm_cuda_backend_table"

/* The table, opened on first need (dlopen of libint4mm_cuda.so beside this library, or INT4MM_CUDA_LIBRARY); NULL with
 * the reason recorded when there is none. A failure to open is remembered; thread-safe. */
const int4mm_cuda_backend *int4mm_cuda(void);
/* The table where int4mm_cuda has opened it already and it can still be used, else NULL; records nothing. */
const int4mm_cuda_backend *int4mm_cuda_if_open(void);
/* The table for calls that name a GPU by its number: ERR_ARGUMENT for one below 0, ERR_UNAVAILABLE as above. */
int32_t int4mm_cuda_for(int32_t device, const int4mm_cuda_backend **cuda);

#ifdef __cplusplus
}
#endif
#endif
