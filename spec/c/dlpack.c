/*
 * DLPack both ways: what is taken and what is refused, byte offsets and strides, and that each deleter is called once,
 * when the last tensor over the memory goes, from whatever thread. Worth running under sanitizers.
 *
 *   dlpack [rounds]    2000 random round trips by default
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "check.h"
#include "core/dlpack.h"
#include "core/dtype.h"
#include "random.h"

/* ---- a producer ---- */

static atomic_int deleted;

/* Memory of another library: both structs over one block, which the deleter frees. */
typedef struct product {
  dl_managed managed;
  dl_managed_versioned versioned;
  int64_t shape[2], strides[2];
  _Alignas(64) char block[4096];
} product;

static void delete_product(dl_managed *m) {
  atomic_fetch_add(&deleted, 1);
  free(m->manager_ctx);
}
static void delete_versioned_product(dl_managed_versioned *m) {
  atomic_fetch_add(&deleted, 1);
  free(m->manager_ctx);
}

/* float32 [4, 6] with rows 8 apart, 16 bytes into the block. */
static product *make(void) {
  product *p = aligned_alloc(64, (sizeof *p + 63) / 64 * 64);
  if (!p) abort();
  memset(p, 0, sizeof *p);
  for (int i = 0; i < 1024; i++) ((float *)(void *)p->block)[i] = (float)i;
  p->shape[0] = 4, p->shape[1] = 6, p->strides[0] = 8, p->strides[1] = 1;
  dl_tensor t = {p->block, {DL_CPU, 0}, 2, {DL_FLOAT, 32, 1}, p->shape, p->strides, 16};
  p->managed = (dl_managed){t, p, delete_product};
  p->versioned = (dl_managed_versioned){1, 0, p, delete_versioned_product, 0, t};
  return p;
}

static int32_t take(int4mm_tensor *t, product *p, bool versioned) {
  return versioned ? int4mm_from_dlpack_versioned(t, &p->versioned, 0) : int4mm_from_dlpack(t, &p->managed);
}

/* ---- from another library ---- */

static void lifetimes(bool versioned) {
  int4mm_tensor t = {0}, view = {0};
  product *p = make();
  deleted = 0;
  OK(take(&t, p, versioned));
  CHECK(t.rank == 2 && t.shape[0] == 4 && t.shape[1] == 6 && t.stride == 8 && t.dtype == INT4MM_FLOAT32);
  CHECK(t.device == INT4MM_CPU && t.data == p->block + 16 && ((float *)t.data)[8] == 12);
  CHECK(int4mm_allocated(INT4MM_CPU) == 0);
  OK(int4mm_tensor_narrow(&view, &t, 0, 1, 2));
  int4mm_tensor_release(&t);
  CHECK(deleted == 0 && ((float *)view.data)[0] == 12);
  int4mm_tensor_release(&view);
  CHECK(deleted == 1);
  int4mm_tensor_release(&view);
  CHECK(deleted == 1);
}

/* Without a deleter the memory is nobody's to give back. */
static void no_deleter(void) {
  int4mm_tensor t = {0};
  product *p = make();
  p->managed.deleter = NULL, p->versioned.deleter = NULL;
  OK(take(&t, p, false));
  int4mm_tensor_release(&t);
  OK(take(&t, p, true));
  int4mm_tensor_release(&t);
  free(p);
}

/* A tensor that is not taken stays the caller's. */
static void refused(product *p, const char *words) {
  int4mm_tensor t = {0};
  deleted = 0;
  p->versioned.tensor = p->managed.tensor;
  FAILS(take(&t, p, false), INT4MM_ERR_ARGUMENT, words);
  FAILS(take(&t, p, true), INT4MM_ERR_ARGUMENT, words);
  CHECK(t.rank == 0 && deleted == 0);
  free(p);
}

static void refusals(void) {
  static const struct {
    dl_dtype dtype;
    const char *words;
  } others[] = {{{DL_FLOAT, 64, 1}, "managed holds float64, expected int32, int8, float16, bfloat16 or float32"},
                {{DL_INT, 64, 1}, "holds int64, expected"},
                {{1, 8, 1}, "holds uint8, expected"},
                {{6, 8, 1}, "holds bool8, expected"},
                {{DL_BFLOAT, 32, 1}, "holds bfloat32, expected"},
                {{DL_FLOAT, 32, 4}, "holds float32 in vectors of 4, expected"},
                {{DL_FLOAT, 32, 0}, "holds float32 in vectors of 0, expected"},
                {{17, 4, 1}, "holds elements of type code 17 and 4 bits, expected"}};
  for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
    product *p = make();
    p->managed.tensor.dtype = others[i].dtype;
    refused(p, others[i].words);
  }
  product *p = make();
  p->managed.tensor.ndim = 3;
  refused(p, "managed has 3 dimensions, expected 1 or 2");
  p = make(), p->managed.tensor.ndim = 0;
  refused(p, "managed has 0 dimensions, expected 1 or 2");
  p = make(), p->managed.tensor.shape = NULL;
  refused(p, "managed has no shape");
  p = make(), p->shape[0] = -1;
  refused(p, "sizes cannot be negative");
  p = make(), p->shape[0] = INT64_MAX / 4;
  refused(p, "is larger than any memory");
  p = make(), p->strides[1] = 2;
  refused(p, "managed has a stride of 2 from one element of a row to the next, expected 1");
  p = make(), p->strides[0] = 5;
  refused(p, "managed has a stride of 5 from row to row, less than the 6 elements of a row");
  p = make(), p->strides[0] = 0;
  refused(p, "managed has a stride of 0 from row to row");
  p = make(), p->strides[0] = -8;
  refused(p, "managed has a stride of -8 from row to row");
  p = make(), p->managed.tensor.ndim = 1;
  refused(p, "managed has a stride of 8 from one element of a row to the next");
  p = make(), p->managed.tensor.byte_offset = 2;
  refused(p, "not aligned for float32");
  p = make(), p->managed.tensor.data = NULL;
  refused(p, "data is NULL");
  p = make(), p->managed.tensor.device = (dl_device){8, 0};
  refused(p, "managed is on device 0 of DLPack's type 8, expected the CPU (1), CUDA (2) or pinned host memory (3)");
  p = make(), p->managed.tensor.device = (dl_device){DL_CUDA, -1};
  refused(p, "managed is on device -1 of DLPack's type 2");
  p = make(), p->managed.tensor.device = (dl_device){DL_CUDA, 64};
  refused(p, "device is 64");
}

static void versions(void) {
  int4mm_tensor t = {0};
  product *p = make();
  FAILS(int4mm_from_dlpack(&t, NULL), INT4MM_ERR_ARGUMENT, "managed is NULL");
  FAILS(int4mm_from_dlpack_versioned(&t, NULL, 0), INT4MM_ERR_ARGUMENT, "managed is NULL");
  FAILS(int4mm_from_dlpack(NULL, &p->managed), INT4MM_ERR_ARGUMENT, "tensor is NULL");
  p->versioned.major = 2, p->versioned.minor = 3;
  FAILS(take(&t, p, true), INT4MM_ERR_ARGUMENT, "managed begins with version 2.3, expected 1.x");
  p->versioned.major = 1;
  FAILS(int4mm_from_dlpack(&t, (struct DLManagedTensor *)(void *)&p->versioned), INT4MM_ERR_ARGUMENT,
        "managed begins like a DLManagedTensorVersioned of version 1.3, expected a DLManagedTensor");
  FAILS(int4mm_from_dlpack_versioned(&t, (struct DLManagedTensorVersioned *)(void *)&p->managed, 0),
        INT4MM_ERR_ARGUMENT, "expected 1.x (a DLManagedTensor begins with none: it is not versioned)");
  p->versioned.flags = DL_READ_ONLY | DL_IS_COPIED;
  FAILS(take(&t, p, true), INT4MM_ERR_ARGUMENT, "managed is flagged as read-only");
  deleted = 0;
  OK(int4mm_from_dlpack_versioned(&t, &p->versioned, 1));
  FAILS(take(&t, p, true), INT4MM_ERR_ARGUMENT, "read-only");
  int4mm_tensor held = t;
  FAILS(int4mm_from_dlpack_versioned(&held, &p->versioned, 1), INT4MM_ERR_ARGUMENT, "already holds a tensor");

  struct DLManagedTensor *old;
  struct DLManagedTensorVersioned *out;
  FAILS(int4mm_to_dlpack(&t, NULL, NULL, &old), INT4MM_ERR_ARGUMENT, "only a versioned DLPack tensor can say");
  OK(int4mm_to_dlpack_versioned(&t, NULL, NULL, &out));
  CHECK(out->flags == DL_READ_ONLY);
  int4mm_tensor_release(&t);
  CHECK(deleted == 0);
  out->deleter(out);
  CHECK(deleted == 1);
}

/* Strides of what has one row or one element in a row have no meaning, nor has the data of what is empty. */
static void odd_strides(void) {
  int4mm_tensor t = {0};
  product *p = make();
  deleted = 0;
  p->shape[0] = 1, p->strides[0] = -7;
  OK(take(&t, p, false));
  CHECK(t.stride == 6);
  int4mm_tensor_release(&t);
  p = make(), p->shape[1] = 1, p->strides[1] = 99;
  OK(take(&t, p, true));
  CHECK(t.stride == 8 && t.shape[1] == 1);
  int4mm_tensor_release(&t);
  p = make(), p->shape[1] = 0, p->strides[0] = p->strides[1] = 0;
  p->managed.tensor.data = NULL;
  OK(take(&t, p, false));
  CHECK(t.shape[0] == 4 && t.shape[1] == 0 && !t.data);
  int4mm_tensor_release(&t);
  p = make(), p->managed.tensor.strides = NULL, p->managed.tensor.device.type = DL_CUDA_HOST;
  OK(take(&t, p, false));
  CHECK(t.stride == 6 && t.device == INT4MM_CPU);
  int4mm_tensor_release(&t);
  p = make(), p->managed.tensor.ndim = 1, p->strides[0] = 1;
  OK(take(&t, p, false));
  CHECK(t.rank == 1 && t.shape[0] == 4 && t.shape[1] == 1 && t.stride == 1);
  int4mm_tensor_release(&t);
  CHECK(deleted == 5);
}

/* ---- to another library ---- */

static void exports(void) {
  static const dl_dtype expected[] = {
      {DL_INT, 32, 1}, {DL_INT, 8, 1}, {DL_FLOAT, 16, 1}, {DL_BFLOAT, 16, 1}, {DL_FLOAT, 32, 1}};
  for (int32_t dtype = 0; dtype < 5; dtype++) {
    int4mm_tensor t = {0}, view = {0}, back = {0};
    struct DLManagedTensor *out;
    OK(int4mm_tensor_alloc(&t, 2, 3, 5, dtype, INT4MM_CPU));
    OK(int4mm_tensor_narrow(&view, &t, 1, 2, 3));
    OK(int4mm_to_dlpack(&view, NULL, NULL, &out));
    const dl_tensor *d = &out->tensor;
    CHECK(d->data == view.data && !d->byte_offset && d->ndim == 2 && d->device.type == DL_CPU && d->device.id == 0);
    CHECK(d->shape[0] == 3 && d->shape[1] == 3 && d->strides[0] == 5 && d->strides[1] == 1);
    CHECK(!memcmp(&d->dtype, &expected[dtype], sizeof d->dtype));
    int4mm_tensor_release(&t), int4mm_tensor_release(&view);
    CHECK(int4mm_allocated(INT4MM_CPU) == 15 * (int64_t)int4mm_dtype_size(dtype));
    memset(d->data, 1, int4mm_dtype_size(dtype)); /* still there */
    OK(int4mm_from_dlpack(&back, out));
    CHECK(back.dtype == dtype && back.stride == 5);
    int4mm_tensor_release(&back);
    CHECK(int4mm_allocated(INT4MM_CPU) == 0);
  }
}

static void export_refusals(void) {
  float memory[4] = {0};
  int4mm_tensor t = {0}, b = {0};
  struct DLManagedTensor *out = NULL;
  struct DLManagedTensorVersioned *versioned = NULL;
  FAILS(int4mm_to_dlpack(&t, NULL, NULL, &out), INT4MM_ERR_ARGUMENT, "tensor was freed");
  FAILS(int4mm_to_dlpack(NULL, NULL, NULL, &out), INT4MM_ERR_ARGUMENT, "tensor is NULL");
  OK(int4mm_tensor_wrap(&t, memory, 1, 4, 1, 1, INT4MM_FLOAT32, INT4MM_CPU));
  FAILS(int4mm_to_dlpack(&t, NULL, NULL, NULL), INT4MM_ERR_ARGUMENT, "managed is NULL");
  FAILS(int4mm_to_dlpack(&t, NULL, NULL, &out), INT4MM_ERR_ARGUMENT, "borrowed memory");
  FAILS(int4mm_to_dlpack_versioned(&t, NULL, NULL, &versioned), INT4MM_ERR_ARGUMENT, "borrowed memory");
  int4mm_tensor_release(&t);
  OK(int4mm_tensor_alloc(&b, 2, 2, 3, INT4MM_INT32, INT4MM_CPU));
  OK(int4mm_tensor_fill_bytes(&b, 0, NULL));
  OK(int4mm_prepack(&t, &b, INT4MM_B_KN, INT4MM_TWOS_COMPLEMENT));
  FAILS(int4mm_to_dlpack(&t, NULL, NULL, &out), INT4MM_ERR_ARGUMENT, "prepacked");
  int4mm_tensor_release(&t), int4mm_tensor_release(&b);
  CHECK(!out && !versioned);
  OK(int4mm_tensor_alloc(&t, 2, 0, 3, INT4MM_INT8, INT4MM_CPU)); /* without elements, and so without storage */
  OK(int4mm_to_dlpack_versioned(&t, NULL, NULL, &versioned));
  CHECK(versioned->major == 1 && versioned->flags == 0 && versioned->tensor.shape[1] == 3);
  int4mm_tensor_release(&t);
  versioned->deleter(versioned);
}

/* ---- through several hands ---- */

static void *release_here(void *context) {
  struct DLManagedTensorVersioned *m = context;
  m->deleter(m);
  return NULL;
}

/* A product of another library goes through ours several times; every struct is deleted, in any order, by any thread.
 */
static void round_trip(void) {
  enum { HANDS = 8 };
  struct DLManagedTensorVersioned *out[HANDS];
  pthread_t threads[HANDS];
  int4mm_tensor t = {0}, again = {0};
  int before = deleted, hands = 1 + (int)below(HANDS);
  OK(take(&t, make(), below(2)));
  for (int i = 0; i < hands; i++) {
    OK(int4mm_to_dlpack_versioned(&t, NULL, NULL, &out[i]));
    if (below(2)) continue;
    OK(int4mm_from_dlpack_versioned(&again, out[i], 0));
    OK(int4mm_to_dlpack_versioned(&again, NULL, NULL, &out[i]));
    int4mm_tensor_release(&again);
  }
  CHECK(deleted == before);
  int first = (int)below(hands + 1); /* t goes before, among or after the others */
  for (int i = 0; i < hands; i++) {
    if (i == first) int4mm_tensor_release(&t);
    if (pthread_create(&threads[i], NULL, release_here, out[i])) abort();
  }
  int4mm_tensor_release(&t);
  for (int i = 0; i < hands; i++) pthread_join(threads[i], NULL);
  CHECK(deleted == before + 1);
}

int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 2000;
  state = 1;
  lifetimes(false), lifetimes(true);
  no_deleter();
  refusals();
  versions();
  odd_strides();
  exports();
  export_refusals();
  for (int i = 0; i < rounds; i++) round_trip();
  CHECK(int4mm_allocated(INT4MM_CPU) == 0);
  return report();
}
