/*
 * The registry of CUDA kernels. A kernel is a line of kernels.inc; what kernels have in common is a family: it tells
 * what its kernels cannot serve, plans a product and estimates the plan's cost. All of it is pure, so that it can be
 * read, tested and explained without a GPU: kernels do not choose, and launchers trust the plan.
 */
#ifndef INT4MM_DISPATCH_REGISTRY_H
#define INT4MM_DISPATCH_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>

#include "common/shapes.h"
#include "int4mm.h"

typedef struct int4mm_kernel int4mm_kernel;

/* Operands whose rows have to start on 16 bytes: others are copied before the launch (int4mm_wants_copy_of_a, _of_b).
 * INT4MM_COPIES_A_LONG: A, and a B that is [N, K/8] where that pays, for INT4MM_COPY_B_ROWS rows of A and more.
 * INT4MM_COPIES_AB: of A, but of int8, and of B beside a packed A 16 bytes of k are taken together as well, of [K/8, N]
 * as many of columns; copies are padded with zeros. */
typedef enum int4mm_copies {
  INT4MM_COPIES_NONE,
  INT4MM_COPIES_A,
  INT4MM_COPIES_A_LONG,
  INT4MM_COPIES_AB
} int4mm_copies;
enum { INT4MM_COPY_B_ROWS = 2048 };

typedef struct int4mm_family {
  /* Why this kernel cannot serve a problem of an architecture that it runs on ("needs an N that is a multiple of 4"),
   * or NULL. */
  const char *(*unsupported)(const int4mm_kernel *kernel, const int4mm_gpu_problem *problem);
  /* Fills in how the problem would be run: tiles, stages, split_k and ctas, which come as the kernel's own. Returns the
   * estimate of its time in ns, for calls that follow each other; INT4MM_COST_ANY and above for a kernel that serves
   * where no other does. */
  int64_t (*plan)(const int4mm_kernel *kernel, const int4mm_gpu_problem *problem, int4mm_plan *plan);
  /* The plan in words. */
  void (*explain)(const int4mm_gpu_problem *problem, const int4mm_plan *plan, char *text, size_t size);
  int copies; /* int4mm_copies */
  /* Serves grouped products. */
  bool experts;
  /* Parts of K of a plan whose split_k is above 1 meet in scratch memory (int4mm_sums_bytes), else in a cluster. */
  bool sums;
} int4mm_family;

struct int4mm_kernel {
  const char *name;
  int32_t min_arch, max_arch;
  int32_t tile_m, tile_n, stages;
  const int4mm_family *family;
};

/* Above every estimate. */
#define INT4MM_COST_ANY ((int64_t)1 << 62)

extern const int4mm_family int4mm_family_elementary, int4mm_family_skinny, int4mm_family_mma, int4mm_family_turing,
    int4mm_family_narrow, int4mm_family_hopper, int4mm_family_grouped;

/* The registry, in the order of kernels.inc. */
extern const int4mm_kernel int4mm_kernels_cuda[];
extern const int32_t int4mm_kernel_count;

/* ---- arithmetic of plans: sizes may be anything, so nothing wraps ---- */

int64_t int4mm_plan_ceil_div(int64_t a, int64_t b);
/* a * b and a + b for numbers that are not negative, at most INT4MM_COST_ANY - 1. */
int64_t int4mm_plan_mul(int64_t a, int64_t b);
int64_t int4mm_plan_add(int64_t a, int64_t b);
/* n as a number of CTAs, at least 1. */
int32_t int4mm_plan_ctas(int64_t n);
/* Tiles of m x n in the output and of m rows in it; of a grouped product the most that there can be. */
int64_t int4mm_plan_tiles(const int4mm_gpu_problem *problem, int32_t m, int32_t n);
int64_t int4mm_plan_row_tiles(const int4mm_gpu_problem *problem, int32_t m);
/* How many there will be: of a grouped product, where each expert has about as many rows, which end anywhere in a tile.
 */
int64_t int4mm_plan_likely_row_tiles(const int4mm_gpu_problem *problem, int32_t m);
int64_t int4mm_plan_likely_tiles(const int4mm_gpu_problem *problem, int32_t m, int32_t n);
/* Bytes of the weights that are read, at least once. */
int64_t int4mm_plan_bytes_of_b(const int4mm_gpu_problem *problem);
/* Bytes of A. */
int64_t int4mm_plan_bytes_of_a(const int4mm_gpu_problem *problem);
/* k-blocks of a problem. */
int64_t int4mm_plan_k_blocks(const int4mm_gpu_problem *problem);
/* W4A4 with a scale for each column alone, as int4mm_is_elementary. */
bool int4mm_plan_is_elementary(const int4mm_gpu_problem *problem);
/* Of what K has to be a multiple for INT4MM_COPIES_AB: values of A in 16 bytes, but int8 ends anywhere. */
int64_t int4mm_plan_k_step(int32_t dtype_a);
/* Whether rows of A, of B, and of both start on 16 bytes. */
bool int4mm_plan_aligned16_a(const int4mm_gpu_problem *problem);
bool int4mm_plan_aligned16_b(const int4mm_gpu_problem *problem);
bool int4mm_plan_aligned16(const int4mm_gpu_problem *problem);
/* What a copy of A, or of B, takes on an H100, in ns. */
int64_t int4mm_plan_copy_of_a(const int4mm_gpu_problem *problem);
int64_t int4mm_plan_copy_of_b(const int4mm_gpu_problem *problem);

/* ---- shared K ---- */

/* Tiles of which CTAs share the K of the last `shared`, `split` each. */
typedef struct int4mm_sharing {
  int64_t whole, shared, split;
} int4mm_sharing;
/* The estimate for a problem whose K is shared so, in ns. */
typedef int64_t int4mm_sharing_time(const int4mm_kernel *kernel, const int4mm_gpu_problem *problem, int4mm_sharing s);
/* The least of `time` over the ways to share the K of `tiles`, of which the GPU has `at_once`: not at all or, where
 * tiles leave SMs without work, that of all tiles, or of those left over by whole waves (Osama et al., Stream-K, 2023,
 * whose CTAs may also go from one tile to the next); in parts of whole stages, of which K has so many. Sets ctas,
 * split_k and whole_tiles of a plan. */
int64_t int4mm_plan_share_k(const int4mm_kernel *kernel, const int4mm_gpu_problem *problem, int4mm_sharing_time *time,
                            int64_t tiles, int64_t at_once, int64_t stages, int4mm_plan *plan);
/* Tiles of a plan that are made by split_k CTAs each, and all of them. */
int32_t int4mm_plan_shared_tiles(const int4mm_plan *plan);
int32_t int4mm_plan_all_tiles(const int4mm_plan *plan);
/* ", the last 12 by 11 CTAs each" where whole waves of tiles go before those whose K CTAs share, else "". */
const char *int4mm_plan_sharing(const int4mm_plan *plan, char *text, size_t size);

#endif
