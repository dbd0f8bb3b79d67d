// SPDX-License-Identifier: MIT
// Quantized rows of x, and the sums of their outliers. ../../../ops/include/lowbit/int8_linear.h
// says what each number is.
#ifndef LOWBIT_KERNELS_CUDA_INT8_ROWS_CUH
#define LOWBIT_KERNELS_CUDA_INT8_ROWS_CUH

#include "launch.h"
#include <block.cuh>
#include <floats.cuh>
#include <ptx.cuh>

namespace {

constexpr uint32_t LISTED = LOWBIT_CUDA_LISTED;

__device__ __forceinline__ uint32_t listed(uint32_t outliers) {
    return min(outliers, LISTED);
}

// Threads of a block that has a row; a longer row has more.
constexpr int ROW_THREADS = 256, LONG_ROW_THREADS = 1024, LONG_ROW = 8192;

// The sums of what the threads before this one bring, and of what all bring.
struct Scan {
    int before, all;
};
template <int WARPS> __device__ __forceinline__ Scan block_scan(int value, int (&of_warp)[WARPS]) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int upto = value;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(LB_ALL_LANES, upto, step);
        upto += lane >= step ? other : 0;
    }
    if (lane == 31)
        of_warp[warp] = upto;
    __syncthreads();
    Scan sums = {upto - value, 0};
    for (int i = 0; i < WARPS; i++) {
        sums.before += i < warp ? of_warp[i] : 0;
        sums.all += of_warp[i];
    }
    return sums;
}

__device__ __forceinline__ float inverse_of(float absmax) {
    return absmax >= 0x1p-118f ? __fdiv_rn(127.0f, absmax) : 0.0f;
}

// A row that a block of threads reads more than once: each thread keeps its first elements.
template <lowbit_float type, int THREADS> struct Row {
    using Bits = lb_bits<type>;
    static constexpr int KEPT = LONG_ROW / 8 / ROW_THREADS, VECTOR = lb_vector<type>;
    struct Eight {
        lb_pack<Bits, VECTOR> packs[8 / VECTOR];
    };
    const Bits *x;
    size_t k;
    bool whole; // 16 bytes at once, up to the end
    Eight kept[KEPT];

    __device__ __forceinline__ Row(const Bits *x_, size_t k_)
        : x(x_), k(k_), whole(lb_aligned(x_, 16) && k_ % 8 == 0) {
        if (whole) { // without a branch between the loads
#pragma unroll
            for (int i = 0; i < KEPT; i++)
                if (at(i) < k)
                    kept[i] = load(at(i));
        } else {
#pragma unroll
            for (int i = 0; i < KEPT; i++)
                kept[i] = load_elements(at(i));
        }
    }
    __device__ static size_t at(size_t i) { return 8 * (i * THREADS + threadIdx.x); }
    __device__ __forceinline__ Eight load(size_t i) const {
        Eight eight;
#pragma unroll
        for (int j = 0; j < 8; j += VECTOR)
            eight.packs[j / VECTOR] = lb_read<Bits, VECTOR>(x + i + j);
        return eight;
    }
    __device__ __forceinline__ Eight load_elements(size_t i) const {
        Eight eight;
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (i + j < k)
                eight.packs[j / VECTOR].set(j % VECTOR, x[i + j]);
        return eight;
    }

    // Calls f(i, elements) for each eight elements of this thread from element i on, up to `end`;
    // zeros beyond k.
    template <class F> __device__ __forceinline__ void each(size_t end, F f) const {
        const auto floats = [&](size_t i, const Eight &eight) {
            float v[8];
#pragma unroll
            for (int j = 0; j < 8; j++)
                v[j] = Float<type>::load(eight.packs[j / VECTOR].get(j % VECTOR));
            f(i, v);
        };
#pragma unroll
        for (int i = 0; i < KEPT; i++)
            if (at(i) < end)
                floats(at(i), kept[i]);
        for (size_t i = at(KEPT); i < end; i += 8 * THREADS)
            floats(i, whole && i < k ? load(i) : load_elements(i));
    }
    // The largest magnitude below t, found by all threads together. Contains a barrier.
    __device__ __forceinline__ float largest_below(float t, int32_t *of_warp) const {
        float most = 0.0f;
        each(k, [&](size_t, const float (&v)[8]) {
            for (int j = 0; j < 8; j++)
                if (fabsf(v[j]) < t)
                    most = fmaxf(most, fabsf(v[j]));
        });
        return lb_block_max(most, of_warp);
    }
};

template <int THREADS> struct RowScratch {
    int32_t most[THREADS / 32], sum[THREADS / 32], outliers[THREADS / 32];
};

using OfRow = lowbit_cuda_int8_of_row;

// What becomes of one row; in global or in shared memory.
struct QuantizedRow {
    int8_t *q;
    uint32_t *mask;
    OfRow *of;
    lowbit_cuda_int8_outlier *list;
};

// All threads of a block quantize one row; columns, if not null, takes the or of the masks.
template <lowbit_float type, int THREADS>
__device__ __forceinline__ void
quantize_row(const lb_bits<type> *x, size_t k, size_t stride, float t, RowScratch<THREADS> &scratch,
             const QuantizedRow &to, lowbit_cuda_int8_columns *columns) {
    const Row<type, THREADS> row(x, k);
    const float most = row.largest_below(t, scratch.most), inv = inverse_of(most);
    int sum = 0;
    uint32_t any = 0;
    row.each(stride, [&](size_t i, const float (&v)[8]) {
        uint32_t outliers = 0;
        lb_pack<uint8_t, 8> codes;
        for (int j = 0; j < 8; j++) {
            const bool outlier = !(fabsf(v[j]) < t);
            const int q = outlier ? 0 : __float2int_rn(__fmul_rn(v[j], inv));
            outliers |= static_cast<uint32_t>(outlier) << j;
            codes.set(j, static_cast<uint8_t>(q));
            sum += q;
        }
        lb_write(reinterpret_cast<uint8_t *>(to.q + i), codes);
        reinterpret_cast<uint8_t *>(to.mask)[i / 8] = static_cast<uint8_t>(outliers);
        if (outliers && columns)
            atomicOr(&columns[i / 32].marked, outliers << (i % 32));
        any |= outliers;
    });
    const int finders = __syncthreads_count(any != 0); // and the mask is complete
    sum = block_scan(sum, scratch.sum).all;
    if (threadIdx.x == 0)
        *to.of = {__fdiv_rn(most, 127.0f), sum, 0};
    if (finders) {
        const size_t words = stride / 32, each = (words + THREADS - 1) / THREADS;
        const size_t first = min(threadIdx.x * each, words), last = min(first + each, words);
        int mine = 0;
        for (size_t word = first; word < last; word++)
            mine += __popc(to.mask[word]);
        const Scan outliers = block_scan(mine, scratch.outliers);
        uint32_t at = outliers.before;
        for (size_t word = first; word < last; word++)
            for (uint32_t bits = to.mask[word]; bits && at < LISTED; bits &= bits - 1) {
                const uint32_t at_k = static_cast<uint32_t>(word * 32) + __ffs(bits) - 1;
                to.list[at++] = {at_k, Float<type>::load(x[at_k])};
            }
        if (threadIdx.x == 0)
            to.of->outliers = outliers.all;
    }
    __syncthreads(); // the row is there, and scratch free
}

// A row in each block; all of them fill zeros, for kernels to come.
template <lowbit_float type, int THREADS>
__global__ void __launch_bounds__(THREADS)
    quantize_rows_kernel(const lb_bits<type> *x, size_t x_stride, size_t k, float t,
                         lowbit_cuda_int8_rows rows, lowbit_cuda_int8_columns *columns,
                         uint4 *zeros, size_t count) {
    ptx::begin_next();
    for (size_t i = blockIdx.x * THREADS + threadIdx.x; i < count; i += gridDim.x * THREADS)
        zeros[i] = make_uint4(0, 0, 0, 0);
    LB_SHARED(scratch, RowScratch<THREADS>);
    const size_t m = blockIdx.x;
    quantize_row<type>(x + m * x_stride, k, rows.stride, t, scratch,
                       {rows.q + m * rows.stride, rows.mask + m * (rows.stride / 32),
                        rows.of_row + m, rows.list + m * LISTED},
                       columns);
}

// Sixteen codes of a row from element `at` on, zeros beyond its end k.
template <bool ALIGNED>
__device__ __forceinline__ uint4 load_codes(const int8_t *row, size_t at, size_t k, bool there) {
    if (!there || at >= k)
        return make_uint4(0, 0, 0, 0);
    if (ALIGNED) // then k is a multiple of 16
        return ptx::ldg_nc_v4(row + at);
    uint32_t words[4] = {0, 0, 0, 0};
    for (int i = 0; i < 16; i++)
        if (at + i < k)
            words[i / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(row[at + i])) << (i % 4 * 8);
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The scale of a row of the weight and its offset: -0 where there is none, which changes no sum.
struct Scale {
    float s, offset;

    __device__ __forceinline__ float weight(int q) const {
        return __fmaf_rn(static_cast<float>(q), s, offset);
    }
};
__device__ __forceinline__ Scale scale_of(lowbit_float type, const void *absmax, const void *offset,
                                          size_t n) {
    return {__fdiv_rn(lb_load_any(type, absmax, n), 127.0f),
            offset ? lb_load_any(type, offset, n) : -0.0f};
}

// What a column of y needs besides the sums; zeros beyond the last. Without a bias y + 0 is y: that
// is never -0, as o is not, so that the sign of a product that is zero does not matter.
struct OfColumn {
    Scale scale;
    float bias;

    __device__ __forceinline__ float output(const OfRow &row, int32_t acc, float o) const {
        const float value = __fmaf_rn(scale.s, static_cast<float>(acc),
                                      __fmul_rn(scale.offset, static_cast<float>(row.sum)));
        return __fadd_rn(__fadd_rn(__fmul_rn(row.r, value), o), bias);
    }
};
__device__ __forceinline__ OfColumn column_of(const lowbit_cuda_int8_linear &a, size_t n) {
    if (n >= a.n)
        return {};
    return {scale_of(a.scale_type, a.absmax, a.offset, n),
            a.bias ? lb_load_any(a.bias_type, a.bias, n) : 0.0f};
}

// o for COLUMNS columns of y at once, from outliers in ascending k. Chunks without outliers would
// add +0 to a sum that is never -0.
template <int COLUMNS> struct OutlierSums {
    const OfColumn (&of)[COLUMNS];
    float done[COLUMNS] = {}, c[COLUMNS] = {}; // c: of the chunk
    uint32_t chunk = 0;

    __device__ __forceinline__ explicit OutlierSums(const OfColumn (&of_)[COLUMNS]) : of(of_) {}
    __device__ __forceinline__ void add(uint32_t k, float x, const int (&codes)[COLUMNS]) {
        if (k / LOWBIT_CUDA_CHUNK != chunk) {
            for (int j = 0; j < COLUMNS; j++) {
                done[j] = __fadd_rn(done[j], c[j]);
                c[j] = 0.0f;
            }
            chunk = k / LOWBIT_CUDA_CHUNK;
        }
        for (int j = 0; j < COLUMNS; j++)
            c[j] = __fmaf_rn(x, of[j].scale.weight(codes[j]), c[j]);
    }
    __device__ __forceinline__ float sum(int j) const { return __fadd_rn(done[j], c[j]); }
};

// Calls f(k, x) for the outliers of row m that come after column `last`.
template <class F>
__device__ __forceinline__ void each_unlisted(const lowbit_cuda_int8_linear &a,
                                              const lowbit_cuda_int8_rows &rows, size_t m,
                                              uint32_t last, F f) {
    const size_t words = rows.stride / 32;
    const uint32_t *mask = rows.mask + m * words;
    uint32_t after = last % 32 == 31 ? 0 : ~0u << (last % 32 + 1); // of the first word
    for (size_t word = last / 32; word < words; word++, after = ~0u)
        for (uint32_t bits = mask[word] & after; bits; bits &= bits - 1) {
            const uint32_t k = static_cast<uint32_t>(word * 32) + __ffs(bits) - 1;
            f(k, lb_load_any(a.x_type, a.x, m * a.x_stride + k));
        }
}

// Four neighbours in a row of y; nothing beyond its end.
__device__ __forceinline__ void store_outputs(const lowbit_cuda_int8_linear &a, size_t m, size_t n,
                                              const float (&values)[4]) {
    const size_t size = a.y_type == f32 ? 4 : 2;
    char *to = static_cast<char *>(a.y) + (m * a.y_stride + n) * size;
    if (n + 4 > a.n || !lb_aligned(to, 4 * size)) {
        for (int j = 0; j < 4 && n + j < a.n; j++)
            lb_store_any(a.y_type, to, j, values[j]);
    } else if (a.y_type == f32) {
        lb_store<f32>(reinterpret_cast<uint32_t *>(to), values);
    } else if (a.y_type == f16) {
        lb_store<f16>(reinterpret_cast<uint16_t *>(to), values);
    } else {
        lb_store<bf16>(reinterpret_cast<uint16_t *>(to), values);
    }
}

} // namespace

#endif
