// SPDX-License-Identifier: MIT
// int8_linear for few rows of x: the weight streams through once, sixteen of its rows in a block of
// threads, whose warps share out K.
#ifndef LOWBIT_KERNELS_CUDA_INT8_DECODE_CUH
#define LOWBIT_KERNELS_CUDA_INT8_DECODE_CUH

#include "rows.cuh"

namespace {

constexpr int DECODE_ROWS = 16, DECODE_COLUMNS = 64; // of the weight, at a time in a warp
constexpr int WARPS = ROW_THREADS / 32;
constexpr int DECODE_AHEAD = 4; // of those, loaded at once

// Shared memory of a block that quantizes x by itself.
constexpr size_t FUSED_BYTES = 40960;

// TILES times 8 rows of x. With FUSED each block quantizes x by itself, into shared memory; otherwise
// a.rows holds it. Within 64 columns the products are summed in an order that lets a thread load 16
// codes at once: integer sums do not depend on it.
template <lowbit_float type, int TILES, bool FUSED, bool ALIGNED>
__global__ void __launch_bounds__(ROW_THREADS, 2) decode_kernel(lowbit_cuda_int8_linear a) {
    LB_SHARED(sums, int32_t[WARPS][TILES][32][4]);
    lowbit_cuda_int8_rows rows = a.rows;
    if constexpr (FUSED) {
        LB_SHARED(scratch, RowScratch<ROW_THREADS>);
        LB_SHARED(r, float[DECODE_ROWS]);
        LB_SHARED(sum, int32_t[DECODE_ROWS]);
        LB_SHARED(outliers, uint32_t[DECODE_ROWS]);
        LB_SHARED(list, lowbit_cuda_int8_outlier[DECODE_ROWS][LISTED]);
        LB_DYNAMIC_SHARED(memory, unsigned char[FUSED_BYTES]);
        rows.q = reinterpret_cast<int8_t *>(memory);
        rows.mask = reinterpret_cast<uint32_t *>(memory + a.m * rows.stride);
        rows.r = r, rows.sum = sum, rows.outliers = outliers, rows.list = list[0];
        for (size_t m = 0; m < a.m; m++)
            quantize_row<type>(static_cast<const lb_bits<type> *>(a.x) + m * a.x_stride, a.k,
                               rows.stride, a.threshold, scratch, QuantizedRow(rows, m), nullptr);
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t n0 = static_cast<size_t>(blockIdx.x) * DECODE_ROWS, n = n0 + lane / 4;
    int32_t acc[TILES][4] = {};
    constexpr size_t STEP = WARPS * DECODE_COLUMNS;
    for (size_t k0 = warp * DECODE_COLUMNS; k0 < a.k; k0 += DECODE_AHEAD * STEP) {
        uint4 upper[DECODE_AHEAD], lower[DECODE_AHEAD]; // on their way together
#pragma unroll
        for (int i = 0; i < DECODE_AHEAD; i++) {
            const size_t at = k0 + i * STEP + lane % 4 * 16;
            upper[i] = load_codes<ALIGNED>(a.weight + n * a.k, at, a.k, n < a.n);
            lower[i] = load_codes<ALIGNED>(a.weight + (n + 8) * a.k, at, a.k, n + 8 < a.n);
        }
#pragma unroll
        for (int i = 0; i < DECODE_AHEAD; i++) {
            const size_t at = k0 + i * STEP + lane % 4 * 16;
            const uint32_t first[4] = {upper[i].x, lower[i].x, upper[i].y, lower[i].y},
                           second[4] = {upper[i].z, lower[i].z, upper[i].w, lower[i].w};
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const size_t m = tile * 8 + lane / 4;
                uint4 q = make_uint4(0, 0, 0, 0);
                if (m < a.m && at < rows.stride)
                    q = *reinterpret_cast<const uint4 *>(rows.q + m * rows.stride + at);
                ptx::mma_m16n8k32_s8(acc[tile], first, {q.x, q.y});
                ptx::mma_m16n8k32_s8(acc[tile], second, {q.z, q.w});
            }
        }
    }
    for (int tile = 0; tile < TILES; tile++)
        for (int i = 0; i < 4; i++)
            sums[warp][tile][lane][i] = acc[tile][i];
    __syncthreads();
    for (int e = threadIdx.x; e < TILES * 8 * DECODE_ROWS; e += ROW_THREADS) {
        const int row = e % DECODE_ROWS, token = e / DECODE_ROWS;
        const size_t m = token;
        if (n0 + row >= a.n || m >= a.m)
            continue;
        int32_t total = 0;
        for (int w = 0; w < WARPS; w++)
            total += sums[w][token / 8][row % 8 * 4 + token % 8 / 2][row / 8 * 2 + token % 2];
        const Scale scale[1] = {scale_of(a, n0 + row)};
        const int8_t *codes = a.weight + (n0 + row) * a.k;
        OutlierSums<1> outliers(scale);
        const auto add = [&](uint32_t k, float x) { outliers.add(k, x, {codes[k]}); };
        const QuantizedRow of(rows, m);
        const uint32_t count = *of.outliers;
#pragma unroll 4
        for (uint32_t i = 0; i < listed(count); i++)
            add(of.list[i].k, of.list[i].x);
        if (count > LISTED)
            each_unlisted(a, of, m, add);
        const float y = __fadd_rn(__fadd_rn(scale[0].product(*of.r, total, *of.sum), outliers.o(0)),
                                  bias_of(a, n0 + row));
        lb_store_any(a.y_type, a.y, m * a.y_stride + n0 + row, y);
    }
}

} // namespace

#endif
