/*
 * Packing, rotating, quantising, random numbers and copies on every instruction set that runs here, over generated
 * matrices, against loops that follow src/int4mm.h word for word. Exits 1 at the first difference.
 *
 *   cpu_rows [cases [seed]]    $CASES or 400 cases by default (60 under an emulator or ThreadSanitizer), from seed 1
 */
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/numeric.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cpu/cpu.h"
#include "cuda/table.h"
#include "random.h"

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
enum { CASES = 400 };
#else
enum { CASES = 60 }; /* what an emulator or ThreadSanitizer does in a minute */
#endif

static const char *what = "";

static void judge(bool right, const char *detail, int64_t r, int64_t c) {
  if (right) return;
  fprintf(stderr, "%s on %s: %s at [%" PRId64 ", %" PRId64 "]\n", what, int4mm_cpu_isa(), detail, r, c);
  exit(1);
}

/* A matrix with rows apart, and poison between them that must stay. */
static int4mm_matrix make(int64_t rows, int64_t cols, int32_t dtype) {
  int4mm_matrix m = {NULL, rows, cols, cols + below(5), dtype};
  size_t bytes = (size_t)(rows * m.stride) * int4mm_dtype_size(dtype);
  m.data = malloc(bytes + 1);
  if (!m.data) exit(2);
  memset(m.data, 0xa5, bytes);
  return m;
}

static void *at(const int4mm_matrix *m, int64_t r, int64_t c) {
  return (char *)m->data + (size_t)(r * m->stride + c) * int4mm_dtype_size(m->dtype);
}

static void judge_poison(const int4mm_matrix *m) {
  for (int64_t r = 0; r < m->rows; r++) {
    const uint8_t *gap = at(m, r, m->cols);
    for (size_t i = 0; i < (size_t)(m->stride - m->cols) * int4mm_dtype_size(m->dtype); i++) {
      judge(gap[i] == 0xa5, "wrote between rows", r, m->cols);
    }
  }
}

/* The bits of the one NaN of a float dtype. */
static uint32_t nan_of(int32_t dtype) {
  return dtype == INT4MM_FLOAT32 ? INT4MM_NAN_BITS : 0x7fff;
}

/* Scales that are NaN, of whatever payload and sign, or infinite. */
static float odd_scale(void) {
  static const uint32_t odd[] = {0x7fc00000, 0xffc12345, 0x7f800001, 0xffffffff, 0x7f800000, 0xff800000};
  return int4mm_bits_float(odd[below(6)]);
}

static void put_float(const int4mm_matrix *m, int64_t r, int64_t c, float x) {
  uint16_t half = m->dtype == INT4MM_FLOAT16 ? int4mm_to_half(x) : int4mm_to_bfloat(x);
  if (m->dtype == INT4MM_FLOAT32) {
    memcpy(at(m, r, c), &x, 4);
  } else {
    memcpy(at(m, r, c), &half, 2);
  }
}

static float get_float(const int4mm_matrix *m, int64_t r, int64_t c) {
  float x;
  uint16_t half;
  if (m->dtype == INT4MM_FLOAT32) {
    memcpy(&x, at(m, r, c), 4);
    return x;
  }
  memcpy(&half, at(m, r, c), 2);
  return m->dtype == INT4MM_FLOAT16 ? int4mm_from_half(half) : int4mm_from_bfloat(half);
}

static int32_t get_int(const int4mm_matrix *m, int64_t r, int64_t c) {
  return m->dtype == INT4MM_INT8 ? *(int8_t *)at(m, r, c) : *(int32_t *)at(m, r, c);
}

static void put_int(const int4mm_matrix *m, int64_t r, int64_t c, int32_t value) {
  if (m->dtype == INT4MM_INT8) {
    *(int8_t *)at(m, r, c) = (int8_t)value;
  } else {
    *(int32_t *)at(m, r, c) = value;
  }
}

/* The value of element (r, c) of the unpacked matrix. */
static int32_t packed_value(const int4mm_pack_job *j, int64_t r, int64_t c) {
  int64_t k = j->dim ? c : r;
  uint32_t word = *(uint32_t *)(j->dim ? at(&j->packed, r, c / 8) : at(&j->packed, r / 8, c));
  return int4mm_nibble(word ^ j->xor_mask, (int)(k % 8));
}

static void judge_packed(const int4mm_pack_job *j, int32_t (*expected)(const int4mm_pack_job *, int64_t, int64_t)) {
  int64_t rows = j->dim ? j->plain.rows : 8 * j->packed.rows, cols = j->dim ? 8 * j->packed.cols : j->plain.cols;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) {
      bool padding = r >= j->plain.rows || c >= j->plain.cols;
      judge(packed_value(j, r, c) == (padding ? 0 : expected(j, r, c)), padding ? "padding" : "packed value", r, c);
    }
  }
  judge_poison(&j->packed);
}

static int4mm_pack_job make_job(int32_t dtype) {
  int64_t R = below(3) ? 1 + below(40) : 1 + below(3), C = below(3) ? 1 + below(200) : 1 + below(5000);
  int4mm_pack_job j = {.dim = (int32_t)below(2), .check = true};
  j.xor_mask = below(2) ? INT4MM_ENCODING_XOR : 0;
  j.plain = make(R, C, dtype);
  j.packed = j.dim ? make(R, (C + 7) / 8, INT4MM_INT32) : make((R + 7) / 8, C, INT4MM_INT32);
  return j;
}

static void drop(int4mm_pack_job *j) {
  free(j->packed.data), free(j->plain.data), free(j->scales);
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

static int32_t plain_value(const int4mm_pack_job *j, int64_t r, int64_t c) {
  return get_int(&j->plain, r, c);
}

static void pack_case(void) {
  int4mm_pack_job j = make_job(below(2) ? INT4MM_INT8 : INT4MM_INT32);
  int64_t bad = -1;
  what = "pack";
  for (int64_t r = 0; r < j.plain.rows; r++) {
    for (int64_t c = 0; c < j.plain.cols; c++) put_int(&j.plain, r, c, (int32_t)below(16) - 8);
  }
  judge(int4mm_cpu_pack(&j, &bad) == INT4MM_OK, "status", 0, 0);
  judge_packed(&j, plain_value);
  what = "unpack";
  int4mm_pack_job back = j;
  back.plain = make(j.plain.rows, j.plain.cols, below(2) ? INT4MM_INT8 : INT4MM_INT32);
  int4mm_cpu_unpack(&back);
  for (int64_t r = 0; r < j.plain.rows; r++) {
    for (int64_t c = 0; c < j.plain.cols; c++) {
      judge(get_int(&back.plain, r, c) == get_int(&j.plain, r, c), "value", r, c);
    }
  }
  judge_poison(&back.plain);
  what = "pack of a bad value";
  int64_t first = below(j.plain.rows * j.plain.cols), cols = j.plain.cols;
  static const int32_t wrong[] = {8, -9, 127, -128, 16, 100000, INT32_MIN, INT32_MAX, 256, -256};
  for (int64_t i = first; i < j.plain.rows * cols; i += 1 + below(50)) {
    put_int(&j.plain, i / cols, i % cols, wrong[below(j.plain.dtype == INT4MM_INT8 ? 5 : 10)]);
  }
  judge(int4mm_cpu_pack(&j, &bad) == INT4MM_ERR_VALUE && bad == first, "first bad value", bad / cols, bad % cols);
  free(back.plain.data);
  drop(&j);
}

/* ---- rotating and quantising, by the words of int4mm.h ---- */

static void rotate_line(float *x, int64_t n, int64_t block) {
  int64_t stride = 1;
  for (; 4 * stride <= block; stride *= 4) {
    for (int64_t i = 0; i < n; i++) {
      if (i / stride % 4) continue;
      float x0 = x[i], x1 = x[i + stride], x2 = x[i + 2 * stride], x3 = x[i + 3 * stride];
      float s = (x0 + x1) + (x2 + x3);
      x[i] = s - (x3 + x3), x[i + stride] = s - (x2 + x2);
      x[i + 2 * stride] = s - (x1 + x1), x[i + 3 * stride] = s - (x0 + x0);
    }
  }
  for (int64_t i = 0; stride < block && i < n; i++) {
    if (i / stride % 2) continue;
    float x0 = x[i], x1 = x[i + stride];
    x[i] = x0 + x1, x[i + stride] = x0 - x1;
  }
  float factor = (float)(1 / sqrt((double)block));
  for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

static float quantized(float x, float scale, float most) {
  if (scale == 0 || isinf(scale)) return 0;
  float q = nearbyintf(x / scale);
  return q < -most ? -most : q > most ? most : q;
}

static double squared_error(const float *x, int64_t n, float scale, float most) {
  double sums[32] = {0}, sum = 0;
  for (int64_t k = 0; k < n; k++) {
    double e = (double)x[k] - (double)quantized(x[k], scale, most) * (double)scale;
    sums[k % 32] += e * e;
  }
  for (int i = 0; i < 32; i++) sum += sums[i];
  return sum;
}

static float scale_of_line(const float *x, int64_t n, const int4mm_pack_job *j, float most) {
  float absmax = 0;
  for (int64_t k = 0; k < n; k++) absmax = fmaxf(absmax, isfinite(x[k]) ? fabsf(x[k]) : INFINITY);
  if (!j->clip_mse || isinf(absmax)) return absmax * j->clip / most;
  float best = absmax / most;
  double least = squared_error(x, n, best, most);
  for (int i = 63; i >= 32; i--) {
    float scale = absmax * ((float)i / 64) / most;
    double error = squared_error(x, n, scale, most);
    if (error < least) least = error, best = scale;
  }
  return best;
}

/* The float32 line l along the job's dimension, rotated. */
static void get_line(const int4mm_pack_job *j, int64_t l, float *x, int64_t n) {
  for (int64_t k = 0; k < n; k++) x[k] = get_float(&j->plain, j->dim ? l : k, j->dim ? k : l);
  if (j->rotate) rotate_line(x, n, j->rotate);
}

static int32_t stored_value(const int4mm_pack_job *j, int64_t r, int64_t c) {
  return j->packed.dtype == INT4MM_INT8 ? *(int8_t *)at(&j->packed, r, c) : packed_value(j, r, c);
}

static int32_t zero_value(const int4mm_pack_job *j, int64_t r, int64_t c) {
  return packed_value(j, r, c); /* only the padding is judged */
}

static void judge_quantized(const int4mm_pack_job *j) {
  int64_t R = j->plain.rows, C = j->plain.cols, n = j->dim ? C : R;
  float most = j->packed.dtype == INT4MM_INT8 ? 127 : 7, *x = malloc((size_t)n * sizeof *x);
  if (!x) exit(2);
  for (int64_t l = 0; l < (j->dim ? R : C); l++) {
    get_line(j, l, x, n);
    float scale = scale_of_line(x, n, j, most);
    judge(int4mm_float_bits(j->scales[l]) == int4mm_float_bits(scale), "scale", l, 0);
    for (int64_t k = 0; k < n; k++) {
      int64_t r = j->dim ? l : k, c = j->dim ? k : l;
      judge(stored_value(j, r, c) == (int32_t)quantized(x[k], scale, most), "value", r, c);
    }
  }
  free(x);
  if (most == 7) judge_packed(j, zero_value);
  judge_poison(&j->packed);
}

static void draw_options(int4mm_pack_job *j) {
  static const float clips[] = {1, 1, 0.9f, 0.015625f, 1e-40f};
  j->clip = clips[below(5)];
  j->clip_mse = below(4) == 0;
  if (j->clip_mse) j->clip = 1;
  int64_t *extent = j->dim ? &j->plain.cols : &j->plain.rows, block = 4 << below(9);
  if (below(2)) { /* the matrix shrinks to whole blocks, and its packed one with it */
    while (block > *extent) block /= 2;
    if (block >= 4) j->rotate = (int32_t)block, *extent -= *extent % block;
  }
  free(j->packed.data);
  int64_t R = j->plain.rows, C = j->plain.cols;
  j->packed = below(2) ? make(R, C, INT4MM_INT8)
              : j->dim ? make(R, (C + 7) / 8, INT4MM_INT32)
                       : make((R + 7) / 8, C, INT4MM_INT32);
}

static void quantize_case(void) {
  int4mm_pack_job j = make_job(INT4MM_FLOAT16 + (int32_t)below(3));
  int64_t bad = -1;
  float size = ldexpf(1.0f, (int)below(30) - 15);
  bool zeros = below(8) == 0, tiny = below(8) == 0, huge = below(8) == 0;
  what = "quantize";
  draw_options(&j);
  int64_t R = j.plain.rows, C = j.plain.cols, lines = j.dim ? R : C;
  if (huge) size = j.plain.dtype == INT4MM_FLOAT16 ? 65000.0f : 3e38f;
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) {
      float x = ((float)below(4001) - 2000) / (below(3) || huge ? 2000.0f : 14000.0f / 3) * size;
      if (zeros && (r + c) % 3) x = 0;
      if (tiny) x = int4mm_bits_float((uint32_t)below(40));
      put_float(&j.plain, r, c, x);
    }
  }
  j.scales = malloc((size_t)lines * 4);
  judge(int4mm_cpu_quantize(&j, &bad) == INT4MM_OK, "status", 0, 0);
  judge_quantized(&j);
  what = "dequantize";
  int4mm_pack_job back = j;
  back.plain = make(R, C, INT4MM_FLOAT16 + (int32_t)below(3));
  for (int64_t l = below(4) ? lines : 0; l < lines; l += 1 + below(3)) j.scales[l] = odd_scale();
  int4mm_cpu_dequantize(&back);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) {
      float expected = (float)stored_value(&j, r, c) * j.scales[j.dim ? r : c];
      int4mm_matrix one = {&(uint32_t){0}, 1, 1, 1, back.plain.dtype};
      put_float(&one, 0, 0, expected);
      if (isnan(expected)) *(uint32_t *)one.data = nan_of(one.dtype);
      judge(!memcmp(one.data, at(&back.plain, r, c), int4mm_dtype_size(one.dtype)), "value", r, c);
    }
  }
  judge_poison(&back.plain);
  what = "quantize of what is not finite";
  int64_t first = below(R * C);
  put_float(&j.plain, first / C, first % C, below(2) ? NAN : -INFINITY);
  judge(int4mm_cpu_quantize(&j, &bad) == INT4MM_ERR_VALUE && bad == first, "first bad value", bad / C, bad % C);
  free(back.plain.data);
  drop(&j);
}

/* Quotients about every tie, for one scale of any size: there a reciprocal in place of a division would show. */
static void tie_case(void) {
  enum { TIES = 127, NEAR = 7 };
  float most = below(2) ? 127 : 7, scale = int4mm_bits_float(0x00000001u + next() % 0x7e000000u), x[TIES * NEAR];
  if (below(2)) scale = int4mm_bits_float(0x3f800000u | (int4mm_float_bits(scale) & 0x7fffff));
  for (int i = 0; i < TIES * NEAR; i++) {
    float tie = ((float)(i / NEAR) + 0.5f) * scale;
    float near = int4mm_bits_float(int4mm_float_bits(tie) + (uint32_t)(i % NEAR) - NEAR / 2);
    x[i] = !isfinite(near) ? 0 : below(2) ? near : -near;
  }
  int8_t q[TIES * NEAR], columns[TIES * NEAR], along[TIES * NEAR + 8];
  uint32_t words[TIES * NEAR / 8 + 1];
  float scales[TIES * NEAR], inverses[TIES * NEAR];
  for (int i = 0; i < TIES * NEAR; i++) scales[i] = scale;
  what = "quotients about ties";
  const int4mm_rows *rows = int4mm_cpu_current()->rows;
  rows->quantize(q, x, scale, most, TIES * NEAR);
  rows->reciprocals(inverses, scales, TIES * NEAR);
  rows->quantize_columns(columns, x, scales, inverses, most, true, TIES * NEAR);
  rows->quantize_words(words, x, scale, true, TIES * NEAR, 0);
  rows->unpack_along(along, words, TIES * NEAR / 8 + 1, 0);
  for (int i = 0; i < TIES * NEAR; i++) {
    judge(q[i] == (int8_t)quantized(x[i], scale, most), "value", 0, i);
    judge(columns[i] == q[i], "value by columns", 0, i);
    judge(along[i] == (int8_t)quantized(x[i], scale, 7), "value of a word", 0, i);
  }
}

static void rotate_case(void) {
  int4mm_rotate_job j = {.dim = (int32_t)below(2), .block = 4 << below(9)};
  int64_t whole = j.block * (1 + below(j.block > 64 ? 2 : 20)), other = 1 + below(60);
  j.src = make(j.dim ? other : whole, j.dim ? whole : other, INT4MM_FLOAT16 + (int32_t)below(3));
  bool in_place = below(2), odd = below(3) == 0;
  j.dst = in_place ? j.src : make(j.src.rows, j.src.cols, INT4MM_FLOAT16 + (int32_t)below(3));
  what = "rotate";
  for (int64_t r = 0; r < j.src.rows; r++) {
    for (int64_t c = 0; c < j.src.cols; c++) { /* now and then every pattern of bits, infinities and NaN among them */
      uint32_t bits = next();
      put_float(&j.src, r, c, ((float)below(4001) - 2000) / 1024);
      if (odd && below(50) == 0) memcpy(at(&j.src, r, c), &bits, int4mm_dtype_size(j.src.dtype));
    }
  }
  int4mm_matrix expected = make(j.src.rows, j.src.cols, INT4MM_FLOAT32);
  float *x = malloc((size_t)whole * sizeof *x);
  if (!x) exit(2);
  for (int64_t l = 0; l < other; l++) {
    for (int64_t k = 0; k < whole; k++) x[k] = get_float(&j.src, j.dim ? l : k, j.dim ? k : l);
    rotate_line(x, whole, j.block);
    for (int64_t k = 0; k < whole; k++) put_float(&expected, j.dim ? l : k, j.dim ? k : l, x[k]);
  }
  int4mm_cpu_rotate(&j);
  for (int64_t r = 0; r < j.dst.rows; r++) {
    for (int64_t c = 0; c < j.dst.cols; c++) {
      int4mm_matrix one = {&(uint32_t){0}, 1, 1, 1, j.dst.dtype};
      put_float(&one, 0, 0, get_float(&expected, r, c));
      if (isnan(get_float(&expected, r, c))) *(uint32_t *)one.data = nan_of(one.dtype);
      judge(!memcmp(one.data, at(&j.dst, r, c), int4mm_dtype_size(one.dtype)), "value", r, c);
    }
  }
  judge_poison(&j.dst);
  free(x), free(expected.data), free(j.src.data);
  if (!in_place) free(j.dst.data);
}

static void random_case(void) {
  int4mm_random_job j = {.seed = (uint64_t)next() << 32 | next(), .sequence = next(), .low = -1.5f, .high = 2.25f};
  j.dst = make(1 + below(5), 1 + below(3000), below(2) ? INT4MM_INT32 : INT4MM_FLOAT32);
  what = "random";
  int4mm_cpu_random(&j);
  for (int64_t r = 0; r < j.dst.rows; r++) {
    for (int64_t c = 0; c < j.dst.cols; c++) {
      uint64_t i = (uint64_t)(r * j.dst.cols + c);
      uint32_t words[4], got;
      int4mm_philox(j.seed, i / 4, j.sequence, words);
      memcpy(&got, at(&j.dst, r, c), 4);
      float x = int4mm_uniform(words[i % 4], j.low, j.high);
      judge(got == (j.dst.dtype == INT4MM_INT32 ? words[i % 4] : int4mm_float_bits(x)), "value", r, c);
    }
  }
  judge_poison(&j.dst);
  free(j.dst.data);
}

static void copy_case(void) {
  static const int32_t pairs[][2] = {{2, 4}, {3, 4}, {4, 2}, {4, 3}, {2, 3}, {3, 2}, {0, 4}, {0, 2}, {0, 3},
                                     {1, 4}, {1, 2}, {1, 3}, {0, 1}, {1, 0}, {0, 0}, {4, 4}, {2, 2}, {1, 1}};
  const int32_t *pair = pairs[below(18)];
  int64_t R = 1 + below(20), C = 1 + below(1500);
  int4mm_matrix src = make(R, C, pair[0]), dst = make(R, C, pair[1]);
  what = "copy";
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) { /* every pattern of bits, infinities and NaN among them */
      uint32_t bits = below(4) ? next() : next() & 0xff;
      memcpy(at(&src, r, c), &bits, int4mm_dtype_size(src.dtype));
    }
  }
  int4mm_cpu_copy(&dst, &src);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) {
      int4mm_matrix one = {&(uint32_t){0}, 1, 1, 1, dst.dtype};
      if (src.dtype == dst.dtype) {
        memcpy(one.data, at(&src, r, c), int4mm_dtype_size(dst.dtype));
      } else if (dst.dtype <= INT4MM_INT8) {
        put_int(&one, 0, 0, get_int(&src, r, c));
      } else if (src.dtype >= INT4MM_FLOAT16) {
        put_float(&one, 0, 0, get_float(&src, r, c));
        if (isnan(get_float(&src, r, c))) *(uint32_t *)one.data = nan_of(dst.dtype);
      } else if (dst.dtype == INT4MM_BFLOAT16) { /* one rounding, by hand: to eight bits, nearest even */
        int32_t value = get_int(&src, r, c);
        double x = value, unit = value ? ldexp(1, ilogb(x) - 7) : 1;
        put_float(&one, 0, 0, (float)(nearbyint(x / unit) * unit));
      } else {
        put_float(&one, 0, 0, (float)get_int(&src, r, c));
      }
      judge(!memcmp(one.data, at(&dst, r, c), int4mm_dtype_size(dst.dtype)), "value", r, c);
    }
  }
  judge_poison(&dst);
  free(src.data), free(dst.data);
}

int main(int argc, char **argv) {
  const char *given = getenv("CASES");
  int cases = argc > 1 ? atoi(argv[1]) : given ? atoi(given) : CASES;
  state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  void (*const kinds[])(void) = {pack_case, quantize_case, tie_case, rotate_case, random_case, copy_case};
  for (int i = 0; i < cases; i++) {
    if (int4mm_set_num_threads(1 + (int32_t)below(4))) return 1;
    for (int32_t isa = 0; int4mm_cpu_isa_at(isa); isa++) {
      if (int4mm_set_cpu_isa(int4mm_cpu_isa_at(isa))) return 1;
      kinds[i % 6]();
    }
  }
  printf("cpu_rows: %d cases agree on each instruction set\n", cases);
  return 0;
}
