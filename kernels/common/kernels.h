/*
 * The launchers of the CUDA kernels, plain C on both sides: src/cuda/ calls them, one file per kernel family here
 * defines them. A launcher enqueues on `stream` of the current device and returns; it checks nothing but the launch.
 */
#ifndef INT4MM_KERNELS_H
#define INT4MM_KERNELS_H

#include <cuda_runtime_api.h>

#include "core/problem.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A kernel's launcher: the product as `plan` says. M and N are at least 1; K may be 0. cudaErrorNotSupported: this
 * kernel cannot serve the problem. */
typedef cudaError_t int4mm_launch_fn(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream);

#define INT4MM_KERNEL(name, min_arch, max_arch, tile_m, tile_n, stages, family) int4mm_launch_fn int4mm_launch_##name;
#include "common/kernels.inc"
#undef INT4MM_KERNEL

/* A layer of so few rows that a skinny product quantises its A itself, the same values as `quantize` would: nothing
 * need be ahead of it. cudaErrorNotSupported, and nothing launched, for other problems and plans. */
cudaError_t int4mm_launch_own_skinny(const int4mm_pack_job *quantize, const int4mm_problem *problem,
                                     const int4mm_plan *plan, cudaStream_t stream);

/* Adds `parts` of problem->sums, sums of parts of K that are 1 / unscale times too large, and makes outputs of them. */
cudaError_t int4mm_launch_add_sums(const int4mm_problem *problem, const int4mm_plan *plan, int parts, float unscale,
                                   cudaStream_t stream);

/* The architecture that the kernels for every architecture were compiled for, as the current device runs them: that of
 * their PTX where the driver compiled it. */
cudaError_t int4mm_code_arch(int32_t *arch);

/* What `bad` of the launchers below holds when no element is bad. */
#define INT4MM_NO_BAD_INDEX 0xffffffffffffffffull

/* `bad` is a word in device memory that starts as INT4MM_NO_BAD_INDEX and receives the smallest row-major index of a
 * bad element; NULL skips the check. */
cudaError_t int4mm_launch_pack(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream);
cudaError_t int4mm_launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream);
cudaError_t int4mm_launch_find_not_finite(const int4mm_matrix *src, unsigned long long *bad, cudaStream_t stream);
cudaError_t int4mm_launch_quantize_groups(const int4mm_group_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_rotate(const int4mm_rotate_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_unpack(const int4mm_pack_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_dequantize(const int4mm_pack_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_dequantize_groups(const int4mm_group_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_map(const int4mm_map_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_rowwise(const int4mm_rowwise_job *job, cudaStream_t stream);
cudaError_t int4mm_launch_random(const int4mm_random_job *job, cudaStream_t stream);
/* dst[c, r] = src[r, c] ^ xor_mask; the mask is for int32 words, else 0. */
cudaError_t int4mm_launch_transpose(const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                                    cudaStream_t stream);
cudaError_t int4mm_launch_gather(const int4mm_gather_job *job, cudaStream_t stream);

/* dst = src ^ xor_mask, on `device`, the current one: up to 2^31 rows of any dtype, the mask for int32 words, else 0.
 * Zeros follow up to a multiple of 16 bytes, from where rows of dst start. An int8 dst gets the values of words,
 * even_odd as in int4mm_operand. With early_b it has waited for the kernels before it when it lets a dependent one
 * start, which else starts sooner. */
cudaError_t int4mm_launch_align_rows(int device, const int4mm_matrix *dst, const int4mm_matrix *src, uint32_t xor_mask,
                                     bool even_odd, bool early_b, cudaStream_t stream);

#ifdef __cplusplus
}

/* Blocks for `count` items, `per_block` each; the kernels' loops serve what is beyond the largest grid. */
static inline unsigned int4mm_blocks(int64_t count, int64_t per_block) {
  int64_t blocks = (count + per_block - 1) / per_block;
  return (unsigned)(blocks < INT32_MAX ? blocks : INT32_MAX);
}
#endif
#endif
