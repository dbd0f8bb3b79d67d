// SPDX-License-Identifier: MIT

#include "ptx_kernels.h"

#include <lb_cuda.cuh>
#include <ptx.cuh>

namespace {

// Two matrices of 16 rows of 32 bytes.
struct Operands {
    alignas(16) char a[16][32];
    alignas(16) char b[16][32];
};

__device__ __forceinline__ void copy(Operands &shared, const void *a, const void *b) {
    const unsigned lane = threadIdx.x;
    ptx::cp_async16(&shared.a[lane / 2][16 * (lane % 2)], static_cast<const uint4 *>(a) + lane, 16);
    const uint4 v = ptx::ldg_nc_v4(static_cast<const uint4 *>(b) + lane);
    *reinterpret_cast<uint4 *>(&shared.b[lane / 2][16 * (lane % 2)]) = v;
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncwarp();
}

template <typename T>
__device__ __forceinline__ void store(T *d, const T (&left)[4], const T (&right)[4]) {
    const unsigned g = threadIdx.x / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        T *row = d + 16 * (g + 8 * (i / 2));
        row[2 * t + i % 2] = left[i];
        row[2 * t + i % 2 + 8] = right[i];
    }
}

__global__ void s8_kernel(const int8_t *a, const int8_t *b, int32_t *d) {
    LB_SHARED(shared, Operands);
    copy(shared, a, b);
    const unsigned lane = threadIdx.x, i = lane / 8, row = lane % 8;
    uint32_t ra[4], rb[4];
    ptx::ldmatrix_x4(ra, &shared.a[row + 8 * (i % 2)][16 * (i / 2)]);
    ptx::ldmatrix_x4(rb, &shared.b[row + 8 * (i / 2)][16 * (i % 2)]);
    int32_t left[4] = {}, right[4] = {};
    ptx::mma_m16n8k32_s8(left, ra, {rb[0], rb[1]});
    ptx::mma_m16n8k32_s8(right, ra, {rb[2], rb[3]});
    store(d, left, right);
}

template <bool bf16> __global__ void f16_kernel(const uint16_t *a, const uint16_t *b, float *d) {
    LB_SHARED(shared, Operands);
    copy(shared, a, b);
    const unsigned lane = threadIdx.x, i = lane / 8, row = lane % 8;
    uint32_t ra[4], rb[4];
    ptx::ldmatrix_x4(ra, &shared.a[row + 8 * (i % 2)][16 * (i / 2)]);
    ptx::ldmatrix_x4_trans(rb, &shared.b[row + 8 * (i % 2)][16 * (i / 2)]);
    float left[4] = {}, right[4] = {};
    if (bf16) {
        ptx::mma_m16n8k16_bf16(left, ra, {rb[0], rb[1]});
        ptx::mma_m16n8k16_bf16(right, ra, {rb[2], rb[3]});
    } else {
        ptx::mma_m16n8k16_f16(left, ra, {rb[0], rb[1]});
        ptx::mma_m16n8k16_f16(right, ra, {rb[2], rb[3]});
    }
    store(d, left, right);
}

} // namespace

cudaError_t product_s8(const int8_t *a, const int8_t *b, int32_t *d) {
    return lb_launch(s8_kernel, 1, LB_WARP, 0, nullptr, a, b, d);
}

cudaError_t product_f16(const uint16_t *a, const uint16_t *b, float *d) {
    return lb_launch(f16_kernel<false>, 1, LB_WARP, 0, nullptr, a, b, d);
}

cudaError_t product_bf16(const uint16_t *a, const uint16_t *b, float *d) {
    return lb_launch(f16_kernel<true>, 1, LB_WARP, 0, nullptr, a, b, d);
}
