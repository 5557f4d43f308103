/*
 * The driver that the SIMD instruction sets share, and the kernels that each gives it.
 *
 * Layouts, for x86's four-byte dot products (others may order the bytes differently where nobody else reads them):
 *   - A word holds eight k of one row or column. Its even nibbles, masked, are one dword of four bytes; its odd
 * nibbles, shifted and masked, the next. A and B are split alike, so k is permuted alike and no shuffle is needed.
 *   - A panel of A: [2 * k8][mr] dwords of signed bytes: what the kernel broadcasts lies side by side.
 *   - B in words: rows of INT4MM_PANEL words, as a prepacked weight has it; the kernel splits them in registers.
 *   - B in bytes: panels [2 * k8][nr] of dwords, split beforehand, where registers are too few for the former.
 *   - vpdpbusd and vpmaddubsw take one unsigned operand. It is B + offset, since what is broadcast must be the signed
 *     one; the accumulators start at -offset * (sum of the row of A), which makes that good.
 */
#ifndef INT4MM_CPU_GEMM_H
#define INT4MM_CPU_GEMM_H

#include "cpu/cpu.h"

/* Where a kernel's mr x nr sums go: stored, added or subtracted. */
typedef struct int4mm_output_tile {
  int32_t *sums;
  int32_t sign; /* 0 store, 1 add, -1 subtract */
} int4mm_output_tile;

/* k8 lines of 64 bytes, `step` bytes apart, that next_operands calls will read: hardware does not look across pages. */
typedef struct int4mm_prefetch {
  const char *line;
  int64_t stride;
} int4mm_prefetch;

/* tile (+)= acc_init[r] + sum over k of a[r, k] * b[k, c] for a panel of A and nr columns of B, 2 * k8 dwords deep.
 * ldb: dwords from one row of b to the next. ldt: elements from row to row of every output tile. prefetch: what to ask
 * for on the way. */
typedef void int4mm_microkernel(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *acc_init,
                                const int4mm_output_tile *tiles, int32_t count, int64_t ldt, int4mm_prefetch prefetch);

struct int4mm_kernels {
  int32_t mr, nr;                /* nr divides INT4MM_PANEL */
  int32_t offset;                /* of B in `kernel`: 8, or 0 where both operands are signed */
  bool bytes_b;                  /* `kernel` reads B in bytes */
  int32_t skinny_max_m;          /* M up to which `skinny` is used by one thread; at most 64 */
  int32_t skinny_max_m_threaded; /* ... and by several, which it serves less evenly than panels do */
  int32_t skinny_columns;        /* columns that `skinny` takes at a time; divides INT4MM_PANEL */
  int32_t skinny_panel_max_m;    /* M up to which `skinny_panel` is used on a prepacked weight */
  int32_t strassen;              /* levels that `microkernel_bytes` serves: 0 to 2 */
  /* Rows a .. a + (rows - 1) * lda (at most mr) as a panel, zero rows below them; sums[r] = sum of row r. */
  void (*pack_a)(uint32_t *panel, int32_t *sums, const uint32_t *a, int64_t lda, int64_t rows, int64_t k8,
                 uint32_t xor_mask);
  /* k8 rows of at most nr columns of words as bytes + offset; whatever in the columns beyond. */
  void (*pack_b)(uint32_t *panel, const uint32_t *b, int64_t ldb, int64_t columns, int64_t k8, uint32_t xor_mask,
                 int32_t offset);
  int4mm_microkernel *microkernel;
  int4mm_microkernel
      *microkernel_bytes; /* for Strassen: any signed byte of A, any unsigned one of B; NULL without it */
  /* The seven or 49 combinations of 2 x 2 or 4 x 4 blocks, `step` bytes apart; b's plus offset. */
  void (*combine_a)(int8_t *dst, int64_t dst_step, const int8_t *src, int64_t src_step, int64_t bytes, int32_t levels);
  void (*combine_b)(int8_t *dst, int64_t dst_step, const int8_t *src, int64_t src_step, int64_t bytes, int32_t levels,
                    int32_t offset);
  /* A row as dwords of signed bytes, its sum returned. */
  int32_t (*expand)(uint32_t *dwords, const uint32_t *a, int64_t k8, uint32_t xor_mask);
  /* acc[m, n] += sum over k of a[m, k] * (b[k, n] + offset) for m < rows: raw words of b read once, in long runs.
   * a: expanded rows, lda dwords apart; columns: a multiple of skinny_columns. */
  void (*skinny)(int64_t rows, int64_t columns, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b,
                 int64_t ldb, uint32_t xor_mask, int32_t *acc, int64_t ldacc);
  /* The same for one prepacked panel, INT4MM_PANEL columns. */
  void (*skinny_panel)(int64_t rows, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int32_t *acc,
                       int64_t ldacc);
  /* The epilogue: out[m .. m + rows - 1, n .. n + columns - 1] from a tile of sums, whose rows may be read up to the
   * next multiple of 16 columns. */
  void (*epilogue)(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows, int64_t columns, const int32_t *tile,
                   int64_t ldt);
  /* `kernel` and `store` in one for a whole tile and all of K, B in words: the sums stay in registers. False where one
   * of the outputs is NaN, whose bits are then not as they should be. NULL where an instruction set has no such thing.
   */
  bool (*microkernel_fused)(const int4mm_problem *p, int64_t m, int64_t n, const uint32_t *a, const uint32_t *b,
                            const int32_t *acc_init, int4mm_prefetch prefetch);
};

/* Asks for the lines of out that a tile will write, while its sums are computed: they are in nobody's cache. */
static inline void int4mm_prefetch_out(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows) {
  int64_t size = p->out.dtype == INT4MM_FLOAT32 ? 4 : 2, step = p->out.stride * size;
  const char *row = (const char *)p->out.data + m * step + n * size;
  for (int64_t r = 0; r < rows; r++, row += step) __builtin_prefetch(row, 1);
}

/* The product by the driver; OK or INT4MM_ERR_MEMORY, before anything is written. */
int32_t int4mm_gemm(const int4mm_kernels *kernels, const int4mm_problem *problem);
void int4mm_gemm_plan(const int4mm_kernels *kernels, const int4mm_problem *problem, int4mm_plan *plan);

/* Threads worth having for few rows. */
static inline int32_t int4mm_skinny_threads(const int4mm_problem *p) {
  return int4mm_threads_for(p->N * (p->K / 8), 1 << 15);
}

/* The paths of the driver. */
int32_t int4mm_gemm_blocked(const int4mm_kernels *kernels, const int4mm_problem *problem);
int32_t int4mm_gemm_skinny(const int4mm_kernels *kernels, const int4mm_problem *problem);
/* Levels of Strassen for a problem: as it asks, or by measured rules; 0 where they do not fit. */
int32_t int4mm_strassen_levels(const int4mm_kernels *kernels, const int4mm_problem *problem);
int32_t int4mm_gemm_strassen(const int4mm_kernels *kernels, const int4mm_problem *problem, int32_t levels);

/* Scratch memory, 64-byte aligned and in huge pages where large; NULL after recording INT4MM_ERR_MEMORY. A few blocks
 * are kept for the next call, since fresh pages cost more than the packing that fills them. */
void *int4mm_workspace_acquire(int64_t bytes);
void int4mm_workspace_release(void *workspace);

#endif
