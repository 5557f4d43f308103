/*
 * int4mm: matrix multiplication by int4 weights on CPUs and CUDA GPUs; exact with int4 and int8 activations.
 *
 *   out[m,n] = round( float(acc[m,n]) * scale_a[m] * scale_b[n] (+ bias[n]) )
 *   acc[m,n] = sum over k of a[m,k] * b[k,n], exact, in int32
 *
 * int4mm_matmul says what else there is: group scales, zero points, activations of floats.
 *
 * This header is the whole C ABI. The build turns its declarations into the LuaJIT cdef, so between the two
 * INT4MM_CDEF guards only what LuaJIT's C parser understands may stand: no bit tricks in macros, constants as enums.
 *
 * Conventions
 *   - Functions that can fail return an int4mm_status (0 is success). int4mm_last_error() then holds a sentence for
 *     people: which argument, what it was, what was expected. It is kept per thread until the next failure there.
 *   - Nothing is written to an output unless the whole call was found valid.
 *   - Sizes are int64_t, counted in elements unless the name says bytes. Every function is safe to call from several
 *     threads at once on different tensors; one tensor may be read by many threads but written or released by one.
 *   - Structs end with `reserved`, so that later versions can add members without another size. What a caller fills is
 *     zeroed first: a member that is 0 means the default, and reserved members that are not 0 are refused.
 *   - No function prints, exits, or calls back, but for the deleter that int4mm_tensor_adopt was given or that a DLPack
 *     tensor came with.
 */
#ifndef INT4MM_H
#define INT4MM_H

/* The one place where the version stands. */
#define INT4MM_VERSION_MAJOR 0
#define INT4MM_VERSION_MINOR 1
#define INT4MM_VERSION_PATCH 0
#define INT4MM_TEXT_(tokens) #tokens
#define INT4MM_TEXT(tokens)  INT4MM_TEXT_(tokens)
#define INT4MM_VERSION       INT4MM_TEXT(INT4MM_VERSION_MAJOR.INT4MM_VERSION_MINOR.INT4MM_VERSION_PATCH) /* "0.1.0" */
/* 100 for 0.1.0, to compare with #if */
#define INT4MM_VERSION_NUMBER (INT4MM_VERSION_MAJOR * 10000 + INT4MM_VERSION_MINOR * 100 + INT4MM_VERSION_PATCH)

#ifdef INT4MM_CDEF
#define INT4MM_API
#define INT4MM_CHECK
/* Never looked up: it carries the version into the cdef, to be compared with the library's. */
extern const char int4mm_cdef_version[] __asm__(INT4MM_VERSION);
#else
#include <stdint.h>
#define INT4MM_API   __attribute__((visibility("default")))
#define INT4MM_CHECK __attribute__((warn_unused_result))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status and errors ---- */

typedef enum int4mm_status {
  INT4MM_OK = 0,
  INT4MM_ERR_ARGUMENT = 1,    /* an argument is wrong: shape, dtype, device, option, a released tensor */
  INT4MM_ERR_VALUE = 2,       /* the data is wrong: outside [-8, 7], NaN or infinite where it may not be */
  INT4MM_ERR_MEMORY = 3,      /* host or device memory ran out */
  INT4MM_ERR_UNAVAILABLE = 4, /* no CUDA build, driver, device or code for it; an instruction set this CPU lacks */
  INT4MM_ERR_UNSUPPORTED = 5, /* a kernel cannot serve this shape; another may (only seen when one was forced) */
  INT4MM_ERR_CUDA = 6,        /* a CUDA call failed; the text is the driver's */
  INT4MM_ERR_SYSTEM = 7       /* an operating system call failed */
} int4mm_status;

/* "0.1.0". Static storage. */
INT4MM_API const char *int4mm_version(void);
/* A checksum of this header's declarations, as the library was compiled with them; the generated cdef carries its own,
 * so that a library and a cdef of the same version that differ are told apart. Static storage. */
INT4MM_API const char *int4mm_abi_hash(void);
/* A few words for a status ("out of memory"); never NULL. Static storage. */
INT4MM_API const char *int4mm_strerror(int32_t status);
/* The sentence of this thread's last failure; "" before the first. Valid until the thread's next failure. */
INT4MM_API const char *int4mm_last_error(void);

/* ---- tensors ---- */

typedef enum int4mm_dtype {
  INT4MM_INT32 = 0, /* also eight packed int4, lowest nibble first */
  INT4MM_INT8 = 1,
  INT4MM_FLOAT16 = 2,
  INT4MM_BFLOAT16 = 3,
  INT4MM_FLOAT32 = 4
} int4mm_dtype;

/* Devices are numbers: the CPU is -1, CUDA devices count from 0. */
typedef enum int4mm_device { INT4MM_CPU = -1 } int4mm_device;

/* How a tensor's words lie in memory. */
typedef enum int4mm_layout {
  INT4MM_ROWS = 0,  /* row-major; the only layout that has elements to read */
  INT4MM_PANELS = 1 /* a weight from int4mm_prepack: opaque, only good as b_packed */
} int4mm_layout;

/* Along which dimension a matrix of int32 words holds int4 values, eight to a word; and thereby whether that is known.
 * int4mm_pack, int4mm_quantize and int4mm_prepack write it down in the tensor that they fill, with the encoding and the
 * number of values: its mark. Calls that read words take from a mark what they need and refuse what contradicts it;
 * words without one are read as the arguments say. A mark belongs to the descriptor, not to the memory. */
typedef enum int4mm_packing {
  INT4MM_UNMARKED = 0,    /* words from elsewhere, and everything that is no matrix of words */
  INT4MM_PACKED_DIM0 = 1, /* [ceil(K/8), C]: along the rows' dimension, as b_packed is */
  INT4MM_PACKED_DIM1 = 2  /* [R, ceil(K/8)]: along the columns', as a_packed is */
} int4mm_packing;

/* What there is beside the scales of words from int4mm_quantize, without which they are not the values. */
typedef enum int4mm_packed_with {
  INT4MM_WITH_SCALES = 0, /* nothing, or it is not known */
  INT4MM_WITH_ZEROS = 1,
  INT4MM_WITH_FACTORS = 2
} int4mm_packed_with;

/* Nibble encodings. They differ by word ^ 0x88888888. */
typedef enum int4mm_encoding {
  INT4MM_TWOS_COMPLEMENT = 0, /* nibble = value & 15 */
  INT4MM_OFFSET = 1           /* nibble = value + 8, as in a symmetric GPTQ qweight */
} int4mm_encoding;

typedef struct int4mm_storage int4mm_storage; /* reference-counted memory, opaque */

/* A matrix [shape[0], shape[1]] or a vector [shape[0]]. Fields are for reading; functions fill them. A zeroed struct is
 * a released tensor, as int4mm_tensor_release leaves it. */
typedef struct int4mm_tensor {
  void *data;              /* first element; may be NULL when there are no elements */
  int64_t shape[2];        /* a vector has shape[1] == 1 */
  int64_t stride;          /* elements from one row to the next, >= shape[1]; 1 for a vector */
  int32_t rank;            /* 2 matrix, 1 vector, 0 released */
  int32_t dtype;           /* int4mm_dtype */
  int32_t device;          /* INT4MM_CPU or a CUDA ordinal */
  int32_t layout;          /* int4mm_layout */
  int4mm_storage *storage; /* owner of data, NULL for borrowed memory */
  int32_t packing;         /* int4mm_packing; where it is INT4MM_UNMARKED the fields below have no meaning */
  int32_t encoding;        /* int4mm_encoding */
  int64_t packed_k;        /* values along the packed dimension, of which the last word may hold fewer than eight; 0
                              where it has words: not known */
  int32_t packed_rotate;   /* the block that int4mm_quantize rotated by; 0: it did not, which does not say that the
                              floats had not been rotated before */
  int32_t packed_with;     /* int4mm_packed_with: a call that is not given it refuses the words */
  int64_t reserved[2];
} int4mm_tensor;

/* Allocates rank 1 [rows] (cols must be 1) or rank 2 [rows, cols], contiguous, 64-byte aligned (256 on a GPU), contents
 * undefined. `t` must be zeroed or released. A GPU allocation is ordered on the default stream. */
INT4MM_API int32_t int4mm_tensor_alloc(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols, int32_t dtype,
                                       int32_t device) INT4MM_CHECK;
/* As int4mm_tensor_alloc on the CPU, in pinned (page-locked) host memory, which a GPU reads and writes by itself:
 * int4mm_tensor_copy_async need not wait with it, and copies are faster. INT4MM_ERR_UNAVAILABLE, with the reason, where
 * CUDA cannot be used. Its last release waits for the asynchronous copies that use it; while a CUDA graph is captured
 * the memory goes after the capture. */
INT4MM_API int32_t int4mm_tensor_alloc_pinned(int4mm_tensor *t, int32_t rank, int64_t rows, int64_t cols,
                                              int32_t dtype) INT4MM_CHECK;
/* 1 when `t` lies in pinned host memory: from int4mm_tensor_alloc_pinned, or memory of the caller's that the driver
 * knows to be pinned (asked only where CUDA is open already); else 0, as for a released tensor. */
INT4MM_API int32_t int4mm_tensor_is_pinned(const int4mm_tensor *t);
/* A tensor over the caller's own memory, which must outlive it. `stride` in elements. Memory that the CUDA driver knows
 * to be elsewhere is refused: for a GPU `data` must be memory of that GPU or managed memory; for the CPU it must not be
 * a GPU's (asked only where CUDA is open already). Pinned host memory is the CPU's. */
INT4MM_API int32_t int4mm_tensor_wrap(int4mm_tensor *t, void *data, int32_t rank, int64_t rows, int64_t cols,
                                      int64_t stride, int32_t dtype, int32_t device) INT4MM_CHECK;
/* Gives memory back: called once, by whichever thread releases the last tensor over it. It must not call this library
 * with a tensor over that memory. */
typedef void int4mm_deleter(void *context);
/* As int4mm_tensor_wrap, but the memory is the tensor's from here on: when the last tensor over it is released,
 * `deleter` is called with `context` (free and the pointer itself, munmap in a function of one's own, the deleter of a
 * DLManagedTensor). On failure it is not called and the memory stays the caller's. It does not count in
 * int4mm_allocated. On a GPU the deleter runs at once, whatever is enqueued: it, or the caller before the last release,
 * has to wait for work that still uses the memory. */
INT4MM_API int32_t int4mm_tensor_adopt(int4mm_tensor *t, void *data, int32_t rank, int64_t rows, int64_t cols,
                                       int64_t stride, int32_t dtype, int32_t device, int4mm_deleter *deleter,
                                       void *context) INT4MM_CHECK;
/* `view` becomes rows (dim 0) or columns (dim 1) first .. first+length-1 of `t`, sharing its memory and its mark; along
 * the packed dimension packed_k becomes what these words hold, and of rotated words packed_rotate 0. Counts from 0. */
INT4MM_API int32_t int4mm_tensor_narrow(int4mm_tensor *view, const int4mm_tensor *t, int32_t dim, int64_t first,
                                        int64_t length) INT4MM_CHECK;
/* `view` becomes the elements of `t` in their row-major order as rank 1 [rows] (cols is 1) or rank 2 [rows, cols],
 * sharing its memory. The rows of `t` must lie one after the other without gaps, and the count of elements must be the
 * same, unless the shape is t's own. A mark is kept with that shape; marked words in another are refused, since they
 * would not be the same values. */
INT4MM_API int32_t int4mm_tensor_view(int4mm_tensor *view, const int4mm_tensor *t, int32_t rank, int64_t rows,
                                      int64_t cols) INT4MM_CHECK;
/* Says what `t`, a matrix of int32 words from elsewhere, holds: `packing` and `encoding` as above, and `packed_k`, how
 * many values along the packed dimension (its last word holds some of them), or 0 where that is not known;
 * packed_rotate and packed_with become 0. INT4MM_UNMARKED takes a mark away, and goes for any tensor. */
INT4MM_API int32_t int4mm_tensor_mark(int4mm_tensor *t, int32_t packing, int32_t encoding,
                                      int64_t packed_k) INT4MM_CHECK;
/* Gives up this reference; the memory goes with the last one. Harmless on a released tensor. Never fails. */
INT4MM_API void int4mm_tensor_release(int4mm_tensor *t);
/* dst = src, element by element. Shapes must agree; devices may differ. Dtypes may differ where both are on the CPU:
 * float to float rounds to nearest even (overflow gives infinity, every NaN becomes 0x7fff or 0x7fffffff), int to float
 * too; float to int is an error, and so is an int32 that int8 does not hold (INT4MM_ERR_VALUE names the first; dst is
 * left as it was). Equal dtypes keep their bits. A copy that touches the CPU or two GPUs returns when it is done, one
 * on a GPU is enqueued on `stream` (a cudaStream_t, NULL the default stream). dst has the mark that src has: none where
 * src has none, or another dtype. */
INT4MM_API int32_t int4mm_tensor_copy(int4mm_tensor *dst, const int4mm_tensor *src, void *stream) INT4MM_CHECK;
/* The same, but a copy between pinned host memory and a GPU is enqueued on `stream` too, and may be captured into a
 * CUDA graph. Until the stream has come to it the host must neither write to the pinned memory nor, where that is dst,
 * read it. Memory of int4mm_tensor_alloc_pinned is kept as long as that; memory of the caller's the caller has to keep.
 * With host memory that is not pinned the copy is done on return. */
INT4MM_API int32_t int4mm_tensor_copy_async(int4mm_tensor *dst, const int4mm_tensor *src, void *stream) INT4MM_CHECK;
/* Sets every byte of every element, and takes away t's mark. Enqueued on `stream` for a GPU tensor. */
INT4MM_API int32_t int4mm_tensor_fill_bytes(int4mm_tensor *t, uint8_t byte, void *stream) INT4MM_CHECK;

/* DLPack, version 1 of its ABI: tensors to and from other libraries of this process, without a copy. The structs are
 * those of DLPack's own header, which a program may include beside this one. */
struct DLManagedTensor;
struct DLManagedTensorVersioned;

/* `t` (zeroed or released) becomes the tensor of `managed`, whose deleter is called once, by whichever thread releases
 * the last tensor over the memory; int4mm_tensor_adopt says what holds for that on a GPU. On failure `managed` stays
 * the caller's. Taken are vectors and matrices of int32, int8, float16, bfloat16 or float32 (lanes 1) on the CPU, in
 * pinned host memory, which counts as the CPU, or on a CUDA device, of rows without gaps in them, which may have gaps
 * between them; all else is INT4MM_ERR_ARGUMENT. The producer's work on the data has to be done or ordered before the
 * stream that the tensor is used on first: a producer that asks for the consumer's stream is given that, or the default
 * stream. */
INT4MM_API int32_t int4mm_from_dlpack(int4mm_tensor *t, struct DLManagedTensor *managed) INT4MM_CHECK;
/* The same for the struct that begins with a version, which has to be 1.x. Memory that is flagged as read-only is
 * refused unless `read_only` is 1, by which the caller promises not to write to the tensor. */
INT4MM_API int32_t int4mm_from_dlpack_versioned(int4mm_tensor *t, struct DLManagedTensorVersioned *managed,
                                                int32_t read_only) INT4MM_CHECK;
/* *managed becomes the tensor `t` for another library, which calls its deleter once, from any thread, when it needs it
 * no more; until then the memory stays, whatever becomes of `t`. Memory of int4mm_tensor_wrap, which nothing keeps, is
 * refused, and so is a prepacked weight; a mark does not travel along. On a GPU work that `stream`, the consumer's, is
 * given after the call comes after what `from`, the stream of the last work on `t`, was given before (NULL: the default
 * stream, for both). Work that is still under way when the deleter is called has to be on a stream that the default
 * stream waits for. */
INT4MM_API int32_t int4mm_to_dlpack(const int4mm_tensor *t, void *from, void *stream,
                                    struct DLManagedTensor **managed) INT4MM_CHECK;
/* The same with a version, 1.0. Memory that came with the read-only flag is flagged again; int4mm_to_dlpack, which has
 * no flag, refuses it. */
INT4MM_API int32_t int4mm_to_dlpack_versioned(const int4mm_tensor *t, void *from, void *stream,
                                              struct DLManagedTensorVersioned **managed) INT4MM_CHECK;

/* Bytes now allocated by this library on a device (INT4MM_CPU or an ordinal); 0 for one it never used. */
INT4MM_API int64_t int4mm_allocated(int32_t device);

/* ---- devices, streams, threads ---- */

typedef struct int4mm_gpu_info {
  char name[128];
  int32_t arch;         /* 90 for compute capability 9.0 */
  int32_t sms;          /* multiprocessors */
  int64_t total_memory; /* bytes */
  int64_t free_memory;  /* bytes, at the time of the call */
  int32_t l2_bytes;
  int32_t runtime_version; /* 13000 for 13.0 */
  int32_t driver_version;
  int32_t clock;       /* MHz, the highest; 0 where the driver does not say, as in the next two */
  int32_t memory;      /* GB/s of its memory, by its clock and bus width */
  int32_t shared;      /* bytes of shared memory that a CTA may have */
  int32_t kernel_arch; /* that kernels are chosen for: INT4MM_CUDA_ARCH where it is set, else arch */
  int64_t reserved[2];
} int4mm_gpu_info;

/* OK, or INT4MM_ERR_UNAVAILABLE with the reason: no CUDA build, no driver, a driver too old, no device. The first call
 * opens the CUDA library and the driver; nothing before it does. */
INT4MM_API int32_t int4mm_cuda_available(void) INT4MM_CHECK;
INT4MM_API int32_t int4mm_cuda_device_count(int32_t *count) INT4MM_CHECK;
/* The environment's INT4MM_CUDA_ARCH, 80 or sm_80 of int4mm_architecture_at and read once, makes the choice of kernels
 * that of an older architecture: the kernels of newer ones are hidden, from being forced as well. Which code runs the
 * others is the driver's choice among what the library was built with. Where it is no such architecture, or newer than
 * the device, the calls on a GPU are INT4MM_ERR_UNAVAILABLE. */
INT4MM_API int32_t int4mm_cuda_device_info(int32_t device, int4mm_gpu_info *info) INT4MM_CHECK;
/* Streams are cudaStream_t handles; ones made elsewhere serve as well. Work on a non-blocking stream is ordered after
 * the default stream's once for each tensor and stream, at the tensor's first use there: that covers its allocation and
 * first contents; later the caller orders the two. Destroying a stream waits for its work; when that fails the stream
 * is as it was. */
INT4MM_API int32_t int4mm_stream_create(int32_t device, void **stream) INT4MM_CHECK;
INT4MM_API int32_t int4mm_stream_destroy(int32_t device, void *stream) INT4MM_CHECK;
INT4MM_API int32_t int4mm_stream_synchronize(int32_t device, void *stream) INT4MM_CHECK;
/* Waits for all work on a device; nothing to do for INT4MM_CPU. INT4MM_ERR_ARGUMENT while int4mm_graph_begin captures
 * there. */
INT4MM_API int32_t int4mm_synchronize(int32_t device) INT4MM_CHECK;

/* Events are cudaEvent_t handles of a device, with timing; ones made elsewhere serve as well. Recorded on a stream
 * (NULL the default stream), an event stands for the work that the stream was given before. One that was never recorded
 * counts as done. Destroying one does not wait. */
INT4MM_API int32_t int4mm_event_create(int32_t device, void **event) INT4MM_CHECK;
INT4MM_API int32_t int4mm_event_destroy(int32_t device, void *event) INT4MM_CHECK;
INT4MM_API int32_t int4mm_event_record(int32_t device, void *event, void *stream) INT4MM_CHECK;
INT4MM_API int32_t int4mm_event_synchronize(int32_t device, void *event) INT4MM_CHECK;
/* *done becomes 1 when the work is done, else 0; does not wait. */
INT4MM_API int32_t int4mm_event_query(int32_t device, void *event, int32_t *done) INT4MM_CHECK;
/* Milliseconds from `start` to `end`, to about half a microsecond; waits for both. INT4MM_ERR_ARGUMENT where one was
 * not recorded, or on another device than the other. */
INT4MM_API int32_t int4mm_event_elapsed(int32_t device, void *start, void *end, float *milliseconds) INT4MM_CHECK;
/* Has later work on `stream` (NULL the default stream) wait for an event, which may be another device's. */
INT4MM_API int32_t int4mm_stream_wait(int32_t device, void *stream, void *event) INT4MM_CHECK;

/* ---- CUDA graphs ---- */

/* Work that was captured once and is launched as one. */
typedef struct int4mm_graph int4mm_graph;

/* Begins a capture: what calls of this library and others are given for *stream, a non-blocking stream of the graph's,
 * and for streams that are made to wait for its work (int4mm_stream_wait), goes into the graph instead of being run.
 * What would have to wait for a result fails with INT4MM_ERR_ARGUMENT: value checks, copies with host memory that is
 * not pinned, synchronising. Tensors may be allocated; they are plain ones, with contents from the first launch on, and
 * the graph keeps the memory of every tensor that captured calls use until it is destroyed, whether or not the tensors
 * are released (memory given to int4mm_tensor_wrap is the caller's to keep). Calls on *stream that take scratch memory
 * use the graph's, one after the other, so that what they capture has to stay in order. Captures of several threads do
 * not disturb each other. *stream ends with the capture. */
INT4MM_API int32_t int4mm_graph_begin(int32_t device, int4mm_graph **graph, void **stream) INT4MM_CHECK;
/* Ends the capture and makes the graph ready to be launched. When that fails it can only be destroyed. */
INT4MM_API int32_t int4mm_graph_end(int4mm_graph *graph) INT4MM_CHECK;
/* Enqueues the captured work on `stream`; NULL stands for a stream of the graph's own, ordered with the default stream
 * as those of int4mm_stream_create are. Launches of one graph run one after the other. */
INT4MM_API int32_t int4mm_graph_launch(int4mm_graph *graph, void *stream) INT4MM_CHECK;
/* Waits for the launches so far, whatever stream they were given. */
INT4MM_API int32_t int4mm_graph_synchronize(int4mm_graph *graph) INT4MM_CHECK;
/* Ends a capture that is under way, waits for launches on the graph's own stream and gives everything back, also where
 * it returns a failure. Harmless for NULL. */
INT4MM_API int32_t int4mm_graph_destroy(int4mm_graph *graph) INT4MM_CHECK;
/* Kernels, copies and fills in a graph; 0 before its capture has ended, and for NULL. */
INT4MM_API int64_t int4mm_graph_nodes(const int4mm_graph *graph);

/* Threads that a CPU call may use, 1 to 1024; 0 puts back the default: INT4MM_NUM_THREADS, else the least of the cores
 * that the calling thread may run on, the CPUs of the cgroups' quota (rounded down) and OMP_NUM_THREADS. Threads start
 * on first need and sleep when idle; where one cannot be had, a call does with those that there are. */
INT4MM_API int32_t int4mm_set_num_threads(int32_t threads) INT4MM_CHECK;
INT4MM_API int32_t int4mm_get_num_threads(void);
/* The instruction set that CPU calls use: "scalar", "avx2", "avxvnni", "avx512vl_vnni", "avx512vnni", "neon_dot",
 * "neon_i8mm". */
INT4MM_API const char *int4mm_cpu_isa(void);
/* Forces one; NULL puts back the default: INT4MM_CPU, else the best this CPU and operating system support. */
INT4MM_API int32_t int4mm_set_cpu_isa(const char *name) INT4MM_CHECK;
/* The name of the index-th instruction set that this build can run here, best first; NULL past the last. */
INT4MM_API const char *int4mm_cpu_isa_at(int32_t index);
/* What INT4MM_NUM_THREADS or INT4MM_CPU ask for that cannot be followed, a sentence a line; NULL when nothing. */
INT4MM_API const char *int4mm_warning(void);

/* ---- packing, quantising, test data ---- */

/* All of these take dim 0 or 1, the dimension that is packed eight to a word (K): dim 1 packs [R, C] to [R, ceil(C/8)],
 * dim 0 packs [R, C] to [ceil(R/8), C]. Tensors are on one device. Padding nibbles mean zero. On a GPU the work is
 * enqueued on `stream`; only the checks of values, in pack and quantize, wait for it. Words that are written are marked
 * with dim, encoding and the extent along dim; of marked words that are read, these have to be the mark's. */

/* src int8 or int32, unmarked, values in [-8, 7] (else INT4MM_ERR_VALUE names the first, and `packed` is left as it was
 * or partly written); packed int32. */
INT4MM_API int32_t int4mm_pack(int4mm_tensor *packed, const int4mm_tensor *src, int32_t dim, int32_t encoding,
                               void *stream) INT4MM_CHECK;
/* dst int8 or int32 of the unpacked shape, unmarked from here on; its extent along dim may stop short of the padding.
 */
INT4MM_API int32_t int4mm_unpack(int4mm_tensor *dst, const int4mm_tensor *packed, int32_t dim, int32_t encoding,
                                 void *stream) INT4MM_CHECK;
/* How floats become int4 or int8. Zeroed but for the tensors: int4 along dim 0, absmax, unrotated, values unchecked. */
typedef struct int4mm_quantize_args {
  const int4mm_tensor *src;     /* [R, C] float32, float16 or bfloat16, finite */
  int4mm_tensor *packed;        /* int32, packed along dim: int4; or int8 [R, C] */
  const int4mm_tensor *scales;  /* float32: [R] for dim 1, [C] for dim 0; with `group` [R, G] or [G, C] */
  const int4mm_tensor *zeros;   /* int8 of the shape of scales: asymmetric int4; NULL: symmetric */
  const int4mm_tensor *factors; /* int8 [R, G] or [G, C]: integer group scales beside scales [R] or [C]; or NULL */
  int64_t group;                /* values along dim to a group, a multiple of 32 or the extent; G = ceil(extent /
                                   group); 0: one group, whose scales are a vector */
  int32_t dim;                  /* 1: a scale per row (activations [M, K]), 0: per column (weights [K, N]) */
  int32_t encoding;             /* of int4 */
  int32_t rotate;               /* rotate blocks of so many values along dim first (int4mm_rotate); 0: do not */
  float clip;                   /* in (0, 1]: absmax is multiplied by it; 0 stands for 1 */
  int32_t clip_mse;             /* instead of `clip`, the ratio of least squared error for each row or column */
  int32_t check;                /* 0 skips the check for finite values on a GPU, where it waits for the result */
  void *stream;
  int64_t reserved[4]; /* 0 */
} int4mm_quantize_args;

/* Symmetric quantising along dim. With qmax = 7 for int4 and 127 for int8,
 *   x = src, rotated where `rotate` says so
 *   scale = ((absmax of x over the row or column) * clip) / qmax
 *   q = clamp(round_half_even(x / scale), -qmax, qmax),  q = 0 where scale is 0
 * in IEEE float32, each step rounded once, so the bits are the same everywhere. clip_mse takes the ratio among 1,
 * 63/64, ..., 32/64 whose q and scale have the least sum over k of (x[k] - q[k] * scale)^2, the largest of equals; the
 * terms are float64 and added over k modulo 32 first, then the 32 sums in order. Where absmax is not finite, because
 * the rotation overflowed or src was not checked, scale is infinite and q 0. INT4MM_ERR_VALUE names the first element
 * of src that is not finite; packed and scales may be partly written when it fails.
 *
 * With `group` each group is quantised like a row of its own, k counting from its first value. With zeros (int4):
 *   low = min(x, 0) and high = max(x, 0) over the group, each multiplied by clip;  scale = (high - low) / 15
 *   z = clamp(-8 - round_half_even(low / scale), -8, 7);  q = clamp(round_half_even(x / scale) + z, -8, 7)
 * with q = z = 0 where scale is 0 or not finite; a value is (q - z) * scale, also in the error of clip_mse, which is
 * infinite where scale is. Where a value is not finite, scale is infinite.
 *
 * With factors (int4): s[g] is the symmetric scale of group g, clipped as that is, and for the row or column
 *   scale = (largest s[g]) / 15;  factor[g] = clamp(round_half_even(s[g] / scale), 1, 15)
 *   q = clamp(round_half_even(x / (factor[g] * scale)), -8, 7)
 * with factor[g] = 1 and q = 0 where scale is 0 or infinite; a value is q * (factor[g] * scale). Without groups (an
 * extent of 0) scale is 0. */
INT4MM_API int32_t int4mm_quantize(const int4mm_quantize_args *args) INT4MM_CHECK;
/* dst = src with each block of `block` values along dim multiplied by a regular Hadamard matrix over sqrt(block), as in
 * ConvRot (arXiv 2512.03673): its own inverse, up to rounding, where block is a power of four. block is a power of two
 * from 4 to 1024 that divides the extent along dim. Float dtypes; src and dst may differ in dtype, or be the same
 * memory. In float32, each step rounded once:
 *   stages at strides 1, 4, 16, ... while 4 * stride <= block:
 *     s = (x0 + x1) + (x2 + x3);  y0 = s - (x3 + x3), y1 = s - (x2 + x2), y2 = s - (x1 + x1), y3 = s - (x0 + x0)
 *   where block is not a power of four, a last one at stride block / 2:  y0 = x0 + x1, y1 = x0 - x1
 *   one multiplication by float32(1 / sqrt(block)), and one rounding to dst's dtype; NaN is 0x7fff or 0x7fffffff */
INT4MM_API int32_t int4mm_rotate(const int4mm_tensor *dst, const int4mm_tensor *src, int32_t dim, int32_t block,
                                 void *stream) INT4MM_CHECK;
typedef struct int4mm_dequantize_args {
  const int4mm_tensor *dst;    /* float32, float16 or bfloat16 */
  const int4mm_tensor *packed; /* int32 words along dim, or int8 of dst's shape */
  const int4mm_tensor *scales; /* these four as in int4mm_quantize_args; of groups also of other float dtypes */
  const int4mm_tensor *zeros;
  const int4mm_tensor *factors;
  int64_t group;
  int32_t dim, encoding;
  void *stream;
  int64_t reserved[4]; /* 0 */
} int4mm_dequantize_args;

/* dst = round(float(q - z) * scale), or round(float(q) * (factor * scale)), each step rounded once; NaN is 0x7fff or
 * 0x7fffffff. */
INT4MM_API int32_t int4mm_dequantize(const int4mm_dequantize_args *args) INT4MM_CHECK;
/* Fills `t` from Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): element i of
 * the row-major order takes word i%4 of the block with counter {i/4 low, i/4 high, sequence, 0} and key {seed low, seed
 * high}. int32 takes the word as it is (eight uniform int4); float32 takes, each step rounded to float32,
 *   u = ((word >> 8) + 1) * 2^-24;  low + u * (high - low)
 * Same numbers on every machine and backend. Takes away t's mark. */
INT4MM_API int32_t int4mm_random(int4mm_tensor *t, uint64_t seed, uint32_t sequence, float low, float high,
                                 void *stream) INT4MM_CHECK;

/* ---- activations ---- */

/* In float32, with the order of operations and the functions that src/core/activation.h gives. */
typedef enum int4mm_activation {
  INT4MM_NO_ACTIVATION = 0,
  INT4MM_RELU = 1,
  INT4MM_SILU = 2,     /* x / (1 + exp(-x)) */
  INT4MM_GELU = 3,     /* .5 x (1 + erf(x / sqrt(2))) */
  INT4MM_GELU_TANH = 4 /* .5 x (1 + tanh(sqrt(2 / pi) (x + .044715 x^3))) */
} int4mm_activation;

/* ---- between products ---- */

/* Element by element and row by row: src and out are matrices, or vectors, which are one row, of float32, float16 or
 * bfloat16, which may differ. Everything is computed in IEEE float32, in the order given here, each step rounded once;
 * then there is one rounding to out's dtype, where NaN is 0x7fff or 0x7fffffff. So the bits are the same everywhere.
 * out may be an operand of its own shape and dtype itself, or else must not overlap one. On a GPU the work is enqueued
 * on `stream`. */

/* 1 to 4 are the int4mm_activation of that number. */
typedef enum int4mm_map_op {
  INT4MM_EXP = 5, /* these three as src/core/activation.h has them, within 2 units in the last place of float32 */
  INT4MM_TANH = 6,
  INT4MM_ERF = 7,
  INT4MM_ADD = 8, /* src + other */
  INT4MM_MUL = 9  /* src * other */
} int4mm_map_op;

typedef struct int4mm_map_args {
  const int4mm_tensor *src;   /* [R, C] or [C] */
  const int4mm_tensor *other; /* add and mul: of src's shape, or [C] for every row; NULL for `number`. Else NULL */
  int4mm_tensor *out;         /* of src's shape */
  float number;
  int32_t op; /* int4mm_activation but for INT4MM_NO_ACTIVATION, or int4mm_map_op */
  void *stream;
  int64_t reserved[4]; /* 0 */
} int4mm_map_args;

INT4MM_API int32_t int4mm_map(const int4mm_map_args *args) INT4MM_CHECK;

/* Of each row x[0 .. C-1]. SUM is in float32, over the index modulo 32 first (each of the 32 from 0, in ascending order
 * of index), then over the 32 partial sums in order, from 0; MEAN is SUM / float32(C). Softmax and the norms of rows
 * without elements have nothing to write. */
typedef enum int4mm_rowwise_op {
  INT4MM_SOFTMAX = 0,    /* e = exp(x - largest of x that is not NaN);  out = e / SUM(e) */
  INT4MM_LAYER_NORM = 1, /* m = MEAN(x), d = x - m;  out = (d * (1 / sqrt(MEAN(d * d) + eps))) * weight + bias */
  INT4MM_RMS_NORM = 2,   /* out = (x * (1 / sqrt(MEAN(x * x) + eps))) * weight */
  INT4MM_ARGMAX = 3      /* out = index, from 0, of the largest, the first of equals; a NaN is larger than all else */
} int4mm_rowwise_op;

typedef struct int4mm_rowwise_args {
  const int4mm_tensor *src;    /* [R, C] or [C] */
  const int4mm_tensor *weight; /* norms: [C] of a float dtype, or NULL, where there is no product */
  const int4mm_tensor *bias;   /* layer norm: [C] of a float dtype, or NULL, where there is no sum */
  int4mm_tensor *out;          /* of src's shape; argmax: [R] int32, [1] for a vector, and C is 1 to 2^31 - 1 */
  float eps;                   /* norms: finite, 0 or more */
  int32_t op;                  /* int4mm_rowwise_op */
  void *stream;
  int64_t reserved[4]; /* 0 */
} int4mm_rowwise_args;

INT4MM_API int32_t int4mm_rowwise(const int4mm_rowwise_args *args) INT4MM_CHECK;

/* ---- rearranging ---- */

/* Of any dtype; dst has src's dtype and device and must not overlap what is read. On a GPU the work is enqueued on
 * `stream`. */

/* dst [C, R] = src [R, C] transposed, a copy. Marked words are marked in dst along the other dimension: [N, K/8]
 * becomes [K/8, N] of the same values. */
INT4MM_API int32_t int4mm_transpose(int4mm_tensor *dst, const int4mm_tensor *src, void *stream) INT4MM_CHECK;
/* dst = rows (dim 0) or columns (dim 1) of src, or elements of a vector (dim 0), by their indices, counted from 0:
 * dst[i, c] = src[indices[i], c] or dst[r, i] = src[r, indices[i]]. indices [n] int32 on src's device; dst has src's
 * shape but for n along dim. On the CPU an index outside src is INT4MM_ERR_VALUE, which names the first, and nothing is
 * written. A GPU call does not wait, so it cannot say so: nothing outside src is read, and what would have come from
 * there is NaN (0x7fff or 0x7fffffff), in an integer dst -1. dst has src's mark; words cannot be gathered along the
 * dimension that they are marked as packed along. */
INT4MM_API int32_t int4mm_gather(int4mm_tensor *dst, const int4mm_tensor *src, const int4mm_tensor *indices,
                                 int32_t dim, void *stream) INT4MM_CHECK;

/* ---- matrix multiplication ---- */

typedef enum int4mm_backend_choice { INT4MM_AUTO = 0, INT4MM_USE_CPU = 1, INT4MM_USE_CUDA = 2 } int4mm_backend_choice;

/* How b_packed lies. */
typedef enum int4mm_layout_b {
  INT4MM_B_KN = 0, /* b_packed [K/8, N]: word (j, n) holds b[8j .. 8j+7, n] */
  INT4MM_B_NK = 1  /* b_packed [N, K/8]: word (n, j) holds the same, as a row-wise quantised [N, K] weight has it */
} int4mm_layout_b;

/* What the scales of a weight are, by the tensors that are given. */
typedef enum int4mm_scaling {
  INT4MM_PER_COLUMN = 0,   /* scale_b [N] */
  INT4MM_GROUP_SCALES = 1, /* scale_b [G, N] */
  INT4MM_GROUP_FACTORS = 2 /* scale_b [N] and factor_b [G, N] */
} int4mm_scaling;

/* K below is the weight's: a_packed's values along dim 1. G is ceil(K / group); where b_packed is [N, K/8], matrices
 * [G, N] may be [N, G] as well, told apart by their shape ([G, N] where both fit). */
typedef struct int4mm_matmul_args {
  const int4mm_tensor *a_packed; /* W4A4: [M, K/8] int32 words; W4A8: [M, K] int8; W4A16: [M, K] float16, bfloat16 or
                                    float32 */
  const int4mm_tensor *b_packed; /* [K/8, N] int32, [N, K/8] with layout_b NK, or prepacked */
  const int4mm_tensor *scale_a;  /* [M] float32; W4A16: NULL */
  const int4mm_tensor *scale_b;  /* [N] float32, or group scales [G, N] float32, float16 or bfloat16 */
  const int4mm_tensor *zero_b;   /* zero points: int8 of scale_b's shape, or int32 words of eight along N, lowest first,
                                    in their mark's encoding, else in b's ([ceil(N/8)], [G, ceil(N/8)] or
                                    [ceil(N/8), G]); NULL: 0 */
  const int4mm_tensor *factor_b; /* integer group scales: [G, N] int8, 1 to 15 (checked on the CPU); or NULL */
  int64_t group;                 /* values of k to a group, a multiple of 32 (the last may hold fewer) or K; 0: K / G,
                                    which then has to be one */
  const int4mm_tensor *bias;     /* [N] float32, added in float32 after the scales; or NULL */
  int4mm_tensor *out;            /* [M, N]; when released (zeroed), it is allocated beside a_packed as out_dtype */
  int32_t out_dtype;             /* float16, bfloat16 or float32; used only when out is allocated */
  int32_t encoding_a;            /* int4mm_encoding. These three: of operands without a mark. A marked one is taken as
                                    its mark says where they are 0, and must agree with it where they are not */
  int32_t encoding_b;
  int32_t layout_b;    /* int4mm_layout_b */
  int32_t backend;     /* int4mm_backend_choice */
  int32_t strassen;    /* CPU: 0 by measured rules, 1 or 2 that many levels where they fit, -1 never */
  const char *kernel;  /* force a CUDA kernel by its plan name ("tiled"), NULL for the best */
  void *stream;        /* cudaStream_t for a CUDA call; NULL the default stream */
  int64_t reserved[4]; /* 0 */
} int4mm_matmul_args;

/* K may be at most this where a sum is over all of K: |a b| summed must fit int32. With group scales a group alone
 * counts, with zero points |b - z|; W4A16 has no limit. */
enum {
  INT4MM_MAX_K = 33554431,           /* W4A4 */
  INT4MM_MAX_K_INT8 = 2097151,       /* W4A8 */
  INT4MM_MAX_K_FACTORS = 2236962,    /* W4A4 with factor_b */
  INT4MM_MAX_K_INT8_FACTORS = 139810 /* W4A8 with factor_b */
};

/* The product,
 *
 *   per column      acc = sum over k of a (b - z), exact in int32
 *                   out = round(float(acc) * scale_a[m] * scale_b[n] + bias[n])
 *   factor_b        the same with b * factor_b[g, n] in place of b; there are no zero points
 *   group scales    acc_g = the sum over group g;  t = 0, then t = fma(float(acc_g), scale_b[g, n], t) for each g
 *                   from 0 on;  out = round(t * scale_a[m] + bias[n])
 *
 * in float32, each step rounded once and in this order: the same bits on every backend, and a row of out does not
 * depend on the others. In W4A16 there is no scale_a and acc_g is a float32 sum of the exact (b - z) times a, with one
 * group where scale_b is [N]: then
 *   |out - exact| <= 2^-11 |exact| (bfloat16: 2^-8, float32: 2^-24) + (16 + K/8) 2^-24 (sum over k of |a w|),
 * the same bits on every run of a backend.
 *
 * a_packed, where it is marked, is packed along dim 1; two marked operands hold the same number of values along K.
 * Operands on one device, or all on the CPU for a CUDA call, which then copies over and back and returns when done.
 * With GPU operands the call enqueues on `stream` and returns; it may be captured into a CUDA graph, with `out` given
 * where the capture is not int4mm_graph_begin's. out must not overlap an operand. */
INT4MM_API int32_t int4mm_matmul(const int4mm_matmul_args *args) INT4MM_CHECK;

/* What a call would do. */
typedef struct int4mm_plan {
  int32_t device; /* where it runs: INT4MM_CPU or a CUDA ordinal */
  int32_t kernel; /* CUDA: the index for int4mm_cuda_kernel_at; CPU: 0 */
  int32_t tile_m; /* rows of out per tile, 0 where it has no meaning */
  int32_t tile_n;
  int32_t tile_k;
  int32_t stages;      /* pipeline depth */
  int32_t split_k;     /* CTAs (or clusters' CTAs) that share one tile's K */
  int32_t ctas;        /* grid size */
  char name[48];       /* "tiled", "hopper_256x128", "avx512vnni" */
  char reason[208];    /* why, in words */
  int32_t widened;     /* 1: CUDA: an int4 A is made int8 first, for which there are faster kernels */
  int32_t whole_tiles; /* tiles that are made before those whose K CTAs share, each by one CTA */
  int64_t reserved[4];
} int4mm_plan;

/* Fills `plan` for these arguments without running; `out` may be released. Validates as int4mm_matmul does. */
INT4MM_API int32_t int4mm_matmul_plan(const int4mm_matmul_args *args, int4mm_plan *plan) INT4MM_CHECK;

/* The products of E experts, each a weight of the same K and N, in one call: a grouped matrix product, as mixtures of
 * experts need it, or a batch. Arrays [E, ...] are matrices here, one expert's rows below the other's. `args` as in
 * int4mm_matmul, but
 *
 *   a_packed [T, K/8] words, or [T, K]: the rows of all experts, those of the first one first; scale_a [T], out [T, N]
 *   b_packed [E * K/8, N] with K/8 rounded up for each, or [E * N, K/8] with layout_b NK; not prepacked
 *   scale_b  [E, N] float32, one for each column; or group scales [E * G, N], with layout_b NK also [E * N, G]. Float32
 *            in E rows is taken as the first, unless a `group` is given
 *   zero_b   [E, N] or [E * G, N] as scale_b is, or words of eight along N
 *   factor_b [E * G, N], with scale_b [E, N]
 *   bias     [E, N]
 *
 * offsets [E + 1] int32 beside a_packed: expert e has rows offsets[e] to offsets[e + 1] - 1, which may be none. Rows
 * before offsets[0] and from offsets[E] on belong to no expert: out is 0 there. NULL: every expert has T / E rows; E is
 * `experts`, which beside offsets may be 0.
 *
 * Each row has the bits that int4mm_matmul gives with its expert's weight (W4A16: it is within the same bound). T is
 * at most 2^31 - 1025 and E 2^20. On the CPU offsets that descend or lie outside 0 .. T are INT4MM_ERR_VALUE, which
 * names the first. A GPU reads them when the product runs, so that the call neither waits for them nor can say so: in
 * place of offsets[e] it takes the largest of offsets[0] .. offsets[e], at least 0 and at most T, and touches no other
 * rows. */
INT4MM_API int32_t int4mm_grouped_matmul(const int4mm_matmul_args *args, const int4mm_tensor *offsets,
                                         int64_t experts) INT4MM_CHECK;
/* As int4mm_matmul_plan. How the rows are shared out among the experts is not known to it. */
INT4MM_API int32_t int4mm_grouped_matmul_plan(const int4mm_matmul_args *args, const int4mm_tensor *offsets,
                                              int64_t experts, int4mm_plan *plan) INT4MM_CHECK;

/* What a layer makes of its activations. */
typedef enum int4mm_activations {
  INT4MM_ACTIVATIONS_INT4 = 0, /* quantised to int4 by rows */
  INT4MM_ACTIVATIONS_INT8 = 1, /* quantised to int8 by rows */
  INT4MM_ACTIVATIONS_FLOAT = 2 /* as they are, or rotated: no scale, no clip */
} int4mm_activations;

/* A whole layer of a network. Zeroed but for the tensors: int4 activations, no rotation, absmax, no activation. */
typedef struct int4mm_linear_args {
  const int4mm_tensor *x;        /* [M, K] float32, float16 or bfloat16 */
  const int4mm_tensor *b_packed; /* the weight, of K values (ceil(K/8) words), as in int4mm_matmul_args; where `rotate`
                                    is used, quantised with the same rotation along K: another packed_rotate is refused
                                    */
  const int4mm_tensor *scale_b;  /* these four as in int4mm_matmul_args */
  const int4mm_tensor *zero_b;
  const int4mm_tensor *factor_b;
  int64_t group;
  const int4mm_tensor *bias;     /* [N] float32, or NULL */
  const int4mm_tensor *residual; /* [M, N] of a float dtype, or NULL */
  int4mm_tensor *out;            /* [M, N]; when released (zeroed), it is allocated beside x as out_dtype */
  int32_t out_dtype;             /* float16, bfloat16 or float32; used only when out is allocated */
  int32_t encoding_b, layout_b;  /* of a weight without a mark, as in int4mm_matmul_args */
  int32_t activations;           /* int4mm_activations */
  int32_t rotate;                /* of x, as in int4mm_quantize_args, and clip and clip_mse */
  float clip;
  int32_t clip_mse;
  int32_t activation;             /* int4mm_activation */
  const int4mm_tensor *workspace; /* where to put the quantised or rotated x: a vector of int8 beside x, of at least
                                     int4mm_linear_workspace bytes, used by one call at a time; NULL: memory of the
                                     library's own, on a GPU stream-ordered */
  const char *kernel;             /* as in int4mm_matmul_args */
  void *stream;
  int64_t reserved[4]; /* 0 */
} int4mm_linear_args;

/* The layer: x quantised by rows (int4mm_quantize, dim 1), the product, and what follows it,
 *   out[m, n] = round(activation(y[m, n] + bias[n]) + residual[m, n])
 * in float32, each step rounded once, with y as int4mm_matmul has it, unrounded. Activations that stay floats are
 * rotated in their dtype (int4mm_rotate). It runs where its tensors are, all on one device. On a GPU it enqueues on
 * `stream` and returns, the product's start overlapping the quantising; it may be captured into a CUDA graph, best with
 * `out` and `workspace` given. A row of x with NaN or an infinity gives a row of NaN. out must not overlap another
 * tensor of the call. */
INT4MM_API int32_t int4mm_linear(const int4mm_linear_args *args) INT4MM_CHECK;
/* Bytes of workspace for x [M, K] and int4mm_activations; 0 where a size is negative or too large. For
 * INT4MM_ACTIVATIONS_FLOAT it is as much as a rotated float32 x takes. */
INT4MM_API int64_t int4mm_linear_workspace(int64_t M, int64_t K, int32_t activations);

/* An architecture as the estimates know it: one card of it, by its datasheet. */
typedef struct int4mm_architecture {
  int32_t arch;      /* 90 for sm_90 */
  int32_t sms;       /* of the card */
  int32_t clock;     /* MHz, its boost clock */
  int32_t memory;    /* GB/s */
  int32_t l2;        /* MiB */
  int32_t shared;    /* KiB that a CTA may have */
  int32_t int4_macs; /* multiply-adds of an SM a clock by mma.sync: from sm_90 on int4 is emulated */
  int32_t int8_macs;
  int32_t fp16_macs; /* float16 and bfloat16 with float32 sums */
  const char *card;
} int4mm_architecture;

/* The architectures that kernels serve, oldest first; NULL past the last. */
INT4MM_API const int4mm_architecture *int4mm_architecture_at(int32_t index);

/* A problem as the choice of a CUDA kernel sees it. */
typedef struct int4mm_gpu_problem {
  int32_t arch;      /* 90 for sm_90 */
  int32_t code_arch; /* that the kernels for every architecture were compiled for: 80 where PTX of sm_80 runs on a newer
                        GPU; 0 the same as arch */
  int32_t sms;       /* 0: those of the architecture's card, as in clock, memory and shared */
  int64_t M, N, K;
  int64_t lda, ldb; /* strides in elements: words, but for an A of another dtype */
  int64_t ldo;      /* stride in elements */
  int32_t align_a;  /* largest power of two up to 256 that divides the address */
  int32_t align_b;
  int32_t align_out;
  int32_t out_dtype;
  int32_t encoding_a, encoding_b;
  int32_t layout_b;    /* int4mm_layout_b: what ldb counts, rows of [K/8, N] or of [N, K/8] */
  int32_t dtype_a;     /* of A, which lda counts: int32 words (0), int8 or a float dtype */
  int32_t scaling;     /* int4mm_scaling of B */
  int64_t group;       /* values of k to a group, where there are groups */
  int32_t zeros;       /* 1: B has zero points */
  int32_t clock;       /* MHz */
  int32_t memory;      /* GB/s */
  int32_t shared;      /* bytes that a CTA may have */
  int32_t experts;     /* of a grouped product, whose M is the rows of all of them; 0: a plain product */
  int64_t reserved[2]; /* 0 */
} int4mm_gpu_problem;

/* The choice of the CUDA kernel: a pure function, no GPU needed. `kernel` as in int4mm_matmul_args: a forced name that
 * cannot serve the problem is INT4MM_ERR_UNSUPPORTED, an unknown one INT4MM_ERR_ARGUMENT. On an architecture that no
 * kernel serves it is INT4MM_ERR_UNSUPPORTED. */
INT4MM_API int32_t int4mm_choose_cuda(const int4mm_gpu_problem *problem, const char *kernel,
                                      int4mm_plan *plan) INT4MM_CHECK;
/* A product, as int4mm_gpu_problem has it, and the kernel that was found the fastest for it. */
typedef struct int4mm_tuned {
  int64_t M, N, K, group; /* group has no meaning without groups */
  int32_t dtype_a, scaling, zeros, layout_b;
  const char *kernel; /* read during the call alone */
} int4mm_tuned;

/* From now on plain products of exactly these sizes and kinds, on GPUs of this name and architecture (the name and
 * kernel_arch of int4mm_gpu_info), take the kernel that is named here, where it serves them. Replaces what was set
 * before; count 0 leaves nothing. Touches no GPU. */
INT4MM_API int32_t int4mm_set_tuning(const char *device, int32_t arch, const int4mm_tuned *tuned,
                                     int64_t count) INT4MM_CHECK;
/* The name of the index-th CUDA kernel that can be forced; NULL past the last. */
INT4MM_API const char *int4mm_cuda_kernel_at(int32_t index);

/* Rearranges a weight once for repeated products: `prepacked` (zeroed or released) becomes a tensor of the same
 * [K/8, N] shape usable as b_packed on the device it is on. Encoding and layout_b are those of the source, and of its
 * mark where it has one; the result is two's complement, KN, and marked so. On a GPU it is a plain copy: the kernels
 * there read either layout as it is. */
INT4MM_API int32_t int4mm_prepack(int4mm_tensor *prepacked, const int4mm_tensor *b_packed, int32_t layout_b,
                                  int32_t encoding) INT4MM_CHECK;

#ifdef __cplusplus
}
#endif
#endif
