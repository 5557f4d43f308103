/*
 * When a tensor's use makes a stream wait for the default stream: once for each tensor and non-blocking stream, and not
 * on others. The device is a table of two functions here.
 */
#include <stdlib.h>

#include "check.h"
#include "core/error.h"
#include "core/storage.h"
#include "dispatch/devices.h"

enum { BLOCKING = 1, CAPTURING = 2, FIRST_NON_BLOCKING = 3 };

static int joins;          /* calls of stream_join */
static int32_t join_fails; /* what it returns */
static uint64_t id_shift;  /* as if handles were used again by new streams */

static int32_t stream_state(int32_t device, void *stream, int4mm_stream_state *state) {
  uintptr_t kind = (uintptr_t)stream;
  (void)device;
  *state = (int4mm_stream_state){.id = kind >= FIRST_NON_BLOCKING ? kind - FIRST_NON_BLOCKING + id_shift : 0,
                                 .non_blocking = kind != BLOCKING,
                                 .capturing = kind == CAPTURING};
  return INT4MM_OK;
}

static int32_t stream_join(int32_t device, void *stream) {
  (void)device, (void)stream;
  joins++;
  return join_fails ? int4mm_fail(join_fails, "told to fail") : INT4MM_OK;
}

static const int4mm_cuda_backend cuda = {.stream_state = stream_state, .stream_join = stream_join};

static void nothing(void *context) {
  (void)context;
}

static int4mm_tensor on_device(int32_t device) {
  static int32_t word;
  int4mm_tensor t = {.data = &word, .shape = {1, 1}, .stride = 1, .rank = 2, .device = device};
  OK(int4mm_storage_adopt(&t.storage, &word, sizeof word, device, nothing, NULL));
  return t;
}

/* Joins that a use of these tensors (NULL: none) on a stream takes. */
static int joins_of(uintptr_t stream, const int4mm_tensor *s, const int4mm_tensor *t) {
  bool non_blocking = false;
  joins = 0;
  OK(int4mm_use_on_stream(&cuda, 0, (void *)stream, (const int4mm_tensor *[]){s, t}, 2, &non_blocking));
  CHECK(non_blocking == (stream >= FIRST_NON_BLOCKING));
  return joins;
}

int main(void) {
  int4mm_tensor s = on_device(0), t = on_device(0), elsewhere = on_device(1);
  const uintptr_t first = FIRST_NON_BLOCKING, second = first + 1;
  CHECK(joins_of(0, &s, &t) == 0 && joins_of(BLOCKING, &s, &t) == 0);
  CHECK(!atomic_load(&s.storage->non_blocking));
  CHECK(joins_of(CAPTURING, &s, NULL) == 0 && atomic_load(&s.storage->non_blocking));

  join_fails = INT4MM_ERR_CUDA; /* then it is not taken as done */
  FAILS(int4mm_use_on_stream(&cuda, 0, (void *)first, (const int4mm_tensor *[]){&s}, 1, NULL), INT4MM_ERR_CUDA,
        "told to fail");
  join_fails = 0;
  CHECK(joins_of(first, &s, NULL) == 1 && joins_of(first, &s, NULL) == 0);
  CHECK(joins_of(second, &s, NULL) == 1); /* what the first has waited for, the second has not */
  CHECK(joins_of(first, &s, NULL) == 0 && joins_of(second, &s, NULL) == 0);
  CHECK(joins_of(first, &s, &t) == 1 && joins_of(first, &t, &s) == 0); /* one wait serves all tensors of a call */
  CHECK(joins_of(first, &elsewhere, NULL) == 0);

  id_shift = 100; /* a new stream at an old one's address */
  CHECK(joins_of(first, &s, NULL) == 1 && joins_of(first, &s, NULL) == 0);
  for (uintptr_t i = 0; i < 4 * INT4MM_JOINED_STREAMS; i++) CHECK(joins_of(first + 10 + i, &s, NULL) == 1);
  CHECK(joins_of(first, &s, NULL) == 1); /* forgotten: waits once more, never once too little */

  int4mm_storage_release(s.storage);
  int4mm_storage_release(t.storage);
  int4mm_storage_release(elsewhere.storage);
  return report();
}
