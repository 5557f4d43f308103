/*
 * The driver for an A of floats (W4A16). B's values become float32 exactly, a chunk of k of a panel at a time, which
 * all rows of a block of A then read from the first-level cache; few rows take them from registers.
 *
 * The order of the sums (float.inc) is fixed by K and the group alone, so that a row has the same bits in any company
 * and on any number of threads, and so are the chunks: sums one after the other err by a rounding for each, and the
 * bound of int4mm.h allows 16 + K/8 of them. A product passes as many as its chunk has values, one for each chunk of
 * its group and one for each group.
 */
#include <string.h>

#include "cpu/gemm/gemm.h"

enum {
  MAX_CHUNK = 128, /* values of k */
  MIN_CHUNK = 16,
  BLOCK_SUMS = 24 << 10, /* totals of a block: the second-level cache holds them */
  ROW_STRIP = 2048,      /* columns that few rows take at a time, with BLOCK_SUMS totals at most */
  FEW_ROWS = 4,          /* rows that share the values in registers */
  NARROW_STRIP = 128,    /* the same of K-major and prepacked weights: all of them are read along K at once */
  K_MAJOR_ROWS = 32,     /* up to which that holds for a block of rows and a K-major weight, too */
  K_MAJOR_AHEAD = 64,    /* words that each of these streams is prefetched ahead */
  BLOCK_ROWS = 192,
  PACKED_A_BYTES = 32 << 20 /* of A in floats at a time */
};

typedef struct float_gemm {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int64_t chunk; /* values of k */
  int64_t group; /* values of k; K where there is one group */
  int64_t rows;  /* of the block of A that is packed, from row m0 on */
  int64_t m0;
  int64_t width; /* columns of a piece */
  int64_t block; /* rows of a piece */
  bool few;      /* rows: their values of B are taken from registers */
  float *a;      /* packed (panel_of_a); of few rows [rows][K] */
  char *scratch; /* of each thread */
  int64_t scratch_bytes;
} float_gemm;

/* A thread's scratch. */
typedef struct scratch {
  float *totals, *group_sums;      /* [block][width] */
  float *acc;                      /* the same: of few rows */
  float *scales, *zeros, *factors; /* [width] */
  float *b;                        /* [INT4MM_PANEL / nr][MAX_CHUNK][nr] */
} scratch;

/* Roundings that a product passes with chunks of this length. */
static int64_t roundings(const float_gemm *g, int64_t chunk) {
  return chunk + int4mm_ceil_div(g->group, chunk) + int4mm_ceil_div(g->p->K, g->group);
}

static void choose_chunk(float_gemm *g) {
  const int4mm_problem *p = g->p;
  g->group = int4mm_max64(1, int4mm_has_groups(p) ? int4mm_min64(p->b.group, p->K) : p->K);
  g->chunk = MAX_CHUNK;
  while (g->chunk > MIN_CHUNK && roundings(g, g->chunk) > 16 + p->K / 8) g->chunk /= 2;
}

/* ---- operands ---------------------------------------------------------------------------------------------------- */

static const void *row_of_a(const int4mm_problem *p, int64_t m) {
  return (const char *)p->a.data + m * p->a.stride * (int64_t)int4mm_dtype_size(p->a.dtype);
}

/* The chunk that starts at k: its length. */
static int64_t chunk_at(const float_gemm *g, int64_t k) {
  return int4mm_min64(g->chunk, int4mm_min64(g->group - k % g->group, g->p->K - k));
}

/* Where chunk k of the tile from row m on lies in the packed A: chunks one after the other, in each the tiles, so that
 * what a chunk of B is multiplied by is contiguous. */
static float *panel_of_a(const float_gemm *g, int64_t k, int64_t m) {
  return g->a + k * int4mm_round_up(g->rows, g->k->mr) + m * chunk_at(g, k);
}

/* Packs mr rows of A. */
static void pack_tile(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const float_gemm *g = context;
  const int4mm_problem *p = g->p;
  int64_t mr = g->k->mr, m = index * mr, size = (int64_t)int4mm_dtype_size(p->a.dtype), count;
  float row[MAX_CHUNK];
  for (int64_t k = 0; k < p->K; k += count) {
    count = chunk_at(g, k);
    float *panel = panel_of_a(g, k, m);
    for (int64_t r = 0; r < mr; r++) {
      if (m + r < g->rows) {
        g->k->rows->to_float(row, (const char *)row_of_a(p, g->m0 + m + r) + k * size, p->a.dtype, count);
      } else {
        memset(row, 0, sizeof row);
      }
      for (int64_t i = 0; i < count; i++) panel[i * mr + r] = row[i];
    }
  }
}

/* `columns` columns of one row of a matrix of groups as floats, zeros up to `width`. Prefetches those of the next. */
static const float *load_row(const float_gemm *g, float *dst, const int4mm_matrix *matrix, int64_t group, int64_t n,
                             int64_t columns, int64_t width) {
  if (!matrix->data) return NULL;
  int64_t size = (int64_t)int4mm_dtype_size(matrix->dtype);
  const char *row = (const char *)matrix->data + (group * matrix->stride + n) * size;
  for (int64_t i = 0; i < columns * size; i += 64) __builtin_prefetch(row + matrix->stride * size + i, 0, 2);
  g->k->rows->to_float(dst, row, matrix->dtype, columns);
  memset(dst + columns, 0, (size_t)(width - columns) * 4);
  return dst;
}

/* The same of all that group has, and its scales, or those of the columns. */
static int4mm_float_columns load_columns(const float_gemm *g, const scratch *s, int64_t group, int64_t n,
                                         int64_t columns, int64_t width) {
  const int4mm_operand *b = &g->p->b;
  int4mm_float_columns to = {.zeros = load_row(g, s->zeros, &b->zeros, group, n, columns, width),
                             .factors = load_row(g, s->factors, &b->factors, group, n, columns, width)};
  if (!load_row(g, s->scales, &b->group_scales, group, n, columns, width)) {
    memcpy(s->scales, b->scales + n, (size_t)columns * 4);
    memset(s->scales + columns, 0, (size_t)(width - columns) * 4);
  }
  to.scales = s->scales;
  return to;
}

/* Words j .. j + k8 - 1 of at most a panel of columns, or NARROW_STRIP K-major ones: where they are, or in `buffer`. */
static int4mm_word_rows rows_of_b(const float_gemm *g, int64_t j, int64_t n, int64_t columns, int64_t k8,
                                  uint32_t *buffer) {
  const int4mm_operand *b = &g->p->b;
  const uint32_t *words = int4mm_b_word(g->p, j, n);
  if (int4mm_is_panels(b)) return (int4mm_word_rows){words, INT4MM_PANEL, INT4MM_PANEL, 0};
  if (int4mm_is_k_major(b)) {
    int64_t wide = int4mm_round_up(columns, INT4MM_PANEL);
    for (int64_t c = 0; c < columns; c++) __builtin_prefetch(words + c * b->stride + K_MAJOR_AHEAD, 0, 2);
    g->k->transpose(buffer, wide, words, b->stride, columns, k8, b->xor_mask);
    return (int4mm_word_rows){buffer, wide, INT4MM_PANEL, 0};
  }
  if (columns == INT4MM_PANEL) return (int4mm_word_rows){words, b->stride, INT4MM_PANEL, b->xor_mask};
  for (int64_t i = 0; i < k8; i++) {
    for (int64_t c = 0; c < INT4MM_PANEL; c++) {
      buffer[i * INT4MM_PANEL + c] = c < columns ? words[i * b->stride + c] : 0;
    }
  }
  return (int4mm_word_rows){buffer, INT4MM_PANEL, INT4MM_PANEL, b->xor_mask};
}

enum { BUFFER_WORDS = MAX_CHUNK / 8 * NARROW_STRIP };

static int4mm_float_columns columns_from(const int4mm_float_columns *columns, int64_t c) {
  return (int4mm_float_columns){.scales = columns->scales + c,
                                .zeros = columns->zeros ? columns->zeros + c : NULL,
                                .factors = columns->factors ? columns->factors + c : NULL};
}

/* ---- a block of rows --------------------------------------------------------------------------------------------- */

/* B's values k .. k + length - 1 of a panel of columns, c of the strip and those after it, in floats. */
static void unpack_panel(const float_gemm *g, const scratch *s, const int4mm_float_columns *columns, int64_t k,
                         int64_t length, int64_t n, int64_t c, int64_t count) {
  uint32_t buffer[BUFFER_WORDS];
  int64_t k8 = int4mm_ceil_div(length, 8), nr = g->k->nr;
  int4mm_word_rows rows = rows_of_b(g, k / 8, n + c, int4mm_min64(INT4MM_PANEL, count - c), k8, buffer);
  for (int64_t i = 0; i < INT4MM_PANEL; i += nr) {
    int4mm_float_columns here = columns_from(columns, c + i);
    g->k->unpack_float(s->b + i * MAX_CHUNK, rows.words + i, rows.ld, k8, rows.xor_mask, &here);
  }
}

/* A block of rows by columns from n on, before the epilogue. */
typedef struct block {
  int64_t m, rows, n, columns;
} block;

/* A chunk, values k .. k + length - 1: panel by panel, each for all rows while the first-level cache has it. */
static void multiply_chunk(const float_gemm *g, const scratch *s, const int4mm_float_columns *columns, const block *o,
                           int64_t k, int64_t length, bool first, bool last) {
  int64_t mr = g->k->mr, nr = g->k->nr;
  for (int64_t c = 0; c < o->columns; c += nr) {
    if (c % INT4MM_PANEL == 0) unpack_panel(g, s, columns, k, length, o->n, c, o->columns);
    for (int64_t r = 0; r < o->rows; r += mr) {
      int64_t at = r * g->width + c;
      int4mm_float_tile tile = {.rows = (int32_t)int4mm_min64(mr, o->rows - r), .k = length, .ld = g->width};
      tile.a = panel_of_a(g, k, o->m + r), tile.b = s->b + c % INT4MM_PANEL * MAX_CHUNK;
      tile.group_sums = s->group_sums + at, tile.totals = s->totals + at;
      tile.scales = columns->scales + c;
      tile.first = first, tile.last = last;
      g->k->microkernel_float(&tile);
    }
  }
}

static void run_block(const float_gemm *g, const scratch *s, const block *o) {
  int64_t wide = int4mm_round_up(o->columns, INT4MM_PANEL);
  memset(s->totals, 0, (size_t)(o->rows * g->width) * 4);
  for (int64_t group = 0; group * g->group < g->p->K; group++) {
    int64_t begin = group * g->group, end = int4mm_min64(begin + g->group, g->p->K);
    int4mm_float_columns values = load_columns(g, s, group, o->n, o->columns, wide);
    for (int64_t k = begin, length; k < end; k += length) {
      length = chunk_at(g, k);
      multiply_chunk(g, s, &values, o, k, length, k == begin, k + length == end);
    }
  }
}

/* ---- few rows ---------------------------------------------------------------------------------------------------- */

/* acc += the products of a chunk with `columns` columns from column c of a strip on. */
static void multiply_rows(const float_gemm *g, const scratch *s, const int4mm_float_columns *values, int64_t k,
                          int64_t length, int64_t c, int64_t columns, const int4mm_word_rows *words) {
  int4mm_float_columns here = columns_from(values, c);
  for (int64_t m = 0; m < g->rows; m += FEW_ROWS) {
    g->k->rows_float(int4mm_min64(FEW_ROWS, g->rows - m), columns, length, g->a + m * g->p->K + k, g->p->K, words,
                     &here, s->acc + m * g->width + c, g->width);
  }
}

/* Words from row j and column n on where they are: raw or prepacked ones. */
static int4mm_word_rows words_in_place(const float_gemm *g, int64_t j, int64_t n) {
  const int4mm_operand *b = &g->p->b;
  const uint32_t *words = int4mm_b_word(g->p, j, n);
  if (!int4mm_is_panels(b)) return (int4mm_word_rows){words, b->stride, INT4MM_PANEL, b->xor_mask};
  return (int4mm_word_rows){words, INT4MM_PANEL, int4mm_words_of_k(g->p) * INT4MM_PANEL, 0};
}

/* A chunk of a strip. Whole panels at once, raw words in long sequential reads. */
static void multiply_strip(const float_gemm *g, const scratch *s, const int4mm_float_columns *values, int64_t k,
                           int64_t length, int64_t n, int64_t columns) {
  const int4mm_operand *b = &g->p->b;
  int64_t whole = int4mm_is_k_major(b) ? 0 : columns / INT4MM_PANEL * INT4MM_PANEL;
  int64_t step = int4mm_is_k_major(b) ? NARROW_STRIP : INT4MM_PANEL;
  uint32_t buffer[BUFFER_WORDS];
  if (whole) {
    int4mm_word_rows rows = words_in_place(g, k / 8, n);
    multiply_rows(g, s, values, k, length, 0, whole, &rows);
  }
  for (int64_t c = whole; c < columns; c += step) {
    int64_t count = int4mm_min64(step, columns - c);
    int4mm_word_rows rows = rows_of_b(g, k / 8, n + c, count, int4mm_ceil_div(length, 8), buffer);
    multiply_rows(g, s, values, k, length, c, int4mm_round_up(count, INT4MM_PANEL), &rows);
  }
}

static void run_rows(const float_gemm *g, const scratch *s, int64_t n, int64_t columns) {
  int64_t wide = int4mm_round_up(columns, INT4MM_PANEL), size = g->rows * g->width;
  memset(s->totals, 0, (size_t)size * 4);
  memset(s->acc, 0, (size_t)size * 4);
  for (int64_t group = 0; group * g->group < g->p->K; group++) {
    int64_t begin = group * g->group, end = int4mm_min64(begin + g->group, g->p->K);
    int4mm_float_columns values = load_columns(g, s, group, n, columns, wide);
    for (int64_t k = begin, length; k < end; k += length) {
      length = chunk_at(g, k);
      multiply_strip(g, s, &values, k, length, n, columns);
      for (int64_t at = 0; at < size; at += g->width) {
        g->k->flush_float(wide, s->acc + at, s->group_sums + at, s->totals + at, values.scales, k == begin,
                          k + length == end);
      }
    }
  }
}

/* ---- the product ------------------------------------------------------------------------------------------------- */

static scratch scratch_of(const float_gemm *g, int32_t slot) {
  float *at = (float *)(void *)(g->scratch + slot * g->scratch_bytes);
  int64_t width = g->width, size = g->block * width;
  scratch s = {.totals = at, .group_sums = at + size, .acc = at + 2 * size};
  at += g->few ? 3 * size : 2 * size;
  s.scales = at, s.zeros = at + width, s.factors = at + 2 * width, s.b = at + 3 * width;
  return s;
}

static int64_t strips(const float_gemm *g) {
  return int4mm_ceil_div(g->p->N, g->width);
}

static void piece(void *context, int64_t index, int32_t slot) {
  const float_gemm *g = context;
  const int4mm_problem *p = g->p;
  scratch s = scratch_of(g, slot);
  int64_t n = index % strips(g) * g->width, columns = int4mm_min64(g->width, p->N - n);
  int64_t m = index / strips(g) * g->block, rows = int4mm_min64(g->block, g->rows - m);
  if (g->few) {
    run_rows(g, &s, n, columns);
  } else {
    run_block(g, &s, &(block){m, rows, n, columns});
  }
  g->k->epilogue(p, g->m0 + m, n, rows, columns, (const int32_t *)(const void *)s.totals, g->width);
}

/* Rows and columns of pieces. */
static void choose_pieces(float_gemm *g, int32_t threads) {
  int64_t mr = g->k->mr, panels = int4mm_ceil_div(g->p->N, INT4MM_PANEL);
  bool narrow = int4mm_is_k_major(&g->p->b) ? g->p->M <= K_MAJOR_ROWS : g->few && int4mm_is_panels(&g->p->b);
  int64_t strip = narrow ? NARROW_STRIP : ROW_STRIP;
  int64_t blocks = g->few ? 1 : int4mm_ceil_div(g->p->M, BLOCK_ROWS);
  g->block = g->few ? g->p->M : int4mm_round_up(int4mm_ceil_div(g->p->M, blocks), mr);
  int64_t most = int4mm_max64(INT4MM_PANEL, int4mm_min64(strip, BLOCK_SUMS / g->block));
  int64_t pieces = int4mm_ceil_div(panels * INT4MM_PANEL, most); /* at least: a few for each thread, if there are */
  int64_t share = g->few ? threads : int4mm_ceil_div(4 * threads, blocks);
  if (threads > 1) pieces = int4mm_max64(pieces, int4mm_min64(panels, share));
  g->width = int4mm_ceil_div(panels, pieces) * INT4MM_PANEL;
}

/* A row of A is float32 already, or made so. */
static void load_row_of_a(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const float_gemm *g = context;
  g->k->rows->to_float(g->a + index * g->p->K, row_of_a(g->p, index), g->p->a.dtype, g->p->K);
}

int32_t int4mm_gemm_float(const int4mm_kernels *kernels, const int4mm_problem *p) {
  float_gemm g = {.k = kernels, .p = p};
  int32_t threads = int4mm_threads_for(p->M * p->N, int4mm_max64(1, (1 << 18) / int4mm_max64(p->K, 1)));
  g.few = p->M <= kernels->float_rows_max_m;
  choose_chunk(&g);
  choose_pieces(&g, threads);
  int64_t row_bytes = 4 * int4mm_max64(p->K, 1);
  int64_t most = int4mm_max64(g.block, PACKED_A_BYTES / row_bytes / g.block * g.block);
  int64_t rows = g.few ? p->M : int4mm_min64(most, int4mm_round_up(p->M, kernels->mr));
  int64_t a = int4mm_round_up(rows * row_bytes, 64);
  g.scratch_bytes = 4 * (((g.few ? 3 : 2) * g.block + 3) * g.width + (g.few ? 0 : MAX_CHUNK * INT4MM_PANEL));
  char *memory = int4mm_workspace_acquire(a + threads * g.scratch_bytes);
  if (!memory) return INT4MM_ERR_MEMORY;
  g.a = (float *)(void *)memory;
  g.scratch = memory + a;
  for (g.m0 = 0; g.m0 < p->M; g.m0 += rows) {
    g.rows = int4mm_min64(rows, p->M - g.m0);
    if (g.few) {
      int4mm_parallel(1, p->M, load_row_of_a, &g);
    } else {
      int4mm_parallel(threads, int4mm_ceil_div(g.rows, kernels->mr), pack_tile, &g);
    }
    int4mm_parallel(threads, int4mm_ceil_div(g.rows, g.block) * strips(&g), piece, &g);
  }
  int4mm_workspace_release(memory);
  return INT4MM_OK;
}
