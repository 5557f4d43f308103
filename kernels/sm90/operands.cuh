/*
 * What the wgmma kernels for Hopper that widen B in shared memory get: their arguments, the tensor maps of A and B, and
 * which instance serves a problem.
 *
 * The copy engine takes rows that start on 16 bytes, from columns that do. A has such rows: where it has not, it was
 * copied before the launch (src/ops/). For B see RowMaps.
 */
#ifndef INT4MM_OPERANDS_CUH
#define INT4MM_OPERANDS_CUH

#include "common/epilogue.cuh"
#include "common/kernels.h"
#include "common/launch.cuh"
#include "sm90/kinds.cuh"
#include "sm90/pipeline.cuh"

namespace {

constexpr int COLUMNS = 8; /* of an output row that a thread holds side by side */

struct Arguments {
  int M, N, words; /* words of k of B */
  int tiles_m, tiles_n;
  int split;    /* CTAs that share a tile's K, a cluster */
  int box_rows; /* of A in a copy: a tile's, or M where that is less. Filling rows with zeros takes longer than copying
                 */
  const uint32_t *b;
  int64_t ldb;
  const int8_t *zeros; /* of the columns, or NULL */
  uint32_t xor_a, xor_b;
  int b_blocks; /* k-blocks of B in a copy of hopper: one or two, into as many stages */
  bool early_b; /* B may be read before the prerequisite grids have completed */
  EpilogueArguments epilogue;
  int4mm_experts experts;
};

/* ---- copies ---- */

/* What the copy engine needs to know of B. Where its rows start on 16 bytes that is one map. Of any other matrix the
 * rows r, r + 4, r + 8, ... lie a multiple of 16 bytes apart, so that four maps serve, map[r] for those rows: it begins
 * on 16 bytes, `shift` words before its first row, and boxes are four words wider. In shared memory the rows of a box
 * lie in the order of r first. That is also the order which the int8 tile has of columns, so that rows of [N, K/8] are
 * always copied so. */
template <int MAPS> struct RowMaps {
  static_assert(MAPS == 1 || MAPS == 4, "16 bytes are four words");
  CUtensorMap map[MAPS];
  int shift[MAPS];
};

/* A lane's copy of the box at (x, y), which as many lanes issue as there are maps, those of a warp from a multiple of
 * that many on. With four maps lane r copies a quarter of the rows: y + r, y + r + 4, ...; y is a multiple of 4. */
template <int MAPS> struct BoxCopy {
  int r, x, y;
  const CUtensorMap *map;
  __device__ __forceinline__ BoxCopy(const RowMaps<MAPS> &maps, int x, int y)
      : r(threadIdx.x % MAPS), x(x), y(y / MAPS), map(&maps.map[r]) {}
};

/* ---- host ---- */

/* A map of elements [rows, columns], int32 or uint8, that copies boxes of box_rows x box_columns. */
template <class Element>
cudaError_t map_matrix(CUtensorMap *map, const Element *data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
  EncodeTiled encode;
  cudaError_t error = find_encoder(&encode);
  if (error != cudaSuccess) return error;
  CUtensorMapDataType type = sizeof(Element) == 4 ? CU_TENSOR_MAP_DATA_TYPE_INT32 : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, pitch[1] = {(cuuint64_t)stride * sizeof(Element)};
  cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, step[2] = {1, 1};
  CUresult result = encode(map, type, 2, (void *)data, size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                           CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

/* The maps of a matrix. No row or column that it has not is within their extents. */
template <int MAPS>
cudaError_t map_rows(RowMaps<MAPS> *maps, const uint32_t *words, int64_t rows, int64_t columns, int64_t stride,
                     int box_rows, int box_columns, CUtensorMapSwizzle swizzle) {
  if (MAPS == 1) return map_matrix(&maps->map[0], words, rows, columns, stride, box_rows, box_columns, swizzle);
  cudaError_t error = cudaSuccess;
  for (int r = 0; r < MAPS && error == cudaSuccess; r++) {
    bool any = r < rows; /* else one word, which no other than the first row has: with this shift it is not seen */
    const uint32_t *first = any ? words + r * stride : words;
    int before = (int)((uintptr_t)first / 4 % 4);
    maps->shift[r] = before;
    error = map_matrix(&maps->map[r], first - before, any ? (rows - r + MAPS - 1) / MAPS : 1,
                       any ? columns + before : 1, stride * MAPS, box_rows / MAPS, box_columns, swizzle);
  }
  return error;
}

/* Whether rows of B start on 16 bytes, and those of out. */
bool is_aligned(const int4mm_operand &b) {
  return (uintptr_t)b.words % 16 == 0 && b.stride % 4 == 0;
}
bool is_out_aligned(const int4mm_problem &problem) {
  return int4mm_epilogue_arguments(&problem, COLUMNS).vector_store;
}

/* Calls launch(kind), the Kind of a problem. */
template <class F> cudaError_t for_kind(const int4mm_problem *problem, F launch) {
  bool int8 = problem->a.dtype == INT4MM_INT8;
  if (problem->b.factors.data) return int8 ? launch(Kind<true, true>()) : launch(Kind<false, true>());
  if (problem->b.zeros.data)
    return int8 ? launch(Kind<true, false, false, true>()) : launch(Kind<false, false, false, true>());
  return int8 ? launch(Kind<true, false>()) : launch(Kind<false, false>());
}

/* Calls launch(layer, nk, aligned, out_aligned), constants: the instance for a problem. Layers have one way to store,
 * and other kinds than W4A4 take it for rows of B or out that start off 16 bytes: fewer instances.
 * Elsewhere rows of B that start off 16 bytes come with the more general stores. Those of out alone are as rare in
 * [K/8, N] (an N of 8n + 4) as they are common in [N, K/8], so that only there aligned copies come with general stores
 * as well. */
template <class F, class Kind> cudaError_t for_layout(const int4mm_problem *problem, Kind, bool aligned, F launch) {
  bool nk = problem->b.layout == INT4MM_K_MAJOR, out = is_out_aligned(*problem), layer = int4mm_is_layer(problem);
  int4mm_constant<0> no;
  int4mm_constant<1> yes;
  constexpr bool W4A4 = !Kind::AFFINE && !Kind::INT8_A && !Kind::ZEROS;
  if constexpr (!W4A4) layer = layer || !aligned || !out;
  if (layer) {
    if (nk) return aligned ? launch(yes, yes, yes, yes) : launch(yes, yes, no, no);
    return aligned ? launch(yes, no, yes, yes) : launch(yes, no, no, no);
  }
  if constexpr (!W4A4)
    return nk ? launch(no, yes, yes, yes) : launch(no, no, yes, yes);
  else {
    if (nk) return !aligned ? launch(no, yes, no, no) : out ? launch(no, yes, yes, yes) : launch(no, yes, yes, no);
    return aligned && out ? launch(no, no, yes, yes) : launch(no, no, no, no);
  }
}

/* The arguments of a problem in tiles of tile_m x tile_n. */
Arguments make_arguments(const int4mm_problem *problem, const int4mm_plan *plan) {
  Arguments p = {};
  p.M = (int)problem->M, p.N = (int)problem->N, p.words = (int)int4mm_words_of_k(problem);
  p.tiles_m = (p.M + plan->tile_m - 1) / plan->tile_m, p.tiles_n = (p.N + plan->tile_n - 1) / plan->tile_n;
  p.split = plan->split_k, p.box_rows = p.M < plan->tile_m ? p.M : plan->tile_m;
  p.zeros = (const int8_t *)problem->b.zeros.data;
  p.b = problem->b.words, p.ldb = problem->b.stride;
  p.xor_a = problem->a.xor_mask, p.xor_b = problem->b.xor_mask, p.early_b = problem->early_b;
  p.epilogue = int4mm_epilogue_arguments(problem, COLUMNS);
  p.experts = problem->experts;
  return p;
}

/* The map of A. */
template <class T> cudaError_t map_a_of(CUtensorMap *map, const int4mm_problem *problem, const Arguments &p) {
  const int4mm_operand *a = &problem->a;
  if (T::Kind::INT8_A)
    return map_matrix(map, (const uint8_t *)a->data, problem->M, problem->K, a->stride, p.box_rows, BLOCK_K,
                      CU_TENSOR_MAP_SWIZZLE_128B);
  return map_matrix(map, a->words, problem->M, problem->K / 8, a->stride, p.box_rows, BLOCK_WORDS,
                    CU_TENSOR_MAP_SWIZZLE_NONE);
}

} // namespace
#endif
