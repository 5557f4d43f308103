/*
 * The Strassen driver: seven block products in place of eight, one or two levels deep. Exact.
 *
 * Blocks of int4 are added before they are multiplied. Sums of two lie in [-16, 15] and of four in [-32, 30], which
 * bytes hold; their products are summed in int32 modulo 2^32, and the final combination is the true sum, which fits.
 * So the result equals the classical one bit for bit, with an eighth fewer products for each level.
 *
 * The form follows Huang, Smith, Henry and van de Geijn ("Strassen's algorithm reloaded", SC 2016): no temporary
 * matrices; operands are combined while they are packed, and the microkernel updates each block of the output that its
 * product contributes to. The output is cut into macro tiles of G x G blocks (G = 2 or 4) that stay in the second-level
 * cache, each a Strassen product of its own over all of K, so any size is possible: edge tiles are padded with zeros.
 */
#include <string.h>

#include "cpu/gemm/gemm.h"

enum {
  MAX_LEVELS = 2,
  MAX_K = 32768,             /* bounds the workspace: combined operands of a macro tile hold all of K */
  MAX_BLOCKS = 16,           /* G * G */
  MAX_PRODUCTS = 49,         /* 7 ^ levels */
  PACKED_A_BYTES = 56 << 20, /* of combined A packed at a time */
  PACKED_B_BYTES = 16 << 20, /* the same of B */
  TILE_PAD = 16 /* columns after each row of a tile: rows a power of two apart would map to the same cache sets */
};

/* Signs of product r in blocks 11, 12, 21, 22 of the output. */
static const int8_t output_signs[7][4] = {{1, 0, 0, 1},  {0, 0, 1, -1}, {0, 1, 0, 1}, {1, 0, 1, 0},
                                          {-1, 1, 0, 0}, {0, 0, 0, 1},  {1, 0, 0, 0}};
/* Signs of blocks 11, 12, 21, 22 of A in combination r; combine_part_a computes the same. */
static const int8_t a_signs[7][4] = {{1, 0, 0, 1}, {0, 0, 1, 1},  {1, 0, 0, 0}, {0, 0, 0, 1},
                                     {1, 1, 0, 0}, {-1, 0, 1, 0}, {0, 1, 0, -1}};

/* A block of the output to which a product contributes. */
typedef struct destination {
  int8_t row, col;
  int8_t sign;
  bool first; /* the first product of the block, which is stored rather than added */
} destination;

typedef struct strassen {
  const int4mm_kernels *k;
  const int4mm_problem *p;
  int32_t threads, levels;
  int64_t G, products;
  int64_t mb, nb;           /* rows and columns of a block of the output */
  int64_t kb8, slices;      /* words of K in a block; K is cut into slices of G blocks */
  int64_t macro_m, macro_n; /* macro tiles down and across the output */
  int64_t block_m, block_n; /* macro tiles whose operands are packed together */
  int8_t *a, *b;            /* packed: [macro tile][slice][product][panel][2 * kb8][mr or nr] dwords */
  int32_t *acc_init;        /* [macro tile][slice][product][mb] */
  char *scratch;            /* of each thread: a tile of sums, or blocks of operands before they are combined */
  int64_t scratch_bytes;
  destination destinations[MAX_PRODUCTS][4 * 4];
  int32_t destination_count[MAX_PRODUCTS];
  int64_t i0, i1, j0, j1; /* macro tiles being computed */
} strassen;

/* Sign of block (row, col) of G x G in combination r. The tables are for one level; for two, signs multiply. */
static int sign_of(const int8_t table[7][4], int32_t levels, int64_t r, int64_t row, int64_t col) {
  if (levels == 1) return table[r][row * 2 + col];
  return table[r / 7][row / 2 * 2 + col / 2] * table[r % 7][row % 2 * 2 + col % 2];
}

/* The first product of each block has the sign 1, so that it can be stored. */
static void list_destinations(strassen *s) {
  bool seen[MAX_BLOCKS] = {false};
  for (int64_t r = 0; r < s->products; r++) {
    int32_t count = 0;
    for (int64_t q = 0; q < s->G * s->G; q++) {
      int sign = sign_of(output_signs, s->levels, r, q / s->G, q % s->G);
      if (!sign) continue;
      s->destinations[r][count++] = (destination){(int8_t)(q / s->G), (int8_t)(q % s->G), (int8_t)sign, !seen[q]};
      seen[q] = true;
    }
    s->destination_count[r] = count;
  }
}

/* Bytes of one combined block's panel, and of all panels of a combined block of A or B. */
static int64_t panel_a(const strassen *s) {
  return 8 * s->kb8 * s->k->mr;
}
static int64_t panel_b(const strassen *s) {
  return 8 * s->kb8 * s->k->nr;
}
static int64_t block_a(const strassen *s) {
  return s->mb / s->k->mr * panel_a(s);
}
static int64_t block_b(const strassen *s) {
  return s->nb / s->k->nr * panel_b(s);
}

/* Words of K in block h of a slice; the last blocks may be short or empty. */
static int64_t words_of(const strassen *s, int64_t slice, int64_t h) {
  return int4mm_max64(0, int4mm_min64(s->kb8, s->p->K / 8 - (slice * s->G + h) * s->kb8));
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* Packs panel `panel` of every block of a slice of macro row i, and combines them. blocks: scratch. */
static void pack_slice_of_a(const strassen *s, int64_t i, int64_t slice, int64_t panel, int8_t *blocks) {
  const int4mm_problem *p = s->p;
  int64_t G = s->G, mr = s->k->mr, bytes = panel_a(s);
  int32_t sums[MAX_BLOCKS][16];
  for (int64_t q = 0; q < G * G; q++) {
    int64_t m = (i * G + q / G) * s->mb + panel * mr, j = (slice * G + q % G) * s->kb8;
    int64_t rows = int4mm_max64(0, int4mm_min64(mr, p->M - m)), k8 = words_of(s, slice, q % G);
    int8_t *block = blocks + q * bytes;
    const uint32_t *a = rows && k8 ? p->a.words + m * p->a.stride + j : p->a.words;
    s->k->pack_a((uint32_t *)block, sums[q], a, p->a.stride, rows, k8, p->a.xor_mask);
    memset(block + 8 * k8 * mr, 0, (size_t)(bytes - 8 * k8 * mr));
  }
  int64_t first = ((i - s->i0) * s->slices + slice) * s->products;
  s->k->combine_a(s->a + first * block_a(s) + panel * bytes, block_a(s), blocks, bytes, bytes, s->levels);
  for (int64_t r = 0; r < s->products; r++) {
    int32_t *acc_init = s->acc_init + (first + r) * s->mb + panel * mr;
    for (int64_t m = 0; m < mr; m++) {
      int32_t sum = 0;
      for (int64_t q = 0; q < G * G; q++) sum += sign_of(a_signs, s->levels, r, q / G, q % G) * sums[q][m];
      acc_init[m] = -s->k->offset * (int32_t)G * sum;
    }
  }
}

static void pack_slice_of_b(const strassen *s, int64_t j, int64_t slice, int64_t panel, int8_t *blocks) {
  const int4mm_problem *p = s->p;
  int64_t G = s->G, nr = s->k->nr, bytes = panel_b(s);
  for (int64_t q = 0; q < G * G; q++) {
    int64_t n = (j * G + q % G) * s->nb + panel * nr, word = (slice * G + q / G) * s->kb8;
    int64_t columns = int4mm_max64(0, int4mm_min64(nr, p->N - n)), k8 = columns ? words_of(s, slice, q / G) : 0;
    int8_t *block = blocks + q * bytes;
    if (k8) int4mm_pack_b(s->k, p, word, n, columns, k8, 0, (uint32_t *)block);
    memset(block + 8 * k8 * nr, 0, (size_t)(bytes - 8 * k8 * nr));
  }
  int64_t first = ((j - s->j0) * s->slices + slice) * s->products;
  s->k->combine_b(s->b + first * block_b(s) + panel * bytes, block_b(s), blocks, bytes, bytes, s->levels,
                  s->k->offset * (int32_t)G);
}

static void pack_a(void *context, int64_t index, int32_t slot) {
  const strassen *s = context;
  int64_t panels = s->mb / s->k->mr, panel = index % panels, slice = index / panels % s->slices;
  pack_slice_of_a(s, s->i0 + index / panels / s->slices, slice, panel, (int8_t *)s->scratch + slot * s->scratch_bytes);
}

static void pack_b(void *context, int64_t index, int32_t slot) {
  const strassen *s = context;
  int64_t panels = s->nb / s->k->nr, panel = index % panels, slice = index / panels % s->slices;
  pack_slice_of_b(s, s->j0 + index / panels / s->slices, slice, panel, (int8_t *)s->scratch + slot * s->scratch_bytes);
}

/* ---- computing -------------------------------------------------------------------------------------------------- */

static int64_t ld_of_tile(const strassen *s) {
  return s->G * s->nb + TILE_PAD;
}

/* The packed operands of the next product, and the bytes of them that have been prefetched. */
typedef struct next_operands {
  const int8_t *a, *b;
  int64_t prefetched;
} next_operands;

/* The next lines to prefetch: as many as a microkernel call has words of K. */
static int4mm_prefetch next_prefetch(const strassen *s, next_operands *next) {
  int64_t at = next->prefetched, a = block_a(s);
  next->prefetched += 64 * s->kb8;
  if (at < a) return (int4mm_prefetch){(const char *)next->a + at, 64};
  if (at < a + block_b(s)) return (int4mm_prefetch){(const char *)next->b + at - a, 64};
  return (int4mm_prefetch){(const char *)next->a, 0};
}

/* Adds product r of a slice to its blocks of the macro tile. */
static void multiply(const strassen *s, int64_t r, bool first_slice, const int8_t *a, const int8_t *b,
                     const int32_t *acc_init, int32_t *tile, next_operands next) {
  int64_t mr = s->k->mr, nr = s->k->nr, ld = ld_of_tile(s);
  int32_t count = s->destination_count[r];
  for (int64_t n = 0; n < s->nb; n += nr) {
    for (int64_t m = 0; m < s->mb; m += mr) {
      int4mm_output_tile tiles[MAX_BLOCKS];
      for (int32_t i = 0; i < count; i++) {
        const destination *d = &s->destinations[r][i];
        tiles[i].sums = tile + (d->row * s->mb + m) * ld + d->col * s->nb + n;
        tiles[i].sign = d->first && first_slice ? 0 : d->sign;
      }
      const uint32_t *panel = (const uint32_t *)(a + m / mr * panel_a(s));
      s->k->microkernel_bytes(s->kb8, panel, (const uint32_t *)(b + n / nr * panel_b(s)), nr, acc_init + m, tiles,
                              count, ld, next_prefetch(s, &next));
    }
  }
}

static void store_tile(const strassen *s, int64_t i, int64_t j, const int32_t *tile) {
  const int4mm_problem *p = s->p;
  int64_t m = i * s->G * s->mb, n = j * s->G * s->nb, rows = int4mm_min64(s->G * s->mb, p->M - m);
  int64_t columns = int4mm_min64(s->G * s->nb, p->N - n), ld = ld_of_tile(s);
  for (int64_t r = 0; r < rows; r += 8) {
    s->k->epilogue(p, m + r, n, int4mm_min64(8, rows - r), columns, tile + r * ld, ld);
  }
}

static void compute(void *context, int64_t index, int32_t slot) {
  const strassen *s = context;
  int64_t across = s->j1 - s->j0, i = index / across, j = index % across;
  int32_t *tile = (int32_t *)(s->scratch + slot * s->scratch_bytes);
  for (int64_t slice = 0; slice < s->slices; slice++) {
    int64_t first_a = (i * s->slices + slice) * s->products, first_b = (j * s->slices + slice) * s->products;
    for (int64_t r = 0; r < s->products; r++) {
      const int8_t *a = s->a + (first_a + r) * block_a(s), *b = s->b + (first_b + r) * block_b(s);
      next_operands next = {a + block_a(s), b + block_b(s), 0};
      multiply(s, r, slice == 0, a, b, s->acc_init + (first_a + r) * s->mb, tile, next);
    }
  }
  store_tile(s, s->i0 + i, s->j0 + j, tile);
}

static void run_macro_columns(strassen *s) {
  int64_t tiles = s->j1 - s->j0;
  int4mm_parallel(s->threads, tiles * s->slices * (s->nb / s->k->nr), pack_b, s);
  int4mm_parallel(s->threads, (s->i1 - s->i0) * tiles, compute, s);
}

/* ---- sizes ------------------------------------------------------------------------------------------------------ */

/* Block sizes are from measurements on Zen 4 (1 MB of second-level cache) at 2048^3 and 4096^3: square tiles with 256
 * KiB of sums are 3 to 5% faster than larger ones. With more threads more macro columns are packed together, so that
 * there are macro tiles for all. */
static void choose_sizes(strassen *s) {
  static const int64_t rows[MAX_LEVELS + 1] = {0, 128, 64}, cols[MAX_LEVELS + 1] = {0, 128, 64};
  const int4mm_problem *p = s->p;
  int64_t k8 = p->K / 8, mr = s->k->mr, nr = s->k->nr;
  s->G = 1 << s->levels;
  s->products = s->levels == 1 ? 7 : 49;
  s->macro_m = int4mm_ceil_div(p->M, s->G * rows[s->levels]);
  s->macro_n = int4mm_ceil_div(p->N, s->G * cols[s->levels]);
  s->mb = int4mm_round_up(int4mm_ceil_div(p->M, s->macro_m * s->G), mr);
  s->nb = int4mm_round_up(int4mm_ceil_div(p->N, s->macro_n * s->G), nr);
  s->slices = int4mm_max64(1, int4mm_ceil_div(k8, s->levels == 1 ? 512 : 1024));
  /* even, since combinations work on whole vectors */
  s->kb8 = int4mm_max64(2, int4mm_round_up(int4mm_ceil_div(k8, s->slices * s->G), 2));
  int64_t macro_a = s->slices * s->products * block_a(s), macro_b = s->slices * s->products * block_b(s);
  int64_t packed_b = int4mm_max64(PACKED_B_BYTES, (int64_t)s->threads * PACKED_B_BYTES / 4);
  s->block_m = int4mm_min64(s->macro_m, int4mm_max64(1, PACKED_A_BYTES / macro_a));
  s->block_n = int4mm_min64(s->macro_n, int4mm_max64(1, packed_b / macro_b));
}

static bool acquire_workspace(strassen *s) {
  int64_t macro_a = s->slices * s->products * block_a(s), macro_b = s->slices * s->products * block_b(s);
  int64_t acc_init_bytes = int4mm_round_up(4 * s->block_m * s->slices * s->products * s->mb, 64);
  int64_t tile = 4 * s->G * s->mb * ld_of_tile(s);
  int64_t blocks = s->G * s->G * int4mm_max64(panel_a(s), panel_b(s));
  s->scratch_bytes = int4mm_round_up(int4mm_max64(tile, blocks), 64);
  char *memory = int4mm_workspace_acquire(s->block_m * macro_a + s->block_n * macro_b + acc_init_bytes +
                                          s->threads * s->scratch_bytes);
  if (!memory) return false;
  s->a = (int8_t *)memory;
  s->b = s->a + s->block_m * macro_a;
  s->acc_init = (int32_t *)(s->b + s->block_n * macro_b);
  s->scratch = (char *)s->acc_init + acc_init_bytes;
  return true;
}

int32_t int4mm_gemm_strassen(const int4mm_kernels *kernels, const int4mm_problem *p, int32_t levels) {
  strassen s = {.k = kernels, .p = p, .levels = levels};
  s.threads = int4mm_threads_for(p->M * p->N, int4mm_max64(1, (1 << 21) / int4mm_max64(p->K, 1)));
  choose_sizes(&s);
  list_destinations(&s);
  if (!acquire_workspace(&s)) return INT4MM_ERR_MEMORY;
  for (s.i0 = 0; s.i0 < s.macro_m; s.i0 = s.i1) {
    s.i1 = int4mm_min64(s.i0 + s.block_m, s.macro_m);
    int4mm_parallel(s.threads, (s.i1 - s.i0) * s.slices * (s.mb / kernels->mr), pack_a, &s);
    for (s.j0 = 0; s.j0 < s.macro_n; s.j0 = s.j1) {
      s.j1 = int4mm_min64(s.j0 + s.block_n, s.macro_n);
      run_macro_columns(&s);
    }
  }
  int4mm_workspace_release(s.a);
  return INT4MM_OK;
}

/* The rule is from measurements on Zen 4 against the blocked driver, on one thread and on two, best of many calls: one
 * level gains 6 and 2% at 1024^3, 9 and 5% at 1536^3, 8 and 6% at 2048^3; two gain 14 and 8% there, 18% at 4096^3. */
int32_t int4mm_strassen_levels(const int4mm_kernels *kernels, const int4mm_problem *p) {
  if (p->K > MAX_K || !int4mm_is_elementary(p)) return 0;
  if (p->strassen >= 0) return p->strassen < kernels->strassen ? p->strassen : kernels->strassen;
  int64_t min_size = int4mm_min64(int4mm_min64(p->M, p->N), p->K);
  int32_t levels = min_size >= 2048 ? 2 : min_size >= 1024 ? 1 : 0;
  return levels < kernels->strassen ? levels : kernels->strassen;
}
