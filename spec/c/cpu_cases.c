/*
 * Every instruction set that runs here, over generated problems, bit for bit against a product written out plainly, and
 * against the scalar path where that would take too long. Prints what it did; exits 1 at the first difference.
 *
 *   cpu_cases [cases [seed]]    generated cases, $CASES or 600 by default (60 under an emulator or ThreadSanitizer),
 * from seed 1; below 200 the largest sizes are left out
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
#include "memory.h"
#include "random.h"

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
enum { CASES = 600 };
#else
enum { CASES = 60 }; /* what an emulator or ThreadSanitizer does in a minute */
#endif

static float some_scale(void) {
  static const uint32_t odd[] = {0x00000000, 0x80000000, 0x00000001, 0x80012345, 0x007fffff, 0x7f7fffff, 0xff7fffff,
                                 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x7f800001, 0x3f800000, 0xbf800000};
  if (below(10) == 0) return int4mm_bits_float(odd[below(sizeof odd / sizeof *odd)]);
  float x = ((float)below(2001) - 1000.0f) * 1.25e-4f;
  return below(30) == 0 ? x * 1.0e30f : x;
}

typedef struct operands {
  int4mm_problem p;
  uint32_t *a, *b, *nk, *panels;
  int64_t ld_nk; /* words from row to row of nk */
  float *scale_a, *scale_b, *bias;
  int64_t out_bytes;
} operands;

static int64_t size_of_out(const int4mm_problem *p) {
  return p->out.dtype == INT4MM_FLOAT32 ? 4 : 2;
}

/* Exactly as many words as the strides need, so that a sanitizer sees every step outside. */
static operands make(int64_t M, int64_t N, int64_t K, bool strided, bool extreme) {
  operands o = {.p = {.M = M, .N = N, .K = K, .strassen = 0}};
  int4mm_problem *p = &o.p;
  int64_t k8 = K / 8;
  p->a.stride = k8 + (strided ? below(9) : 0);
  p->b.stride = N + (strided ? below(9) : 0);
  p->b.rows = k8, p->b.cols = N;
  p->out.stride = N + (strided ? below(9) : 0);
  int64_t words_a = M && k8 ? (M - 1) * p->a.stride + k8 : 0, words_b = N && k8 ? (k8 - 1) * p->b.stride + N : 0;
  o.a = allocate(words_a * 4), o.b = allocate(words_b * 4);
  for (int64_t i = 0; i < words_a; i++) o.a[i] = extreme ? 0x88888888u : next();
  for (int64_t i = 0; i < words_b; i++) o.b[i] = extreme ? 0x88888888u : next();
  o.scale_a = allocate(M * 4), o.scale_b = allocate(N * 4), o.bias = allocate(N * 4);
  for (int64_t i = 0; i < M; i++) o.scale_a[i] = some_scale();
  for (int64_t i = 0; i < N; i++) o.scale_b[i] = some_scale(), o.bias[i] = some_scale();
  p->a.words = o.a, p->b.words = o.b, p->a.scales = o.scale_a, p->b.scales = o.scale_b;
  p->a.layout = INT4MM_K_MAJOR, p->b.layout = INT4MM_MN_MAJOR, p->a.group = p->b.group = K;
  p->a.xor_mask = below(2) && !extreme ? INT4MM_ENCODING_XOR : 0;
  p->b.xor_mask = below(2) && !extreme ? INT4MM_ENCODING_XOR : 0;
  p->bias = below(2) ? o.bias : NULL;
  p->out.dtype = INT4MM_FLOAT16 + (int32_t)below(3);
  o.out_bytes = M && N ? ((M - 1) * p->out.stride + N) * size_of_out(p) : 0;
  return o;
}

/* The weight of o as [N, K/8] words, `pad` words between its rows and none behind the last. */
static void add_nk(operands *o, int64_t pad) {
  int64_t k8 = o->p.K / 8, N = o->p.N, words = N && k8 ? (N - 1) * (k8 + pad) + k8 : 0;
  o->ld_nk = k8 + pad;
  o->nk = allocate(words * 4);
  for (int64_t i = 0; i < words; i++) o->nk[i] = next();
  for (int64_t n = 0; n < N; n++) {
    for (int64_t j = 0; j < k8; j++) o->nk[n * o->ld_nk + j] = o->b[j * o->p.b.stride + n];
  }
}

static void use_nk(const operands *o, int4mm_operand *b) {
  b->words = o->nk, b->layout = INT4MM_K_MAJOR, b->stride = o->ld_nk, b->rows = o->p.N, b->cols = o->p.K / 8;
}

static void drop(operands *o) {
  free(o->a), free(o->b), free(o->nk), free(o->panels), free(o->scale_a), free(o->scale_b), free(o->bias);
}

static void *poisoned(const operands *o, uint8_t byte) {
  void *out = allocate(o->out_bytes);
  memset(out, byte, (size_t)o->out_bytes);
  return out;
}

/* The contract, written out. */
static void plainly(const int4mm_problem *p, void *out) {
  for (int64_t m = 0; m < p->M; m++) {
    for (int64_t n = 0; n < p->N; n++) {
      int64_t acc = 0;
      for (int64_t k = 0; k < p->K; k++) {
        uint32_t a = (p->a.words[m * p->a.stride + k / 8] ^ p->a.xor_mask) >> (4 * (k % 8)) & 15;
        uint32_t b = (p->b.words[k / 8 * p->b.stride + n] ^ p->b.xor_mask) >> (4 * (k % 8)) & 15;
        acc += ((int32_t)(a ^ 8) - 8) * ((int32_t)(b ^ 8) - 8);
      }
      float x = (float)(int32_t)acc * p->a.scales[m];
      x = x * p->b.scales[n];
      if (p->bias) x = x + p->bias[n];
      uint32_t bits = int4mm_float_bits(x);
      if (isnan(x)) bits = INT4MM_NAN_BITS;
      uint16_t half = p->out.dtype == INT4MM_FLOAT16 ? int4mm_to_half(x) : int4mm_to_bfloat(x);
      char *at = (char *)out + (m * p->out.stride + n) * size_of_out(p);
      memcpy(at, p->out.dtype == INT4MM_FLOAT32 ? (void *)&bits : (void *)&half, (size_t)size_of_out(p));
    }
  }
}

static void run(const char *isa, const int4mm_problem *problem, void *out) {
  int4mm_problem p = *problem;
  p.out.data = out;
  if (int4mm_set_cpu_isa(isa) || int4mm_cpu_matmul(&p)) {
    fprintf(stderr, "%s: %s\n", isa, int4mm_last_error());
    exit(1);
  }
}

static void judge(const char *what, const operands *o, const int4mm_problem *p, const void *expected, const void *got) {
  if (!memcmp(expected, got, (size_t)o->out_bytes)) return;
  int64_t size = size_of_out(p), i = 0;
  while (!memcmp((const char *)expected + i * size, (const char *)got + i * size, (size_t)size)) i++;
  uint32_t e = 0, g = 0;
  memcpy(&e, (const char *)expected + i * size, (size_t)size);
  memcpy(&g, (const char *)got + i * size, (size_t)size);
  fprintf(stderr,
          "%s: [%" PRId64 ", %" PRId64 ", %" PRId64 "] (M, N, K), strides %" PRId64 " %" PRId64 " %" PRId64
          ", xor masks %d %d, dtype %s, bias %d, layout %d, strassen %d, threads %d: out[%" PRId64 ", %" PRId64
          "] is 0x%x, expected 0x%x\n",
          what, p->M, p->N, p->K, p->a.stride, p->b.stride, p->out.stride, p->a.xor_mask != 0, p->b.xor_mask != 0,
          int4mm_dtype_name(p->out.dtype), p->bias != NULL, p->b.layout, p->strassen, int4mm_get_num_threads(),
          i / p->out.stride, i % p->out.stride, g, e);
  exit(1);
}

/* Both layouts of the weight give the same panels on every instruction set. */
static void check_panels(const operands *o) {
  int64_t bytes = int4mm_cpu_panel_words(o->p.K / 8, o->p.N) * 4;
  int4mm_operand nk = o->p.b;
  uint32_t *got = allocate(bytes);
  use_nk(o, &nk);
  for (int32_t i = 0; int4mm_cpu_isa_at(i); i++) {
    memset(got, 0xa5, (size_t)bytes);
    if (int4mm_set_cpu_isa(int4mm_cpu_isa_at(i))) exit(1);
    int4mm_cpu_prepack(got, &nk);
    if (!memcmp(got, o->panels, (size_t)bytes)) continue;
    fprintf(stderr, "%s: panels of [%" PRId64 ", %" PRId64 "] words, K-major, %" PRId64 " from row to row, differ\n",
            int4mm_cpu_isa_at(i), nk.rows, nk.cols, nk.stride);
    exit(1);
  }
  free(got);
}

/* All instruction sets on one problem: the weight in each of its layouts, with and without Strassen. */
static int check(operands *o, bool brute) {
  uint8_t poison = (uint8_t)next();
  int checked = 0;
  void *expected = poisoned(o, poison);
  if (brute) {
    plainly(&o->p, expected);
  } else {
    run("scalar", &o->p, expected);
  }
  o->panels = allocate(int4mm_cpu_panel_words(o->p.K / 8, o->p.N) * 4);
  int4mm_cpu_prepack(o->panels, &o->p.b);
  add_nk(o, below(2) ? below(9) : 0);
  check_panels(o);
  for (int32_t i = 0; int4mm_cpu_isa_at(i); i++) {
    for (int variant = 0; variant < 7; variant++) {
      int4mm_problem p = o->p;
      if (variant == 1) p.b.words = o->panels, p.b.layout = INT4MM_PANELS_N, p.b.xor_mask = 0, p.b.stride = 0;
      if (variant > 1) p.strassen = (variant - 1) % 3;
      if (variant > 3) use_nk(o, &p.b);
      void *got = poisoned(o, poison);
      run(int4mm_cpu_isa_at(i), &p, got);
      judge(int4mm_cpu_isa_at(i), o, &p, expected, got);
      free(got);
      checked++;
    }
  }
  free(expected);
  return checked;
}

static int case_of(int64_t M, int64_t N, int64_t K, bool strided, bool extreme, bool brute) {
  operands o = make(M, N, K, strided, extreme);
  int checked = check(&o, brute);
  drop(&o);
  return checked;
}

/* Sizes that take several super blocks: the fast paths against each other, and single outputs against the contract. */
static int large_case(int64_t M, int64_t N, int64_t K) {
  operands o = make(M, N, K, true, false);
  void *expected = poisoned(&o, 0xa5), *got = poisoned(&o, 0xa5);
  int checked = 0;
  add_nk(&o, below(9));
  run(int4mm_cpu_isa_at(0), &o.p, expected);
  for (int i = 0; i < 300; i++) {
    int64_t m = i ? below(M) : M - 1, n = i ? below(N) : N - 1, at = (m * o.p.out.stride + n) * size_of_out(&o.p);
    int4mm_problem one = o.p;
    operands single = {.out_bytes = size_of_out(&o.p)};
    char out[4];
    one.M = one.N = 1, one.a.words += m * o.p.a.stride, one.b.words += n, one.a.scales += m, one.b.scales += n;
    if (one.bias) one.bias += n;
    plainly(&one, out);
    judge("one output of many", &single, &one, out, (char *)expected + at);
  }
  for (int32_t isa = 0; int4mm_cpu_isa_at(isa); isa++) {
    if (!strcmp(int4mm_cpu_isa_at(isa), "scalar")) continue; /* would take minutes */
    for (int32_t variant = 0; variant < 6; variant++) {
      int4mm_problem p = o.p;
      p.strassen = variant % 3;
      if (variant > 2) use_nk(&o, &p.b);
      memset(got, 0xa5, (size_t)o.out_bytes);
      run(int4mm_cpu_isa_at(isa), &p, got);
      judge(int4mm_cpu_isa_at(isa), &o, &p, expected, got);
      checked++;
    }
  }
  free(expected), free(got);
  drop(&o);
  return checked;
}

static void set_threads(int32_t threads) {
  if (int4mm_set_num_threads(threads)) {
    fprintf(stderr, "%s\n", int4mm_last_error());
    exit(1);
  }
}

int main(int argc, char **argv) {
  const char *given = getenv("CASES");
  int cases = argc > 1 ? atoi(argv[1]) : given ? atoi(given) : CASES, checked = 0;
  state = argc > 2 ? strtoull(argv[2], NULL, 10) : 1;
  for (int i = 0; i < cases; i++) {
    set_threads(1 + (int32_t)below(4));
    int64_t M = below(4) ? below(71) : below(8), N = below(4) ? below(150) : below(70),
            K = 8 * below(below(3) ? 20 : 130);
    checked += case_of(M, N, K, below(2), below(12) == 0, M * N * K < 1 << 21);
  }
  static const int64_t sizes[][3] = {{0, 5, 8},       {5, 0, 8},        {3, 5, 0},        {1, 1, 8},
                                     {1, 64, 40000},  {17, 65, 20008},  {16, 130, 33000}, {33, 70, 16392},
                                     {130, 600, 520}, {257, 515, 1032}, {5, 3, 200000},   {20, 9, 200000},
                                     {300, 1030, 264}};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    if (cases < 200 && sizes[i][0] * sizes[i][1] * sizes[i][2] > 1 << 22) continue;
    for (int32_t threads = 1; threads <= 3; threads += 2) {
      set_threads(threads);
      checked += case_of(sizes[i][0], sizes[i][1], sizes[i][2], true, false, false);
      checked += case_of(sizes[i][0], sizes[i][1], sizes[i][2], false, true, false);
    }
  }
  set_threads(2);
  if (cases >= 200) {
    checked += large_case(1100, 1100, 16384) + large_case(1030, 1090, 20008) + large_case(1500, 4200, 4096);
    checked += large_case(4100, 300, 8192) + large_case(70, 3000, 33000) + large_case(2100, 2100, 2104);
  }
  checked += case_of(1, 1, 33554424, false, true, true); /* 64 * K just below 2^31 */
  checked += case_of(1, 1, 33554424, false, false, true);
  set_threads(0);
  printf("cpu_cases: %d products agree on", checked);
  for (int32_t i = 0; int4mm_cpu_isa_at(i); i++) printf(" %s", int4mm_cpu_isa_at(i));
  printf("\n");
  return 0;
}
