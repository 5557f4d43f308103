/*
 * The epilogue of a finished tile for any output type and number of columns. Included by each instruction set after it
 * has defined LANES and store_columns, which takes at most LANES columns and is expanded once per output type.
 */
static void store(const int4mm_problem *p, int64_t m, int64_t n, int64_t rows, int64_t columns, const int32_t *tile,
                  int64_t ldt) {
  for (int64_t c = 0; c < columns; c += LANES) {
    int64_t here = int4mm_min64(LANES, columns - c);
    if (p->out_dtype == INT4MM_FLOAT16) {
      store_columns(p, m, n + c, rows, here, tile + c, ldt, INT4MM_FLOAT16);
    } else if (p->out_dtype == INT4MM_BFLOAT16) {
      store_columns(p, m, n + c, rows, here, tile + c, ldt, INT4MM_BFLOAT16);
    } else {
      store_columns(p, m, n + c, rows, here, tile + c, ldt, INT4MM_FLOAT32);
    }
  }
}
