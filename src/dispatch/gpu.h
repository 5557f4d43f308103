/*
 * GPUs as the estimates see them: what an architecture's SMs multiply, by its datasheet, and what a device says of
 * itself.
 */
#ifndef INT4MM_DISPATCH_GPU_H
#define INT4MM_DISPATCH_GPU_H

#include "cuda/table.h"

/* The table's entry for an architecture: its own, else that of the next older one. */
const int4mm_architecture *int4mm_architecture_of(int32_t arch);

/* What a device is, for the choice of a kernel. Where INT4MM_CUDA_ARCH is set its architecture is that one, its shared
 * memory no more than that one's. INT4MM_ERR_UNAVAILABLE where the variable is no architecture of the table or newer
 * than the device. */
int32_t int4mm_gpu_traits_of(const int4mm_cuda_backend *cuda, int32_t device, int4mm_gpu_traits *traits);
/* INT4MM_CUDA_ARCH, read once; 0 where it is not set or says nothing. */
int32_t int4mm_hidden_above(void);

/* ---- a problem's GPU ---- */

/* Whether the estimates for it are measurements, as they are on sm_90, or are scaled to it from there. */
bool int4mm_gpu_is_measured(const int4mm_gpu_problem *p);
/* What the tensor cores multiply. */
typedef enum int4mm_mma { INT4MM_MMA_INT4, INT4MM_MMA_INT8, INT4MM_MMA_FP16 } int4mm_mma;

/* A time of one SM's mma.sync, fitted on sm_90 to int8 (INT4MM_MMA_FP16: to float16): on this GPU. */
int64_t int4mm_gpu_mma_time(const int4mm_gpu_problem *p, int4mm_mma mma, int64_t time);
/* A rate of all SMs, of work that mma.sync bounds, in any unit a ns: alike. */
int64_t int4mm_gpu_mma_rate(const int4mm_gpu_problem *p, int4mm_mma mma, int64_t rate);
/* Another time of one SM: by its clock. */
int64_t int4mm_gpu_clock_time(const int4mm_gpu_problem *p, int64_t time);
/* Bytes a ns from memory, fitted to a card of `fitted` GB/s. */
int64_t int4mm_gpu_memory_rate(const int4mm_gpu_problem *p, int64_t fitted, int64_t rate);
/* Bytes of shared memory that a CTA may have. */
int64_t int4mm_gpu_shared(const int4mm_gpu_problem *p);
/* Whether kernels for every architecture unpack int4 to int8, as those compiled for sm_90 and later do; others multiply
 * int4, which from sm_90 on is emulated. */
bool int4mm_gpu_unpacks(const int4mm_gpu_problem *p);
bool int4mm_gpu_emulates_int4(const int4mm_gpu_problem *p);
/* Whether kernels for every architecture may launch clusters: by the code and by the device. */
bool int4mm_gpu_has_clusters(const int4mm_gpu_problem *p);

#endif
