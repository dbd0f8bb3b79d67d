// SPDX-License-Identifier: MIT

#include "ptx_golden.h"

#include <lb_cuda.cuh>
#include <ptx.cuh>

namespace golden {

namespace {

__device__ __forceinline__ const uint32_t *of_lane(const uint32_t *in, unsigned lane) {
    return in + words_in * lane;
}
__device__ __forceinline__ void put(uint32_t *out, unsigned first, uint4 v) {
    *reinterpret_cast<uint4 *>(out + words_out * threadIdx.x + first) = v;
}
template <typename T> __device__ __forceinline__ void put(uint32_t *out, const T (&r)[4]) {
    put(out, 0, make_uint4((uint32_t)r[0], (uint32_t)r[1], (uint32_t)r[2], (uint32_t)r[3]));
}

__global__ void cp_async16(const uint32_t *in, uint32_t *out) {
    LB_SHARED(shared, uint4[lanes]);
    const uint32_t *mine = of_lane(in, threadIdx.x);
    ptx::cp_async16(&shared[threadIdx.x], mine, (int)(mine[4] % 17));
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    put(out, 0, shared[threadIdx.x]);
}

// An empty group is the youngest.
__global__ void cp_async_commit(const uint32_t *in, uint32_t *out) {
    LB_SHARED(shared, uint4[lanes]);
    ptx::cp_async16(&shared[threadIdx.x], of_lane(in, threadIdx.x), 16);
    ptx::cp_async_commit();
    ptx::cp_async_commit();
    ptx::cp_async_wait<1>();
    put(out, 0, shared[threadIdx.x]);
}

__global__ void cp_async_wait(const uint32_t *in, uint32_t *out) {
    LB_SHARED(shared, uint4[2][lanes]);
    const uint32_t *mine = of_lane(in, threadIdx.x);
    for (int i = 0; i < 2; i++) {
        ptx::cp_async16(&shared[i][threadIdx.x], mine + 4 * i, 16);
        ptx::cp_async_commit();
    }
    ptx::cp_async_wait<1>();
    put(out, 0, shared[0][threadIdx.x]);
    ptx::cp_async_wait<0>();
    put(out, 4, shared[1][threadIdx.x]);
}

// Any row for any lane.
template <bool transposed> __global__ void ldmatrix(const uint32_t *in, uint32_t *out) {
    LB_SHARED(shared, uint4[lanes]);
    const uint32_t *mine = of_lane(in, threadIdx.x);
    shared[threadIdx.x] = *reinterpret_cast<const uint4 *>(mine);
    __syncwarp();
    uint32_t r[4];
    if (transposed)
        ptx::ldmatrix_x4_trans(r, &shared[mine[4] % lanes]);
    else
        ptx::ldmatrix_x4(r, &shared[mine[4] % lanes]);
    put(out, r);
}

__global__ void mma_s8(const uint32_t *in, uint32_t *out) {
    const uint32_t *w = of_lane(in, threadIdx.x);
    int32_t d[4];
    for (int i = 0; i < 4; i++)
        d[i] = (int32_t)w[6 + i];
    ptx::mma_m16n8k32_s8(d, {w[0], w[1], w[2], w[3]}, {w[4], w[5]});
    put(out, d);
}

template <bool bf16> __global__ void mma_f16(const uint32_t *in, uint32_t *out) {
    const uint32_t *w = of_lane(in, threadIdx.x);
    float d[4];
    for (int i = 0; i < 4; i++)
        d[i] = __uint_as_float(w[6 + i]);
    if (bf16)
        ptx::mma_m16n8k16_bf16(d, {w[0], w[1], w[2], w[3]}, {w[4], w[5]});
    else
        ptx::mma_m16n8k16_f16(d, {w[0], w[1], w[2], w[3]}, {w[4], w[5]});
    put(out, 0,
        make_uint4(__float_as_uint(d[0]), __float_as_uint(d[1]), __float_as_uint(d[2]),
                   __float_as_uint(d[3])));
}

__global__ void ldg_nc_v4(const uint32_t *in, uint32_t *out) {
    const uint32_t other = of_lane(in, threadIdx.x)[0] % lanes;
    put(out, 0, ptx::ldg_nc_v4(of_lane(in, other)));
}

__global__ void ldg_nc_v2(const uint32_t *in, uint32_t *out) {
    const uint32_t other = of_lane(in, threadIdx.x)[0] % lanes;
    const uint2 v = ptx::ldg_nc_v2(of_lane(in, other) + 2);
    put(out, 0, make_uint4(v.x, v.y, 0, 0));
}

template <bool root> __global__ void reciprocal(const uint32_t *in, uint32_t *out) {
    const uint32_t *w = of_lane(in, threadIdx.x);
    uint32_t r[4];
    for (int i = 0; i < 4; i++) {
        const float x = __uint_as_float(w[i]);
        r[i] = __float_as_uint(root ? ptx::rsqrt(x) : ptx::rcp(x));
    }
    put(out, r);
}

__global__ void st_v4(const uint32_t *in, uint32_t *out) {
    const uint32_t *mine = of_lane(in, threadIdx.x);
    ptx::st_v4(out + words_out * threadIdx.x, make_uint4(mine[0], mine[1], mine[2], mine[3]));
}

// ---- Operands: a is words 0 to 3, b 4 and 5, d 6 to 9 -------------------------------------------

uint32_t any(unsigned, uint32_t bits) {
    return bits;
}
uint32_t near_overflow(unsigned word, uint32_t bits) {
    return word < 6 ? bits : 0x7fffff80 + (bits & 0xff);
}

// Finite and of 2^-4 to 2^4, so that sums are rounded and every addend counts.
template <int mantissa, int bias> uint32_t halves(uint32_t bits) {
    constexpr uint32_t low = 0x00010001, exponent = 7 * low << mantissa;
    return (bits & (0x8000 + (1 << mantissa) - 1) * low) |
           ((bits & exponent) + ((bias - 4) * low << mantissa));
}
template <int mantissa, int bias> uint32_t ordinary(unsigned word, uint32_t bits) {
    return word < 6 ? halves<mantissa, bias>(bits)
                    : (bits & 0x807fffff) | ((bits & 7u << 23) + (123u << 23));
}
uint32_t positive(unsigned, uint32_t bits) { // of 2^-4 to 2^4
    return (bits & 0x7fffff) + ((123 + (bits >> 29)) << 23);
}
uint32_t subnormal_fp16(unsigned word, uint32_t bits) {
    return word < 4 ? bits & 0x83ff83ff : word < 6 ? halves<10, 15>(bits) : 0;
}

} // namespace

const std::vector<Case> cases = {
    {"cp_async16", cp_async16, any, false},
    {"cp_async_commit", cp_async_commit, any, false},
    {"cp_async_wait", cp_async_wait, any, false},
    {"ldmatrix_x4", ldmatrix<false>, any, false},
    {"ldmatrix_x4_trans", ldmatrix<true>, any, false},
    {"mma_m16n8k32_s8", mma_s8, any, false},
    {"mma_m16n8k32_s8 overflow", mma_s8, near_overflow, false},
    {"mma_m16n8k16_f16", mma_f16<false>, ordinary<10, 15>, true},
    {"mma_m16n8k16_f16 subnormal", mma_f16<false>, subnormal_fp16, true},
    {"mma_m16n8k16_bf16", mma_f16<true>, ordinary<7, 127>, true},
    {"ldg_nc_v4", ldg_nc_v4, any, false},
    {"ldg_nc_v2", ldg_nc_v2, any, false},
    {"rcp", reciprocal<false>, positive, true},
    {"rsqrt", reciprocal<true>, positive, true},
    {"st_v4", st_v4, any, false},
};

cudaError_t run(const Case &c, const Operands &operands, Results &results) {
    void *in = nullptr, *out = nullptr;
    cudaError_t error = cudaMalloc(&in, sizeof operands);
    if (!error)
        error = cudaMalloc(&out, sizeof results);
    if (!error)
        error = cudaMemcpy(in, operands.data(), sizeof operands, cudaMemcpyHostToDevice);
    if (!error)
        error = cudaMemset(out, 0, sizeof results); // few kernels write all
    if (!error)
        error = lb_launch(c.kernel, 1, lanes, 0, nullptr, static_cast<const uint32_t *>(in),
                          static_cast<uint32_t *>(out));
    if (!error)
        error = cudaMemcpy(results.data(), out, sizeof results, cudaMemcpyDeviceToHost);
    cudaFree(in);
    cudaFree(out);
    return error;
}

} // namespace golden
