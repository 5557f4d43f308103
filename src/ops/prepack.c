/*
 * A weight rearranged once for many products: panels on the CPU, a plain copy on a GPU.
 */
#include "cpu/backend.h"
#include "ops/common.h"
#include "ops/copy.h"

/* [K/8, N] words, two's complement, contiguous on the GPU of `b`. */
static int32_t copy_as_kn(int4mm_tensor *dst, const int4mm_tensor *b, bool nk, uint32_t xor_mask) {
  int64_t k8 = b->shape[nk ? 1 : 0], N = b->shape[nk ? 0 : 1];
  int32_t status = int4mm_tensor_alloc(dst, 2, k8, N, INT4MM_INT32, b->device);
  if (status || !k8 || !N) return status;
  int4mm_matrix from = int4mm_as_matrix(b), to = int4mm_as_matrix(dst);
  if (!nk) {
    status = int4mm_copy_checked(dst, b, NULL);
    if (status || !xor_mask) return status;
    /* what is left is an XOR: transposing the copy's words as one row into one column, where they are */
    from = (int4mm_matrix){dst->data, 1, k8 * N, k8 * N, INT4MM_INT32};
    to = (int4mm_matrix){dst->data, k8 * N, 1, 1, INT4MM_INT32};
  }
  const int4mm_cuda_backend *cuda = int4mm_cuda();
  return cuda ? cuda->transpose(b->device, &to, &from, xor_mask, NULL) : INT4MM_ERR_UNAVAILABLE;
}

/* Panels of `b` on the CPU. */
static int32_t make_panels(int4mm_tensor *dst, const int4mm_tensor *b, bool nk, uint32_t xor_mask) {
  int4mm_matrix words = int4mm_as_matrix(b);
  int64_t k8 = b->shape[nk ? 1 : 0], N = b->shape[nk ? 0 : 1];
  int32_t status = int4mm_tensor_alloc_panels(dst, k8, N, int4mm_cpu_panel_words(k8, N));
  if (status || !k8 || !N) return status;
  int4mm_operand operand = {.data = words.data,
                            .rows = words.rows,
                            .cols = words.cols,
                            .stride = words.stride,
                            .dtype = words.dtype,
                            .layout = nk ? INT4MM_K_MAJOR : INT4MM_MN_MAJOR,
                            .xor_mask = xor_mask};
  int4mm_cpu_prepack(dst->data, &operand);
  return INT4MM_OK;
}

int32_t int4mm_prepack(int4mm_tensor *prepacked, const int4mm_tensor *b_packed, int32_t layout_b, int32_t encoding) {
  if (!prepacked) return int4mm_fail(INT4MM_ERR_ARGUMENT, "prepacked is NULL");
  if (prepacked->rank) return int4mm_fail(INT4MM_ERR_ARGUMENT, "prepacked already holds a tensor: release it first");
  int32_t status = int4mm_check_rows("b_packed", b_packed);
  if (!status) status = int4mm_check_words("b_packed", b_packed);
  if (!status) status = int4mm_check_range("layout_b", layout_b, 0, 1, "0 for [K/8, N] or 1 for [N, K/8]");
  if (!status) status = int4mm_check_encoding("encoding", encoding);
  if (!status) status = int4mm_take_layout_b(&layout_b, b_packed);
  if (!status) status = int4mm_take_encoding("encoding", &encoding, "b_packed", b_packed);
  if (status) return status;
  bool nk = layout_b == INT4MM_B_NK;
  int64_t k8 = b_packed->shape[nk ? 1 : 0];
  if (k8 > INT4MM_MAX_K / 8)
    return int4mm_fail(INT4MM_ERR_ARGUMENT, "b_packed is %s, so K/8 is %lld, expected at most %d",
                       int4mm_describe(b_packed).s, (long long)k8, INT4MM_MAX_K / 8);
  int4mm_tensor made = {0};
  status = b_packed->device == INT4MM_CPU ? make_panels(&made, b_packed, nk, int4mm_xor_mask_of(encoding))
                                          : copy_as_kn(&made, b_packed, nk, int4mm_xor_mask_of(encoding));
  if (status) {
    int4mm_tensor_release(&made);
    return status;
  }
  int4mm_copy_mark(&made, b_packed, 0);
  made.packing = INT4MM_PACKED_DIM0, made.encoding = INT4MM_TWOS_COMPLEMENT;
  *prepacked = made;
  return INT4MM_OK;
}
