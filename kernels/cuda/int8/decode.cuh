// SPDX-License-Identifier: MIT
// int8_linear for few rows of x: the weight streams through once, 16 or 32 of its rows at a time in
// a block of threads, whose warps share out K.
#ifndef LOWBIT_KERNELS_CUDA_INT8_DECODE_CUH
#define LOWBIT_KERNELS_CUDA_INT8_DECODE_CUH

#include "rows.cuh"

namespace {

constexpr int DECODE_COLUMNS = 64; // of the weight, at a time in a warp
constexpr int DECODE_AHEAD = 4;    // times so many are on their way
constexpr int DECODE_BLOCKS = 2;   // on a multiprocessor

// TILES times 8 rows of x and ROWS of the weight, which are the left and the right side of the
// products: sixteen codes that a thread loads are two right sides as they stand, since integer sums
// do not depend on the order of columns. With FUSED each block quantizes x by itself, into shared
// memory; otherwise a.rows holds it.
//
// Codes are loaded DECODE_AHEAD steps before they are used, those of the block's next rows while it
// finishes these, and the first of all before x is quantized.
template <lowbit_float type, int TILES, int ROWS, bool FUSED, bool ALIGNED>
__global__ void __launch_bounds__(ROW_THREADS, DECODE_BLOCKS)
    decode_kernel(lowbit_cuda_int8_linear a) {
    constexpr int WARPS = ROW_THREADS / 32, TOKENS = 8 * TILES;
    constexpr uint32_t STEP = WARPS * DECODE_COLUMNS, PASS = DECODE_AHEAD * STEP;
    LB_SHARED(sums, int32_t[WARPS][TOKENS][ROWS + 9]); // 9: few bank conflicts, written and read
    LB_SHARED(of_row, OfRow[TOKENS]);
    LB_SHARED(of_column, OfColumn[ROWS]);
    LB_SHARED(list, lowbit_cuda_int8_outlier[TOKENS][LISTED + 1]); // rows in different banks
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t k = static_cast<uint32_t>(a.k), column = warp * DECODE_COLUMNS + lane % 4 * 16;
    uint4 codes[DECODE_AHEAD][ROWS / 8] = {};
    const int8_t *from = nullptr; // the rows whose codes are loaded next
    uint32_t offsets[ROWS / 8];
    const auto aim = [&](size_t n0) {
        from = a.weight + n0 * k;
        const uint32_t rows = static_cast<uint32_t>(min(a.n - n0, size_t{ROWS}));
        for (uint32_t r = 0; r < ROWS / 8;
             r++) // nobody asks for what comes of rows beyond the last
            offsets[r] = min(lane / 4 + r * 8, rows - 1) * k;
    };
    // Beyond k there stays what was there: q is zero.
    const auto load = [&](int i, uint32_t k0) {
        const uint32_t at = k0 + i * STEP + column;
        if (at < k)
#pragma unroll
            for (int r = 0; r < ROWS / 8; r++)
                codes[i][r] = load_codes<ALIGNED>(from + offsets[r], at, k, true);
    };
    size_t n0 = static_cast<size_t>(blockIdx.x) * ROWS;
    aim(n0);
#pragma unroll
    for (int i = 0; i < DECODE_AHEAD; i++)
        load(i, 0);

    lowbit_cuda_int8_rows rows = a.rows;
    if constexpr (FUSED) {
        LB_SHARED(scratch, RowScratch<ROW_THREADS>);
        LB_DYNAMIC_SHARED(memory, int8_t[LOWBIT_CUDA_FUSED]); // and the mask
        rows.q = memory;
        rows.mask = reinterpret_cast<uint32_t *>(memory + a.m * rows.stride);
        for (size_t m = 0; m < a.m; m++)
            quantize_row<type>(
                static_cast<const lb_bits<type> *>(a.x) + m * a.x_stride, a.k, rows.stride,
                a.threshold, scratch,
                {rows.q + m * rows.stride, rows.mask + m * (rows.stride / 32), &of_row[m], list[m]},
                nullptr);
    } else {
        ptx::wait_for_last();
        for (uint32_t i = threadIdx.x; i < a.m * LISTED; i += ROW_THREADS) {
            const uint32_t m = i / LISTED, at = i % LISTED;
            if (at == 0)
                of_row[m] = rows.of_row[m];
            if (at < rows.of_row[m].outliers)
                list[m][at] = rows.list[i];
        }
    }
    const int8_t *q_of[TILES]; // nobody asks for what comes of rows beyond the last
    for (int tile = 0; tile < TILES; tile++)
        q_of[tile] = rows.q + min(tile * 8 + lane / 4, static_cast<int>(a.m) - 1) * rows.stride;
    for (; n0 < a.n; n0 += gridDim.x * ROWS) {
        if (threadIdx.x < ROWS)
            of_column[threadIdx.x] = column_of(a, n0 + threadIdx.x);
        int32_t acc[ROWS / 8][4] = {};
        for (uint32_t k0 = 0; k0 < k; k0 += PASS) {
            uint32_t next = k0 + PASS;
            if (next >= k) {
                const size_t next_n0 = n0 + gridDim.x * ROWS;
                next = next_n0 < a.n ? 0 : k;
                if (next_n0 < a.n)
                    aim(next_n0);
            }
#pragma unroll
            for (int i = 0; i < DECODE_AHEAD; i++) {
                const uint32_t at = k0 + i * STEP + column;
                uint4 q[2] = {};
#pragma unroll
                for (int tile = 0; tile < TILES; tile++)
                    if (at < rows.stride)
                        q[tile] = *reinterpret_cast<const uint4 *>(q_of[tile] + at);
                const uint32_t first[4] = {q[0].x, q[1].x, q[0].y, q[1].y},
                               second[4] = {q[0].z, q[1].z, q[0].w, q[1].w};
#pragma unroll
                for (int r = 0; r < ROWS / 8; r++) {
                    ptx::mma_m16n8k32_s8(acc[r], first, {codes[i][r].x, codes[i][r].y});
                    ptx::mma_m16n8k32_s8(acc[r], second, {codes[i][r].z, codes[i][r].w});
                }
                load(i, next);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS / 8; r++)
#pragma unroll
            for (int i = 0; i < 2 * TILES; i++)
                sums[warp][lane / 4 + i / 2 * 8][r * 8 + lane % 4 * 2 + i % 2] = acc[r][i];
        __syncthreads();
        // Neighbours have the same row of the weight: outliers in the same column are one load.
        for (int e = threadIdx.x; e < TOKENS * ROWS; e += ROW_THREADS) {
            const int token = e % TOKENS, row = e / TOKENS;
            const size_t m = token, n = n0 + row;
            if (m >= a.m || n >= a.n)
                continue;
            int32_t total = 0;
            for (int w = 0; w < WARPS; w++)
                total += sums[w][token][row];
            const OfColumn column[1] = {of_column[row]};
            OutlierSums<1> o(column);
            const OfRow of = of_row[token];
            for (uint32_t i = 0; i < listed(of.outliers); i += 4) {
                int8_t code[4];
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    code[j] = a.weight[n * a.k + list[token][min(i + j, of.outliers - 1)].k];
#pragma unroll
                for (uint32_t j = 0; j < 4; j++)
                    if (i + j < of.outliers)
                        o.add(list[token][i + j].k, list[token][i + j].x, {code[j]});
            }
            if (of.outliers > LISTED)
                each_unlisted(a, rows, m, list[token][LISTED - 1].k,
                              [&](uint32_t k, float x) { o.add(k, x, {a.weight[n * a.k + k]}); });
            const float y = column[0].output(of, total, o.sum(0));
            lb_store_any(a.y_type, a.y, m * a.y_stride + n, y);
        }
        __syncthreads(); // the next rows reuse sums and of_column
    }
}

} // namespace

#endif
