// SPDX-License-Identifier: MIT
// lut4_linear on the tensor cores. A warp takes 16 rows of the weight and up to 64 of x; 64 columns of
// both are multiplied before the block's scale is, so that the table of a codebook serves all blocks. A
// thread looks up eight bytes of a row, 16 columns next to each other, for four products of 16 columns:
// the sum over columns may take them in any order, and x needs no rearranging.
#ifndef LOWBIT_KERNELS_CUDA_LUT4_PRODUCT_CUH
#define LOWBIT_KERNELS_CUDA_LUT4_PRODUCT_CUH

#include "weight.cuh"

#include <ptx.cuh>

namespace {

constexpr int LUT4_K = 64; // columns at a time

// A thread's part of 64 columns: eight bytes of row g of the weight and eight of row g + 8.
struct Codes {
    uint2 upper, lower;
    ScaleParts upper_scale, lower_scale;
};

__device__ __forceinline__ uint32_t byte_of(uint2 bytes, int i) {
    return (i < 4 ? bytes.x : bytes.y) >> (i % 4 * 8) & 0xff;
}

// sum += scale * (W x) for 8 TILES rows of x. x(tile, part, words) gives a thread's 16 fp16 numbers.
template <int TILES, int X_PARTS, int C_PARTS, class X>
__device__ __forceinline__ void multiply(const Table<C_PARTS> &table, int lane, uint2 upper,
                                         uint2 lower, float upper_scale, float lower_scale, X x,
                                         float (&sum)[TILES][4]) {
    float part[TILES][4] = {};
    uint32_t words[TILES][X_PARTS][8];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int p = 0; p < X_PARTS; p++)
            x(tile, p, words[tile][p]);
#pragma unroll
    for (int step = 0; step < 4; step++) {
        uint32_t looked[4][C_PARTS], a[C_PARTS][4];
        table.look_up(byte_of(upper, 2 * step), lane, looked[0]);
        table.look_up(byte_of(lower, 2 * step), lane, looked[1]);
        table.look_up(byte_of(upper, 2 * step + 1), lane, looked[2]);
        table.look_up(byte_of(lower, 2 * step + 1), lane, looked[3]);
#pragma unroll
        for (int p = 0; p < C_PARTS; p++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                a[p][i] = looked[i][p];
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int p = X_PARTS - 1; p >= 0; p--) // the small products first
#pragma unroll
                for (int c = C_PARTS - 1; c >= 0; c--)
                    if (p + c < 2) // the product of both remainders is beneath the last bit
                        ptx::mma_m16n8k16_f16(
                            part[tile], a[c],
                            {words[tile][p][2 * step], words[tile][p][2 * step + 1]});
    }
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[tile][i] =
                __fmaf_rn(part[tile][i], i < 2 ? upper_scale : lower_scale, sum[tile][i]);
}

// ---------------------------------------------------------------------------------------------
// Few rows of x: the weight streams through once, sixteen of its rows in a block of threads, whose
// warps share out the columns.

constexpr int DECODE_AHEAD = 4; // pieces of 64 columns that a warp has under way

template <int TILES, int X_PARTS, int C_PARTS>
__global__ void __launch_bounds__(LUT4_THREADS, X_PARTS == 1 ? 2 : 1)
    decode_kernel(lowbit_cuda_lut4_linear a) {
    LB_SHARED(table, Table<C_PARTS>);
    LB_SHARED(nested, float[256]);
    LB_SHARED(sums, float[LUT4_WARPS][TILES][32][4]);
    table.fill(a.weight.codebook, LUT4_THREADS);
    float offset = 0.0f;
    if (a.weight.nested_absmax) {
        nested[threadIdx.x] = a.weight.nested_codebook[threadIdx.x];
        offset = a.weight.nested_offset[0];
    }
    __syncthreads();
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t n0 = static_cast<size_t>(blockIdx.x) * 16, n = n0 + lane / 4;
    constexpr size_t STEP = LUT4_WARPS * LUT4_K;
    float sum[TILES][4] = {};
    for (size_t k0 = warp * LUT4_K; k0 < a.k; k0 += DECODE_AHEAD * STEP) {
        Codes codes[DECODE_AHEAD];
#pragma unroll
        for (int i = 0; i < DECODE_AHEAD; i++) {
            const size_t k = k0 + i * STEP;
            codes[i] = {};
            if (k < a.k && n < a.n) {
                const size_t at = n * a.k + k;
                codes[i].upper = ptx::ldg_nc_v2(a.weight.packed + at / 2 + lane % 4 * 8);
                codes[i].upper_scale = load_scale(a.weight, at >> a.weight.log2_blocksize);
            }
            if (k < a.k && n + 8 < a.n) {
                const size_t at = (n + 8) * a.k + k;
                codes[i].lower = ptx::ldg_nc_v2(a.weight.packed + at / 2 + lane % 4 * 8);
                codes[i].lower_scale = load_scale(a.weight, at >> a.weight.log2_blocksize);
            }
        }
#pragma unroll
        for (int i = 0; i < DECODE_AHEAD; i++) {
            const size_t k = k0 + i * STEP;
            if (k >= a.k)
                break;
            multiply<TILES, X_PARTS, C_PARTS>(
                table, lane, codes[i].upper, codes[i].lower,
                scale_of(a.weight, codes[i].upper_scale, nested, offset),
                scale_of(a.weight, codes[i].lower_scale, nested, offset),
                [&](int tile, int part, uint32_t (&words)[8]) {
                    const size_t m = tile * 8 + lane / 4;
                    uint4 halves[2] = {};
                    for (int piece = 0; piece < 2 && m < a.m; piece++)
                        halves[piece] = *reinterpret_cast<const uint4 *>(
                            a.rows.halves + (part * a.m + m) * a.k + k +
                            place_of(m, lane % 4, piece));
                    memcpy(words, halves, sizeof words);
                },
                sum);
        }
    }
    for (int tile = 0; tile < TILES; tile++)
        for (int i = 0; i < 4; i++)
            sums[warp][tile][lane][i] = sum[tile][i];
    __syncthreads();
    const float unit = codebook_unit(a.weight.codebook);
    for (int e = threadIdx.x; e < TILES * 8 * 16; e += LUT4_THREADS) {
        const int row = e % 16, token = e / 16;
        if (n0 + row >= a.n || static_cast<size_t>(token) >= a.m)
            continue;
        float total = 0.0f;
        for (int w = 0; w < LUT4_WARPS; w++)
            total = __fadd_rn(
                total, sums[w][token / 8][row % 8 * 4 + token % 8 / 2][row / 8 * 2 + token % 2]);
        store_sum(a, token, n0 + row, total, unit);
    }
}

// ---------------------------------------------------------------------------------------------
// More rows of x: tiles of 64 x 64 of y, x and the weight by way of shared memory. So few tiles leave
// most of a GPU idle; K is split among blocks then, whose sums are added in a fixed order.

constexpr int TILE_M = 64, TILE_N = 64, TILE_THREADS = 128;

template <int X_PARTS> struct TileStage {
    uint16_t x[X_PARTS][TILE_M][LUT4_K];
    uint8_t weight[TILE_N][LUT4_K / 2];
};
template <int X_PARTS, int C_PARTS> struct TileShared {
    static constexpr int STAGES = X_PARTS == 1 ? 4 : 3; // in 99 KB, which every GPU has
    TileStage<X_PARTS> stage[STAGES];
    Table<C_PARTS> table;
    float nested[256];
};

template <int X_PARTS, int C_PARTS>
__global__ void __launch_bounds__(TILE_THREADS, 2) tiles_kernel(lowbit_cuda_lut4_linear a) {
    using Shared = TileShared<X_PARTS, C_PARTS>;
    LB_DYNAMIC_SHARED(shared, Shared);
    shared.table.fill(a.weight.codebook, TILE_THREADS);
    float offset = 0.0f;
    if (a.weight.nested_absmax) {
        for (int i = threadIdx.x; i < 256; i += TILE_THREADS)
            shared.nested[i] = a.weight.nested_codebook[i];
        offset = a.weight.nested_offset[0];
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t n0 = static_cast<size_t>(blockIdx.x) * TILE_N,
                 m0 = static_cast<size_t>(blockIdx.y) * TILE_M;
    const size_t steps = a.k / LUT4_K, begin = steps * blockIdx.z / a.splits,
                 end = steps * (blockIdx.z + 1) / a.splits;
    const auto fetch = [&](size_t step) {
        if (step < end) {
            auto &stage = shared.stage[step % Shared::STAGES];
            const size_t k = step * LUT4_K;
            for (int i = threadIdx.x; i < X_PARTS * TILE_M * 8; i += TILE_THREADS) {
                const int part = i / (TILE_M * 8), row = i / 8 % TILE_M, piece = i % 8;
                const bool there = m0 + row < a.m;
                const size_t m = there ? m0 + row : 0;
                ptx::cp_async16(&stage.x[part][row][piece * 8],
                                a.rows.halves + (part * a.m + m) * a.k + k + piece * 8,
                                there ? 16 : 0);
            }
            for (int i = threadIdx.x; i < TILE_N * 2; i += TILE_THREADS) {
                const int row = i / 2, piece = i % 2;
                const bool there = n0 + row < a.n;
                const size_t n = there ? n0 + row : 0;
                ptx::cp_async16(&stage.weight[row][piece * 16],
                                a.weight.packed + (n * a.k + k) / 2 + piece * 16, there ? 16 : 0);
            }
        }
        ptx::cp_async_commit(); // also an empty group: they are counted
    };
    for (int i = 0; i < Shared::STAGES - 1; i++)
        fetch(begin + i);

    const int row = warp * 16 + lane / 4; // of the tile, and row + 8
    const auto scale = [&](size_t step, int r) -> ScaleParts {
        if (step >= end || n0 + r >= a.n)
            return {};
        return load_scale(a.weight, ((n0 + r) * a.k + step * LUT4_K) >> a.weight.log2_blocksize);
    };
    float sum[TILE_M / 8][4] = {};
    ScaleParts upper = scale(begin, row), lower = scale(begin, row + 8);
    for (size_t step = begin; step < end; step++) {
        ptx::cp_async_wait<Shared::STAGES - 2>();
        __syncthreads(); // this step is there, and the stage before it is no longer read
        fetch(step + Shared::STAGES - 1);
        const ScaleParts now_upper = upper, now_lower = lower;
        upper = scale(step + 1, row), lower = scale(step + 1, row + 8);
        const auto &stage = shared.stage[step % Shared::STAGES];
        multiply<TILE_M / 8, X_PARTS, C_PARTS>(
            shared.table, lane, *reinterpret_cast<const uint2 *>(&stage.weight[row][lane % 4 * 8]),
            *reinterpret_cast<const uint2 *>(&stage.weight[row + 8][lane % 4 * 8]),
            scale_of(a.weight, now_upper, shared.nested, offset),
            scale_of(a.weight, now_lower, shared.nested, offset),
            [&](int tile, int part, uint32_t (&words)[8]) {
                const int m = tile * 8 + lane / 4;
                for (int piece = 0; piece < 2; piece++) {
                    const uint4 halves = *reinterpret_cast<const uint4 *>(
                        &stage.x[part][m][place_of(m, lane % 4, piece)]);
                    memcpy(words + 4 * piece, &halves, sizeof halves);
                }
            },
            sum);
    }
    const float unit = codebook_unit(a.weight.codebook);
#pragma unroll
    for (int tile = 0; tile < TILE_M / 8; tile++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const size_t m = m0 + tile * 8 + lane % 4 * 2 + i % 2, n = n0 + row + i / 2 * 8;
            if (m >= a.m || n >= a.n)
                continue;
            if (a.splits == 1)
                store_sum(a, m, n, sum[tile][i], unit);
            else
                a.partial[(blockIdx.z * a.m + m) * a.n + n] = sum[tile][i];
        }
}

__global__ void __launch_bounds__(LUT4_THREADS) add_splits_kernel(lowbit_cuda_lut4_linear a) {
    const size_t count = a.m * a.n;
    const float unit = codebook_unit(a.weight.codebook);
    for (size_t i = static_cast<size_t>(blockIdx.x) * LUT4_THREADS + threadIdx.x; i < count;
         i += static_cast<size_t>(gridDim.x) * LUT4_THREADS) {
        float sum = a.partial[i];
        for (int split = 1; split < a.splits; split++)
            sum = __fadd_rn(sum, a.partial[split * count + i]);
        store_sum(a, i / a.n, i % a.n, sum, unit);
    }
}

} // namespace

#endif
