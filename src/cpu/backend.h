/*
 * The CPU backend as src/ops/ calls it. Arguments are valid: nothing is checked again. Errors are recorded.
 */
#ifndef INT4MM_CPU_BACKEND_H
#define INT4MM_CPU_BACKEND_H

#include "core/problem.h"

/* The product: OK, or INT4MM_ERR_MEMORY before anything is written. */
int32_t int4mm_cpu_matmul(const int4mm_problem *problem);
/* OK, or INT4MM_ERR_VALUE with *bad set to the row-major index (r * cols + c) of the first bad element of plain. */
int32_t int4mm_cpu_pack(const int4mm_pack_job *job, int64_t *bad);
/* As pack; or INT4MM_ERR_MEMORY before anything is written. */
int32_t int4mm_cpu_quantize(const int4mm_pack_job *job, int64_t *bad);
/* OK; or INT4MM_ERR_MEMORY, when all may be partly written. */
int32_t int4mm_cpu_quantize_groups(const int4mm_group_job *job);
/* The row-major index of the first element of src, of a float dtype, that is NaN or infinite; -1 where there is none.
 */
int64_t int4mm_cpu_find_not_finite(const int4mm_matrix *src);
void int4mm_cpu_rotate(const int4mm_rotate_job *job);
void int4mm_cpu_unpack(const int4mm_pack_job *job);
void int4mm_cpu_dequantize(const int4mm_pack_job *job);
void int4mm_cpu_dequantize_groups(const int4mm_group_job *job);
void int4mm_cpu_map(const int4mm_map_job *job);
void int4mm_cpu_rowwise(const int4mm_rowwise_job *job);
void int4mm_cpu_random(const int4mm_random_job *job);
/* dst [C, R] = src [R, C] transposed, of one dtype; apart in memory. There are elements. */
void int4mm_cpu_transpose(const int4mm_matrix *dst, const int4mm_matrix *src);
void int4mm_cpu_gather(const int4mm_gather_job *job);
/* dst = src for equal shapes; converts among dtypes (float to float and int to float round to nearest even, int to int
 * copies values, each NaN becomes the one of its type; equal dtypes keep their bits). The caller has excluded float to
 * int and values that do not fit. */
void int4mm_cpu_copy(const int4mm_matrix *dst, const int4mm_matrix *src);
/* The row-major index of the first int32 of src that int8 does not hold; -1 where there is none. */
int64_t int4mm_cpu_find_outside_int8(const int4mm_matrix *src);
/* Prepacks a weight, [k8, N] MN-major or [N, k8] K-major, into panels of two's complement words, which every
 * instruction set reads; and the size of the panels in words. */
int64_t int4mm_cpu_panel_words(int64_t k8, int64_t N);
void int4mm_cpu_prepack(uint32_t *panels, const int4mm_operand *b);
/* What int4mm_cpu_matmul would do: instruction set, tile, reason. */
void int4mm_cpu_plan(const int4mm_problem *problem, int4mm_plan *plan);

/* Scratch memory, 64-byte aligned, in huge pages where large; NULL after recording INT4MM_ERR_MEMORY. A few blocks are
 * cached for the next call, since fresh pages cost more than the work that fills them. */
void *int4mm_workspace_acquire(int64_t bytes);
void int4mm_workspace_release(void *workspace);

#endif
