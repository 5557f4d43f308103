/*
 * Launching mma: W4A4 with a scale for each column here, by int4 or int8 tensor cores, and the other kinds of operands
 * in their files.
 */
#include "sm80/mma_kinds.h"
#include "sm80/mma_mainloop.cuh"

namespace {

__global__ void probe() {}

/* What the code on the device multiplies: int4 or int8, by the architecture that it was compiled for. */
cudaError_t has_int4(int device, bool *answer) {
  static std::atomic<int> known[64];
  int code_arch;
  cudaError_t error = int4mm_prepare_kernel(device, (const void *)probe, known, &code_arch);
  *answer = code_arch < 90;
  return error;
}

template <int BM, int BN, int WM, int WN, int WARPS_K, int BK, int STAGES, int CTAS>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  bool int4, nk = problem->b.layout == INT4MM_K_MAJOR, xors = problem->a.xor_mask || problem->b.xor_mask;
  if (problem->a.dtype == INT4MM_INT8) return int4mm_mma_w4a8(problem, plan, stream);
  if (problem->a.dtype != INT4MM_INT32) return int4mm_mma_w4a16(problem, plan, stream);
  cudaError_t error = has_int4(plan->device, &int4);
  if (error != cudaSuccess) return error;
  if (!int4mm_is_elementary(problem))
    return int4 ? int4mm_mma_w4a4_groups(problem, plan, stream) : cudaErrorNotSupported;
  auto with = [&](auto nk, auto xors) {
    constexpr bool NK = decltype(nk)::value, XORS = decltype(xors)::value;
    if (int4) return launch<Tile<Int4<XORS>, BM, BN, WM, WN, WARPS_K, BK, STAGES, CTAS, NK>>(problem, plan, stream);
    return launch<Tile<Int8<XORS>, BM, BN, WM, WN, WARPS_K, BK, STAGES, CTAS, NK>>(problem, plan, stream);
  };
  int4mm_constant<0> no;
  int4mm_constant<1> yes;
  if (nk) return xors ? with(yes, yes) : with(yes, no);
  return xors ? with(no, yes) : with(no, no);
}

} // namespace

#define LAUNCHER(NAME, BM, BN, ...)                                                                                    \
  extern "C" cudaError_t int4mm_launch_##NAME(const int4mm_problem *problem, const int4mm_plan *plan,                  \
                                              cudaStream_t stream) {                                                   \
    static_assert(BM == INT4MM_TILE(NAME, M) && BN == INT4MM_TILE(NAME, N), "the registry has another tile");          \
    return launch_tile<BM, BN, __VA_ARGS__>(problem, plan, stream);                                                    \
  }
LAUNCHER(mma_128x256, 128, 256, 64, 64, 1, 256, INT4MM_TILE(mma_128x256, STAGES), 1)
LAUNCHER(mma_128x128, 128, 128, 64, 64, 1, 128, INT4MM_TILE(mma_128x128, STAGES), 2)
LAUNCHER(mma_128x64, 128, 64, 64, 32, 2, 256, INT4MM_TILE(mma_128x64, STAGES), 1)
LAUNCHER(mma_64x64, 64, 64, 64, 32, 4, 512, INT4MM_TILE(mma_64x64, STAGES), 1)
#undef LAUNCHER
