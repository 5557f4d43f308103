/*
 * Inside the CPU backend: the table of an instruction set, threads, and addresses in a weight.
 *
 * Division of labour: cpu.c chooses a table once and forwards to it; threads.c is the only place that starts threads,
 * and thread_count.c says how many there may be; one file per instruction set fills a table. Each such file is compiled
 * with its own -m flags (flags.mk), so nothing outside it may run its code before the CPU and the operating system were
 * found able to.
 */
#ifndef INT4MM_CPU_H
#define INT4MM_CPU_H

#include "core/activation.h"
#include "core/dtype.h"
#include "core/error.h"
#include "cpu/backend.h"
#include "cpu/elementwise/rows.h"

/* Columns of a prepacked panel: [ceil(N / 32)][K / 8][32] words, two's complement, zero in the padding. */
enum { INT4MM_PANEL = 32 };

static inline int64_t int4mm_min64(int64_t x, int64_t y) {
  return x < y ? x : y;
}
static inline int64_t int4mm_max64(int64_t x, int64_t y) {
  return x > y ? x : y;
}
/* For x >= 0 and y > 0; right up to INT64_MAX. */
static inline int64_t int4mm_ceil_div(int64_t x, int64_t y) {
  return x / y + (x % y != 0);
}
static inline int64_t int4mm_round_up(int64_t x, int64_t step) {
  return int4mm_ceil_div(x, step) * step;
}

typedef struct int4mm_kernels int4mm_kernels; /* gemm/gemm.h */

/* dst[j, c] = src[c, j] ^ xor_mask for j < k8 and c < columns, and 0 for columns <= c < width. dst: [k8][width] words;
 * src: K-major words of `columns` columns of B, ld words from one to the next. width: nr or INT4MM_PANEL. */
typedef void int4mm_transpose_words(uint32_t *dst, int64_t width, const uint32_t *src, int64_t ld, int64_t columns,
                                    int64_t k8, uint32_t xor_mask);

/* What an instruction set offers. Every table gives the same bits. */
typedef struct int4mm_cpu_table {
  const char *name;
  bool (*supported)(void); /* by this CPU and operating system */
  int32_t (*matmul)(const int4mm_kernels *kernels, const int4mm_problem *problem);
  void (*plan)(const int4mm_kernels *kernels, const int4mm_problem *problem, int4mm_plan *plan);
  const int4mm_kernels *kernels; /* for matmul and plan; NULL where they need none */
  const int4mm_rows *rows;
  int4mm_transpose_words *transpose;
} int4mm_cpu_table;

extern const int4mm_cpu_table int4mm_cpu_scalar;
extern const int4mm_cpu_table int4mm_cpu_avx2, int4mm_cpu_avxvnni, int4mm_cpu_avx512vl_vnni, int4mm_cpu_avx512vnni;
extern const int4mm_cpu_table int4mm_cpu_neon_dot, int4mm_cpu_neon_i8mm;

/* The table in use. */
const int4mm_cpu_table *int4mm_cpu_current(void);

/* elementwise/: the calls of backend.h over one table of loops. */
int32_t int4mm_elementwise_pack(const int4mm_rows *rows, const int4mm_pack_job *job, int64_t *bad);
int32_t int4mm_elementwise_quantize(const int4mm_rows *rows, const int4mm_pack_job *job, int64_t *bad);
int32_t int4mm_elementwise_quantize_groups(const int4mm_rows *rows, const int4mm_group_job *job);
void int4mm_elementwise_dequantize_groups(const int4mm_rows *rows, const int4mm_group_job *job);
int64_t int4mm_elementwise_find_not_finite(const int4mm_rows *rows, const int4mm_matrix *src);
void int4mm_elementwise_rotate(const int4mm_rows *rows, const int4mm_rotate_job *job);
void int4mm_elementwise_unpack(const int4mm_rows *rows, const int4mm_pack_job *job);
void int4mm_elementwise_random(const int4mm_rows *rows, const int4mm_random_job *job);
void int4mm_elementwise_map(const int4mm_rows *rows, const int4mm_map_job *job);
void int4mm_elementwise_rowwise(const int4mm_rows *rows, const int4mm_rowwise_job *job);
void int4mm_elementwise_copy(const int4mm_rows *rows, const int4mm_matrix *dst, const int4mm_matrix *src);

/* ---- threads ---------------------------------------------------------------------------------------------------- */

/* One piece of a region: pieces run in any order, each once. `slot` numbers the thread that runs it, below the number
 * of threads asked for, so that it may own a slice of a workspace. */
typedef void int4mm_task(void *context, int64_t index, int32_t slot);

/* Runs task(context, i, slot) for 0 <= i < count on up to `threads` threads, this one among them, and returns when all
 * are done. Never fails: with no other thread to be had, this one does it all. Inside a region, or inside a parallel
 * region of the program's own OpenMP code, it runs on the calling thread alone. Floating point runs in the default
 * environment (round to nearest even, no flush to zero) whatever the caller has set. */
void int4mm_parallel(int32_t threads, int64_t count, int4mm_task *task, void *context);

/* How many threads `work` is worth when a thread should get at least `grain` of it; at most int4mm_get_num_threads().
 */
int32_t int4mm_threads_for(int64_t work, int64_t grain);

enum { INT4MM_MAX_THREADS = 1024 };

/* thread_count.c: how many threads a call may have. The CPUs that the cgroups of `membership` (the text of
 * /proc/self/cgroup) may use, whole ones and 1 at least, by the files below `root` (/sys/fs/cgroup); INT32_MAX without
 * a limit. */
int32_t int4mm_cgroup_cpus(const char *root, const char *membership);

/* What is wrong with INT4MM_NUM_THREADS; NULL when nothing is. */
const char *int4mm_threads_warning(void);

/* Whether the sums that an epilogue gets are float32, not int32. */
static inline bool int4mm_has_float_sums(const int4mm_problem *p) {
  return p->b.group_scales.data || int4mm_is_w4a16(p);
}

/* ---- addresses in a weight --------------------------------------------------------------------------------------- */

/* The address of word (j, n) of b in any layout. The words up to the next multiple of INT4MM_PANEL columns follow,
 * unless it is K-major: there those along K do. */
static inline const uint32_t *int4mm_b_word(const int4mm_problem *p, int64_t j, int64_t n) {
  if (int4mm_is_k_major(&p->b)) return p->b.words + n * p->b.stride + j;
  if (!int4mm_is_panels(&p->b)) return p->b.words + j * p->b.stride + n;
  return p->b.words + (n / INT4MM_PANEL * int4mm_words_of_k(p) + j) * INT4MM_PANEL + n % INT4MM_PANEL;
}

#endif
