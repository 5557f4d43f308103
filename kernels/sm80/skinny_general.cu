/*
 * Launching skinny for operands of every kind but W4A4 with a scale for each column.
 */
#include <limits.h>

#include "sm80/skinny_general.cuh"
#include "sm80/skinny_general.h"

namespace {

/* A row of scales, zero points or factors for each group; one row serves all. */
inline uint32_t group_stride(const int4mm_matrix &m, int64_t size) {
  return m.rows > 1 ? (uint32_t)(m.stride * size) : 0;
}

inline bool is_vectors(const void *data, int64_t stride) {
  return ((uint64_t)data | (uint64_t)stride) % 16 == 0;
}

/* Segments, and the scales and bytes of groups. `step_words`: of k that a stage has. */
void set_groups(GeneralArguments *p, const int4mm_problem *problem, int step_words) {
  const int4mm_operand *b = &problem->b;
  const int4mm_matrix &bytes = b->factors.data ? b->factors : b->zeros;
  int64_t scale_size = b->group_scales.dtype == INT4MM_FLOAT32 ? 4 : 2;
  p->slices = b->groups == 1 || b->group % 128 == 0 ? 4 : b->group % 64 == 0 ? 2 : 1;
  p->segments = 4 / p->slices;
  p->all_segments = (int)((problem->K + 32 * p->slices - 1) / (32 * p->slices));
  p->group = b->groups > 1 ? (int)(b->group / (32 * p->slices)) : p->all_segments > 1 ? INT_MAX : 1;
  p->scales = (const char *)b->group_scales.data, p->scale_dtype = b->group_scales.dtype;
  p->scales_stride = group_stride(b->group_scales, scale_size);
  p->bytes = (const char *)bytes.data, p->bytes_stride = group_stride(bytes, 1), p->factors = b->factors.data;
  p->group_reciprocal = p->group >= p->all_segments ? 0 : (uint32_t)(((1ull << 31) + p->group - 1) / p->group);
  const int4mm_experts &x = problem->experts;
  const int64_t scales_expert = x.group_scales * scale_size, bytes_expert = b->factors.data ? x.factors : x.zeros;
  bool vectors = is_vectors(p->scales, p->scales_stride | (p->scales ? scales_expert : 0)) &&
                 is_vectors(p->bytes, p->bytes_stride | (p->bytes ? bytes_expert : 0));
  p->whole_steps = vectors ? (int)(problem->K / 8 / step_words) : 0;
  p->b_step_bytes = (uint32_t)((b->layout == INT4MM_K_MAJOR ? step_words : b->stride * step_words) * 4);
  p->b_copy_bytes = (uint32_t)(b->stride * (b->layout == INT4MM_MN_MAJOR ? 16 : step_words == BLOCK_WORDS ? 4 : 32));
}

/* Windows of a chain: all of K where it fits beside the stages, else two of as many rounds as do. `left`: bytes of
 * shared memory. `groups`: slots have all rows, and all of K has to fit. False: there is no place. */
bool set_windows(GeneralArguments *p, int64_t left, int rows, bool groups) {
  p->slot_rows = p->M < rows && !groups ? p->M : rows, p->slot_bytes = (p->slot_rows + 1) * COLUMNS * 4;
  p->block_slot_bytes = p->segments * p->slot_bytes;
  int64_t round = (int64_t)p->warps_k * p->segments * p->slot_bytes, fit = left / (p->warps_n * round);
  bool whole = p->rounds <= fit;
  if (groups && !whole) return false;
  p->window = whole ? p->rounds : (int)(fit / 2);
  p->stripe_bytes = (int)((whole ? 1 : 2) * p->window * round);
  if (!whole) p->rotation_length = 0; /* K in order */
  return p->window > 0;
}

template <class S> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  GeneralArguments p = {};
  int64_t value_bits = problem->a.dtype == INT4MM_INT32 ? 4 : S::A::WORDS * 4;
  p.rows = (const char *)problem->a.data, p.row_bytes = (int)(problem->K * value_bits / 8);
  p.row_stride = problem->a.stride * (problem->a.dtype == INT4MM_INT32 ? 4 : value_bits / 8);
  p.row_step_bytes = p.row_stride * S::Source::ROWS_STEP;
  p.b = problem->b.words, p.ldb = problem->b.stride;
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)int4mm_words_of_k(problem);
  set_warps(&p, plan);
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask;
  p.epilogue = int4mm_epilogue_arguments(problem, CHUNK_WORDS);
  constexpr int STEP_WORDS = S::BLOCKS * BLOCK_WORDS;
  set_groups(&p, problem, STEP_WORDS);
  set_rotation(&p, STEP_WORDS);
  if (p.split > 1 || p.warps_n > 1) p.rotation_length = 0;
  int steps = (p.words + STEP_WORDS - 1) / STEP_WORDS, stride = p.split * p.warps_k;
  p.rounds = (steps + stride - 1) / stride;
  p.stages = plan->stages;
  p.stage_bytes = S::PARAMETERS;
  if (S::IS_PLAIN)
    p.whole_steps = (int)(problem->K / 8 / STEP_WORDS); /* wherever the zero points lie: stages do not have them */
  else if (p.scales || p.bytes)
    p.stage_bytes += (p.segments * 160 + 255) / 256 * 256;

  int warps = p.warps_n * p.warps_k, most;
  size_t shared = (size_t)warps * p.stages * S::BLOCKS * p.stage_bytes;
  if (S::FINISHES && p.split > 1) return cudaErrorNotSupported;
  if (S::RINGS) {
    if (p.warps_k < 2) return cudaErrorNotSupported;
    p.rotation_length = 0; /* K in order */
    shared += (size_t)p.warps_n * S::ROWS * COLUMNS * 4;
  }
  if (S::CHAINS) {
    cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, plan->device);
    if (error != cudaSuccess) return error;
    if (problem->experts.count) most = most / 2 - 1024; /* as src/dispatch/cost_sm80.c counts */
    if (p.warps_k < S::CHAIN_WARPS || !set_windows(&p, most - (int64_t)shared, S::ROWS, S::IS_GROUPS))
      return cudaErrorNotSupported;
    shared += (size_t)p.warps_n * p.stripe_bytes;
  }
  constexpr bool EXPERTS = !S::NK && (S::MODE == PLAIN || S::MODE == GROUPS || S::MODE == RING);
  return launch_grid<S, EXPERTS>(problem, p, shared, plan->device, stream);
}

/* By the layout of B: of [N, K/8] there is code for up to 16 rows. */
template <int ROWS, class A, Mode MODE>
cudaError_t launch_layout(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->b.layout == INT4MM_MN_MAJOR) return launch<GeneralShape<ROWS, A, MODE>>(problem, plan, stream);
  if constexpr (ROWS <= 16) return launch<GeneralShape<ROWS, A, MODE, true>>(problem, plan, stream);
  return cudaErrorNotSupported;
}

/* Integers with a group to a k-block: by slots for all of K where CTAs have one stripe and there is place, else by a
 * ring. src/dispatch/cost_sm80.c plans with that. */
template <int ROWS, class A, Mode SLOTS, Mode RING>
cudaError_t launch_groups(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if constexpr (ROWS < 64)
    if (plan->tile_n == COLUMNS) {
      cudaError_t error = launch_layout<ROWS, A, SLOTS>(problem, plan, stream);
      if (error != cudaErrorNotSupported) return error;
    }
  return launch_layout<ROWS, A, RING>(problem, plan, stream);
}

/* For what is not usual 8 rows have code for chains alone, of which 16 may not fit, and 64 for all but them:
 * src/dispatch/cost_sm80.c says so too. */
template <int ROWS, class A>
cudaError_t launch_integers(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  const bool wide = problem->K >= INT4MM_WIDE_K;
  if (b->group_scales.data) {
    bool blocks = b->group == INT4MM_BLOCK_K;
    if (blocks && !b->zeros.data) return launch_groups<ROWS, A, GROUPS, RING>(problem, plan, stream);
    if constexpr (ROWS < 64) {
      if (blocks) return launch_groups<ROWS, A, GROUPS_ZEROS, RING_ZEROS>(problem, plan, stream);
      return launch_layout<ROWS, A, CHAIN>(problem, plan, stream);
    }
    return cudaErrorNotSupported;
  }
  if constexpr (std::is_same<A, Int8A>::value)
    if (!b->factors.data && !b->zeros.data && !wide) return launch_layout<ROWS, A, PLAIN>(problem, plan, stream);
  if constexpr (ROWS > 8) {
    if (b->factors.data || wide) return launch_layout<ROWS, A, SUMS>(problem, plan, stream);
    return launch_layout<ROWS, A, PLAIN_ZEROS>(problem, plan, stream);
  }
  return cudaErrorNotSupported;
}

template <int ROWS, class A>
cudaError_t launch_floats(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  if constexpr (ROWS < 64)
    if (!b->factors.data && (!b->group_scales.data || b->group % INT4MM_BLOCK_K == 0)) {
      int4mm_problem grouped = *problem; /* scales of columns are those of one group */
      if (!b->group_scales.data) {
        grouped.b.group_scales = {(void *)b->scales, 1, problem->N, problem->N, INT4MM_FLOAT32};
        grouped.b.scales = nullptr, grouped.experts.group_scales = problem->experts.scales;
      }
      return b->zeros.data ? launch_layout<ROWS, A, GROUPS_ZEROS>(&grouped, plan, stream)
                           : launch_layout<ROWS, A, GROUPS>(&grouped, plan, stream);
    }
  if constexpr (ROWS > 8) return launch_layout<ROWS, A, SUMS>(problem, plan, stream);
  return cudaErrorNotSupported;
}

template <int ROWS>
cudaError_t launch_rows(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  const int4mm_operand *b = &problem->b;
  if (b->stride > INT4MM_SKINNY_GENERAL_MAX_STRIDE || b->group_scales.stride > INT4MM_SKINNY_GENERAL_MAX_STRIDE ||
      b->zeros.stride > INT4MM_SKINNY_GENERAL_MAX_STRIDE || b->factors.stride > INT4MM_SKINNY_GENERAL_MAX_STRIDE)
    return cudaErrorNotSupported;
  switch (problem->a.dtype) {
  case INT4MM_INT32:
    return launch_integers<ROWS, Int4A>(problem, plan, stream);
  case INT4MM_INT8:
    return launch_integers<ROWS, Int8A>(problem, plan, stream);
  case INT4MM_FLOAT16:
    return launch_floats<ROWS, FloatA<false>>(problem, plan, stream);
  case INT4MM_BFLOAT16:
    return launch_floats<ROWS, FloatA<true>>(problem, plan, stream);
  default:
    return cudaErrorNotSupported;
  }
}

} // namespace

cudaError_t int4mm_launch_skinny_general(int rows, const int4mm_problem *problem, const int4mm_plan *plan,
                                         cudaStream_t stream) {
  return rows == 8    ? launch_rows<8>(problem, plan, stream)
         : rows == 16 ? launch_rows<16>(problem, plan, stream)
         : rows == 64 ? launch_rows<64>(problem, plan, stream)
                      : cudaErrorNotSupported;
}
