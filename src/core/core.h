/*
 * What the parts of the core share: jobs as backends receive them, the CPU entry points, and the table of functions
 * through which the core reaches the CUDA library. Nothing here is exported.
 *
 * Division of labour: src/ checks arguments and chooses; a backend gets a job that is known to be valid and either does
 * it, says INT4MM_ERR_UNSUPPORTED ("another kernel must"), or fails. A backend never re-checks.
 */
#ifndef INT4MM_CORE_H
#define INT4MM_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "int4mm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* XORed into a packed word to turn one nibble encoding into the other. */
#define INT4MM_ENCODING_FLIP 0x88888888u

/* Records this thread's error sentence and returns `status`. Every failure goes through here. */
int32_t int4mm_fail(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Bytes of one element; 0 for an unknown dtype. */
size_t int4mm_dtype_size(int32_t dtype);
const char *int4mm_dtype_name(int32_t dtype);

/* A tensor as backends see it: a vector is one row. */
typedef struct int4mm_matrix {
  void *data;
  int64_t rows, cols;
  int64_t stride; /* elements from row to row */
  int32_t dtype;
} int4mm_matrix;

int4mm_matrix int4mm_as_matrix(const int4mm_tensor *t);

/* A product, checked. M, N and K may be 0. */
typedef struct int4mm_problem {
  int64_t M, N, K;   /* K counts nibbles, a multiple of 8 */
  const uint32_t *a; /* [M, K/8], row stride lda words */
  int64_t lda;
  uint32_t flip_a;   /* XOR this into a word of a to have two's complement: 0 or INT4MM_ENCODING_FLIP */
  const uint32_t *b; /* [K/8, N], row stride ldb words; panels when b_panels (then ldb has no meaning) */
  int64_t ldb;
  uint32_t flip_b;
  bool b_panels;        /* CPU: from int4mm_cpu_prepack */
  const float *scale_a; /* [M] */
  const float *scale_b; /* [N] */
  const float *bias;    /* [N] or NULL */
  void *out;            /* [M, N], row stride ldo elements */
  int64_t ldo;
  int32_t out_dtype; /* float16, bfloat16, float32 */
  int32_t strassen;  /* CPU: -1 by rule, else levels */
} int4mm_problem;

/* Pack, unpack, quantize, dequantize. `dim` is the packed dimension of `plain`, 0 or 1. */
typedef struct int4mm_pack_job {
  int4mm_matrix packed; /* int32 words */
  int4mm_matrix plain;  /* int8 or int32; a float type for (de)quantising */
  float *scales;        /* (de)quantising only: one per row (dim 1) or column (dim 0) of plain */
  int32_t dim;
  uint32_t flip; /* XOR into a two's complement word before it is stored (after it is read) */
  bool check;    /* pack, quantize: look for bad values */
} int4mm_pack_job;

typedef struct int4mm_random_job {
  int4mm_matrix dst; /* int32 or float32 */
  uint64_t seed;
  uint32_t sequence;
  float low, high;
} int4mm_random_job;

/* ---- CPU backend (src/cpu/) ---- */

/* OK or INT4MM_ERR_MEMORY. */
int32_t int4mm_cpu_matmul(const int4mm_problem *problem);
/* OK, or INT4MM_ERR_VALUE with *bad set to the row-major index (r * cols + c) of the first bad element of plain. */
int32_t int4mm_cpu_pack(const int4mm_pack_job *job, int64_t *bad);
int32_t int4mm_cpu_quantize(const int4mm_pack_job *job, int64_t *bad);
void int4mm_cpu_unpack(const int4mm_pack_job *job);
void int4mm_cpu_dequantize(const int4mm_pack_job *job);
void int4mm_cpu_random(const int4mm_random_job *job);
/* dst = src for equal shapes; converts among dtypes (float to float and int to float round to nearest even, int to int
 * copies values). The caller has excluded float to int. */
void int4mm_cpu_copy(const int4mm_matrix *dst, const int4mm_matrix *src);
/* dst[c, r] = src[r, c] ^ flip for int32 words. */
void int4mm_cpu_transpose(const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t flip);
/* Panels for a [k8, N] weight: their size in words, and the filling of them (two's complement). Every instruction set
 * reads the same panels. */
int64_t int4mm_cpu_panel_words(int64_t k8, int64_t N);
void int4mm_cpu_prepack(uint32_t *panels, const uint32_t *b, int64_t ldb, int64_t k8, int64_t N, uint32_t flip);
/* Describes what int4mm_cpu_matmul would do: name, tiles, reason. */
void int4mm_cpu_plan(const int4mm_problem *problem, int4mm_plan *plan);

/* ---- CUDA backend (src/cuda/, kernels/), a library of its own ---- */

/* int4mm_plan.kernel for a CUDA plan: which launcher takes it. */
typedef enum int4mm_cuda_kernel {
  INT4MM_KERNEL_SIMPLE = 0, /* a thread per output */
  INT4MM_KERNEL_TILED = 1,  /* 16 x 16 tiles through shared memory, dp4a */
  INT4MM_KERNEL_STREAM = 2, /* small M: weights streamed through registers, mma.sync (sm_80 on) */
  INT4MM_KERNEL_HOPPER = 3, /* large M: int8 wgmma fed by an unpack (sm_90a) */
  INT4MM_KERNEL_NARROW = 4  /* middling M, small squares: the same in narrow tiles */
} int4mm_cuda_kernel;

/* int4mm_choose_cuda without the words of the reason, which cost more than the choice. */
int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

/* K from which the stream and hopper kernels need operands of their true size instead of 16 times it, so that int32
 * holds the sums (kernels/common/unpack.cuh). */
#define INT4MM_WIDE_K 131072

/* Changes with any of the structs above or the table below: a library of another build is refused. */
#define INT4MM_CUDA_ABI 2

typedef struct int4mm_cuda_backend {
  uint32_t abi; /* INT4MM_CUDA_ABI */
  /* Opens the driver once. OK, or INT4MM_ERR_UNAVAILABLE with the reason through `fail`. */
  int32_t (*open)(int32_t (*fail)(int32_t status, const char *format, ...));
  int32_t (*device_count)(int32_t *count);
  int32_t (*device_info)(int32_t device, int4mm_gpu_info *info);
  int32_t (*arch)(int32_t device, int32_t *arch, int32_t *sms); /* cached, cheap */
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
  int32_t (*transpose)(int32_t device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t flip, void *stream);
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
