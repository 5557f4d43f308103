/*
 * Quantising and rotation on the device, with the bits of src/cpu: what int4mm_quantize and int4mm_rotate promise.
 *
 * A warp takes 1024 values in its registers, and rotates and quantises them by itself (quantize.cuh, rotation.cuh).
 * What brings it the values of a row or a column, finds the scale and stores the words is a kernel of a family:
 *
 *   quantize_rows.cu    rows
 *   quantize_tiles.cu   columns
 *   quantize_pairs.cu   columns that are not rotated, where clusters have them whole
 *   quantize_clips.cu   scales with the clip of least squared error, ahead of the others
 */
#include "elementwise/quantize_pass.cuh"

cudaError_t int4mm_launch_quantize(const int4mm_pack_job *job, unsigned long long *bad, cudaStream_t stream) {
  int4mm_quantize_pass pass = {*job, {}, bad, int4mm_rotation_factor(job->rotate), job->clip_mse};
  if (!lines_of(*job)) return cudaSuccess;
  cudaError_t error = job->clip_mse ? int4mm_find_clips(&pass, stream) : cudaSuccess;
  if (error != cudaSuccess) return error;
  if (job->dim) return int4mm_quantize_rows(&pass, stream);
  error = pass.scales_given || job->rotate ? cudaErrorNotSupported : int4mm_quantize_pairs(&pass, stream);
  return error == cudaErrorNotSupported ? int4mm_quantize_tiles(&pass, stream) : error;
}

cudaError_t int4mm_launch_rotate(const int4mm_rotate_job *job, cudaStream_t stream) {
  int4mm_quantize_pass pass = {};
  pass.job.plain = job->src, pass.job.rotate = job->block, pass.job.dim = job->dim;
  pass.rotated = job->dst, pass.factor = int4mm_rotation_factor(job->block);
  if (!job->src.cols) return cudaSuccess;
  return job->dim ? int4mm_rotate_rows(&pass, stream) : int4mm_rotate_tiles(&pass, stream);
}
