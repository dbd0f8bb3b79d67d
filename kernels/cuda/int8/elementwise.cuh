// SPDX-License-Identifier: MIT
// To int8 codes and back. ../../../ops/include/lowbit/int8_quantize.h says what each number is.
#ifndef LOWBIT_KERNELS_CUDA_INT8_ELEMENTWISE_CUH
#define LOWBIT_KERNELS_CUDA_INT8_ELEMENTWISE_CUH

#include "rows.cuh"

namespace {

// Not less than value, as fp32 or fp16.
__device__ __forceinline__ float rounded_up(lowbit_float type, float value) {
    return type == f16 ? __half2float(__float2half_ru(value)) : value;
}

__device__ __forceinline__ float rounded(lowbit_float type, float value) {
    return type == f16 ? __half2float(__float2half_rn(value)) : value;
}

// Eight codes of a row from element i on, of a k that may end before.
using Codes = lb_pack<uint8_t, 8>;

__device__ __forceinline__ void store_codes(int8_t *q, size_t i, size_t k, bool aligned,
                                            const Codes &codes) {
    if (aligned && i + 8 <= k)
        return lb_write(reinterpret_cast<uint8_t *>(q + i), codes);
    for (int j = 0; j < 8; j++)
        if (i + j < k)
            q[i + j] = static_cast<int8_t>(codes.get(j));
}

__device__ __forceinline__ uint8_t clamped_code(float scaled) {
    return static_cast<uint8_t>(max(-127, min(127, __float2int_rn(scaled))));
}

// A block of threads quantizes a row after the other.
template <lowbit_float type, int THREADS>
__global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    quantize_kernel(const lb_bits<type> *x, size_t m, size_t k, size_t x_stride, float t, int8_t *q,
                    size_t q_stride, lowbit_float scale_type, void *absmax) {
    LB_SHARED(of_warp, int32_t[THREADS / 32]);
    for (size_t m_ = blockIdx.x; m_ < m; m_ += gridDim.x) {
        const Row<type, THREADS> row(x + m_ * x_stride, k);
        int8_t *to = q + m_ * q_stride;
        const bool q_aligned = lb_aligned(to, 8);
        const float scale = rounded_up(scale_type, row.largest_below(t, of_warp));
        const float inv = inverse_of(scale);
        row.each(k, [&](size_t i, const float (&v)[8]) {
            Codes codes;
            for (int j = 0; j < 8; j++)
                codes.set(j, fabsf(v[j]) < t ? clamped_code(__fmul_rn(v[j], inv)) : 0);
            store_codes(to, i, k, q_aligned, codes);
        });
        if (threadIdx.x == 0)
            lb_store_any(scale_type, absmax, m_, scale);
        __syncthreads(); // the next row reuses of_warp
    }
}

// The zero-point form.
template <lowbit_float type, int THREADS>
__global__ void __launch_bounds__(THREADS, 1024 / THREADS)
    quantize_offset_kernel(const lb_bits<type> *weight, size_t n, size_t k, size_t stride,
                           int8_t *q, size_t q_stride, lowbit_float scale_type, void *absmax,
                           void *offset) {
    LB_SHARED(of_warp, int32_t[2][THREADS / 32]);
    for (size_t n_ = blockIdx.x; n_ < n; n_ += gridDim.x) {
        const Row<type, THREADS> row(weight + n_ * stride, k);
        int8_t *to = q + n_ * q_stride;
        const bool q_aligned = lb_aligned(to, 8);
        float high = -INFINITY, low = -INFINITY; // the latter of the negated elements
        row.each(k, [&](size_t i, const float (&v)[8]) {
            for (int j = 0; j < 8; j++)
                if (i + j < k && fabsf(v[j]) < INFINITY) {
                    high = fmaxf(high, v[j]);
                    low = fmaxf(low, -v[j]);
                }
        });
        high = lb_block_max(high, of_warp[0]);
        low = -lb_block_max(low, of_warp[1]);
        if (!(low <= high)) // a row without finite elements
            high = low = 0.0f;
        high = high == 0.0f ? 0.0f : high; // not -0
        low = low == 0.0f ? 0.0f : low;
        const float middle =
            rounded(scale_type, __fadd_rn(__fmul_rn(0.5f, high), __fmul_rn(0.5f, low)));
        const float scale =
            rounded_up(scale_type, fmaxf(__fsub_ru(high, middle), __fsub_ru(middle, low)));
        const float inv = inverse_of(scale);
        row.each(k, [&](size_t i, const float (&v)[8]) {
            Codes codes;
            for (int j = 0; j < 8; j++)
                codes.set(j, fabsf(v[j]) < INFINITY
                                 ? clamped_code(__fmul_rn(__fsub_rn(v[j], middle), inv))
                                 : 0);
            store_codes(to, i, k, q_aligned, codes);
        });
        if (threadIdx.x == 0) {
            lb_store_any(scale_type, absmax, n_, scale);
            lb_store_any(scale_type, offset, n_, middle);
        }
        __syncthreads(); // the next row reuses of_warp
    }
}

// A thread turns eight codes of a row into numbers. Blocks go through rows along y, and share out a
// row along x: so nothing is divided.
template <lowbit_float type>
__global__ void __launch_bounds__(ROW_THREADS)
    dequantize_kernel(const int8_t *q, size_t m, size_t k, size_t q_stride, lowbit_float scale_type,
                      const void *absmax, const void *offset, lb_bits<type> *y, size_t y_stride) {
    const size_t i = (static_cast<size_t>(blockIdx.x) * ROW_THREADS + threadIdx.x) * 8;
    if (i >= k)
        return;
    for (size_t row = blockIdx.y; row < m; row += gridDim.y) {
        const int8_t *from = q + row * q_stride + i;
        Codes codes; // on their way together with the scale
        if (i + 8 <= k && lb_aligned(from, 8))
            codes = lb_read<uint8_t, 8>(reinterpret_cast<const uint8_t *>(from));
        else
            for (int j = 0; j < 8; j++)
                if (i + j < k)
                    codes.set(j, static_cast<uint8_t>(from[j]));
        const Scale scale = scale_of(scale_type, absmax, offset, row);
        float values[8];
        for (int j = 0; j < 8; j++)
            values[j] = scale.weight(static_cast<int8_t>(codes.get(j)));
        lb_bits<type> *to = y + row * y_stride;
        lb_store8<type>(to, i, k, lb_aligned(to, 16), values);
    }
}

} // namespace

#endif
