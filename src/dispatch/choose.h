/*
 * The choice of a CUDA kernel, for the core's own calls.
 */
#ifndef INT4MM_DISPATCH_CHOOSE_H
#define INT4MM_DISPATCH_CHOOSE_H

#include "core/problem.h"
#include "int4mm.h"

/* int4mm_choose_cuda for a problem that is known to be valid, without the words of the reason, which cost more than the
 * choice. */
int32_t int4mm_choose_kernel(const int4mm_gpu_problem *problem, const char *kernel, int4mm_plan *plan);

/* Whether a plan's kernel takes A, or B, only from rows that start on 16 bytes, or of whole 16 bytes, and these are
 * not. */
bool int4mm_wants_copy_of_a(const int4mm_problem *problem, const int4mm_plan *plan);
bool int4mm_wants_copy_of_b(const int4mm_problem *problem, const int4mm_plan *plan);
/* Whether a plan's product is to start before a copy of A has waited for the kernels before it, rather than read B
 * while A is copied. */
bool int4mm_starts_early(const int4mm_plan *plan);
/* Whether a plan's kernel takes an int8 A that is even_odd, which one made for the product alone may be. */
bool int4mm_takes_even_odd(const int4mm_problem *problem, const int4mm_plan *plan);
/* Bytes of scratch memory for problem->sums: 0 where the plan has none. No more CTAs share K than run at once, so that
 * it is at most two tiles of 128 x 128 sums for each SM, 17 MB on an H100. */
int64_t int4mm_sums_bytes(const int4mm_problem *problem, const int4mm_plan *plan);

#endif
