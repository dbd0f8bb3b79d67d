// SPDX-License-Identifier: MIT
// Instructions that CUDA C++ has no words for: one function each, and inline PTX nowhere else.
// Names and layouts are those of the PTX manual. In a warp, lane = 4 * g + t with t < 4.
//
// tests/cuda/emulation/ptx.cuh has the same functions for the CPU.
#ifndef LOWBIT_KERNELS_CUDA_COMMON_PTX_CUH
#define LOWBIT_KERNELS_CUDA_COMMON_PTX_CUH

#include <lb_cuda.cuh>

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

// Begins to copy 16 bytes from global to shared memory, past L1: the first `bytes` of them (0..16)
// from src, which is not read beyond them, the others zero. dst and src are 16-byte aligned. The
// copy is part of the group that this thread's next commit closes.
__device__ __forceinline__ void cp_async16(void *dst, const void *src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)),
                 "l"(src), "r"(bytes)
                 : "memory");
}

// Closes this thread's group of copies; an empty group counts too.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most n of this thread's groups, the youngest, are under way. The copies that
// landed are visible to this thread; to others after a barrier.
template <int n> __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}

// Loads four 8x8 matrices of 16-bit elements from shared memory. Lane 8 * i + j gives the 16-byte
// aligned address of row j of matrix i; r[i] is row g, columns 2t and 2t + 1 of matrix i, the
// former in the low half. All lanes of the warp, together.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same, of the transposed matrices: r[i] is rows 2t and 2t + 1, column g.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// d += a * b on the tensor cores, d 16x8, by all lanes of the warp together. A register of a or b
// holds neighbours along k, the first in its lowest bits. Of every mma here:
//
//   d[0], d[1]   row g, columns 2t, 2t + 1          d[2], d[3]   row g + 8

// int8, k = 32, exact modulo 2^32.   a[0] row g, k 4t..4t+3;  a[1] row g + 8;  a[2], a[3] k + 16
//                                    b[0] column g, k 4t..4t+3;  b[1] k + 16
__device__ __forceinline__ void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// fp16 or bf16, k = 16: exact products, added up in an order and with a rounding of the machine's
// own.
//                                    a[0] row g, k 2t, 2t + 1;  a[1] row g + 8;  a[2], a[3] k + 8
//                                    b[0] column g, k 2t, 2t + 1;  b[1] k + 8
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
                 "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Programmatic dependent launch: lb_launch_early of the next kernel. It may begin when all blocks
// of this one have said begin_next() or are done; its memory is in place for the next one after
// wait_for_last(). Before sm_90 a launch begins when the last one is done.
__device__ __forceinline__ void begin_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// 16 aligned bytes of global memory that nothing writes while the kernel runs, read once: not kept
// in L1.
__device__ __forceinline__ uint4 ldg_nc_v4(const void *p) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p));
    return v;
}

// 8 of them.
__device__ __forceinline__ uint2 ldg_nc_v2(const void *p) {
    uint2 v;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

// 1 / x with a relative error of 2^-23, and 1 / sqrt(x) with one of 2^-22.9, of normal numbers with
// normal results.
__device__ __forceinline__ float rcp(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float rsqrt(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Stores 16 aligned bytes at once, in whatever memory. Of a uint4 that is assigned nvcc makes four
// stores where it has taken the address apart.
__device__ __forceinline__ void st_v4(void *p, uint4 v) {
    asm volatile("st.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

} // namespace ptx

#endif
