// SPDX-License-Identifier: MIT

#include "ptx_kernels.h"

#include <lb_cuda.cuh>
#include <plain.cuh>
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

__device__ __forceinline__ float neighbour(float v, int distance) {
    return __int_as_float(__float_as_int(v) + distance);
}

__global__ void roots_kernel(uint32_t *wrong) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    uint32_t count[2] = {};
    for (uint32_t bits = 0x3f800000 + thread; bits <= 0x40800000; bits += threads) {
        const float v = __uint_as_float(bits), root = __fsqrt_rn(v);
        count[0] += lb_plain_root(v, ptx::rsqrt(v)) != root;
        if (bits % 8 != thread % 8) // some will do: one in eight
            continue;
        const double exact = 1 / sqrt((double)v);
        for (int i = -3; i <= 3; i++) {
            const float other = neighbour((float)exact, i);
            if (fabs(other - exact) <= 0x1.125fbp-23 * exact) // 2^-22.9
                count[1] += lb_plain_root(v, other) != root;
        }
    }
    atomicAdd(&wrong[0], count[0]);
    atomicAdd(&wrong[1], count[1]);
}

__global__ void quotients_kernel(uint32_t numbers, uint32_t *wrong) {
    const uint32_t thread = blockIdx.x * blockDim.x + threadIdx.x, threads = gridDim.x * blockDim.x;
    uint32_t count[2] = {};
    for (uint32_t i = thread; i < numbers; i += threads) {
        uint64_t random = (i + 1) * 0x9e3779b97f4a7c15u;
        random = (random ^ random >> 30) * 0xbf58476d1ce4e5b9u;
        random ^= random >> 27;
        // Of 2^-100 to 2^24, 0 included, and of 2^-100 to 2^25.
        const uint32_t exponents[] = {27 + (uint32_t)(random >> 32) % 124,
                                      27 + (uint32_t)(random >> 44) % 125};
        float m = __uint_as_float(((uint32_t)random & 0x807fffff) | exponents[0] << 23);
        float d = __uint_as_float(((uint32_t)(random >> 20) & 0x7fffff) | exponents[1] << 23);
        if (i % 8 == 0)
            m *= 0.0f;
        if (i % 16 == 1) // a divisor right below a power of 2, where a quotient is nearest to a tie
            m = 1, d = __uint_as_float(__float_as_uint(d) | 0x7fffff);
        const uint32_t quotient = __float_as_uint(__fdiv_rn(m, d));
        count[0] += __float_as_uint(lb_plain_quotient(m, d, ptx::rcp(d))) != quotient;
        if (i % 16 == 1)
            continue;
        const double exact = 1 / (double)d;
        for (int k = -1; k <= 1; k++) {
            const float other = neighbour((float)exact, k);
            if (fabs(other - exact) <= 0x1p-23 * exact)
                count[1] += __float_as_uint(lb_plain_quotient(m, d, other)) != quotient;
        }
    }
    atomicAdd(&wrong[0], count[0]);
    atomicAdd(&wrong[1], count[1]);
}

} // namespace

cudaError_t wrong_roots(uint32_t *wrong) {
    return lb_launch(roots_kernel, 4, LB_WARP, 0, nullptr, wrong);
}

cudaError_t wrong_quotients(uint32_t numbers, uint32_t *wrong) {
    return lb_launch(quotients_kernel, 4, LB_WARP, 0, nullptr, numbers, wrong);
}

cudaError_t product_s8(const int8_t *a, const int8_t *b, int32_t *d) {
    return lb_launch(s8_kernel, 1, LB_WARP, 0, nullptr, a, b, d);
}

cudaError_t product_f16(const uint16_t *a, const uint16_t *b, float *d) {
    return lb_launch(f16_kernel<false>, 1, LB_WARP, 0, nullptr, a, b, d);
}

cudaError_t product_bf16(const uint16_t *a, const uint16_t *b, float *d) {
    return lb_launch(f16_kernel<true>, 1, LB_WARP, 0, nullptr, a, b, d);
}
