/*
 * grouped: middle and large M on Hopper (sm_90a) where weights go to wgmma from registers: sums over groups of k that
 * are scaled one by one, W4A16, and int8 activations with a scale for each column.
 *
 *   groups    t = 0, t = fma(float(acc_g), scale_b[g, n], t) for the groups in order; out = t * scale_a[m] + bias[n]
 *   columns   out = float(acc) * scale_a[m] * scale_b[n] + bias[n]
 *
 * The operands change roles: wgmma's A, from registers, are 64 columns of B, and its B, from shared memory, is a tile
 * of activations, as they were copied. So the two rows of a thread's fragments are two columns of the output, and it
 * needs two scales for all of its sums. Persistent CTAs, each computing tiles of BM rows and BN columns of the output:
 *
 *   producers   a warpgroup (grouped_producer.cuh): bulk tensor copies of packed B, [16 words, BN] or [BN, 16 words],
 *               of activations [BM, 128], which lie in shared memory as int8 or 16-bit floats, K-major in the 128-byte
 *               swizzle, and of scales and zero points of groups, which are loaded where their rows are not on 16
 *               bytes; or factors. An int4 A comes widened to int8 (src/dispatch/choose.c). An int8 A that is made for
 *               the product comes in the order that nibbles are unpacked to, which is an eighth faster
 *   consumers   two warpgroups (grouped_consumer.cuh) of BLOCKS blocks of 64 columns each: packed B -> fragments in
 *               registers, wgmma, promotion to float32 sums, epilogue straight from registers
 *
 * A k-block is 128 values of k. With groups its products are done in chains: CHAIN rows of the output and the values of
 * k of one group. A chain's wgmmas leave their sums in accumulators which are then promoted: converted, and added by an
 * fma to the float32 sums of the tile, DeepGEMM's way with fp8. With two sets of accumulators that happens while the
 * next chain is under way. With one, consumers take turns, so that one multiplies while the other promotes: in step
 * with each other they would leave the tensor cores idle. What bounds it is that promotion, and in W4A16 the card's
 * power.
 *
 * A small tile's k-block is bound by latency: a warp that issues a wgmma whose A comes from registers waits until the
 * one before has begun, so that it hides little of its own. There consumers share a tile's k-blocks, each with RUN of
 * every K_GROUPS x RUN, and only the promotion has an order: the tile's sums are handed on in shared memory. More of
 * these k-blocks under way hide more, up to what ordinary instructions take: half of them make fragments.
 *
 * With a scale for each column all of K is one sum, and the fragments of a k-block are made while the one before is
 * multiplied. Per k-block and 256 x 128 tile, 1024 clocks of wgmma, it moves 112 KB through shared memory; with the
 * roles of hopper.cu, which writes int8 activations and weights and reads them again, that is 160 KB of at most 128.
 */
#ifndef INT4MM_GROUPED_CUH
#define INT4MM_GROUPED_CUH

#include "common/kernels.h"
#include "common/launch.cuh"
#include "sm90/grouped_consumer.cuh"
#include "sm90/grouped_producer.cuh"

namespace {

/* ---- the kernel ---- */

template <class T>
__global__ void __launch_bounds__(T::LAUNCH_THREADS, T::CTAS)
    grouped(const __grid_constant__ Maps maps, const __grid_constant__ Arguments p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t memory[];
  Shared<T> shared{ptx::smem_address(memory)};
  init_barriers<T>(shared);
  prefetch_maps<T>(maps, p);
  if (T::FLOAT && T::COPIES_SCALES && p.copied_scales && !p.zeros) clear_zeros<T>(shared);
  __syncthreads();
  if (!T::LAUNCHES_LATE) ptx::griddepcontrol_launch_dependents();
  if (T::EXPERTS || !p.early_b) ptx::griddepcontrol_wait();
  init_experts<T>(p);
  int group = __shfl_sync(0xffffffffu, threadIdx.x / 128, 0); /* uniform over a warp, for the compiler */
  if (group == 0) {
    ptx::setmaxnreg_dec<T::PRODUCER_REGISTERS>();
    int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    if (warp < T::COPIERS) {
      if (threadIdx.x % 32 == 0) produce<T>(shared, maps, p, warp);
    } else if constexpr (!T::COLUMNS) {
      if (!T::COPIES_SCALES || !p.copied_scales)
        load_scales<T>(shared, p, warp - T::COPIERS);
      else if (threadIdx.x % 32 == 0)
        copy_scales<T>(shared, maps, p, warp - T::COPIERS);
    } else if constexpr (T::HAS_FACTORS) {
      if (warp == 1) produce_factors<T>(shared, p);
    }
  } else {
    ptx::setmaxnreg_inc<T::CONSUMER_REGISTERS>();
    ptx::griddepcontrol_wait();
    consume<T>(shared, p, group - 1);
  }
#endif
}

/* ---- host ---- */

/* A map of a row-major matrix that copies boxes of rows x columns. */
cudaError_t map_matrix(CUtensorMap *map, const int4mm_operand &o, CUtensorMapDataType type, int element, int64_t rows,
                       int64_t columns, int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)o.stride * element};
  cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, step[2] = {1, 1};
  CUresult result = encode(map, type, 2, (void *)o.data, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* Packed B: [K / 8, N] as [N / 32][K / 8][32], so that one copy brings several boxes, or as it is; [N, K / 8], whose N
 * is even, as [2][N / 2][K / 8], the even columns first. */
template <class T> cudaError_t map_b_of(CUtensorMap *map, const int4mm_problem &problem, bool boxes) {
  const cuuint64_t words = int4mm_words_of_k(&problem), N = problem.N, pitch = problem.b.stride * 4;
  const cuuint64_t experts = problem.experts.count ? problem.experts.count : 1; /* one below the other */
  if (!T::NK && !boxes)
    return map_matrix(map, problem.b, CU_TENSOR_MAP_DATA_TYPE_INT32, 4, experts * words, N, BLOCK_WORDS, BOX_COLUMNS,
                      CU_TENSOR_MAP_SWIZZLE_128B);
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  const cuuint64_t kn[3] = {BOX_COLUMNS, experts * words, N / BOX_COLUMNS}, nk[3] = {words, N / 2, 2};
  const cuuint64_t kn_pitch[2] = {pitch, BOX_COLUMNS * 4}, nk_pitch[2] = {2 * pitch, pitch};
  const cuuint32_t kn_box[3] = {BOX_COLUMNS, BLOCK_WORDS, T::BN / BOX_COLUMNS}, nk_box[3] = {BLOCK_WORDS, T::BN / 2, 2};
  const cuuint32_t step[3] = {1, 1, 1};
  CUresult result = encode(map, CU_TENSOR_MAP_DATA_TYPE_INT32, 3, (void *)problem.b.words, T::NK ? nk : kn,
                           T::NK ? nk_pitch : kn_pitch, T::NK ? nk_box : kn_box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                           T::NK ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T> cudaError_t map_a_of(CUtensorMap *map, const int4mm_problem &problem, const Arguments &p) {
  CUtensorMapDataType type = !T::FLOAT               ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                             : T::KIND == W4A16_HALF ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                     : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return map_matrix(map, problem.a, type, T::FLOAT ? 2 : 1, p.M, p.K, p.box_rows, BLOCK_K / T::PARTS,
                    CU_TENSOR_MAP_SWIZZLE_128B);
}

/* A map of the scales or zero points of a group, [experts, G, N], that copies those of a k-block. */
template <class T>
cudaError_t map_groups(CUtensorMap *map, const int4mm_problem &problem, const int4mm_matrix &m, int64_t experts_stride,
                       CUtensorMapDataType type, int element) {
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  int64_t group = problem.b.group < problem.K ? problem.b.group : problem.K, rows = (problem.K + group - 1) / group;
  int64_t experts = problem.experts.count ? problem.experts.count : 1, unused = (problem.N * element + 15) / 16 * 16;
  cuuint64_t size[3] = {(cuuint64_t)problem.N, (cuuint64_t)rows, (cuuint64_t)experts};
  cuuint64_t pitch[2] = {(cuuint64_t)(rows > 1 ? m.stride * element : unused),
                         (cuuint64_t)(experts > 1 ? experts_stride * element : unused)};
  cuuint32_t box[3] = {T::BN, T::GROUPS, 1}, step[3] = {1, 1, 1};
  CUresult result =
      encode(map, type, 3, m.data, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* Whether the copy engine takes rows of scales or zero points. */
bool has_aligned_rows(const int4mm_problem &problem, const int4mm_matrix &m, int64_t experts_stride, int element) {
  return (uintptr_t)m.data % 16 == 0 && (m.rows <= 1 || m.stride * element % 16 == 0) &&
         (problem.experts.count <= 1 || experts_stride * element % 16 == 0);
}

/* Scales and zero points by copies, where they are aligned. */
template <class T> cudaError_t copy_groups(Maps *maps, const int4mm_problem &problem, Arguments *p) {
  int4mm_matrix scales = problem.b.group_scales, zeros = problem.b.zeros;
  if (!scales.data) scales.data = (void *)problem.b.scales, scales.rows = 1, scales.dtype = INT4MM_FLOAT32;
  bool wide = scales.dtype == INT4MM_FLOAT32;
  int bytes = wide ? 4 : 2;
  if (!T::COPIES_SCALES || !has_aligned_rows(problem, scales, p->experts.group_scales, bytes)) return cudaSuccess;
  if (zeros.data && !has_aligned_rows(problem, zeros, problem.experts.zeros, 1)) return cudaSuccess;
  p->copied_scales = true, p->scale_bytes = bytes, p->half_scales = scales.dtype == INT4MM_FLOAT16;
  cudaError_t error = map_groups<T>(&maps->scales, problem, scales, p->experts.group_scales,
                                    wide ? CU_TENSOR_MAP_DATA_TYPE_UINT32 : CU_TENSOR_MAP_DATA_TYPE_UINT16, bytes);
  if (error != cudaSuccess || !zeros.data) return error;
  return map_groups<T>(&maps->zeros, problem, zeros, problem.experts.zeros, CU_TENSOR_MAP_DATA_TYPE_UINT8, 1);
}

template <class T> Arguments make_arguments(const int4mm_problem &problem) {
  Arguments p = {};
  const int4mm_operand &b = problem.b;
  p.M = (int)problem.M, p.N = (int)problem.N, p.K = (int)problem.K;
  p.k_blocks = (p.K + T::RUN * BLOCK_K - 1) / (T::RUN * BLOCK_K) * T::RUN;
  p.early_b = problem.early_b;
  p.tiles_m = (p.M + T::BM - 1) / T::BM, p.tiles_n = (p.N + T::BN - 1) / T::BN;
  p.box_rows = p.M < T::BM ? p.M : T::BM;
  p.boxes = p.N % BOX_COLUMNS == 0;
  p.xor_b = b.xor_mask;
  p.group = b.group < p.K ? (int)b.group : p.K;
  p.scale_bytes = 4;
  p.scales = b.group_scales.data, p.scales_stride = b.group_scales.stride, p.scales_dtype = b.group_scales.dtype;
  if (!p.scales) p.scales = b.scales, p.scales_stride = 0, p.scales_dtype = INT4MM_FLOAT32;
  p.zeros = (const int8_t *)b.zeros.data, p.zeros_stride = b.zeros.stride;
  if (T::HAS_FACTORS) p.factors = affine_arguments(&problem);
  p.experts = problem.experts;
  if (!b.group_scales.data) p.experts.group_scales = p.experts.scales;
  if (p.experts.factors % 4) p.factors.vector = false;
  p.epilogue = int4mm_epilogue_arguments(&problem, Consumer<T>::COUNT);
  if (T::FLOAT) p.epilogue.scale_a = nullptr;
  return p;
}

template <class T> cudaError_t launch(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  Maps maps = {};
  Arguments p = make_arguments<T>(*problem);
  cudaError_t error = map_a_of<T>(&maps.a, *problem, p);
  if (error == cudaSuccess) error = map_b_of<T>(&maps.b, *problem, p.boxes);
  if (error == cudaSuccess) error = copy_groups<T>(&maps, *problem, &p);
  if (error != cudaSuccess) return error;
  return int4mm_launch<grouped<T>>(plan->device, dim3(plan->ctas), T::THREADS, T::SHARED_BYTES, 1, stream, maps, p);
}

/* Whether there is an instance for grouped products: the largest tile has no registers left with short groups. Their A
 * is in its order. */
template <int KIND, int GROUP, int WEIGHTS, int BM, int...>
constexpr bool HAS_EXPERTS = KIND != W4A8_EVEN_ODD && (BM < 256 || GROUP >= BLOCK_K || GROUP == PER_COLUMN);

/* The instance for B as it lies. Grouped products come with [K/8, N] alone. */
template <bool EXPERTS, int KIND, int... PARAMETERS>
cudaError_t launch_layout(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->b.layout != INT4MM_K_MAJOR)
    return launch<Tile<KIND, PARAMETERS..., EXPERTS, false>>(problem, plan, stream);
  if constexpr (!EXPERTS) return launch<Tile<KIND, PARAMETERS..., EXPERTS, true>>(problem, plan, stream);
  return cudaErrorNotSupported;
}

/* The instance for a problem, grouped or not, with these parameters of its tile. */
template <int... PARAMETERS>
cudaError_t launch_instance(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (problem->experts.count) {
    if constexpr (HAS_EXPERTS<PARAMETERS...>) return launch_layout<true, PARAMETERS...>(problem, plan, stream);
    return cudaErrorNotSupported;
  }
  return launch_layout<false, PARAMETERS...>(problem, plan, stream);
}

/* The instance for a scale for each column: integers, with zero points, factors or neither. */
template <int KIND, int BM, int STAGES>
cudaError_t launch_columns(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  auto launch_weights = [&](auto weights) {
    return launch_instance<KIND, PER_COLUMN, decltype(weights)::value, BM, 1, BM, 1, STAGES, 2, 1>(problem, plan,
                                                                                                   stream);
  };
  if (problem->b.factors.data) return launch_weights(int4mm_constant<AFFINE>());
  if (problem->b.zeros.data) return launch_weights(int4mm_constant<ZEROS>());
  return launch_weights(int4mm_constant<PLAIN>());
}

/* The instance for a problem's groups and zero points. With several groups to a k-block chains are short, and two of
 * them hide each other's latency. Where K_GROUPS consumers share a tile's k-blocks, those of groups of 128 take RUN at
 * a time. */
template <int KIND, int BM, int BLOCKS, int CHAIN, int STAGES, int K_GROUPS = 1, int RUN = 1>
cudaError_t launch_tile(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  constexpr bool FLOAT = KIND == W4A16_HALF || KIND == W4A16_BFLOAT;
  auto with_zeros = [&](auto group) {
    constexpr int GROUP = decltype(group)::value,
                  ROWS = CHAIN > 64 && (GROUP == 32 || (GROUP == 64 && !FLOAT)) ? 64 : CHAIN,
                  ACCS = ROWS < CHAIN && !FLOAT ? 2
                         : GROUP == 128         ? RUN
                                                : 1;
    auto with = [&](auto weights) {
      constexpr int WEIGHTS = decltype(weights)::value;
      if constexpr (K_GROUPS > 1 && GROUP > 0) {
        if (!problem->experts.count)
          return launch_layout<false, KIND, GROUP, WEIGHTS, BM, BLOCKS, ROWS, ACCS, STAGES, K_GROUPS, K_GROUPS>(
              problem, plan, stream);
        if constexpr (BM == 64 && KIND != W4A8_EVEN_ODD)
          return launch_layout<true, KIND, GROUP, WEIGHTS, BM, BLOCKS, ROWS, 1, STAGES, 1, 1>(problem, plan, stream);
        return cudaErrorNotSupported;
      } else {
        constexpr int CONSUMERS = K_GROUPS > 1 ? 1 : 2;
        return launch_instance<KIND, GROUP, WEIGHTS, BM, BLOCKS, ROWS, ACCS, STAGES, CONSUMERS, 1>(problem, plan,
                                                                                                   stream);
      }
    };
    if constexpr (!FLOAT) /* floats take zero points in any case */
      if (problem->b.zeros.data) return with(int4mm_constant<ZEROS>());
    return with(int4mm_constant<PLAIN>());
  };
  int64_t group = problem->b.group, K = problem->K;
  if ((group >= K && K <= BLOCK_K) || group == 128 || (FLOAT && (group % BLOCK_K == 0 || group >= K)))
    return with_zeros(int4mm_constant<128>());
  if (group == 64) return with_zeros(int4mm_constant<64>());
  if constexpr (!FLOAT || BM < 256) /* where it fits into shared memory in some depth */
    if (group == 32) return with_zeros(int4mm_constant<32>());
  if constexpr (!FLOAT && BLOCKS == 1 && BM <= 64) return with_zeros(int4mm_constant<0>());
  return cudaErrorNotSupported;
}

/* The instance for int8 activations. */
template <int KIND>
cudaError_t launch_bytes(const int4mm_problem *problem, const int4mm_plan *plan, cudaStream_t stream) {
  if (!problem->b.group_scales.data) {
    if (plan->tile_m == 256) return launch_columns<KIND, 256, 5>(problem, plan, stream);
    if (plan->tile_m == 128) return launch_columns<KIND, 128, 9>(problem, plan, stream);
    return cudaErrorNotSupported;
  }
  if (plan->tile_m == 256) return launch_tile<KIND, 256, 1, 128, 5>(problem, plan, stream);
  if (plan->tile_m == 128) return launch_tile<KIND, 128, 1, 128, 8>(problem, plan, stream);
  if (plan->tile_m == 32)
    return launch_tile<KIND, 32, 1, 32, INT4MM_TILE(grouped_32x64, STAGES), 4, 2>(problem, plan, stream);
  if (plan->tile_n == 64) return launch_tile<KIND, 64, 1, 64, 14, 3, 2>(problem, plan, stream);
  if (plan->tile_m == 64)
    return launch_tile<KIND, 64, 1, 64, INT4MM_TILE(grouped_64x128, STAGES)>(problem, plan, stream);
  return cudaErrorNotSupported;
}

} // namespace
#endif
