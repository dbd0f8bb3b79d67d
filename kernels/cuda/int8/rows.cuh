// SPDX-License-Identifier: MIT
// Quantized rows of x, and the sums of their outliers. ../../../ops/include/lowbit/int8_linear.h says
// what each number is.
#ifndef LOWBIT_KERNELS_CUDA_INT8_ROWS_CUH
#define LOWBIT_KERNELS_CUDA_INT8_ROWS_CUH

#include "launch.h"
#include <floats.cuh>

namespace {

constexpr int ROW_THREADS = 256, ROW_WARPS = ROW_THREADS / 32;
constexpr int MOST_CHUNKS = 131; // of the longest row

__device__ __forceinline__ float block_max(float value, float (&of_warp)[ROW_WARPS]) {
    for (int step = 16; step; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(LB_ALL_LANES, value, step));
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = of_warp[0];
    for (int i = 1; i < ROW_WARPS; i++)
        value = fmaxf(value, of_warp[i]);
    return value;
}

__device__ __forceinline__ int block_sum(int value, int (&of_warp)[ROW_WARPS]) {
    for (int step = 16; step; step /= 2)
        value += __shfl_xor_sync(LB_ALL_LANES, value, step);
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    value = 0;
    for (int i = 0; i < ROW_WARPS; i++)
        value += of_warp[i];
    return value;
}

struct RowScratch {
    float most[ROW_WARPS];
    int sum[ROW_WARPS];
    uint32_t summary[MOST_CHUNKS];
};

// What becomes of one row; in global or in shared memory.
struct QuantizedRow {
    int8_t *q;
    float *largest;
    int32_t *sum;
    uint32_t *mask, *summary;
};

// The largest magnitude below t in a row, found by all ROW_THREADS threads. Contains a barrier.
template <lowbit_float type>
__device__ __forceinline__ float largest_below(float t, const lb_bits<type> *x, size_t k,
                                               bool aligned, float (&of_warp)[ROW_WARPS]) {
    float most = 0.0f;
    for (size_t i = 8 * threadIdx.x; i < k; i += 8 * ROW_THREADS) {
        float v[8];
        lb_load8<type>(v, x, i, k, aligned);
        for (int j = 0; j < 8; j++)
            if (fabsf(v[j]) < t)
                most = fmaxf(most, fabsf(v[j]));
    }
    return block_max(most, of_warp);
}

__device__ __forceinline__ float inverse_of(float absmax) {
    return absmax >= 0x1p-118f ? __fdiv_rn(127.0f, absmax) : 0.0f;
}

// All ROW_THREADS threads quantize one row; columns, if not null, takes the or of the masks.
template <lowbit_float type>
__device__ __forceinline__ void quantize_row(const lb_bits<type> *x, size_t k, size_t stride,
                                             size_t chunks, float t, RowScratch &scratch,
                                             const QuantizedRow &row, uint32_t *columns) {
    const bool aligned = lb_aligned(x, 16);
    for (size_t c = threadIdx.x; c < chunks; c += ROW_THREADS)
        scratch.summary[c] = 0;
    const float most = largest_below<type>(t, x, k, aligned, scratch.most); // and summary is zero
    const float inv = inverse_of(most);
    int sum = 0;
    for (size_t i = 8 * threadIdx.x; i < chunks * LOWBIT_CUDA_CHUNK; i += 8 * ROW_THREADS) {
        float v[8];
        lb_load8<type>(v, x, i, k, aligned);
        uint32_t outliers = 0, codes[2] = {0, 0};
        for (int j = 0; j < 8; j++) {
            const bool outlier = !(fabsf(v[j]) < t);
            const int q = outlier ? 0 : __float2int_rn(__fmul_rn(v[j], inv));
            outliers |= static_cast<uint32_t>(outlier) << j;
            codes[j / 4] |= static_cast<uint32_t>(q & 0xff) << (j % 4 * 8);
            sum += q;
        }
        if (i < stride)
            *reinterpret_cast<uint2 *>(row.q + i) = make_uint2(codes[0], codes[1]);
        reinterpret_cast<uint8_t *>(row.mask)[i / 8] = static_cast<uint8_t>(outliers);
        if (outliers) {
            atomicOr(&scratch.summary[i / LOWBIT_CUDA_CHUNK], 1u << (i / 32 % 32));
            if (columns)
                atomicOr(&columns[i / 32], outliers << (i % 32));
        }
    }
    sum = block_sum(sum, scratch.sum); // and summary is complete
    for (size_t c = threadIdx.x; c < chunks; c += ROW_THREADS)
        row.summary[c] = scratch.summary[c];
    if (threadIdx.x == 0) {
        *row.largest = most;
        *row.sum = sum;
    }
    __syncthreads(); // the next row reuses scratch
}

template <lowbit_float type>
__global__ void __launch_bounds__(ROW_THREADS)
    quantize_rows_kernel(const lb_bits<type> *x, size_t x_stride, size_t k, float t,
                         lowbit_cuda_int8_rows rows, uint32_t *columns) {
    LB_SHARED(scratch, RowScratch);
    const size_t m = blockIdx.x;
    const QuantizedRow row = {rows.q + m * rows.stride, rows.largest + m, rows.sum + m,
                              rows.mask + m * 32 * rows.chunks, rows.summary + m * rows.chunks};
    quantize_row<type>(x + m * x_stride, k, rows.stride, rows.chunks, t, scratch, row, columns);
}

// A weight's scale and offset.
struct Scale {
    float s, offset;
    bool has_offset;

    __device__ __forceinline__ float weight(int q) const {
        const float code = static_cast<float>(q);
        return has_offset ? __fmaf_rn(code, s, offset) : __fmul_rn(code, s);
    }
    __device__ __forceinline__ float product(float largest, int acc, int sum) const {
        const float r = __fdiv_rn(largest, 127.0f);
        float value = __fmul_rn(s, static_cast<float>(acc));
        if (has_offset)
            value =
                __fmaf_rn(s, static_cast<float>(acc), __fmul_rn(offset, static_cast<float>(sum)));
        return __fmul_rn(r, value);
    }
};

__device__ __forceinline__ Scale scale_of(const lowbit_cuda_int8_linear &a, size_t n) {
    return {__fdiv_rn(lb_load_any(a.scale_type, a.absmax, n), 127.0f),
            a.offset ? lb_load_any(a.scale_type, a.offset, n) : 0.0f, a.offset != nullptr};
}

// o for COLUMNS columns of y at once: load(k, codes) fetches their codes in column k. Chunks without
// outliers would add +0 to a sum that is never -0.
template <int COLUMNS, class Load>
__device__ __forceinline__ void outlier_sums(lowbit_float type, const void *x, size_t row,
                                             const uint32_t *mask, const uint32_t *summary,
                                             size_t chunks, const Scale (&scales)[COLUMNS],
                                             float (&o)[COLUMNS], Load load) {
    for (int j = 0; j < COLUMNS; j++)
        o[j] = 0.0f;
    for (size_t chunk = 0; chunk < chunks; chunk++) {
        uint32_t words = summary[chunk];
        if (!words)
            continue;
        float c[COLUMNS] = {};
        for (; words; words &= words - 1) {
            const size_t word = chunk * 32 + __ffs(words) - 1;
            for (uint32_t bits = mask[word]; bits; bits &= bits - 1) {
                const size_t k = word * 32 + __ffs(bits) - 1;
                const float value = lb_load_any(type, x, row + k);
                int codes[COLUMNS];
                load(k, codes);
                for (int j = 0; j < COLUMNS; j++)
                    c[j] = __fmaf_rn(value, scales[j].weight(codes[j]), c[j]);
            }
        }
        for (int j = 0; j < COLUMNS; j++)
            o[j] = __fadd_rn(o[j], c[j]);
    }
}

__device__ __forceinline__ void store_output(const lowbit_cuda_int8_linear &a, size_t m, size_t n,
                                             float main, float o) {
    float y = __fadd_rn(main, o);
    if (a.bias)
        y = __fadd_rn(y, lb_load_any(a.bias_type, a.bias, n));
    lb_store_any(a.y_type, a.y, m * a.y_stride + n, y);
}

} // namespace

#endif
