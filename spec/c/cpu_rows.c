/*
 * Packing, quantising, random numbers and copies on every instruction set that runs here, over generated matrices,
 * against loops that follow src/int4mm.h word for word. Exits 1 at the first difference.
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

static int32_t quantized_value(const int4mm_pack_job *j, int64_t r, int64_t c) {
  float scale = j->scales[j->dim ? r : c], x = get_float(&j->plain, r, c);
  if (scale == 0) return 0;
  float q = nearbyintf(x / scale);
  return (int32_t)(q < -7 ? -7 : q > 7 ? 7 : q);
}

static void quantize_case(void) {
  int4mm_pack_job j = make_job(INT4MM_FLOAT16 + (int32_t)below(3));
  int64_t R = j.plain.rows, C = j.plain.cols, lines = j.dim ? R : C, bad = -1;
  float size = ldexpf(1.0f, (int)below(30) - 15);
  bool zeros = below(8) == 0, tiny = below(8) == 0;
  what = "quantize";
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) {
      float x = ((float)below(4001) - 2000) / (below(3) ? 2000.0f : 14000.0f / 3) * size;
      if (zeros && (r + c) % 3) x = 0;
      if (tiny) x = int4mm_bits_float((uint32_t)below(40));
      put_float(&j.plain, r, c, x);
    }
  }
  j.scales = malloc((size_t)lines * 4);
  judge(int4mm_cpu_quantize(&j, &bad) == INT4MM_OK, "status", 0, 0);
  for (int64_t l = 0; l < lines; l++) {
    float largest = 0;
    for (int64_t i = 0; i < (j.dim ? C : R); i++)
      largest = fmaxf(largest, fabsf(get_float(&j.plain, j.dim ? l : i, j.dim ? i : l)));
    judge(j.scales[l] == largest / 7.0f, "scale", l, 0);
  }
  judge_packed(&j, quantized_value);
  what = "dequantize";
  int4mm_pack_job back = j;
  back.plain = make(R, C, INT4MM_FLOAT16 + (int32_t)below(3));
  for (int64_t l = below(4) ? lines : 0; l < lines; l += 1 + below(3)) j.scales[l] = odd_scale();
  int4mm_cpu_dequantize(&back);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) {
      float expected = (float)packed_value(&j, r, c) * j.scales[j.dim ? r : c];
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

static void transpose_case(void) {
  int64_t R = 1 + below(150), C = 1 + below(150);
  int4mm_matrix src = make(R, C, INT4MM_INT32), dst = make(C, R, INT4MM_INT32);
  what = "transpose";
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) *(uint32_t *)at(&src, r, c) = next();
  }
  int4mm_cpu_transpose(&dst, &src, INT4MM_ENCODING_XOR);
  for (int64_t r = 0; r < R; r++) {
    for (int64_t c = 0; c < C; c++) {
      judge((*(uint32_t *)at(&src, r, c) ^ INT4MM_ENCODING_XOR) == *(uint32_t *)at(&dst, c, r), "word", r, c);
    }
  }
  judge_poison(&dst);
  free(src.data), free(dst.data);
}

int main(int argc, char **argv) {
  const char *given = getenv("CASES");
  int cases = argc > 1 ? atoi(argv[1]) : given ? atoi(given) : CASES;
  state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  void (*const kinds[])(void) = {pack_case, quantize_case, random_case, copy_case, transpose_case};
  for (int i = 0; i < cases; i++) {
    if (int4mm_set_num_threads(1 + (int32_t)below(4))) return 1;
    for (int32_t isa = 0; int4mm_cpu_isa_at(isa); isa++) {
      if (int4mm_set_cpu_isa(int4mm_cpu_isa_at(isa))) return 1;
      kinds[i % 5]();
    }
  }
  printf("cpu_rows: %d cases agree on each instruction set\n", cases);
  return 0;
}
