/*
 * The PTX instructions that CUDA C++ has no name for, one thin wrapper each. Names follow the PTX ISA; addresses of
 * shared memory are 32-bit (smem_address).
 */
#ifndef INT4MM_PTX_CUH
#define INT4MM_PTX_CUH

#include <cuda.h>
#include <stdint.h>

namespace ptx {

/* ---- shared memory ---- */

__device__ __forceinline__ uint32_t smem_address(const void *p) {
  return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ uint4 ld_shared_v4(uint32_t address) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address));
  return v;
}

__device__ __forceinline__ uint2 ld_shared_v2(uint32_t address) {
  uint2 v;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address));
  return v;
}

__device__ __forceinline__ uint32_t ld_shared(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
  return v;
}

__device__ __forceinline__ void st_shared_v4(uint32_t address, uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

__device__ __forceinline__ void st_shared(uint32_t address, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}

__device__ __forceinline__ void st_shared_u16(uint32_t address, uint16_t x) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(address), "h"(x) : "memory");
}

__device__ __forceinline__ void st_shared_u8(uint32_t address, uint8_t x) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(address), "r"((uint32_t)x) : "memory");
}

/* Makes this thread's ordinary stores to shared memory visible to wgmma and the copy engine (the async proxy). */
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- global memory ---- */

/* 16 bytes past L1. Not by ld.global.nc, which ptxas moves up beyond griddepcontrol.wait. */
__device__ __forceinline__ uint4 ld_global_v4(const void *address) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

/* 16 bytes that this kernel only reads where `valid`, else zeros. */
__device__ __forceinline__ uint4 ld_global_v4_if(bool valid, const void *address) {
  uint4 v;
  asm volatile("{\n.reg .pred p;\nsetp.ne.s32 p, %4, 0;\n"
               "mov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n"
               "@p ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%5];\n}"
               : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
               : "r"((int)valid), "l"(address));
  return v;
}

/* One word, through L1, for what neighbours or this lane's next loads take from the same sector; as above. */
__device__ __forceinline__ uint32_t ld_global(const void *address) {
  uint32_t v;
  asm volatile("ld.global.L2::256B.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}

/* ---- asynchronous copies by threads (sm_80) ---- */

/* 16 bytes from global to shared memory past L1; `bytes` below 16 fills the rest with zeros. */
__device__ __forceinline__ void cp_async16(uint32_t shared, const void *global, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}

/* 16 bytes past L1 where `valid`, else zeros; costs less than a number of bytes. */
__device__ __forceinline__ void cp_async16_if(bool valid, uint32_t shared, const void *global) {
  asm volatile("{\n.reg .pred p;\nsetp.eq.s32 p, %2, 0;\n"
               "cp.async.cg.shared.global.L2::128B [%0], [%1], 16, p;\n}" ::"r"(shared),
               "l"(global), "r"((int)valid)
               : "memory");
}

/* The same as cp_async16, and brings the whole 128-byte line to L2, where others will read the rest of it. */
__device__ __forceinline__ void cp_async16_line(uint32_t shared, const void *global, uint32_t bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes)
               : "memory");
}

/* The same through L1, for what neighbours read as well. */
__device__ __forceinline__ void cp_async16_l1(uint32_t shared, const void *global, uint32_t bytes) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
}
/* 16 bytes each where `wanted` is not 0, without a branch. */
__device__ __forceinline__ void cp_async16_if(uint32_t shared, const void *global, int wanted) {
  asm volatile("{\n.reg .pred wanted;\nsetp.ne.s32 wanted, %2, 0;\n"
               "@wanted cp.async.cg.shared.global [%0], [%1], 16;\n}\n" ::"r"(shared),
               "l"(global), "r"(wanted)
               : "memory");
}
__device__ __forceinline__ void cp_async4(uint32_t shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most PENDING of this thread's newest groups are still under way. */
template <int PENDING> __device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/* Prefetches the 128-byte line at an address into L2. A hint: it reads nothing and cannot fail. */
__device__ __forceinline__ void prefetch_l2(const void *global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

/* ---- mma.sync (sm_80; on sm_75 of several of its smaller ones) ---- */

/* Whether the architecture that is compiled for has int4 tensor cores. */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool HAS_INT4 = true;
#else
constexpr bool HAS_INT4 = false;
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
/* d += A * B for an 8 x 32 by 32 x 8 int4 product, and an 8 x 16 by 16 x 8 int8 one: row lane / 4, columns 2 (lane % 4)
 * and the next. */
__device__ __forceinline__ void mma_m8n8k32(int32_t &d0, int32_t &d1, uint32_t a, uint32_t b) {
  asm("mma.sync.aligned.m8n8k32.row.col.s32.s4.s4.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d0), "+r"(d1)
      : "r"(a), "r"(b));
}
__device__ __forceinline__ void mma_m8n8k16(int32_t &d0, int32_t &d1, uint32_t a, uint32_t b) {
  asm("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+r"(d0), "+r"(d1)
      : "r"(a), "r"(b));
}
/* The same for a 16 x 8 by 8 x 8 product of float16; row lane / 4 and 8 further on. */
__device__ __forceinline__ void mma_m16n8k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(b));
}
#endif

/* acc += A * B for a 16 x 32 by 32 x 8 int8 product over a warp. */
__device__ __forceinline__ void mma_m16n8k32(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The same where the compiler may choose the place among loads and stores, for mainloops of many mma. */
__device__ __forceinline__ void mma_m16n8k32_movable(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                                     uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  mma_m8n8k16(acc[0], acc[1], a[0], b0), mma_m8n8k16(acc[2], acc[3], a[1], b0);
  mma_m8n8k16(acc[0], acc[1], a[2], b1), mma_m8n8k16(acc[2], acc[3], a[3], b1);
#else
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* acc = A * B, four times c added to it. */
__device__ __forceinline__ void mma_m16n8k32_from(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                                  int32_t c) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %10, %10, %10};"
      : "=r"(acc[0]), "=r"(acc[1]), "=r"(acc[2]), "=r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c));
}

/* The same of int4, 16 x 32 by 32 x 8, and 16 x 64 by 64 x 8: native on sm_80, 86, 87 and 89, made of other
 * instructions on later ones. */
__device__ __forceinline__ void mma_m16n8k32_s4_movable(int32_t (&acc)[4], const uint32_t (&a)[2], uint32_t b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  mma_m8n8k32(acc[0], acc[1], a[0], b), mma_m8n8k32(acc[2], acc[3], a[1], b);
#else
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
#endif
}

__device__ __forceinline__ void mma_m16n8k64_movable(int32_t (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                                     uint32_t b1) {
  asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(acc[0]), "+r"(acc[1]), "+r"(acc[2]), "+r"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four matrices of 8 rows of 16 bytes: lane 8i + r gives the address of row r of matrix i, and receives word lane % 4
 * of row lane / 4 of each. */
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

/* The reverse (sm_90). */
__device__ __forceinline__ void stmatrix_x4(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}

/* acc += A * B for a 16 x 16 by 16 x 8 product of float16, or of bfloat16, over a warp. */
template <bool BFLOAT16>
__device__ __forceinline__ void mma_m16n8k16(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (BFLOAT16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* The same where the compiler may choose the place among loads and stores. */
template <bool BFLOAT16>
__device__ __forceinline__ void mma_m16n8k16_movable(float (&acc)[4], const uint32_t (&a)[4], uint32_t b0,
                                                     uint32_t b1) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
  static_assert(!BFLOAT16, "sm_75 has no bfloat16");
  mma_m16n8k8(acc, a[0], a[1], b0), mma_m16n8k8(acc, a[2], a[3], b1);
#else
  if constexpr (BFLOAT16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/* ---- programmatic dependent launch (sm_90) ---- */

/* blockIdx.x, read anew. */
__device__ __forceinline__ int ctaid_x() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}

/* Waits until the prerequisite grids in the stream have completed and their memory is visible; before it, nothing that
 * they might have written or read may be touched. Code for an architecture below 90 is launched without the attribute
 * that overlaps grids (launch.cuh), so that there it has nothing to do. */
__device__ __forceinline__ void griddepcontrol_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* Signals that dependent grids may launch once all CTAs have signalled or exited; they still wait as above. */
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void prefetch_l1(const void *address) {
  asm volatile("prefetch.global.L1 [%0];" ::"l"(address));
}

/* ---- clusters (sm_90) ---- */

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
/* A barrier over all threads of the cluster that also orders their shared memory accesses. */
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The address of the same shared memory location in another CTA of the cluster. */
__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t rank) {
  uint32_t r;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(rank));
  return r;
}

__device__ __forceinline__ int4 ld_shared_cluster_v4(uint32_t address) {
  int4 v;
  asm volatile("ld.shared::cluster.v4.s32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

/* Stores 16 bytes to another CTA's shared memory; `barrier` there counts them (complete_tx). */
__device__ __forceinline__ void st_async_v4(uint32_t address, uint32_t barrier, int32_t x, int32_t y, int32_t z,
                                            int32_t w) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%2, %3, %4, %5}, [%1];" ::"r"(address),
      "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
      : "memory");
}
__device__ __forceinline__ void st_async_u32(uint32_t address, uint32_t barrier, uint32_t x) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %2, [%1];" ::"r"(address),
               "r"(barrier), "r"(x)
               : "memory");
}
#else /* code for an architecture below 90 is never launched as a cluster (launch.cuh) */
__device__ __forceinline__ void cluster_arrive() {}
__device__ __forceinline__ void cluster_wait() {}
__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t) {
  return address;
}
__device__ __forceinline__ int4 ld_shared_cluster_v4(uint32_t address) {
  uint4 v = ld_shared_v4(address);
  return make_int4((int)v.x, (int)v.y, (int)v.z, (int)v.w);
}
#endif

/* ---- mbarriers and bulk tensor copies (sm_90) ---- */

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/* Makes initialised barriers visible to the copy engine; a CTA barrier must follow. */
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/* Arrives at a barrier of another CTA of the cluster, where `arrives`: a branch around it may cost registers. */
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier, bool arrives) {
  asm volatile("{\n.reg .pred arrives;\n"
               "setp.ne.u32 arrives, %1, 0;\n"
               "@arrives mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];\n}\n" ::"r"(barrier),
               "r"((uint32_t)arrives)
               : "memory");
}

/* Arrives and expects `bytes` more from copies in this phase. */
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Blocks until the phase with this parity is complete. The loop is inside the asm because a loop in C++ would look
 * divergent to the compiler, which then keeps all that follows out of the uniform registers. */
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile("{\n.reg .pred done;\n"
               "again:\n"
               "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
               "@!done bra again;\n}\n" ::"r"(barrier),
               "r"(parity)
               : "memory");
}

/* Waits for the phase as well, but only for a time that the hardware sets, about a microsecond. True when it is
 * complete. */
__device__ __forceinline__ bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred done;\n"
               "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
               "selp.u32 %0, 1, 0, done;\n}\n"
               : "=r"(done)
               : "r"(barrier), "r"(parity)
               : "memory");
  return done;
}

/* Arrives when this thread's asynchronous copies so far have landed: one of the arrivals that the barrier waits for. */
__device__ __forceinline__ void cp_async_mbarrier_arrive_noinc(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/* A named barrier among `threads` threads of the CTA. */
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* Arrives at it without waiting. */
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* The box at (x, y) of a 2D tensor into shared memory; `barrier` counts its bytes. Outside the tensor come zeros. */
__device__ __forceinline__ void cp_async_bulk_tensor_2d(uint32_t shared, const CUtensorMap *map, int x, int y,
                                                        uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          shared),
      "l"(map), "r"(barrier), "r"(x), "r"(y)
      : "memory");
}

/* The box at (x, y, z) of a 3D tensor. */
__device__ __forceinline__ void cp_async_bulk_tensor_3d(uint32_t shared, const CUtensorMap *map, int x, int y, int z,
                                                        uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
               "[%2];" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z)
               : "memory");
}

/* Prefetches bytes into L2, a multiple of 16 from 16 bytes on. A hint: it reads nothing. */
__device__ __forceinline__ void cp_async_bulk_prefetch(const void *global, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

/* The same of a box. */
__device__ __forceinline__ void cp_async_bulk_prefetch_tensor_2d(const CUtensorMap *map, int x, int y) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%0, {%1, %2}];" ::"l"(map), "r"(x), "r"(y) : "memory");
}

__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

/* ---- wgmma and register budgets (sm_90a) ---- */

template <int REGISTERS> __device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* Orders register accesses before wgmmas that use those registers. */
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Waits until at most PENDING committed groups are still under way. */
template <int PENDING> __device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* Descriptor of a K-major int8 operand in the 128-byte swizzle, 128 values of k a row: groups of 8 rows lie 1024 bytes
 * apart. The operand 32 values of k further on is this plus 2 (addresses count in 16 bytes). */
__device__ __forceinline__ uint64_t make_smem_desc(uint32_t shared) {
  return (uint64_t)((shared & 0x3ffffu) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

/* acc (+)= A * B over a warpgroup, A from registers, B from shared memory: a 64 x 32 by 32 x N int8 product. */
template <int N>
__device__ __forceinline__ void wgmma(int32_t (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate);

/* The same for a 64 x 16 by 16 x N product of float16, or of bfloat16. */
template <int N, bool BFLOAT>
__device__ __forceinline__ void wgmma_f32(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate);

#define INT4MM_ACC8(C, acc, i)                                                                                         \
  C(acc[i]), C(acc[i + 1]), C(acc[i + 2]), C(acc[i + 3]), C(acc[i + 4]), C(acc[i + 5]), C(acc[i + 6]), C(acc[i + 7])
#define INT4MM_ACC_S32(x) "+r"(x)
#define INT4MM_ACC_F32(x) "+f"(x)

#define INT4MM_WGMMA_32(C, SHAPE, FLAGS)                                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                                            \
               "wgmma.mma_async.sync.aligned." SHAPE " "                                                               \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "                              \
               "{%16, %17, %18, %19}, %20, p" FLAGS ";\n}\n"                                                           \
               : INT4MM_ACC8(C, acc, 0), INT4MM_ACC8(C, acc, 8)                                                        \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate))

#define INT4MM_WGMMA_64(C, SHAPE, FLAGS)                                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                            \
               "wgmma.mma_async.sync.aligned." SHAPE " "                                                               \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "           \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                                         \
               "{%32, %33, %34, %35}, %36, p" FLAGS ";\n}\n"                                                           \
               : INT4MM_ACC8(C, acc, 0), INT4MM_ACC8(C, acc, 8), INT4MM_ACC8(C, acc, 16), INT4MM_ACC8(C, acc, 24)      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate))

#define INT4MM_WGMMA_128(C, SHAPE, FLAGS)                                                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                                            \
               "wgmma.mma_async.sync.aligned." SHAPE " "                                                               \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "           \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "            \
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "            \
               "%56, %57, %58, %59, %60, %61, %62, %63}, "                                                             \
               "{%64, %65, %66, %67}, %68, p" FLAGS ";\n}\n"                                                           \
               : INT4MM_ACC8(C, acc, 0), INT4MM_ACC8(C, acc, 8), INT4MM_ACC8(C, acc, 16), INT4MM_ACC8(C, acc, 24),     \
                 INT4MM_ACC8(C, acc, 32), INT4MM_ACC8(C, acc, 40), INT4MM_ACC8(C, acc, 48), INT4MM_ACC8(C, acc, 56)    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate))

#define INT4MM_WGMMA_256(C, SHAPE, FLAGS)                                                                              \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %133, 0;\n"                                                           \
               "wgmma.mma_async.sync.aligned." SHAPE " "                                                               \
               "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "           \
               "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, "            \
               "%38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, "            \
               "%56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, "            \
               "%74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, "            \
               "%92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, "              \
               "%108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, "            \
               "%123, %124, %125, %126, %127}, "                                                                       \
               "{%128, %129, %130, %131}, %132, p" FLAGS ";\n}\n"                                                      \
               : INT4MM_ACC8(C, acc, 0), INT4MM_ACC8(C, acc, 8), INT4MM_ACC8(C, acc, 16), INT4MM_ACC8(C, acc, 24),     \
                 INT4MM_ACC8(C, acc, 32), INT4MM_ACC8(C, acc, 40), INT4MM_ACC8(C, acc, 48), INT4MM_ACC8(C, acc, 56),   \
                 INT4MM_ACC8(C, acc, 64), INT4MM_ACC8(C, acc, 72), INT4MM_ACC8(C, acc, 80), INT4MM_ACC8(C, acc, 88),   \
                 INT4MM_ACC8(C, acc, 96), INT4MM_ACC8(C, acc, 104), INT4MM_ACC8(C, acc, 112), INT4MM_ACC8(C, acc, 120) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((int)accumulate))

#define INT4MM_WGMMA(N)                                                                                                \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma<N>(int32_t(&acc)[N / 2], const uint32_t(&a)[4], uint64_t b, bool accumulate) { \
    INT4MM_WGMMA_##N(INT4MM_ACC_S32, "m64n" #N "k32.s32.s8.s8", "");                                                   \
  }                                                                                                                    \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma_f32<N, false>(float(&acc)[N / 2], const uint32_t(&a)[4], uint64_t b,           \
                                                      bool accumulate) {                                               \
    INT4MM_WGMMA_##N(INT4MM_ACC_F32, "m64n" #N "k16.f32.f16.f16", ", 1, 1, 0");                                        \
  }                                                                                                                    \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma_f32<N, true>(float(&acc)[N / 2], const uint32_t(&a)[4], uint64_t b,            \
                                                     bool accumulate) {                                                \
    INT4MM_WGMMA_##N(INT4MM_ACC_F32, "m64n" #N "k16.f32.bf16.bf16", ", 1, 1, 0");                                      \
  }
INT4MM_WGMMA(32)
INT4MM_WGMMA(64)
INT4MM_WGMMA(128)
INT4MM_WGMMA(256)

#undef INT4MM_WGMMA
#undef INT4MM_WGMMA_32
#undef INT4MM_WGMMA_64
#undef INT4MM_WGMMA_128
#undef INT4MM_WGMMA_256
#undef INT4MM_ACC8
#undef INT4MM_ACC_S32
#undef INT4MM_ACC_F32

} // namespace ptx
#endif
