/*
 * The product's drivers, shared by the SIMD instruction sets, and the kernels that each instruction set gives them.
 *
 * Layouts of packed operands, for x86's four-byte dot products (AArch64 may order the dwords of a panel differently,
 * since only its own microkernels read them):
 *   - A word holds eight k of one row or column. Its even nibbles, masked, are one dword of four bytes; its odd
 *     nibbles, shifted and masked, the next. A and B are split alike, so both have the same permutation of k and no
 *     shuffle is needed.
 *   - B that is K-major is transposed into words or bytes while it is packed. For few rows of A it is not packed.
 *   - A panel of A: [2 * k8][mr] dwords of signed bytes; the mr dwords that the microkernel broadcasts are contiguous.
 *   - B in words: rows of INT4MM_PANEL words, as in a prepacked weight; the microkernel unpacks them in registers.
 *   - B in bytes: panels of [2 * k8][nr] dwords, unpacked beforehand, where registers are too few for the former.
 *   - vpdpbusd and vpmaddubsw take one unsigned operand and one signed. The signed one is A, which is broadcast; B has
 *     `offset` added. The zero-point correction -offset * (sum over k of a row of A) is the accumulators' initial
 *     value, acc_init.
 *   - An A of int8 is packed like one of int4, so that a microkernel takes both.
 *
 * Groups of k. Where B has group scales, factors or zero points, a product is made group by group, and each group's
 * int32 sums are flushed into the totals of the output:
 *
 *   acc -= (sum over the group of a row of A) * zero;   scales: total = fma(float(acc), scale, total)
 *                                                       factors: total += acc * factor;  neither: total += acc
 *
 * Totals are float32 with scales, else int32, which may wrap like all partial sums. Columns without groups but with
 * zero points are one group.
 */
#ifndef INT4MM_CPU_GEMM_H
#define INT4MM_CPU_GEMM_H

#include "cpu/cpu.h"

/* An mr x nr tile of sums that a microkernel writes or updates. */
typedef struct int4mm_output_tile {
  int32_t *sums;
  int32_t sign; /* 0: store the product, 1: add it, -1: subtract it */
} int4mm_output_tile;

/* What a later call reads: k8 cache lines of 64 bytes, `stride` bytes apart. A microkernel prefetches one line for each
 * word of K that it computes. Hardware prefetchers stop at the end of a page. */
typedef struct int4mm_prefetch {
  const char *line;
  int64_t stride;
} int4mm_prefetch;

/* product[r, c] = acc_init[r] + sum over k of a[r, k] * b[k, c], for r < mr and c < nr, applied to `count` output tiles
 * as their signs say. a: a panel of A, 2 * k8 dwords deep; b: likewise, ldb dwords from row to row; ldt: elements from
 * row to row of every output tile. */
typedef void int4mm_microkernel(int64_t k8, const uint32_t *a, const uint32_t *b, int64_t ldb, const int32_t *acc_init,
                                const int4mm_output_tile *tiles, int32_t count, int64_t ldt, int4mm_prefetch prefetch);

/* What a flush needs besides sums: the scales, factors and zero points of a run of columns, each [groups][ld] or NULL.
 */
typedef struct int4mm_group_columns {
  const float *scales;
  const int32_t *factors;
  const int32_t *zeros;
  int64_t ld;
} int4mm_group_columns;

/* A tile whose K is cut into groups of group8 words, the last of which may be short. */
typedef struct int4mm_group_tile {
  const uint32_t *a, *b;        /* panels, as for int4mm_microkernel */
  int64_t ldb, k8, group8;      /* k8: words of K of the whole tile */
  uint32_t xor_mask;            /* where b is raw words (raw.c): makes them two's complement; else 0 */
  bool a_int8;                  /* A is int8: its products are larger */
  const int32_t *row_sums;      /* [groups][2][mr]: sums of the rows of A over each group, and these times -offset */
  int4mm_group_columns columns; /* of the tile */
  int32_t *totals;              /* [mr][nr], rows ldt apart */
  int64_t ldt;
  int4mm_prefetch prefetch;
  int64_t second_line; /* bytes from each line of prefetch to another one; 0: none */
} int4mm_group_tile;

/* Words of one group for few rows. */
typedef struct int4mm_skinny_group {
  int64_t rows, k8;
  const uint32_t *a; /* expanded rows, lda apart */
  int64_t lda;
  const int32_t *row_sums, *acc_init; /* [rows]: of all of the group */
  int4mm_group_columns columns;
  int32_t *acc, *totals; /* [rows][columns], rows ld apart; acc: sums between the first words and the last */
  int64_t ld;
  bool first, last; /* words of the group */
} int4mm_skinny_group;

/* Few rows and K-major words, group by group. */
typedef struct int4mm_dot_groups {
  int64_t rows, columns, k8, group8;
  const uint32_t *a; /* rows expanded in runs of dot_words, lda apart */
  int64_t lda;
  const uint32_t *b; /* columns ldb apart */
  int64_t ldb;
  uint32_t xor_mask;
  int32_t offset;              /* of the instruction set */
  const int32_t *row_sums;     /* [groups][rows] */
  int4mm_group_columns groups; /* columns in whole vectors */
  int32_t *totals;             /* [rows][columns], ld apart, the same */
  int64_t ld;
} int4mm_dot_groups;

/* What the values of B need to become floats, and the sums of a group: for a run of columns; NULL: none. */
typedef struct int4mm_float_columns {
  const float *scales, *zeros, *factors;
} int4mm_float_columns;

/* Words of B: that of row j and column n is words[j * ld + n / INT4MM_PANEL * panel + n % INT4MM_PANEL]. */
typedef struct int4mm_word_rows {
  const uint32_t *words;
  int64_t ld, panel;
  uint32_t xor_mask; /* makes them two's complement */
} int4mm_word_rows;

/* A tile of a product of floats over a chunk of k. The sums of the chunks of a group are added in group_sums, and with
 * the last of them into totals: total = fma(sum, scale, total). */
typedef struct int4mm_float_tile {
  int32_t rows;               /* 1 to mr */
  int64_t k;                  /* values */
  const float *a, *b;         /* [k][mr], [k][nr] */
  float *group_sums, *totals; /* [rows][nr], rows ld apart */
  int64_t ld;
  const float *scales;
  bool first, last; /* chunk of its group */
} int4mm_float_tile;

/* In all of these k8 counts words of K, and lda, ldb and ldacc are distances of rows in elements. */
struct int4mm_kernels {
  int32_t mr, nr;                /* rows and columns of a microkernel's tile; nr divides INT4MM_PANEL */
  int32_t offset;                /* added to B: 8, or 0 where both operands are signed */
  bool bytes_b;                  /* `microkernel` reads B in bytes, else in words */
  int32_t skinny_max_m;          /* largest M for `skinny` on one thread; at most 64 */
  int32_t skinny_max_m_threaded; /* the same on several, among which it balances less well than the blocked driver */
  int32_t skinny_columns;        /* N of a skinny tile; divides INT4MM_PANEL */
  int32_t skinny_panel_max_m;    /* largest M for `skinny_panel` */
  int32_t skinny_groups_max_m;   /* largest M for both where the product is made group by group: at most 8 */
  int32_t raw_max_m;             /* largest M for the raw driver: its `microkernel_groups` reads raw words; 0: none */
  int32_t dot_words;             /* words of K that `dot` takes at a time */
  int32_t dot_sums;              /* largest tile of `dot`, rows times columns */
  int32_t dot_max_m;             /* largest M for `dot` */
  int32_t dot_groups_max_m;      /* largest M for `dot_groups`: at most 4 */
  int32_t float_rows_max_m;      /* largest M for `rows_float` */
  bool int8_in_groups;           /* an A of int8 takes the way of groups always: the other kernels' sums overflow */
  int32_t strassen;              /* levels that `microkernel_bytes` and the combinations allow: 0 to 2 */

  /* Packs `rows` <= mr rows of k8 words into a panel, with zeros for the rows that are missing; sums[r], r < mr, is the
   * sum of the values of row r. */
  void (*pack_a)(uint32_t *panel, int32_t *sums, const uint32_t *a, int64_t lda, int64_t rows, int64_t k8,
                 uint32_t xor_mask);
  /* The same for rows of k int8, the last word completed with zeros. */
  void (*pack_a_int8)(uint32_t *panel, int32_t *sums, const int8_t *a, int64_t lda, int64_t rows, int64_t k);
  /* Packs k8 rows of `columns` <= nr words as bytes + offset; columns that are missing are undefined. */
  void (*pack_b)(uint32_t *panel, const uint32_t *b, int64_t ldb, int64_t columns, int64_t k8, uint32_t xor_mask,
                 int32_t offset);
  int4mm_transpose_words *transpose;
  /* dst[j, c] = src[j, c] ^ xor_mask for j < k8 and c < columns, 0 for columns <= c < INT4MM_PANEL, which is dst's
   * width. NULL with bytes_b. */
  void (*copy_words)(uint32_t *dst, const uint32_t *src, int64_t ld, int64_t columns, int64_t k8, uint32_t xor_mask);
  int4mm_microkernel *microkernel;
  /* For Strassen: A any signed bytes, B any unsigned ones. NULL without it. */
  int4mm_microkernel *microkernel_bytes;
  /* `microkernel` and `epilogue` in one, for a whole tile over all of K with B in words: the sums never leave the
   * registers. Returns false where an output is NaN, whose bits are then wrong: the caller computes the tile again.
   * NULL: none. */
  bool (*microkernel_fused)(const int4mm_problem *p, int64_t m, int64_t n, const uint32_t *a, const uint32_t *b,
                            const int32_t *acc_init, int4mm_prefetch prefetch);
  /* Adds a tile's product to its totals, group by group. */
  void (*microkernel_groups)(const int4mm_group_tile *tile);
  /* `skinny` for k8 words of one group, with its first words from acc_init[m] on, and with its last ones flushed. */
  void (*skinny_group)(const int4mm_skinny_group *part, int64_t columns, const uint32_t *b, int64_t ldb,
                       uint32_t xor_mask);

  /* W4A16. nr columns of B as floats, [8 * k8][nr]. */
  void (*unpack_float)(float *b, const uint32_t *words, int64_t ld, int64_t k8, uint32_t xor_mask,
                       const int4mm_float_columns *columns);
  void (*microkernel_float)(const int4mm_float_tile *tile);
  /* acc[m, n] += sum over k of a[m, k] * b[k, n], one k after the other, for 1 to 4 rows; columns: a multiple of
   * skinny_columns. */
  void (*rows_float)(int64_t rows, int64_t columns, int64_t k, const float *a, int64_t lda,
                     const int4mm_word_rows *words, const int4mm_float_columns *values, float *acc, int64_t ldacc);
  /* What a tile does with its sums, for a row of them; acc becomes 0. */
  void (*flush_float)(int64_t columns, float *acc, float *group_sums, float *totals, const float *scales, bool first,
                      bool last);

  /* Strassen's 7 or 49 combinations of 2 x 2 or 4 x 4 blocks, src_step and dst_step bytes apart; B's plus offset. */
  void (*combine_a)(int8_t *dst, int64_t dst_step, const int8_t *src, int64_t src_step, int64_t bytes, int32_t levels);
  void (*combine_b)(int8_t *dst, int64_t dst_step, const int8_t *src, int64_t src_step, int64_t bytes, int32_t levels,
                    int32_t offset);

  /* Unpacks one row of A into 2 * k8 dwords of signed bytes; returns the sum of its values. In runs of `run` words, 1
   * or dot_words: first the even nibbles of a run, then the odd ones; the last one is completed with zeros. */
  int32_t (*expand)(uint32_t *dwords, const uint32_t *a, int64_t k8, uint32_t xor_mask, int64_t run);
  /* acc[m, n] += sum over k of a[m, k] * (b[k, n] + offset) for m < rows and n < columns, a multiple of skinny_columns.
   * a: expanded rows; b: raw words, each read once, in runs of `columns`. */
  void (*skinny)(int64_t rows, int64_t columns, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b,
                 int64_t ldb, uint32_t xor_mask, int32_t *acc, int64_t ldacc);
  /* The same for one prepacked panel: INT4MM_PANEL columns. */
  void (*skinny_panel)(int64_t rows, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int32_t *acc,
                       int64_t ldacc);

  /* acc[m, n] += sum over k of a[m, k] * (b[n, k] + offset) for m < rows and n < columns, any number. a: rows expanded
   * in runs of dot_words; b: raw K-major words, ldb from column to column. */
  void (*dot)(int64_t rows, int64_t columns, int64_t k8, const uint32_t *a, int64_t lda, const uint32_t *b, int64_t ldb,
              uint32_t xor_mask, int32_t *acc, int64_t ldacc);

  /* The same group by group: totals as skinny_group has them. */
  void (*dot_groups)(const int4mm_dot_groups *job);

  /* out[m .. m + rows - 1, n .. n + columns - 1] from sums, which are float32 where int4mm_has_float_sums. Rows of acc
   * are read up to a multiple of 16 columns. */
  void (*epilogue)(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows, int64_t columns, const int32_t *acc,
                   int64_t ldacc);
  const int4mm_rows *rows;
};

/* Whether B has more than a scale for each column: groups, or columns that are one group. */
static inline bool int4mm_has_groups(const int4mm_problem *p) {
  return p->b.group_scales.data || p->b.factors.data || p->b.zeros.data;
}

/* Whether a product is made group by group. */
static inline bool int4mm_in_groups(const int4mm_kernels *kernels, const int4mm_problem *p) {
  return int4mm_has_groups(p) || (kernels->int8_in_groups && p->a.dtype == INT4MM_INT8);
}

/* Words of K to a group; all of K where there are no groups. */
static inline int64_t int4mm_group8(const int4mm_problem *p) {
  return int4mm_max64(1, int4mm_has_groups(p) && p->b.group < p->K ? p->b.group / 8 : int4mm_words_of_k(p));
}

/* Row `group` of the scales, factors and zero points, columns n .. n + columns - 1 and zeros up to `width`, in what is
 * there of these arrays. */
void int4mm_load_group(const int4mm_kernels *kernels, const int4mm_problem *p, int64_t group, int64_t n,
                       int64_t columns, int64_t width, float *scales, int32_t *factors, int32_t *zeros);

/* The four even and four odd bytes of eight. */
static inline uint32_t int4mm_even_bytes(uint64_t x) {
  x &= 0x00ff00ff00ff00ffu;
  x = (x | x >> 8) & 0x0000ffff0000ffffu;
  return (uint32_t)(x | x >> 16);
}
static inline uint32_t int4mm_odd_bytes(uint64_t x) {
  return int4mm_even_bytes(x >> 8);
}

/* Packs words j .. j + k8 - 1 of K of `rows` <= mr rows of A, from row m on, as int4mm_kernels.pack_a does. */
void int4mm_pack_rows(const int4mm_kernels *kernels, const int4mm_problem *p, int64_t m, int64_t rows, int64_t j,
                      int64_t k8, uint32_t *panel, int32_t *sums);

/* int4mm_kernels.expand for a row of k int8. */
int32_t int4mm_expand_int8(uint32_t *dwords, const int8_t *a, int64_t k, int64_t run);

/* Prefetches for writing the lines of out that a tile covers, so that the epilogue's stores do not wait for memory. */
static inline void int4mm_prefetch_out(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows) {
  int64_t size = p->out.dtype == INT4MM_FLOAT32 ? 4 : 2, step = p->out.stride * size;
  const char *row = (const char *)p->out.data + m * step + n * size;
  for (int64_t r = 0; r < rows; r++, row += step) __builtin_prefetch(row, 1);
}

/* The product by the driver that suits its shape: OK, or INT4MM_ERR_MEMORY before anything is written. */
int32_t int4mm_gemm(const int4mm_kernels *kernels, const int4mm_problem *problem);
/* Tile and reason of what int4mm_gemm would do. */
void int4mm_gemm_plan(const int4mm_kernels *kernels, const int4mm_problem *problem, int4mm_plan *plan);

/* Packs words j .. j + k8 - 1 of K of columns n .. n + columns - 1, at most nr, of B in any layout as bytes + offset.
 */
void int4mm_pack_b(const int4mm_kernels *kernels, const int4mm_problem *p, int64_t j, int64_t n, int64_t columns,
                   int64_t k8, int32_t offset, uint32_t *panel);

/* The drivers. */
int32_t int4mm_gemm_blocked(const int4mm_kernels *kernels, const int4mm_problem *problem);
int32_t int4mm_gemm_skinny(const int4mm_kernels *kernels, const int4mm_problem *problem);
int32_t int4mm_gemm_raw(const int4mm_kernels *kernels, const int4mm_problem *problem);
int32_t int4mm_gemm_float(const int4mm_kernels *kernels, const int4mm_problem *problem); /* W4A16 */
int32_t int4mm_gemm_strassen(const int4mm_kernels *kernels, const int4mm_problem *problem, int32_t levels);
/* Whether the raw driver can serve a problem, and is faster than the skinny one where that can, too. */
bool int4mm_is_raw(const int4mm_kernels *kernels, const int4mm_problem *problem, bool skinny);
/* Levels of Strassen for a problem: those it names, or by measured rules; 0 where Strassen does not apply, as where the
 * problem is not elementary. */
int32_t int4mm_strassen_levels(const int4mm_kernels *kernels, const int4mm_problem *problem);

/* Threads that the skinny driver uses. */
static inline int32_t int4mm_skinny_threads(const int4mm_problem *p) {
  return int4mm_threads_for(p->N * int4mm_words_of_k(p), 1 << 15);
}

#endif
