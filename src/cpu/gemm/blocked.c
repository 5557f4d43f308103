/*
 * The blocked driver: both operands packed, the output cut into blocks that the threads share.
 *
 * Blocking follows Goto and van de Geijn ("Anatomy of high-performance matrix multiplication", TOMS 2008): a packed
 * mc x kc block of A stays in the second-level cache while panels of B pass through the first. K is one k-block as long
 * as it is short enough (MAX_K8), so that the sums of a tile go from the microkernel to the epilogue through registers
 * or the first-level cache; beyond that the sums of a whole super block stay in memory from k-block to k-block.
 *
 * Loops, from the outside in: super blocks of N and M, k-blocks, mc x nc blocks (one macro-kernel call each, shared
 * among the threads), panels of B, tiles of nr columns and mr rows (one microkernel call each).
 */
#include <stdatomic.h>
#include <string.h>

#include "cpu/gemm/gemm.h"

enum {
  MAX_K8 = 2048,              /* words of K up to which there is one k-block: 16384 values */
  BLOCK_K8 = 1024,            /* words of K in a k-block where there are several */
  SUPER_BLOCK = 1024,         /* rows and columns of a super block then: 4 MiB of sums */
  PACKED_BYTES = 16 << 20,    /* of B, packed: a super block */
  L2_BYTES = 384 << 10,       /* of A, packed: a block that the second-level cache holds */
  L2_WHOLE_BYTES = 512 << 10, /* the same where one block is all of A */
  PIECE_WORDS = 32768,        /* of B in a piece of packing it */
  PIECE_K8 = 16,              /* words of K in such a piece: long reads along the rows are the fastest */
  PIECE_K8_K_MAJOR = 512      /* the same where rows lie along K */
};

/* A range of blocks with an atomic counter. Each thread has one; one whose queue is empty takes from the others'. */
typedef struct work_queue {
  _Atomic int64_t next;
  char padding[56]; /* to a cache line, against false sharing */
} work_queue;

typedef struct gemm {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int32_t threads;
  int64_t block_rows, block_cols; /* largest super block */
  int64_t kc8;                    /* words of K in the largest k-block */
  int64_t mc, nc;                 /* rows and columns of a macro-kernel's block of the output */
  uint32_t *a;                    /* [threads][mc / mr] panels: a packed block of A */
  int32_t *acc_init;              /* [threads][mc]: zero-point correction of its rows; or row_sums of tiles of groups */
  int64_t acc_init_rows;          /* of each tile of mr rows: how many acc_init has for it, times mr */
  int32_t *columns;               /* [threads][3][groups][INT4MM_PANEL]: scales, factors and zero points of a panel */
  uint32_t *b;                    /* a packed super block of B, or a panel for each thread */
  int32_t *sums;                  /* [block_rows, block_cols] where K is split, else a tile for each thread */
  work_queue *queues;
  bool split_k;           /* there are several k-blocks */
  bool in_groups;         /* the product is made group by group */
  int64_t group8, groups; /* words of K to a group; groups in the largest k-block */
  bool thread_local_b;    /* each thread packs each panel of B just before its only use */
  /* the super block and k-block being computed: origin and size */
  int64_t m0, n0, j0, rows, cols, k8;
} gemm;

/* A thread's view of a gemm. */
typedef struct worker {
  const gemm *g;
  int32_t slot;
  int64_t packed; /* first row of the block of A in its buffer; -1: none */
  uint32_t *a;
  int32_t *acc_init;
  int4mm_group_columns columns; /* of the panel of B being computed */
} worker;

/* Dwords of B per word of K and column. */
static int64_t b_width(const gemm *g) {
  return g->k->bytes_b ? 2 : 1;
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Packs rows m .. m + rows - 1 of the super block's A into the thread's buffer, unless they are there. */
static void pack_block_of_a(worker *w, int64_t m, int64_t rows) {
  const gemm *g = w->g;
  int64_t mr = g->k->mr;
  if (w->packed == m) return;
  w->packed = m;
  for (int64_t r = 0; r < rows; r += mr) {
    uint32_t *panel = w->a + r * 2 * g->k8;
    int64_t here = int4mm_min64(mr, rows - r);
    int32_t *sums = w->acc_init + r * g->acc_init_rows;
    if (!g->in_groups) {
      int4mm_pack_rows(g->k, g->p, g->m0 + m + r, here, g->j0, g->k8, panel, sums);
      for (int64_t i = 0; i < mr; i++) sums[i] *= -g->k->offset;
      continue;
    }
    for (int64_t j = 0; j < g->k8; j += g->group8, sums += 2 * mr) {
      int4mm_pack_rows(g->k, g->p, g->m0 + m + r, here, g->j0 + j, int4mm_min64(g->group8, g->k8 - j),
                       panel + 2 * j * mr, sums);
      for (int64_t i = 0; i < mr; i++) sums[mr + i] = sums[i] * -g->k->offset;
    }
  }
}

/* The scales, factors and zero points of the panel of B that starts at column n of the super block. */
static void load_columns(worker *w, int64_t n) {
  const gemm *g = w->g;
  const int4mm_operand *b = &g->p->b;
  int64_t size = g->groups * INT4MM_PANEL, columns = int4mm_min64(INT4MM_PANEL, g->p->N - g->n0 - n);
  int32_t *at = g->columns + w->slot * 3 * size;
  for (int64_t j = 0; j < g->k8; j += g->group8, at += INT4MM_PANEL) {
    int4mm_load_group(g->k, g->p, (g->j0 + j) / g->group8, g->n0 + n, columns, INT4MM_PANEL, (float *)(void *)at,
                      at + size, at + 2 * size);
  }
  at = g->columns + w->slot * 3 * size;
  w->columns.scales = b->group_scales.data ? (const float *)(const void *)at : NULL;
  w->columns.factors = b->factors.data ? at + size : NULL;
  w->columns.zeros = b->zeros.data ? at + 2 * size : NULL;
  w->columns.ld = INT4MM_PANEL;
}

static int64_t bytes_of_panel(const gemm *g, int64_t k8) {
  return 4 * INT4MM_PANEL * k8 * b_width(g);
}

/* Packs words j .. j + k8 - 1 of K of one panel of INT4MM_PANEL columns, which starts at dst. */
static void pack_panel_of_b(const gemm *g, uint32_t *dst, int64_t panel, int64_t j, int64_t k8) {
  const int4mm_problem *p = g->p;
  int64_t n = g->n0 + panel * INT4MM_PANEL, columns = int4mm_min64(INT4MM_PANEL, p->N - n);
  int64_t nr = g->k->nr;
  if (g->k->bytes_b) {
    for (int64_t c = 0; c < columns; c += nr) {
      int4mm_pack_b(g->k, p, g->j0 + j, n + c, int4mm_min64(nr, columns - c), k8, g->k->offset,
                    dst + 2 * (c * g->k8 + j * nr));
    }
    return;
  }
  const uint32_t *src = int4mm_b_word(p, g->j0 + j, n);
  int64_t ld = int4mm_is_panels(&p->b) ? INT4MM_PANEL : p->b.stride;
  dst += j * INT4MM_PANEL;
  if (int4mm_is_k_major(&p->b)) {
    g->k->transpose(dst, INT4MM_PANEL, src, ld, columns, k8, p->b.xor_mask);
  } else {
    g->k->copy_words(dst, src, ld, columns, k8, p->b.xor_mask);
  }
}

/* Words of K in a piece of packing B, and pieces across the columns and along K. */
static int64_t piece_k8(const gemm *g) {
  return int4mm_is_k_major(&g->p->b) ? PIECE_K8_K_MAJOR : PIECE_K8;
}
static int64_t piece_panels(const gemm *g) {
  return PIECE_WORDS / INT4MM_PANEL / piece_k8(g);
}
static int64_t pieces_across(const gemm *g) {
  return int4mm_ceil_div(int4mm_ceil_div(g->cols, INT4MM_PANEL), piece_panels(g));
}
static int64_t pieces_of_b(const gemm *g) {
  return pieces_across(g) * int4mm_ceil_div(g->k8, piece_k8(g));
}

/* One piece of packing B for all threads: several panels by some words of K, read along the rows. */
static void pack_piece_of_b(void *context, int64_t index, int32_t slot) {
  (void)slot;
  const gemm *g = context;
  int64_t depth = piece_k8(g), step = int4mm_is_k_major(&g->p->b) ? depth : 8;
  int64_t panels = int4mm_ceil_div(g->cols, INT4MM_PANEL), first = index % pieces_across(g) * piece_panels(g);
  int64_t last = int4mm_min64(first + piece_panels(g), panels);
  int64_t j0 = index / pieces_across(g) * depth, j1 = int4mm_min64(j0 + depth, g->k8);
  for (int64_t j = j0; j < j1; j += step) {
    for (int64_t panel = first; panel < last; panel++) {
      pack_panel_of_b(g, g->b + panel * bytes_of_panel(g, g->k8) / 4, panel, j, int4mm_min64(step, j1 - j));
    }
  }
}

/* Whether B is packed for all threads before they compute. Otherwise it is prepacked, or packed by each thread. */
static bool packs_b(const gemm *g) {
  return !g->thread_local_b && (g->k->bytes_b || !int4mm_is_panels(&g->p->b));
}

/* ---- computing -------------------------------------------------------------------------------------------------- */

/* The panel of B that starts at column n of the super block, as the microkernel reads it. */
static const uint32_t *panel_of_b(const gemm *g, int64_t n, int32_t slot) {
  int64_t panel = n / INT4MM_PANEL, dwords = bytes_of_panel(g, g->k8) / 4;
  if (g->thread_local_b) {
    uint32_t *local = g->b + slot * dwords;
    pack_panel_of_b(g, local, panel, 0, g->k8);
    return local;
  }
  return packs_b(g) ? g->b + panel * dwords : int4mm_b_word(g->p, g->j0, g->n0 + n);
}

/* What tile t of a panel prefetches: its share of the next panel of B, or, with the last panel, of the next block of A.
 * m, n: the block's first row and the panel's first column; b: the panel. */
static int4mm_prefetch prefetch_of_tile(const gemm *g, int64_t m, int64_t n, int64_t t, const uint32_t *b) {
  const int4mm_problem *p = g->p;
  int64_t bytes = bytes_of_panel(g, g->k8), share = 64 * g->k8, next = m + g->mc;
  int4mm_prefetch prefetch = {(const char *)b, 0};
  if (n + INT4MM_PANEL >= g->cols) {
    int64_t size = (int64_t)int4mm_dtype_size(p->a.dtype), word = p->a.dtype == INT4MM_INT8 ? 8 : 4;
    if (next >= g->rows || t * share >= size * p->a.stride * g->mc) return prefetch;
    prefetch.line = (const char *)p->a.data + size * (g->m0 + next) * p->a.stride + word * g->j0 + t * share;
    prefetch.stride = 64;
  } else if (g->thread_local_b && t < 2 && int4mm_is_k_major(&p->b)) { /* it is not packed yet: half of its columns */
    prefetch.line = (const char *)int4mm_b_word(p, g->j0, g->n0 + n + INT4MM_PANEL + INT4MM_PANEL / 2 * t);
    prefetch.stride = 64;                  /* exact where columns are contiguous */
  } else if (g->thread_local_b && t < 2) { /* a line of each raw row */
    prefetch.line = (const char *)(int4mm_b_word(p, g->j0, g->n0 + n + INT4MM_PANEL) + 16 * t);
    prefetch.stride = 4 * (int4mm_is_panels(&p->b) ? INT4MM_PANEL : p->b.stride);
  } else if (!g->thread_local_b && t * share < bytes) {
    prefetch.line = (const char *)b + bytes + t * share;
    prefetch.stride = 64;
  }
  return prefetch;
}

/* The mr x nr sums that go to the epilogue: of one tile over all of K, of which one may be fused. */
static void compute_sums(const worker *w, int64_t r, int64_t n, const uint32_t *b, int4mm_output_tile output,
                         int64_t ldt, int4mm_prefetch prefetch) {
  const gemm *g = w->g;
  const int4mm_kernels *k = g->k;
  const uint32_t *a = w->a + r * 2 * g->k8;
  int64_t ldb = k->bytes_b ? k->nr : INT4MM_PANEL;
  const int32_t *acc_init = w->acc_init + r * g->acc_init_rows;
  if (!g->in_groups) {
    k->microkernel(g->k8, a, b, ldb, acc_init, &output, 1, ldt, prefetch);
    return;
  }
  int4mm_group_tile tile = {.a = a, .b = b, .ldb = ldb, .k8 = g->k8, .group8 = g->group8, .row_sums = acc_init};
  tile.a_int8 = g->p->a.dtype == INT4MM_INT8;
  tile.columns = w->columns;
  tile.totals = output.sums, tile.ldt = ldt, tile.prefetch = prefetch;
  int64_t c = n % INT4MM_PANEL;
  if (tile.columns.scales) tile.columns.scales += c;
  if (tile.columns.factors) tile.columns.factors += c;
  if (tile.columns.zeros) tile.columns.zeros += c;
  for (int64_t i = 0; i < k->mr && output.sign == 0; i++) memset(output.sums + i * ldt, 0, (size_t)k->nr * 4);
  k->microkernel_groups(&tile);
}

/* One tile, from row m and column n of the super block; r: its first row in the thread's block of A. */
static void tile(const worker *w, int64_t m, int64_t r, int64_t n, const uint32_t *b, int4mm_prefetch prefetch) {
  const gemm *g = w->g;
  const int4mm_kernels *k = g->k;
  int4mm_output_tile output = {g->sums + w->slot * k->mr * k->nr, 0};
  int64_t ldt = k->nr, rows = int4mm_min64(k->mr, g->rows - m), columns = int4mm_min64(k->nr, g->cols - n);
  bool last = g->j0 + g->k8 == int4mm_words_of_k(g->p);
  bool whole = !g->split_k && !g->in_groups && rows == k->mr && columns == k->nr;
  if (whole && k->microkernel_fused && !int4mm_is_layer(g->p) &&
      k->microkernel_fused(g->p, g->m0 + m, g->n0 + n, w->a + r * 2 * g->k8, b, w->acc_init + r, prefetch))
    return;
  if (last) int4mm_prefetch_out(g->p, g->m0 + m, g->n0 + n, rows);
  if (g->split_k) {
    output.sums = g->sums + m * g->block_cols + n;
    output.sign = g->j0 > 0;
    ldt = g->block_cols;
  }
  compute_sums(w, r, n, b, output, ldt, prefetch);
  if (last) k->epilogue(g->p, g->m0 + m, g->n0 + n, rows, columns, output.sums, ldt);
}

static int64_t blocks_across(const gemm *g) {
  return int4mm_ceil_div(g->cols, g->nc);
}

static int64_t block_count(const gemm *g) {
  return int4mm_ceil_div(g->rows, g->mc) * blocks_across(g);
}

/* Computes block `index` of the super block: at most mc rows by nc columns. */
static void macro_kernel(worker *w, int64_t index) {
  const gemm *g = w->g;
  int64_t mr = g->k->mr, nr = g->k->nr, m0 = index / blocks_across(g) * g->mc;
  int64_t rows = int4mm_min64(g->mc, g->rows - m0);
  int64_t n0 = index % blocks_across(g) * g->nc, n1 = int4mm_min64(n0 + g->nc, g->cols);
  pack_block_of_a(w, m0, rows);
  for (int64_t panel = n0; panel < n1; panel += INT4MM_PANEL) {
    const uint32_t *b = panel_of_b(g, panel, w->slot);
    const uint32_t *first = b;
    if (g->in_groups) load_columns(w, panel);
    int64_t t = 0; /* tiles of this panel so far */
    for (int64_t n = panel; n < int4mm_min64(panel + INT4MM_PANEL, n1); n += nr) {
      for (int64_t r = 0; r < rows; r += mr) tile(w, m0 + r, r, n, b, prefetch_of_tile(g, m0, panel, t++, first));
      b += g->k->bytes_b ? 2 * nr * g->k8 : nr;
    }
  }
}

static int64_t first_of_queue(const gemm *g, int64_t i) {
  return block_count(g) * i / g->threads;
}

/* A thread's work: the blocks of its own queue, then what is left in the others'. Queues keep neighbouring blocks,
 * which share packed A, on one thread; taking from others balances threads of unequal speed. */
static void compute(void *context, int64_t index, int32_t slot) {
  const gemm *g = context;
  worker w = {.g = g, .slot = slot, .packed = -1};
  w.a = g->a + slot * 2 * g->kc8 * g->mc;
  w.acc_init = g->acc_init + slot * g->mc * g->acc_init_rows;
  for (int64_t i = 0; i < g->threads; i++) {
    int64_t at = (index + i) % g->threads, end = first_of_queue(g, at + 1), block;
    while ((block = atomic_fetch_add(&g->queues[at].next, 1)) < end) macro_kernel(&w, block);
  }
}

static void run_block(gemm *g) {
  if (packs_b(g)) int4mm_parallel(g->threads, pieces_of_b(g), pack_piece_of_b, g);
  for (int64_t i = 0; i < g->threads; i++) atomic_init(&g->queues[i].next, first_of_queue(g, i));
  int4mm_parallel(g->threads, g->threads, compute, g);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* mc: as many rows of A as the second-level cache holds. nc: narrow enough for the threads to finish together. */
static void choose_blocks(gemm *g) {
  enum { BLOCKS = 64 }; /* for each thread, where the product is large enough */
  int64_t mr = g->k->mr, rows = int4mm_min64(g->p->M, g->block_rows), cols = int4mm_min64(g->p->N, g->block_cols);
  int64_t max_rows = int4mm_max64(mr, L2_BYTES / (8 * g->kc8) / mr * mr);
  if (rows * 8 * g->kc8 <= L2_WHOLE_BYTES) max_rows = int4mm_max64(max_rows, rows);
  int64_t blocks = int4mm_ceil_div(rows, max_rows);
  if (blocks > 1) blocks = int4mm_round_up(blocks, int4mm_min64(g->threads, int4mm_ceil_div(rows, 8 * mr)));
  g->mc = int4mm_round_up(int4mm_ceil_div(rows, blocks), mr);
  g->nc = int4mm_round_up(cols, INT4MM_PANEL);
  if (g->threads == 1) return;
  int64_t across = int4mm_ceil_div(BLOCKS * g->threads, int4mm_ceil_div(rows, g->mc));
  g->nc = int4mm_round_up(int4mm_ceil_div(cols, across), 2 * INT4MM_PANEL);
}

/* K in k-blocks. With groups, one holds whole groups or lies inside of one. */
static void choose_k_blocks(gemm *g) {
  int64_t k8 = int4mm_words_of_k(g->p);
  g->in_groups = int4mm_in_groups(g->k, g->p);
  g->group8 = int4mm_group8(g->p);
  g->split_k = k8 > MAX_K8;
  g->kc8 = g->split_k ? BLOCK_K8 : int4mm_max64(k8, 1);
  if (g->in_groups && g->split_k) {
    if (g->group8 <= g->kc8)
      g->kc8 = g->kc8 / g->group8 * g->group8;
    else if (g->p->b.group_scales.data)
      g->kc8 = g->group8;
  }
  g->groups = int4mm_ceil_div(g->kc8, g->group8);
  g->acc_init_rows = g->in_groups ? 2 * g->groups : 1;
}

/* Words of K in the k-block that starts at g->j0. */
static int64_t words_of_k_block(const gemm *g) {
  int64_t k8 = int4mm_min64(g->kc8, int4mm_words_of_k(g->p) - g->j0);
  if (!g->in_groups || g->group8 <= g->kc8) return k8;
  return int4mm_min64(k8, g->group8 - g->j0 % g->group8);
}

static void choose_sizes(gemm *g) {
  const int4mm_problem *p = g->p;
  choose_k_blocks(g);
  g->block_rows = g->split_k ? SUPER_BLOCK : p->M;
  g->block_cols = SUPER_BLOCK;
  if (!g->split_k) {
    g->block_cols = int4mm_max64(SUPER_BLOCK, PACKED_BYTES / (4 * g->kc8 * b_width(g)) / 64 * 64);
  }
  g->block_rows = int4mm_min64(g->block_rows, int4mm_round_up(p->M, g->k->mr));
  g->block_cols = int4mm_min64(g->block_cols, int4mm_round_up(p->N, INT4MM_PANEL));
  choose_blocks(g);
  g->thread_local_b = packs_b(g) && g->mc >= p->M;
}

/* Workspace for the sizes chosen, in the order: A, acc_init, B, queues, columns, sums. */
static bool acquire_workspace(gemm *g) {
  int64_t rows = int4mm_round_up(g->block_rows, g->k->mr), tile = g->k->mr * g->k->nr;
  int64_t a = int4mm_round_up(g->threads * g->mc * g->kc8 * 8, 64);
  int64_t acc_init = int4mm_round_up(g->threads * g->mc * g->acc_init_rows * 4, 64);
  int64_t queues = g->threads * (int64_t)sizeof(work_queue);
  int64_t panels = g->thread_local_b ? g->threads : packs_b(g) ? g->block_cols / INT4MM_PANEL : 0;
  int64_t b = panels * bytes_of_panel(g, g->kc8);
  int64_t columns = g->in_groups ? 4 * 3 * g->threads * g->groups * INT4MM_PANEL : 0;
  int64_t sums = 4 * (g->split_k ? rows * g->block_cols : g->threads * tile);
  char *memory = int4mm_workspace_acquire(a + acc_init + b + queues + columns + sums);
  if (!memory) return false;
  g->a = (uint32_t *)memory;
  g->acc_init = (int32_t *)(memory + a);
  g->b = (uint32_t *)(memory + a + acc_init);
  g->queues = (work_queue *)(memory + a + acc_init + b);
  g->columns = (int32_t *)(memory + a + acc_init + b + queues);
  g->sums = (int32_t *)(memory + a + acc_init + b + queues + columns);
  return true;
}

int32_t int4mm_gemm_blocked(const int4mm_kernels *kernels, const int4mm_problem *p) {
  gemm g = {.k = kernels, .p = p};
  g.threads = int4mm_threads_for(p->M * p->N, int4mm_max64(1, (1 << 21) / int4mm_max64(p->K, 1)));
  choose_sizes(&g);
  if (!acquire_workspace(&g)) return INT4MM_ERR_MEMORY;
  int64_t k8 = int4mm_words_of_k(p);
  for (g.n0 = 0; g.n0 < p->N; g.n0 += g.block_cols) {
    g.cols = int4mm_min64(g.block_cols, p->N - g.n0);
    for (g.m0 = 0; g.m0 < p->M; g.m0 += g.block_rows) {
      g.rows = int4mm_min64(g.block_rows, p->M - g.m0);
      g.j0 = 0;
      do { /* once where K is 0: out is the epilogue of zeros */
        g.k8 = words_of_k_block(&g);
        run_block(&g);
        g.j0 += g.k8;
      } while (g.j0 < k8);
    }
  }
  int4mm_workspace_release(g.a);
  return INT4MM_OK;
}
