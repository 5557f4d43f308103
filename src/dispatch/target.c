/*
 * Where a product runs. With operands on a GPU there is no choice; with operands on the CPU the sizes decide, unless
 * the caller has.
 */
#include <string.h>

#include "dispatch/gpu.h"
#include "dispatch/target.h"

/* Multiplications and additions per second and thread that the CPU path sustains on large matrices, measured on one
 * Zen 4 core at 3.7 GHz (the others scaled by their width). */
static double cpu_rate(const char *isa) {
  if (!strcmp(isa, "avx512vnni") || !strcmp(isa, "avxvnni") || !strcmp(isa, "avx512vl_vnni")) return 400e9;
  if (!strcmp(isa, "avx2")) return 250e9;
  if (!strcmp(isa, "neon_i8mm")) return 300e9;
  if (!strcmp(isa, "neon_dot")) return 150e9;
  return 8e9;
}

/* Whether operands on the CPU are multiplied sooner on a GPU, copies counted. Decided from the size alone, so that a
 * small product never opens the driver. The product itself costs a GPU little beside the copies: it counts as the rate
 * of the slowest kernels on a middling card. */
static bool gpu_pays(int64_t M, int64_t N, int64_t K, double cpu_ops_per_second) {
  const double copy_rate = 20e9;      /* bytes per second over PCIe 4.0 x16, pageable memory */
  const double gpu_rate = 20e12;      /* operations per second */
  const double gpu_overhead = 150e-6; /* five copies and an allocation, each with its synchronisation */
  double m = (double)M, n = (double)N, k = (double)K, operations = 2 * m * n * k;
  double bytes = (m + n) * k / 2 + 4 * (m + n) + 2 * m * n;
  return gpu_overhead + bytes / copy_rate + operations / gpu_rate < operations / cpu_ops_per_second;
}

int32_t int4mm_choose_target(const int4mm_matmul_args *args, int64_t M, int64_t N, int64_t K,
                             int4mm_dispatch_target *target) {
  int32_t operand_device = args->a_packed->device, out_device = args->out->rank ? args->out->device : INT4MM_CPU;
  *target = (int4mm_dispatch_target){.device = INT4MM_CPU};
  if (operand_device != INT4MM_CPU)
    target->device = operand_device;
  else if (out_device != INT4MM_CPU)
    target->device = out_device;
  else if (args->backend == INT4MM_USE_CUDA || args->kernel)
    target->device = 0;
  if (target->device != INT4MM_CPU) return (target->cuda = int4mm_cuda()) ? INT4MM_OK : INT4MM_ERR_UNAVAILABLE;

  if (args->backend == INT4MM_USE_CPU || args->b_packed->layout == INT4MM_PANELS) return INT4MM_OK;
  target->reason = "too small for copies to a GPU to pay";
  if (!gpu_pays(M, N, K, cpu_rate(int4mm_cpu_isa()) * int4mm_get_num_threads())) return INT4MM_OK;
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  int4mm_gpu_traits gpu;
  target->reason = "no GPU can be used";
  if (cuda && !int4mm_gpu_traits_of(cuda, 0, &gpu)) /* one that is too old or busy cannot */
    *target = (int4mm_dispatch_target){
        .cuda = cuda, .device = 0, .may_fall_back = true, .reason = "large enough for copies to a GPU to pay"};
  return INT4MM_OK;
}
