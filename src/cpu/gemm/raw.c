/*
 * The raw driver, for some tiles of rows: too few for packing B to pay. The microkernel of groups reads words of B
 * where they are. It goes along K in parts, each for all columns of a piece, so that a tile's sums stay in registers
 * for a part, whose words are read in runs as long as possible; totals stay in the second-level cache.
 *
 * For an MN-major B and instruction sets whose microkernels unpack words. A product without groups is made in groups of
 * a part, whose int32 sums are added. Threads divide the columns.
 */
#include <string.h>

#include "cpu/gemm/gemm.h"

enum {
  PART_K8 = 16,             /* words of K in a part of several groups, or of a product without: the rows of a few parts
                               share few sets of the caches where they are some pages apart */
  MAX_GROUP8 = 256,         /* words of K in a group, which is then a part */
  PACKED_A_BYTES = 8 << 20, /* the most that A may take, packed */
  TOTALS = 16 << 10,        /* of a thread */
  PIECES = 4,               /* for each thread, where there are enough columns */
  ROW_PAD = 16              /* floats after each row: rows 4 KiB apart would map to the same cache sets */
};

typedef struct raw_gemm {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int64_t k8, group8, part8; /* words of K; of a group and a part */
  int64_t groups;            /* in all of K */
  int64_t tiles;             /* of mr rows */
  int64_t width, ld;         /* columns of a piece, and from row to row of what is kept of them */
  uint32_t *a;               /* [tiles][2 * k8][mr]: packed A */
  int32_t *row_sums;         /* [tiles][groups][2][mr], as in int4mm_group_tile */
  int32_t *totals;           /* [threads][tiles * mr][ld] */
  int32_t *columns;          /* [threads][3][part8 / group8][ld]: scales, factors and zero points of a part */
} raw_gemm;

/* A part of one piece: words j .. j + k8 - 1 of K, columns from n on. */
typedef struct raw_part {
  int64_t j, k8, n, columns;
  int4mm_group_columns values;
  int32_t *totals;
} raw_part;

/* A tile takes as long with fewer rows. By measurements on Zen 5 and Sapphire Rapids it beats the skinny driver from
 * 0.6 times its rows on where that flushes groups row by row, else from 0.85 times two tiles on. */
bool int4mm_is_raw(const int4mm_kernels *kernels, const int4mm_problem *p, bool skinny) {
  int64_t mr = kernels->mr, rows = int4mm_round_up(p->M, mr);
  if (p->M > kernels->raw_max_m || p->b.layout != INT4MM_MN_MAJOR) return false;
  if (rows * 8 * int4mm_words_of_k(p) > PACKED_A_BYTES || (int4mm_has_groups(p) && int4mm_group8(p) > MAX_GROUP8))
    return false;
  if (!skinny) return p->M > mr;
  return int4mm_has_groups(p) ? 10 * p->M >= 6 * rows : rows > mr && 100 * p->M >= 85 * rows;
}

/* Packs a part of a tile of A, by groups. */
static void pack_part(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const raw_gemm *g = context;
  int64_t mr = g->k->mr, tile = index % g->tiles, m = tile * mr, rows = int4mm_min64(mr, g->p->M - m), here;
  int64_t j0 = index / g->tiles * g->part8, j1 = int4mm_min64(j0 + g->part8, g->k8);
  int32_t *sums = g->row_sums + (tile * g->groups + j0 / g->group8) * 2 * mr;
  for (int64_t j = j0; j < j1; j += here, sums += 2 * mr) {
    here = int4mm_min64(g->group8, j1 - j);
    int4mm_pack_rows(g->k, g->p, m, rows, j, here, g->a + (tile * g->k8 + j) * 2 * mr, sums);
    for (int64_t i = 0; i < mr; i++) sums[mr + i] = sums[i] * -g->k->offset;
  }
}

/* The scales, factors and zero points of the groups of a part. */
static int4mm_group_columns load_columns(const raw_gemm *g, const raw_part *part, int32_t slot) {
  const int4mm_operand *b = &g->p->b;
  if (!int4mm_has_groups(g->p)) return (int4mm_group_columns){.ld = g->ld};
  int64_t size = g->part8 / g->group8 * g->ld, wide = int4mm_round_up(part->columns, g->k->nr);
  int32_t *first = g->columns + slot * 3 * size, *at = first;
  for (int64_t j = part->j; j < part->j + part->k8; j += g->group8, at += g->ld) {
    int4mm_load_group(g->k, g->p, j / g->group8, part->n, part->columns, wide, (float *)(void *)at, at + size,
                      at + 2 * size);
  }
  return (int4mm_group_columns){.scales = b->group_scales.data ? (const float *)(const void *)first : NULL,
                                .factors = b->factors.data ? first + size : NULL,
                                .zeros = b->zeros.data ? first + 2 * size : NULL,
                                .ld = g->ld};
}

/* Sets what tile t of the columns from c on prefetches of the next part: along its rows, which hardware prefetchers
 * follow, or its own columns where rows are short. One tile of rows prefetches two lines a word: a part has as many. */
static void set_prefetch(const raw_gemm *g, const raw_part *part, int64_t c, int64_t t, int4mm_group_tile *tile) {
  enum { LINE = 16 }; /* words */
  const int4mm_operand *b = &g->p->b;
  const uint32_t *next = b->words + (part->j + part->k8) * b->stride + part->n;
  int64_t lines = part->columns / LINE, rows = int4mm_min64(part->k8, g->k8 - part->j - part->k8);
  int64_t each = g->tiles * LINE < g->k->nr ? 2 : 1, at = (c / g->k->nr * g->tiles + t) * part->k8 * each;
  tile->second_line = 64 * (each - 1);
  if (lines >= part->k8 * each && at < rows * lines) {
    tile->prefetch = (int4mm_prefetch){(const char *)(next + at / lines * b->stride + at % lines * LINE), 64 * each};
  } else if (lines < part->k8 * each && rows == part->k8 && t * LINE < g->k->nr) {
    tile->prefetch = (int4mm_prefetch){(const char *)(next + c + LINE * t), 4 * b->stride};
  } else {
    tile->prefetch = (int4mm_prefetch){(const char *)b->words, 0};
  }
}

/* The tiles of nr columns, from column c of a part on. words: of these, ld from row to row, decoded by xor_mask. */
static void multiply_columns(const raw_gemm *g, const raw_part *part, int64_t c, const uint32_t *words, int64_t ld,
                             uint32_t xor_mask) {
  int64_t mr = g->k->mr;
  int4mm_group_tile tile = {.b = words, .ldb = ld, .xor_mask = xor_mask, .k8 = part->k8, .group8 = g->group8};
  tile.a_int8 = g->p->a.dtype == INT4MM_INT8;
  tile.columns = part->values;
  if (tile.columns.scales) tile.columns.scales += c;
  if (tile.columns.factors) tile.columns.factors += c;
  if (tile.columns.zeros) tile.columns.zeros += c;
  tile.ldt = g->ld;
  for (int64_t t = 0; t < g->tiles; t++) {
    tile.a = g->a + (t * g->k8 + part->j) * 2 * mr;
    tile.row_sums = g->row_sums + (t * g->groups + part->j / g->group8) * 2 * mr;
    tile.totals = part->totals + t * mr * g->ld + c;
    set_prefetch(g, part, c, t, &tile);
    g->k->microkernel_groups(&tile);
  }
}

static void multiply_part(const raw_gemm *g, const raw_part *part) {
  const int4mm_operand *b = &g->p->b;
  int64_t nr = g->k->nr, c = 0;
  const uint32_t *row = b->words + part->j * b->stride + part->n;
  for (; c + nr <= part->columns; c += nr) multiply_columns(g, part, c, row + c, b->stride, b->xor_mask);
  if (c == part->columns) return;
  uint32_t words[MAX_GROUP8 * INT4MM_PANEL]; /* the last columns: reading beyond N would be out of bounds */
  g->k->copy_words(words, row + c, b->stride, part->columns - c, part->k8, b->xor_mask);
  multiply_columns(g, part, c, words, INT4MM_PANEL, 0);
}

static void piece(void *context, int64_t index, int32_t slot) {
  const raw_gemm *g = context;
  const int4mm_problem *p = g->p;
  int64_t size = g->tiles * g->k->mr * g->ld;
  raw_part part = {.n = index * g->width, .totals = g->totals + slot * size};
  part.columns = int4mm_min64(g->width, p->N - part.n);
  memset(part.totals, 0, (size_t)size * 4);
  for (; part.j < g->k8; part.j += part.k8) {
    part.k8 = int4mm_min64(g->part8, g->k8 - part.j);
    part.values = load_columns(g, &part, slot);
    multiply_part(g, &part);
  }
  g->k->epilogue(p, 0, part.n, p->M, part.columns, part.totals, g->ld);
}

int32_t int4mm_gemm_raw(const int4mm_kernels *kernels, const int4mm_problem *p) {
  raw_gemm g = {.k = kernels, .p = p, .k8 = int4mm_words_of_k(p)};
  int32_t threads = int4mm_threads_for(p->M * p->N, int4mm_max64(1, (1 << 21) / int4mm_max64(p->K, 1)));
  int64_t mr = kernels->mr, panels = int4mm_ceil_div(p->N, INT4MM_PANEL);
  g.group8 = int4mm_has_groups(p) ? int4mm_group8(p) : PART_K8;
  g.part8 = g.group8 < PART_K8 ? PART_K8 / g.group8 * g.group8 : g.group8;
  g.groups = int4mm_ceil_div(g.k8, g.group8);
  g.tiles = int4mm_ceil_div(p->M, mr);
  int64_t most = int4mm_max64(1, TOTALS / (g.tiles * mr) / INT4MM_PANEL);
  int64_t pieces = int4mm_max64(int4mm_ceil_div(panels, most), threads > 1 ? PIECES * threads : 1);
  g.width = int4mm_ceil_div(panels, int4mm_min64(pieces, panels)) * INT4MM_PANEL;
  g.ld = g.width + ROW_PAD;
  int64_t a = int4mm_round_up(g.tiles * mr * g.k8 * 8, 64), sums = g.tiles * int4mm_max64(1, g.groups) * 2 * mr * 4;
  int64_t totals = 4 * threads * g.tiles * mr * g.ld;
  char *memory = int4mm_workspace_acquire(a + sums + totals + 4 * threads * 3 * (g.part8 / g.group8) * g.ld);
  if (!memory) return INT4MM_ERR_MEMORY;
  g.a = (uint32_t *)memory;
  g.row_sums = (int32_t *)(memory + a);
  g.totals = (int32_t *)(memory + a + sums);
  g.columns = (int32_t *)(memory + a + sums + totals);
  int4mm_parallel(threads, g.tiles * int4mm_ceil_div(g.k8, g.part8), pack_part, &g);
  int4mm_parallel(threads, int4mm_ceil_div(p->N, g.width), piece, &g);
  int4mm_workspace_release(g.a);
  return INT4MM_OK;
}
