/*
 * Large products: both operands packed, the output cut into tiles that threads take as they come.
 *
 * Blocking follows Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", TOMS 2008): a block of A
 * stays in the second-level cache while panels of B stream past it. K is not split while it fits (MAX_K8), so that a
 * tile of sums goes from registers through the first-level cache into the epilogue; beyond that, sums of a super block
 * are kept in memory from one slice of K to the next.
 */
#include <stdio.h>

#include "gemm.h"

enum {
  MAX_K8 = 2048,              /* words of K in one slice: 16384 nibbles */
  SLICE_K8 = 1024,            /* ... when there are several */
  SLICED_BLOCK = 1024,        /* rows and columns of a super block then: 4 MiB of sums */
  PACKED_BYTES = 16 << 20,    /* of a packed super block, A and B each */
  L2_BYTES = 384 << 10,       /* of packed A that stays in the second-level cache */
  L2_WHOLE_BYTES = 512 << 10, /* ... when that is all of it */
  PACK_ROWS = 64,             /* words of K in a piece of packing B */
  PACK_PANELS = 8,            /* panels in it */
  ROWS_AHEAD = 16 /* rows of a raw weight fetched ahead: each may be another page, which no hardware foresees */
};

typedef struct gemm {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int32_t threads;
  int64_t slice, block_rows, block_cols; /* the most that a super block has: words of K, rows, columns */
  int64_t task_rows, task_cols;          /* of a thread's piece */
  uint32_t *a;                           /* packed super block of A: mr-row panels */
  int32_t *start;                        /* what its rows' accumulators start from */
  uint32_t *b;                           /* packed super block of B */
  int32_t *sums;                         /* [block_rows, block_cols], or a tile for each thread */
  bool sliced;
  bool own_b; /* each thread packs a panel of B just before its only use */
  /* the super block at hand */
  int64_t m0, n0, j0, rows, cols, k8;
} gemm;

static int64_t round_up(int64_t x, int64_t step) {
  return int4mm_ceil_div(x, step) * step;
}

static int64_t panels_of_a(const gemm *g, int64_t rows) {
  return int4mm_ceil_div(rows, g->k->mr);
}

/* Dwords of B per word of K and column. */
static int64_t b_width(const gemm *g) {
  return g->k->bytes_b ? 2 : 1;
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

static void pack_panel_of_a(const gemm *g, int64_t panel) {
  const int4mm_problem *p = g->p;
  int64_t mr = g->k->mr, m = panel * mr, rows = int4mm_min64(mr, g->rows - m);
  const uint32_t *a = p->a + (g->m0 + m) * p->lda + g->j0;
  int32_t *start = g->start + m;
  g->k->pack_a(g->a + panel * 2 * g->k8 * mr, start, a, p->lda, rows, g->k8, p->flip_a);
  for (int64_t r = 0; r < mr; r++) start[r] *= -g->k->offset;
}

static void copy_words(uint32_t *dst, const uint32_t *src, int64_t ld, int64_t columns, int64_t k8, uint32_t flip) {
  for (int64_t j = 0; j < k8; j++, dst += INT4MM_PANEL, src += ld) {
    __builtin_prefetch(src + ROWS_AHEAD * ld);
    __builtin_prefetch(src + ROWS_AHEAD * ld + INT4MM_PANEL - 1);
    if (columns == INT4MM_PANEL) {
      for (int64_t i = 0; i < INT4MM_PANEL; i++) dst[i] = src[i] ^ flip;
    } else {
      for (int64_t i = 0; i < INT4MM_PANEL; i++) dst[i] = i < columns ? src[i] ^ flip : 0;
    }
  }
}

static int64_t bytes_of_panel(const gemm *g, int64_t k8) {
  return 4 * INT4MM_PANEL * k8 * b_width(g);
}

/* Words j .. j + k8 - 1 of K of one 64-column panel, which is at dst. */
static void pack_panel_of_b(const gemm *g, uint32_t *dst, int64_t panel, int64_t j, int64_t k8) {
  const int4mm_problem *p = g->p;
  int64_t n = g->n0 + panel * INT4MM_PANEL, columns = int4mm_min64(INT4MM_PANEL, p->N - n);
  const uint32_t *src = int4mm_b_word(p, g->j0 + j, n);
  int64_t ld = p->b_panels ? INT4MM_PANEL : p->ldb, nr = g->k->nr;
  if (!g->k->bytes_b) {
    copy_words(dst + j * INT4MM_PANEL, src, ld, columns, k8, p->flip_b);
    return;
  }
  for (int64_t c = 0; c < columns; c += nr) {
    g->k->pack_b(dst + 2 * (c * g->k8 + j * nr), src + c, ld, int4mm_min64(nr, columns - c), k8, p->flip_b,
                 g->k->offset);
  }
}

/* Pieces of packing: first the panels of A, then strips of B, read along its rows. */
static void pack(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const gemm *g = context;
  int64_t panels_a = panels_of_a(g, g->rows);
  if (index < panels_a) {
    pack_panel_of_a(g, index);
    return;
  }
  index -= panels_a;
  int64_t panels_b = int4mm_ceil_div(g->cols, INT4MM_PANEL), strips = int4mm_ceil_div(panels_b, PACK_PANELS);
  int64_t first = index % strips * PACK_PANELS, last = int4mm_min64(first + PACK_PANELS, panels_b);
  int64_t j0 = index / strips * PACK_ROWS, j1 = int4mm_min64(j0 + PACK_ROWS, g->k8);
  for (int64_t j = j0; j < j1; j += 8) {
    for (int64_t panel = first; panel < last; panel++) {
      pack_panel_of_b(g, g->b + panel * bytes_of_panel(g, g->k8) / 4, panel, j, int4mm_min64(8, j1 - j));
    }
  }
}

/* Whether B is packed for all threads before they compute. */
static bool packs_b(const gemm *g) {
  return !g->own_b && (g->k->bytes_b || !g->p->b_panels);
}

/* Whether the packed B at hand is still that of the super block above. */
static bool b_is_packed(const gemm *g) {
  return !packs_b(g) || (!g->sliced && g->m0 > 0);
}

static void pack_block(gemm *g) {
  int64_t strips = int4mm_ceil_div(int4mm_ceil_div(g->cols, INT4MM_PANEL), PACK_PANELS);
  int64_t pieces = panels_of_a(g, g->rows);
  if (!b_is_packed(g)) pieces += strips * int4mm_ceil_div(g->k8, PACK_ROWS);
  int4mm_parallel(g->threads, pieces, pack, g);
}

/* ---- computing -------------------------------------------------------------------------------------------------- */

/* The panel of B that starts at column n of the super block, packed by this thread where nobody did. */
static const uint32_t *panel_of_b(const gemm *g, int64_t n, int32_t slot) {
  int64_t panel = n / INT4MM_PANEL, dwords = bytes_of_panel(g, g->k8) / 4;
  if (g->own_b) {
    uint32_t *own = g->b + slot * dwords;
    pack_panel_of_b(g, own, panel, 0, g->k8);
    return own;
  }
  return packs_b(g) ? g->b + panel * dwords : int4mm_b_word(g->p, g->j0, g->n0 + n);
}

/* Asks for the lines of out that a tile will write, while its sums are computed: they are in nobody's cache. */
static void fetch_out(const gemm *g, int64_t m, int64_t n, int64_t rows) {
  int64_t size = g->p->out_dtype == INT4MM_FLOAT32 ? 4 : 2, step = g->p->ldo * size;
  const char *out = (const char *)g->p->out + (g->m0 + m) * step + (g->n0 + n) * size;
  for (int64_t r = 0; r < rows; r++, out += step) __builtin_prefetch(out, 1);
}

static void tile(const gemm *g, int64_t m, int64_t n, const uint32_t *b, int32_t *own) {
  const int4mm_kernels *k = g->k;
  const uint32_t *a = g->a + m * 2 * g->k8;
  int4mm_target target = {own, 0};
  int64_t ldt = k->nr, rows = int4mm_min64(k->mr, g->rows - m), columns = int4mm_min64(k->nr, g->cols - n);
  bool last = g->j0 + g->k8 == g->p->K / 8;
  if (last) fetch_out(g, m, n, rows);
  if (g->sliced) {
    target.tile = g->sums + m * g->block_cols + n;
    target.sign = g->j0 > 0;
    ldt = g->block_cols;
  }
  k->kernel(g->k8, a, b, k->bytes_b ? k->nr : INT4MM_PANEL, g->start + m, &target, 1, ldt);
  if (last) k->store(g->p, g->m0 + m, g->n0 + n, rows, columns, target.tile, ldt);
}

static void compute(void *context, int64_t index, int32_t slot) {
  const gemm *g = context;
  int64_t across = int4mm_ceil_div(g->cols, g->task_cols), mr = g->k->mr, nr = g->k->nr;
  int64_t m0 = index / across * g->task_rows, m1 = int4mm_min64(m0 + g->task_rows, g->rows);
  int64_t n0 = index % across * g->task_cols, n1 = int4mm_min64(n0 + g->task_cols, g->cols);
  int32_t *own = g->sums + slot * mr * nr;
  for (int64_t panel = n0; panel < n1; panel += INT4MM_PANEL) {
    const uint32_t *b = panel_of_b(g, panel, slot);
    for (int64_t n = panel; n < int4mm_min64(panel + INT4MM_PANEL, n1); n += nr) {
      for (int64_t m = m0; m < m1; m += mr) tile(g, m, n, b, own);
      b += g->k->bytes_b ? 2 * nr * g->k8 : nr;
    }
  }
}

static void run_block(gemm *g) {
  pack_block(g);
  int64_t pieces = int4mm_ceil_div(g->rows, g->task_rows) * int4mm_ceil_div(g->cols, g->task_cols);
  int4mm_parallel(g->threads, pieces, compute, g);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* The thread's pieces: as much of A as the second-level cache holds, by up to 512 columns. Threads take pieces in
 * order, so several share a block of A one after the other; many small ones cost little and let all threads end
 * together. */
static void choose_tasks(gemm *g) {
  enum { PIECES = 24 }; /* a thread at least, where the product is large enough */
  int64_t mr = g->k->mr, rows = int4mm_min64(g->p->M, g->block_rows), cols = int4mm_min64(g->p->N, g->block_cols);
  int64_t most = int4mm_max64(mr, L2_BYTES / (8 * g->slice) / mr * mr);
  if (rows * 8 * g->slice <= L2_WHOLE_BYTES) most = int4mm_max64(most, rows);
  g->task_rows = round_up(int4mm_ceil_div(rows, int4mm_ceil_div(rows, most)), mr);
  g->task_cols = 512;
  if (g->threads == 1) {
    g->task_cols = round_up(cols, INT4MM_PANEL);
    return;
  }
  while (int4mm_ceil_div(rows, g->task_rows) * int4mm_ceil_div(cols, g->task_cols) < PIECES * g->threads) {
    if (g->task_cols > 2 * INT4MM_PANEL) {
      g->task_cols /= 2;
    } else if (g->task_rows > 4 * mr && g->task_rows > rows / 4) {
      g->task_rows = round_up(g->task_rows / 2, mr);
    } else {
      break;
    }
  }
}

static void choose_sizes(gemm *g) {
  const int4mm_problem *p = g->p;
  int64_t k8 = p->K / 8;
  g->sliced = k8 > MAX_K8;
  g->slice = g->sliced ? SLICE_K8 : int4mm_max64(k8, 1);
  g->block_rows = g->block_cols = SLICED_BLOCK;
  if (!g->sliced) {
    g->block_rows = int4mm_max64(SLICED_BLOCK, PACKED_BYTES / (8 * g->slice) / 64 * 64);
    g->block_cols = int4mm_max64(SLICED_BLOCK, PACKED_BYTES / (4 * g->slice * b_width(g)) / 64 * 64);
  }
  g->block_rows = int4mm_min64(g->block_rows, round_up(p->M, g->k->mr));
  g->block_cols = int4mm_min64(g->block_cols, round_up(p->N, INT4MM_PANEL));
  choose_tasks(g);
  g->own_b = packs_b(g) && g->task_rows >= p->M;
}

/* Workspace for the sizes chosen, cut into its parts. */
static bool take_workspace(gemm *g) {
  int64_t rows = round_up(g->block_rows, g->k->mr), tile = g->k->mr * g->k->nr;
  int64_t a = round_up(rows * g->slice * 8, 64), start = round_up(rows * 4, 64);
  int64_t panels = g->own_b ? g->threads : packs_b(g) ? g->block_cols / INT4MM_PANEL : 0;
  int64_t b = panels * bytes_of_panel(g, g->slice);
  int64_t sums = 4 * (g->sliced ? rows * g->block_cols : g->threads * tile);
  char *memory = int4mm_workspace_take(a + start + b + sums);
  if (!memory) return false;
  g->a = (uint32_t *)memory;
  g->start = (int32_t *)(memory + a);
  g->b = (uint32_t *)(memory + a + start);
  g->sums = (int32_t *)(memory + a + start + b);
  return true;
}

int32_t int4mm_gemm_blocked(const int4mm_kernels *kernels, const int4mm_problem *p) {
  gemm g = {.k = kernels, .p = p};
  g.threads = int4mm_threads_for(p->M * p->N, int4mm_max64(1, (1 << 21) / int4mm_max64(p->K, 1)));
  choose_sizes(&g);
  if (!take_workspace(&g)) return INT4MM_ERR_MEMORY;
  int64_t k8 = p->K / 8;
  for (g.n0 = 0; g.n0 < p->N; g.n0 += g.block_cols) {
    g.cols = int4mm_min64(g.block_cols, p->N - g.n0);
    for (g.m0 = 0; g.m0 < p->M; g.m0 += g.block_rows) {
      g.rows = int4mm_min64(g.block_rows, p->M - g.m0);
      g.j0 = 0;
      do { /* once even where K is 0 */
        g.k8 = int4mm_min64(g.slice, k8 - g.j0);
        run_block(&g);
        g.j0 += g.k8;
      } while (g.j0 < k8);
    }
  }
  int4mm_workspace_give(g.a);
  return INT4MM_OK;
}

/* ---- the choice of a path --------------------------------------------------------------------------------------- */

static bool streams(const int4mm_kernels *kernels, const int4mm_problem *p) {
  return p->M <= (p->b_panels ? kernels->panel_rows : kernels->stream_rows);
}

int32_t int4mm_gemm(const int4mm_kernels *kernels, const int4mm_problem *p) {
  if (streams(kernels, p)) return int4mm_gemm_stream(kernels, p);
  int32_t levels = int4mm_strassen_levels(kernels, p);
  if (levels > 0) return int4mm_gemm_strassen(kernels, p, levels);
  return int4mm_gemm_blocked(kernels, p);
}

void int4mm_gemm_plan(const int4mm_kernels *kernels, const int4mm_problem *p, int4mm_plan *plan) {
  int32_t levels = int4mm_strassen_levels(kernels, p);
  plan->tile_m = kernels->mr;
  plan->tile_n = kernels->nr;
  if (streams(kernels, p)) {
    plan->tile_m = (int32_t)p->M;
    plan->tile_n = kernels->stream_width;
    snprintf(plan->reason, sizeof plan->reason, "few rows: the weight is streamed once, unpacked in registers%s",
             p->b_panels ? " (prepacked)" : "");
  } else if (levels > 0) {
    snprintf(plan->reason, sizeof plan->reason, "large enough for %d level%s of exact Strassen", (int)levels,
             levels > 1 ? "s" : "");
  } else {
    snprintf(plan->reason, sizeof plan->reason, "blocked product of packed operands%s",
             p->b_panels ? ", the weight prepacked" : "");
  }
}
