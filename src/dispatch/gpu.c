/*
 * The architectures, and what of a GPU the estimates depend on.
 *
 * The constants of the cost models were fitted to measurements on sm_90 (H100 and H200), and there they are taken as
 * they are, whatever the card. For every other architecture they are scaled by the ratio of the numbers below to those
 * of the H100: the device's own SM count, clock and memory rate where it tells them, the datasheet's else. What a
 * tensor core multiplies a clock no device tells. Scaled estimates are derived, not measured.
 */
#define _GNU_SOURCE /* secure_getenv */
#include "dispatch/gpu.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

enum { FITTED_ARCH = 90 };

/* Multiply-adds of an SM a clock are the datasheets' dense rates over SMs and boost clock: T4 (Turing whitepaper), A100
 * (GA100 whitepaper), RTX 3090 (GA102 whitepaper), Jetson AGX Orin 64 GB (technical brief; int4 as on sm_80), RTX 4090
 * (Ada whitepaper), RTX 5090 (RTX Blackwell whitepaper). float16 is with float32 sums, which GeForce cards do at half
 * their rate. On the H100 it is mma.sync, not wgmma, measured with int8 (1,320 TOPS) and int4 (49 TOPS: from there
 * on the instruction is emulated), float16 at half of int8. For sm_100, 103 and 110 NVIDIA publishes the rates of
 * tcgen05 alone: mma.sync is taken to do what the SM of sm_80 does. Orin's and Thor's memory is LPDDR5 and LPDDR5X. */
static const int4mm_architecture architectures[] = {
    /* arch, SMs, MHz, GB/s, L2 MiB, shared KiB of a CTA; int4, int8, float16 */
    {75, 40, 1590, 320, 4, 64, 2048, 1024, 512, "T4"},
    {80, 108, 1410, 1555, 40, 163, 4096, 2048, 1024, "A100 SXM 40 GB"},
    {86, 82, 1695, 936, 6, 99, 2048, 1024, 256, "RTX 3090"},
    {87, 16, 1300, 205, 4, 163, 4096, 2048, 1024, "Jetson AGX Orin 64 GB"},
    {89, 128, 2520, 1008, 72, 99, 2048, 1024, 256, "RTX 4090"},
    {90, 132, 1830, 3350, 50, 227, 101, 2731, 1365, "H100 SXM"},
    {100, 148, 1965, 8000, 126, 227, 101, 2048, 1024, "B200"},
    {103, 160, 1920, 8000, 126, 227, 101, 2048, 1024, "B300"},
    {110, 20, 1575, 273, 32, 227, 101, 2048, 1024, "Jetson AGX Thor"},
    {120, 170, 2407, 1792, 96, 99, 101, 1024, 256, "RTX 5090"},
    {121, 48, 2418, 273, 24, 99, 101, 1024, 256, "GB10"},
};
enum { COUNT = sizeof architectures / sizeof architectures[0] };

const int4mm_architecture *int4mm_architecture_at(int32_t index) {
  return index >= 0 && index < COUNT ? &architectures[index] : NULL;
}

const int4mm_architecture *int4mm_architecture_of(int32_t arch) {
  const int4mm_architecture *a = &architectures[COUNT - 1];
  while (a > architectures && a->arch > arch) a--;
  return a;
}

/* ---- a problem's GPU ---- */

bool int4mm_gpu_is_measured(const int4mm_gpu_problem *p) {
  return p->arch == FITTED_ARCH;
}

static int64_t macs_per_clock(const int4mm_architecture *a, int4mm_mma mma) {
  return mma == INT4MM_MMA_INT4 ? a->int4_macs : mma == INT4MM_MMA_INT8 ? a->int8_macs : a->fp16_macs;
}

static int64_t clock_of(const int4mm_gpu_problem *p) {
  return p->clock ? p->clock : int4mm_architecture_of(p->arch)->clock;
}

/* What an SM of this GPU and one of the H100 do in the same time. */
typedef struct ratio {
  int64_t here, fitted;
} ratio;

static ratio mma_ratio(const int4mm_gpu_problem *p, int4mm_mma mma) {
  const int4mm_architecture *here = int4mm_architecture_of(p->arch), *fitted = int4mm_architecture_of(FITTED_ARCH);
  if (int4mm_gpu_is_measured(p) && mma != INT4MM_MMA_INT4) return (ratio){1, 1};
  int64_t fitted_macs = macs_per_clock(fitted, mma == INT4MM_MMA_FP16 ? mma : INT4MM_MMA_INT8);
  return (ratio){macs_per_clock(here, mma) * clock_of(p), fitted_macs * fitted->clock};
}

/* x * a / b for an x that may be any estimate, and small a and b. */
static int64_t scaled(int64_t x, int64_t a, int64_t b) {
  return (int64_t)((double)x * (double)a / (double)b + .5);
}

int64_t int4mm_gpu_mma_time(const int4mm_gpu_problem *p, int4mm_mma mma, int64_t time) {
  ratio r = mma_ratio(p, mma);
  return scaled(time, r.fitted, r.here);
}

int64_t int4mm_gpu_mma_rate(const int4mm_gpu_problem *p, int4mm_mma mma, int64_t rate) {
  ratio r = mma_ratio(p, mma);
  int64_t fitted_sms = int4mm_architecture_of(FITTED_ARCH)->sms, sms = int4mm_gpu_is_measured(p) ? fitted_sms : p->sms;
  int64_t here = scaled(rate, r.here * sms, r.fitted * fitted_sms);
  return here ? here : 1;
}

int64_t int4mm_gpu_clock_time(const int4mm_gpu_problem *p, int64_t time) {
  return int4mm_gpu_is_measured(p) ? time : scaled(time, int4mm_architecture_of(FITTED_ARCH)->clock, clock_of(p));
}

int64_t int4mm_gpu_memory_rate(const int4mm_gpu_problem *p, int64_t fitted, int64_t rate) {
  if (int4mm_gpu_is_measured(p)) return rate;
  int64_t here = scaled(rate, p->memory ? p->memory : int4mm_architecture_of(p->arch)->memory, fitted);
  return here ? here : 1;
}

int64_t int4mm_gpu_shared(const int4mm_gpu_problem *p) {
  return p->shared ? p->shared : (int64_t)int4mm_architecture_of(p->arch)->shared << 10;
}

bool int4mm_gpu_unpacks(const int4mm_gpu_problem *p) {
  return p->code_arch >= 90;
}

bool int4mm_gpu_emulates_int4(const int4mm_gpu_problem *p) {
  return p->arch >= 90 && !int4mm_gpu_unpacks(p);
}

bool int4mm_gpu_has_clusters(const int4mm_gpu_problem *p) {
  return p->arch >= 90 && p->code_arch >= 90;
}

/* ---- devices ---- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int32_t named_arch;                   /* 0: none */
static char named[24], problem_with_it[160]; /* empty: none */

/* INT4MM_CUDA_ARCH: "80" or "sm_80", of the table. */
static void read_environment(void) {
  const char *text = secure_getenv("INT4MM_CUDA_ARCH");
  if (!text || !*text) return;
  snprintf(named, sizeof named, "%s", text);
  for (int32_t i = 0; i < COUNT; i++) {
    char number[16];
    snprintf(number, sizeof number, "%d", (int)architectures[i].arch);
    if (!strcmp(strncmp(text, "sm_", 3) ? text : text + 3, number)) named_arch = architectures[i].arch;
  }
  if (named_arch) return;
  size_t used =
      (size_t)snprintf(problem_with_it, sizeof problem_with_it, "INT4MM_CUDA_ARCH is \"%s\", expected one of", named);
  for (int32_t i = 0; i < COUNT && used < sizeof problem_with_it; i++)
    used += (size_t)snprintf(problem_with_it + used, sizeof problem_with_it - used, "%s %d", i ? "," : "",
                             (int)architectures[i].arch);
}

int32_t int4mm_hidden_above(void) {
  pthread_once(&once, read_environment);
  return named_arch;
}

int32_t int4mm_gpu_traits_of(const int4mm_cuda_backend *cuda, int32_t device, int4mm_gpu_traits *traits) {
  int32_t status = cuda->traits(device, traits), arch = int4mm_hidden_above();
  if (status) return status;
  if (problem_with_it[0]) return int4mm_fail(INT4MM_ERR_UNAVAILABLE, "%s", problem_with_it);
  if (!arch) return INT4MM_OK;
  if (arch > traits->arch)
    return int4mm_fail(INT4MM_ERR_UNAVAILABLE,
                       "INT4MM_CUDA_ARCH is %d, but cuda:%d is an sm_%d, which runs no newer code", (int)arch,
                       (int)device, (int)traits->arch);
  int32_t shared = int4mm_architecture_of(arch)->shared << 10;
  if (!traits->shared || traits->shared > shared) traits->shared = shared;
  traits->arch = arch;
  return INT4MM_OK;
}
