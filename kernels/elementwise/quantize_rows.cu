/*
 * Rows, quantised or rotated: a CTA for a row, which is read once, or a cluster where they are few and long; where a
 * CTA cannot hold a row, one for each piece, once for the scale and once for the words.
 */
#include "elementwise/quantize_pass.cuh"

namespace {

struct Arguments : int4mm_quantize_pass {
  int64_t first_item; /* of the first CTA */
  int pieces;         /* of a row, a CTA for each */
  bool vector_load, vector_store;
  bool chunk_store; /* the words of a chunk are there together, and aligned to their size */
};

/* ---- storing ---- */

/* Stores a warp's rotated values in a row, from element `at` on. */
template <int C>
__device__ __forceinline__ void store_floats(const int4mm_matrix &dst, int64_t at, int count,
                                             const float (&x)[C][CHUNK], float factor, bool strided) {
  int4mm_for_out_dtype(dst.dtype, [&](auto dtype) {
    constexpr int DTYPE = decltype(dtype)::value;
    auto *to = static_cast<typename int4mm_out_word<DTYPE>::type *>(dst.data) + at;
#pragma unroll
    for (int c = 0; c < C; c++)
#pragma unroll
      for (int i = 0; i < CHUNK; i++) {
        int k = first_value(c, strided) + (strided ? CHUNK : 1) * i;
        if (k < count) to[k] = int4mm_round<DTYPE>(__fmul_rn(x[c][i], factor));
      }
  });
}

/* Stores the values of a warp's words as bytes. */
template <int C>
__device__ __forceinline__ void store_widened(uint8_t *to, uint32_t (&words)[C][WORDS<false>], int count, bool strided,
                                              bool even_odd) {
  for_words<false>(words, strided, [&](uint32_t word, int at) {
    if (at >= count) return;
    if (even_odd)
      store_even_odd(to, at, word);
    else
      *(uint2 *)(to + at) = widen(word);
  });
}

/* Bytes of a warp's chunks become even_odd: of two lanes one has the 16 of even k, the other those of odd k. */
template <int C> __device__ __forceinline__ void order_even_odd(uint32_t (&words)[C][WORDS<true>]) {
  const bool odd = lane_id() % 2;
#pragma unroll
  for (int c = 0; c < C; c++) {
    uint32_t mine[2], others[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t x = words[c][2 * i], y = words[c][2 * i + 1];
      mine[i] = __byte_perm(x, y, odd ? 0x7531 : 0x6420);
      others[i] = __shfl_xor_sync(0xffffffffu, __byte_perm(x, y, odd ? 0x6420 : 0x7531), 1);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) words[c][i] = odd ? others[i] : mine[i], words[c][2 + i] = odd ? mine[i] : others[i];
  }
}

/* Stores words of four values of strided chunks, of which two are of even k. */
__device__ __forceinline__ void store_pairs(uint8_t *to, int at, uint32_t word) {
  uint16_t *pair = (uint16_t *)(to + at - at % 32 / 2);
  pair[0] = (uint16_t)__byte_perm(word, 0, 0x20), pair[8] = (uint16_t)__byte_perm(word, 0, 0x31);
}

/* Stores a warp's words in a row, of which `to` is where the warp's first goes. Words that are in order go a chunk at a
 * time where chunk_store says so: a lane's one by one would have a warp write a quarter of each sector, or half, in
 * every store. */
template <bool INT8, int C>
__device__ __forceinline__ void store_row(uint8_t *to, uint32_t (&words)[C][WORDS<INT8>], int count, bool strided,
                                          bool chunk_store, const Arguments &a) {
  typedef std::conditional_t<INT8, uint4, uint2> Vector;
  const uint32_t mask = INT8 ? 0 : a.job.xor_mask;
  if constexpr (!INT8)
    if (a.job.widened) return store_widened(to, words, count, strided, a.job.even_odd);
  if (!strided && chunk_store) {
    if constexpr (INT8)
      if (a.job.even_odd) order_even_odd(words);
#pragma unroll
    for (int c = 0; c < C; c++) {
      const int at = first_value(c, false);
#pragma unroll
      for (int i = 0; i < WORDS<INT8>; i++) words[c][i] ^= mask;
      Vector vector;
      memcpy(&vector, words[c], sizeof vector);
      if (at < count) *(Vector *)(to + at * 4 / PER_WORD<INT8>) = vector;
    }
    return;
  }
  const bool whole = !INT8 || a.vector_store;
  for_words<INT8>(words, strided, [&](uint32_t word, int at) {
    if (at >= count) return;
    if (INT8 && a.job.even_odd)
      store_pairs(to, at, word);
    else if (whole)
      *(uint32_t *)(to + at * 4 / PER_WORD<INT8>) = word ^ mask;
    else
      for (int k = 0; k < 4 && at + k < count; k++) to[at + k] = (uint8_t)(word >> 8 * k);
  });
}

/* ---- the kernel ---- */

/* The largest of what the CTAs of a cluster have found of a row. */
__device__ __forceinline__ uint32_t max_of_row(uint32_t absmax, Exchange<1> &exchange) {
  if (gridDim.x == 1) return absmax;
  exchange.wait_for_others();
  if (threadIdx.x < gridDim.x) exchange.tell(0, threadIdx.x, 0, absmax);
  __syncwarp();
  exchange.wait(0);
  for (int i = 0; i < gridDim.x; i++) absmax = max(absmax, exchange.maxima[0][i][0]);
  return absmax;
}

/* Rows of an instance of the kernel: any, or those of a dtype of 16 bits that all warps have whole chunks of, in
 * vectors of 16 bytes, rotated as activations most often are: for int4 by blocks of 256, for int8 not. The code for
 * these is short, and a tenth fewer instructions: 1024 rows of 4096 take 5.4 us on an H100 (5.9 otherwise), a layer
 * with them 29.8 (31.7). */
constexpr int ANY_ROWS = -1;
template <int TASK> constexpr int USUAL_BLOCK = TASK == TO_INT4 ? SPAN : 0;

/* A CTA has a piece of a row, C times 512 values for each warp; where the row is in one piece, it finds the scale as
 * well. C = 1, for few rows: CTA (x, y) has piece x of row y, and the cluster all of it. FIND_SCALES leaves in scales
 * the largest of what the pieces of a row find, as scale_of never falls. */
template <int TASK, int C, int DTYPE>
__global__ void __launch_bounds__(32 * MAX_WARPS) rows_kernel(const __grid_constant__ Arguments a) {
  extern __shared__ __align__(16) float shared[];
  __shared__ uint32_t warps[MAX_WARPS];
  __shared__ Exchange<1> exchange;
  if (C == 1) exchange.begin();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  constexpr bool INT8 = TASK == TO_INT8, USUAL = DTYPE != ANY_ROWS;
  constexpr int VALUES = C * 32 * CHUNK; /* of a warp */
  const int4mm_pack_job &job = a.job;
  const int warp = threadIdx.x / 32, block = USUAL ? USUAL_BLOCK<TASK> : job.rotate;
  int64_t row = a.first_item + blockIdx.x, first = warp * VALUES;
  if (C == 1) {
    row = blockIdx.y, first += blockIdx.x * (blockDim.x / 32) * VALUES;
  } else if (!USUAL && a.pieces > 1) {
    first += row % a.pieces * (blockDim.x / 32) * VALUES;
    row /= a.pieces;
  }
  Line line = line_of(job.plain, 1, row, first, VALUES);
  if (USUAL) line.count = VALUES, line.dtype = DTYPE;
  float x[C][CHUNK];
  float most = make_values(x, shared + warp * WARP_FLOATS, line, USUAL || a.vector_load, block);
  if constexpr (TASK == ROTATE)
    return store_floats(a.rotated, row * a.rotated.stride + first, line.count, x, a.factor, block > CHUNK);
  float scale;
  if (!USUAL && a.scales_given) {
    scale = job.scales[row];
  } else {
    uint32_t absmax = cta_max(__fmul_rn(most, a.factor), warps);
    if (C == 1) absmax = max_of_row(absmax, exchange);
    scale = scale_of(absmax, job.clip, TASK == FIND_SCALES ? qmax_of(job) : QMAX<INT8>);
    if (threadIdx.x == 0) {
      if (TASK == FIND_SCALES)
        atomicMax((uint32_t *)job.scales + row, __float_as_uint(scale));
      else if (C == 2 || blockIdx.x == 0)
        job.scales[row] = scale;
    }
    if (absmax >= INFINITE && a.bad) report_bad(a, row, first);
  }
  if constexpr (TASK == TO_INT4 || TASK == TO_INT8) {
    uint32_t words[C][WORDS<INT8>];
    const Divisor by(scale);
#pragma unroll
    for (int c = 0; c < C; c++) quantize_chunk<INT8>(words[c], x[c], by, a.factor, job.clip_mse || job.clip < 1);
    uint8_t *to = static_cast<uint8_t *>(job.packed.data);
    to += INT8 || job.widened ? row * job.packed.stride + first : row * job.packed.stride * 4 + first / 2;
    store_row<INT8>(to, words, line.count, block > CHUNK, USUAL || a.chunk_store, a);
  }
}

/* ---- launchers ---- */

/* How rows are divided among CTAs. */
struct Division {
  int warps, pieces; /* of a CTA; of a row, a CTA for each */
  bool few_rows;     /* a warp for each 512 values, not 1024 */
};

/* Whether the warps use their memories. */
bool uses_memory(const Arguments &a) {
  return a.job.rotate || !a.vector_load;
}

/* At most so many warps to a CTA. */
cudaError_t divide_rows(Division *by, const Arguments &a, int most, bool quantises) {
  constexpr int FEW_ROWS = 512, FEW_VALUES = WARP_VALUES / 2; /* more rows keep an SM busy with longer ones, */
  constexpr int FEW_WARPS = 6144;                             /* unless they are short: 46 warps for an SM of an H100 */
  const int64_t rows = a.job.plain.rows, cols = a.job.plain.cols, few_warps = ceil_div(cols, FEW_VALUES);
  int bytes;
  cudaError_t error = get_attribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (error != cudaSuccess) return error;
  if (uses_memory(a)) most = min(most, (bytes - 1024) / WARP_BYTES);
  by->few_rows = quantises && few_warps && (rows <= FEW_ROWS || rows * few_warps <= FEW_WARPS) &&
                 a.job.rotate <= FEW_VALUES && few_warps <= most;
  const int64_t warps = !cols ? 1 : by->few_rows ? few_warps : ceil_div(cols, WARP_VALUES);
  by->warps = warps <= most ? (int)warps : 8;
  by->pieces = (int)ceil_div(warps, by->warps);
  return cudaSuccess;
}

/* Calls f(DTYPE) for the instance of rows_kernel for these rows, of which the warps have so many values. */
template <int TASK, class F> cudaError_t for_rows(const Arguments &a, int64_t values, F f) {
  if constexpr (TASK == TO_INT4 || TASK == TO_INT8) {
    const int4mm_pack_job &job = a.job;
    const bool usual = job.plain.cols == values && a.vector_load && job.rotate == USUAL_BLOCK<TASK> &&
                       (job.rotate || a.chunk_store) && !a.scales_given;
    if (usual && job.plain.dtype == INT4MM_BFLOAT16) return f(std::integral_constant<int, INT4MM_BFLOAT16>());
    if (usual && job.plain.dtype == INT4MM_FLOAT16) return f(std::integral_constant<int, INT4MM_FLOAT16>());
  }
  return f(std::integral_constant<int, ANY_ROWS>());
}

template <auto KERNEL> cudaError_t launch_rows(Arguments a, int warps, cudaStream_t stream) {
  const int64_t items = a.job.plain.rows * a.pieces;
  cudaError_t error = cudaSuccess;
  for (a.first_item = 0; a.first_item < items && error == cudaSuccess; a.first_item += INT32_MAX)
    error = launch<KERNEL>(int4mm_blocks(items - a.first_item, 1), warps, uses_memory(a) ? warps * WARP_BYTES : 0, 1,
                           stream, a);
  return error;
}

/* Rows that leave SMs without work are divided among the CTAs of clusters, where there are some. Many rows are faster
 * with L1, of which this kernel leaves little. */
template <int TASK> cudaError_t launch_few_rows(const Arguments &a, int row_warps, cudaStream_t stream) {
  constexpr int LEAST_WARPS = 8; /* that are worth a CTA */
  int sms, ctas = 1;
  cudaError_t error = get_attribute(&sms, cudaDevAttrMultiProcessorCount);
  if (error != cudaSuccess) return error;
  while (!a.scales_given && row_warps > LEAST_WARPS * ctas && 4 * ctas * a.job.plain.rows <= sms) ctas *= 2;
  static_assert(LEAST_WARPS * MAX_CLUSTER >= MAX_WARPS, "a cluster may have too many CTAs");
  auto launch_ctas = [&](int number) {
    const int warps = (row_warps + number - 1) / number;
    const dim3 grid(number, (unsigned)a.job.plain.rows);
    return for_rows<TASK>(a, (int64_t)number * warps * (WARP_VALUES / 2), [&](auto dtype) {
      return launch<rows_kernel<TASK, 1, dtype.value>, true>(grid, warps, uses_memory(a) ? warps * WARP_BYTES : 0,
                                                             number, stream, a);
    });
  };
  error = ctas > 1 ? launch_ctas(ctas) : cudaErrorNotSupported;
  return error == cudaErrorNotSupported ? launch_ctas(1) : error;
}

template <int TASK> cudaError_t launch_task(Arguments a, const Division &by, cudaStream_t stream) {
  a.pieces = by.pieces;
  if constexpr (TASK == TO_INT4 || TASK == TO_INT8)
    if (by.few_rows) return launch_few_rows<TASK>(a, by.warps, stream);
  return for_rows<TASK>(a, (int64_t)by.warps * WARP_VALUES, [&](auto dtype) {
    return launch_rows<rows_kernel<TASK, 2, dtype.value>>(a, by.warps, stream);
  });
}

Arguments arguments_of(const int4mm_quantize_pass &pass) {
  const int4mm_matrix &plain = pass.job.plain, &packed = pass.job.packed;
  const bool int8 = packed.dtype == INT4MM_INT8;
  const bool chunk_store = is_whole_vectors(packed, int8 ? CHUNK : CHUNK / 8, int8 ? CHUNK : CHUNK / 2);
  const bool vector_store = is_whole_vectors(packed, 4, 4 * element_bytes(packed.dtype));
  return {pass, 0, 1, is_whole_vectors(plain), vector_store, chunk_store};
}

} // namespace

cudaError_t int4mm_quantize_rows(const int4mm_quantize_pass *pass, cudaStream_t stream) {
  Arguments a = arguments_of(*pass);
  Division by;
  cudaError_t error = divide_rows(&by, a, MAX_WARPS, true);
  if (error == cudaSuccess && !a.scales_given && by.pieces > 1) {
    error = clear_scales(a.job, stream);
    if (error == cudaSuccess) error = launch_task<FIND_SCALES>(a, by, stream);
    a.scales_given = true;
  }
  if (error != cudaSuccess) return error;
  return makes_int8(a.job) ? launch_task<TO_INT8>(a, by, stream) : launch_task<TO_INT4>(a, by, stream);
}

cudaError_t int4mm_rotate_rows(const int4mm_quantize_pass *pass, cudaStream_t stream) {
  const Arguments a = arguments_of(*pass);
  Division by;
  cudaError_t error = divide_rows(&by, a, 8, false);
  return error == cudaSuccess ? launch_task<ROTATE>(a, by, stream) : error;
}
