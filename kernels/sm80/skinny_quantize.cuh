/*
 * A of a skinny product, made by the CTA itself: the floats of a row or a few, which the CTA's warps hold in their
 * registers, are rotated and quantised into shared memory while the first k-blocks of B are on their way. Every CTA
 * does it once more for the same rows: for so few that is less than a kernel ahead of this one.
 */
#ifndef INT4MM_SKINNY_QUANTIZE_CUH
#define INT4MM_SKINNY_QUANTIZE_CUH

#include "elementwise/quantize.cuh"

namespace {

constexpr int MAX_OWN_WARPS = 16; /* warps of a CTA */

/* How a CTA makes its A: x [rows, cols], a warp for every 512 or 1024 values of a row. */
struct OwnRows {
  int4mm_matrix x;
  int rotate, pieces; /* pieces: warps for a row */
  int floats;         /* of shared memory that such a warp has */
  float factor, clip; /* of the rotation; of the absmax */
  bool vector_load;
};

/* In shared memory: memories of the warps that rotate, then the words of each row, whole k-blocks, and the scales. */
struct OwnWords {
  float *memory;
  uint32_t *words;
  uint32_t *maxima; /* of the warps, as bits */
  float *scales;
  int stride; /* words of a row */

  OwnWords() = default;
  __device__ __forceinline__ OwnWords(uint8_t *base, const OwnRows &own, int k_words) {
    int warps = (int)own.x.rows * own.pieces;
    stride = (k_words + INT4MM_BLOCK_WORDS - 1) / INT4MM_BLOCK_WORDS * INT4MM_BLOCK_WORDS;
    memory = (float *)base, words = (uint32_t *)(memory + warps * own.floats);
    maxima = words + own.x.rows * stride, scales = (float *)(maxima + MAX_OWN_WARPS);
  }
};

/* Bytes of the above. */
inline size_t own_bytes(const OwnRows &own, int k_words) {
  int64_t stride = (k_words + INT4MM_BLOCK_WORDS - 1) / INT4MM_BLOCK_WORDS * INT4MM_BLOCK_WORDS;
  return (size_t)(own.x.rows * own.pieces * own.floats + own.x.rows * stride + MAX_OWN_WARPS + own.x.rows) * 4;
}

/* Fills words and scales. All warps of the CTA call it; those beyond rows * pieces only wait. meanwhile() is called
 * while x is on its way. */
template <int C, class F>
__device__ __forceinline__ void make_own_words(const OwnRows &own, const OwnWords &to, F meanwhile) {
  const int warp = threadIdx.x / 32, row = warp / own.pieces, piece = warp - row * own.pieces;
  const bool works = row < own.x.rows;
  constexpr int VALUES = C * 32 * CHUNK;
  float x[C][CHUNK];
  const Line line = line_of(own.x, 1, row, (int64_t)piece * VALUES, VALUES);
  if (works && own.vector_load) load_vectors(x, line);
  meanwhile();
  if (works) {
    float *memory = to.memory + warp * own.floats, most[C];
    if (!own.vector_load) {
      gather<8>(memory, line, VALUES);
      fetch(x, memory, false);
    }
    rotate_values(x, most, memory, own.rotate, [&] { gather<1>(memory, line, VALUES); });
    uint32_t absmax = warp_max(magnitude(__fmul_rn(largest(most), own.factor)));
    if (lane_id() == 0) to.maxima[warp] = absmax;
  }
  __syncthreads();
  if (works) {
    uint32_t absmax = 0;
    for (int i = 0; i < own.pieces; i++) absmax = max(absmax, to.maxima[row * own.pieces + i]);
    float scale = scale_of(absmax, own.clip, QMAX<false>);
    if (piece == 0 && lane_id() == 0) to.scales[row] = scale;
    const Divisor by(scale);
    uint32_t words[C][WORDS<false>];
#pragma unroll
    for (int c = 0; c < C; c++) quantize_chunk<false>(words[c], x[c], by, own.factor, own.clip < 1);
    uint32_t *row_words = to.words + row * to.stride + piece * (VALUES / 8);
    for_words<false>(words, own.rotate > CHUNK, [&](uint32_t word, int at) {
      if (at < line.count) row_words[at / 8] = word;
    });
  }
  __syncthreads();
}

/* Floats of the shared memory of a warp that has so many values, a multiple of 512: WARP_FLOATS without the rows of
 * what it has not. Of a single chunk exchange() keeps the halves of the warp CHUNK floats further apart. */
inline int own_floats(int values) {
  return WARP_FLOATS - (WARP_VALUES - values) / CHUNK * 20 + (values < WARP_VALUES ? CHUNK : 0);
}

/* Whether a CTA of so many warps, of so many values each, can make A of a layer, and how. */
inline bool plan_own_rows(OwnRows *own, const int4mm_pack_job *job, int values, int warps) {
  int64_t pieces = (job->plain.cols + values - 1) / values;
  if (job->clip_mse || !pieces || job->rotate > values || job->plain.rows * pieces > warps) return false;
  *own = {job->plain, job->rotate, (int)pieces, own_floats(values), int4mm_rotation_factor(job->rotate),
          job->clip,  false};
  own->vector_load = is_whole_vectors(job->plain, CHUNK, CHUNK * (job->plain.dtype == INT4MM_FLOAT32 ? 4 : 2));
  return true;
}

} // namespace
#endif
