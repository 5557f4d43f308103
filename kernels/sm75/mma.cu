/*
 * turing: the mainloop of sm80/mma_mainloop.cuh for sm_75, by its tensor cores (m8n8k32 of int4, m8n8k16 of int8,
 * m16n8k8 of float16) and copies through registers. bfloat16 it has not.
 *
 * An SM has 64 KB of shared memory, of which it is taken to read or write 64 bytes a clock (half of what later ones do;
 * not measured), while by the datasheet it multiplies 2,048 pairs of int4, 1,024 of int8 or 512 of float16. Warps of
 * 64 x 64 read 32 bytes a clock for that, of 64 x 32 48 (float16: 35), and the copies of a tile of 128 x 128 write 10
 * to
 * 16. Of the clocks of an mma of int4, four of a scheduler, three are left to other instructions, so that an XOR for
 * the encoding costs little and one code serves all encodings.
 */
#include "common/kernels.h"
#include "common/shapes.h"
#include "sm80/mma_mainloop.cuh"

namespace {

typedef Int4<true, 32> Words;
typedef Floats<false> Halves;

/* A tile of so many rows for these operands: by POLICY, with group scales where CHAIN. */
template <class POLICY, bool CHAIN, int BK, bool NK> struct LargeTile {
  static constexpr bool FEW = !CHAIN && POLICY::WEIGHTS == PLAIN; /* registers, so that a warp may have 64 x 64 */
  typedef Tile<POLICY, 128, 128, 64, FEW ? 64 : 32, 1, BK, 2, FEW ? 2 : 1, NK, CHAIN, 32, true> Shape;
};
template <class POLICY, bool CHAIN, int BK, bool NK> struct SmallTile {
  typedef Tile<POLICY, 32, 64, 32, 32, 1, BK, 2, 2, NK, CHAIN, 32, true> Shape;
};

/* Of the kinds that have two tiles. */
template <class POLICY, bool CHAIN, int BK_LARGE, int BK_SMALL, bool NK>
cudaError_t launch_kind(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (plan->tile_m == 128) return launch<typename LargeTile<POLICY, CHAIN, BK_LARGE, NK>::Shape>(problem, plan, stream);
  if (plan->tile_m == 32) return launch<typename SmallTile<POLICY, CHAIN, BK_SMALL, NK>::Shape>(problem, plan, stream);
  return cudaErrorNotSupported;
}

template <bool NK>
cudaError_t launch_words(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->b.group_scales.data) return launch_kind<Words, true, 64, 128, NK>(problem, plan, stream);
  switch (plan->tile_m) {
  case 128:
    return launch<typename LargeTile<Words, false, 128, NK>::Shape>(problem, plan, stream);
  case 64:
    return launch<Tile<Words, 64, 64, 64, 32, 2, 256, 2, 2, NK, false, 32, true>>(problem, plan, stream);
  default:
    return launch<Tile<Words, 32, 64, 32, 32, 2, 256, 2, 2, NK, false, 32, true>>(problem, plan, stream);
  }
}

template <bool NK>
cudaError_t launch_bytes(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  if (b->group_scales.data) return launch_kind<Bytes<ZEROS>, true, 64, 128, NK>(problem, plan, stream);
  if (b->factors.data || b->zeros.data || plan->tile_m < 128)
    return launch_kind<Bytes<AFFINE>, false, 64, 128, NK>(problem, plan, stream);
  return launch<typename LargeTile<Bytes<PLAIN>, false, 64, NK>::Shape>(problem, plan, stream);
}

template <bool NK>
cudaError_t launch_halves(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->b.factors.data) return cudaErrorNotSupported;
  return launch_kind<Halves, true, 64, 64, NK>(problem, plan, stream);
}

template <bool NK>
cudaError_t launch_layout(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  switch (problem->a.dtype) {
  case INT4MM_INT32:
    return launch_words<NK>(problem, plan, stream);
  case INT4MM_INT8:
    return launch_bytes<NK>(problem, plan, stream);
  case INT4MM_FLOAT16:
    return launch_halves<NK>(problem, plan, stream);
  default:
    return cudaErrorNotSupported;
  }
}

} // namespace

#define LAUNCHER(NAME)                                                                                                 \
  extern "C" cudaError_t int4mm_launch_##NAME(const int4mm_problem *problem, const int4mm_plan *plan,                  \
                                              cudaStream_t stream) {                                                   \
    return problem->b.layout == INT4MM_K_MAJOR ? launch_layout<true>(problem, plan, stream)                            \
                                               : launch_layout<false>(problem, plan, stream);                          \
  }
LAUNCHER(turing_128x128)
LAUNCHER(turing_64x64)
LAUNCHER(turing_32x64)
#undef LAUNCHER
