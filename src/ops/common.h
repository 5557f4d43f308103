/*
 * What the operations share: checks of their arguments, the job of packing and quantising, and the way to a GPU.
 */
#ifndef INT4MM_OPS_COMMON_H
#define INT4MM_OPS_COMMON_H

#include "core/tensor.h"
#include "dispatch/devices.h"

/* A live matrix of rows whose dtype is one that `dtype_ok` says yes to; `expected` names them. */
int32_t int4mm_check_matrix(const char *name, const int4mm_tensor *t, bool (*dtype_ok)(int32_t), const char *expected);
/* A live matrix of int32 words, rows or a prepacked weight. */
int32_t int4mm_check_words(const char *name, const int4mm_tensor *t);
/* An enum's value in low .. high, which `meaning` names. */
int32_t int4mm_check_range(const char *name, int32_t value, int32_t low, int32_t high, const char *meaning);

/* A live vector [length] of float32, one `what`. */
int32_t int4mm_check_vector(const char *name, const int4mm_tensor *t, int64_t length, const char *what);
/* A live matrix [rows, cols] of a float dtype. */
int32_t int4mm_check_floats(const char *name, const int4mm_tensor *t, int64_t rows, int64_t cols);
/* An output [rows, cols] of a float dtype; a released one is to be allocated as out_dtype. */
int32_t int4mm_check_out(const int4mm_tensor *out, int32_t out_dtype, int64_t rows, int64_t cols);
/* That `out`, which is to be written, is the operand `t` itself, element for element, or shares no element with it. */
int32_t int4mm_check_apart_or_same(const char *name_out, const int4mm_tensor *out, const char *name,
                                   const int4mm_tensor *t);
/* The block of a rotation of src along dim, and a clip (int4mm_quantize_args). */
int32_t int4mm_check_block(const char *name, int32_t block, const char *src_name, const int4mm_tensor *src,
                           int32_t dim);
int32_t int4mm_check_clip(float clip, int32_t clip_mse);

/* A plain matrix and its packed counterpart, one eighth as long along `dim`: dtypes, shapes, devices, no overlap. */
int32_t int4mm_check_packed_pair(const char *name, const int4mm_tensor *plain, bool (*dtype_ok)(int32_t),
                                 const char *expected, const int4mm_tensor *packed, int32_t dim, int32_t encoding);
/* Of such a pair whose words are read: where they are marked, the mark says dim and encoding as well, and has as many
 * values as `plain`. */
int32_t int4mm_check_read_mark(const char *name, const int4mm_tensor *plain, const int4mm_tensor *packed, int32_t dim,
                               int32_t encoding);
/* That what int4mm_quantize wrote beside the scales of `words` is given: zero points, and factors, or the scales of
 * groups that they may have been multiplied into. */
int32_t int4mm_check_packed_with(const char *name, const int4mm_tensor *words, const char *zeros_name, bool zeros,
                                 const char *factors_name, bool factors);
/* The encoding of an operand of a product: the mark's, with which an option that is not 0 has to agree; of unmarked
 * words, or of a layout likewise, the option. */
int32_t int4mm_take_encoding(const char *option, int32_t *encoding, const char *name, const int4mm_tensor *words);
int32_t int4mm_take_layout_b(int32_t *layout_b, const int4mm_tensor *b_packed);
/* `scales` may be NULL. */
int4mm_pack_job int4mm_make_pack_job(const int4mm_tensor *packed, const int4mm_tensor *plain,
                                     const int4mm_tensor *scales, int32_t dim, int32_t encoding, bool check);

/* The table of the CUDA library, with the tensors made ready for the stream. */
int32_t int4mm_open_cuda(const int4mm_cuda_backend **cuda, void *stream, const int4mm_tensor *const *tensors,
                         int count);

/* INT4MM_ERR_VALUE with a sentence about element `bad` of the row-major order, whose value is fetched for it. */
int32_t int4mm_fail_value(const char *name, const int4mm_tensor *t, int64_t bad, const char *expected, void *stream);

#endif
