// SPDX-License-Identifier: MIT
// lut4_linear on the tensor cores. A warp takes 16 ROWS rows of the weight and 8 TILES of x; 64
// columns of both, a piece, are multiplied before the block's scale is, so that the table of a
// codebook serves all blocks. A thread looks up eight bytes of a row, 16 columns next to each
// other, for four products of 16 columns: the sum over columns may take them in any order, and x
// needs no rearranging.
//
// What bounds these kernels besides memory is passes over the banks of shared memory: per piece 16
// ROWS for looking up and 8 TILES for x, for 4 ROWS TILES products.
#ifndef LOWBIT_KERNELS_CUDA_LUT4_PRODUCT_CUH
#define LOWBIT_KERNELS_CUDA_LUT4_PRODUCT_CUH

#include "weight.cuh"

namespace {

constexpr int LOG2_PIECE = 6, PIECE = 1 << LOG2_PIECE; // columns

// Sixteen rows of a piece of the weight: a[step] is an operand of the product of 16 columns.
template <int C_PARTS> struct Piece {
    uint32_t a[4][C_PARTS][4];

    // From eight bytes of row g and of row g + 8.
    __device__ __forceinline__ void look_up(const Table<C_PARTS> &table, int lane, uint2 upper,
                                            uint2 lower) {
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint2 bytes = i % 2 ? lower : upper;
                const auto entry =
                    table.look_up(step < 2 ? bytes.x : bytes.y, step % 2 * 2 + i / 2, lane);
                for (int c = 0; c < C_PARTS; c++)
                    a[step][c][i] = entry.part[c];
            }
    }
    // sum += scale * (W x) for eight rows of x, of which a thread has 16 numbers of row g.
    template <int X_PARTS>
    __device__ __forceinline__ void multiply(const uint32_t (&x)[X_PARTS][8], float upper_scale,
                                             float lower_scale, float (&sum)[4]) const {
        float part[4] = {};
#pragma unroll
        for (int step = 0; step < 4; step++)
#pragma unroll
            for (int p = X_PARTS - 1; p >= 0; p--) // the small products first
#pragma unroll
                for (int c = C_PARTS - 1; c >= 0; c--)
                    if (p + c < 2) // the product of both remainders is beneath the last bit
                        ptx::mma_m16n8k16_f16(part, a[step][c],
                                              {x[p][2 * step], x[p][2 * step + 1]});
#pragma unroll
        for (int i = 0; i < 4; i++)
            sum[i] = __fmaf_rn(part[i], i < 2 ? upper_scale : lower_scale, sum[i]);
    }
};

// Eight numbers of x, halves of those that a thread has of a row in a piece.
__device__ __forceinline__ void load_x(const uint16_t *from, uint32_t (&x)[8], int half) {
    const uint4 halves = *reinterpret_cast<const uint4 *>(from);
    memcpy(x + 4 * half, &halves, sizeof halves);
}

// The scales of a warp's rows of the weight, of four of its pieces at a time: the four lanes of a
// row load one each, and the next while these are used. Rows and pieces behind the last are read as
// the last.
template <int ROWS> struct Scales {
    unsigned row, eight_rows, last; // blocks, of which 2^32 are 128 GB of codes
    ScaleParts next[2 * ROWS];
    float now[2 * ROWS];

    // n: the warp's first row.
    __device__ __forceinline__ Scales(const lowbit_cuda_lut4_linear &a, size_t n, int lane) {
        const unsigned in_row = static_cast<unsigned>(a.k >> a.weight.log2_blocksize);
        row = static_cast<unsigned>(n + lane / 4) * in_row;
        eight_rows = 8 * in_row;
        last = static_cast<unsigned>(a.n) * in_row - 1;
    }
    // Of the lane's piece.
    __device__ __forceinline__ void load(const lowbit_cuda_lut4_weight &w, unsigned piece,
                                         unsigned end) {
        if (end == 0) // no columns at all
            return;
        const unsigned block = row + (min(piece, end - 1) >> (w.log2_blocksize - LOG2_PIECE));
#pragma unroll
        for (int i = 0; i < 2 * ROWS; i++)
            next[i] = load_scale(w, min(block + i * eight_rows, last));
    }
    __device__ __forceinline__ void advance(const lowbit_cuda_lut4_weight &w, const float *nested,
                                            float offset) {
#pragma unroll
        for (int i = 0; i < 2 * ROWS; i++)
            now[i] = scale_of(w, next[i], nested, offset);
    }
    // Those of one of the four pieces.
    __device__ __forceinline__ void get(int lane, unsigned which, float (&scale)[2 * ROWS]) const {
#pragma unroll
        for (int i = 0; i < 2 * ROWS; i++)
            scale[i] = __shfl_sync(LB_ALL_LANES, now[i], (lane & 28) | (which & 3));
    }
};

// ---------------------------------------------------------------------------------------------
// Few rows of x: the weight streams through once, a few of its rows in a block of threads, whose
// warps take four neighbouring pieces, a line of 128 bytes of each row, in turn.

constexpr unsigned RUN = 4; // of pieces

// Of one or two rows of x, each block makes halves for itself.
constexpr size_t FUSED_HALVES = 16384;
template <bool fused> struct FusedRows {};
template <> struct FusedRows<true> {
    int32_t of_warp[LUT4_WARPS];
    float scale[2];
    alignas(16) uint16_t halves[FUSED_HALVES]; // last: a launch leaves out what it does not need
};

template <int ROWS, int TILES, lowbit_float type> struct DecodeShared {
    static constexpr bool FUSED = ROWS == 1;
    static constexpr int AHEAD = 2 / ROWS; // runs that a warp has under way: 32 KB in a block
    Table<c_parts<type>> table;
    float nested[256];
    union {
        uint8_t codes[LUT4_WARPS][AHEAD][RUN][16 * ROWS][PIECE / 2];
        float sums[LUT4_WARPS][8 * TILES][16 * ROWS + 4]; // afterwards: from different banks too
    };
    FusedRows<FUSED> rows;
};

// That a multiprocessor has registers for.
template <int TILES, lowbit_float type>
constexpr int decode_blocks = type == bf16 || (type == f16 && TILES == 1) ? 2 : 1;

template <int ROWS, int TILES, lowbit_float type>
__global__ void __launch_bounds__(LUT4_THREADS, decode_blocks<TILES, type>)
    decode_kernel(lowbit_cuda_lut4_linear a) {
    using Shared = DecodeShared<ROWS, TILES, type>;
    constexpr int X_PARTS = x_parts<type>, C_PARTS = c_parts<type>;
    constexpr unsigned STRIDE = LUT4_WARPS * RUN; // of a warp, in pieces
    LB_DYNAMIC_SHARED(shared, Shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t n0 = static_cast<size_t>(blockIdx.x) * 16 * ROWS;
    const unsigned pieces = static_cast<unsigned>(a.k / PIECE);
    const unsigned runs = (pieces + STRIDE - 1) / STRIDE; // of every warp, so that none waits alone
    // Behind the last row and the last piece no byte is read, and zeros come.
    const uint8_t *const codes_from =
        a.weight.packed + (n0 + lane / 2) * a.k / 2 + lane % 2 * 16 + warp * RUN * (PIECE / 2);
    const auto fetch = [&](unsigned run, unsigned i) {
        const uint8_t *const from =
            codes_from + (static_cast<size_t>(run) * STRIDE + i) * (PIECE / 2);
#pragma unroll
        for (int row = 0; row < 16 * ROWS; row += 16)
            ptx::cp_async16(
                &shared.codes[warp][run % Shared::AHEAD][i][row + lane / 2][lane % 2 * 16],
                from + row / 2 * a.k,
                run * STRIDE + warp * RUN + i < pieces && n0 + row + lane / 2 < a.n ? 16 : 0);
        ptx::cp_async_commit();
    };
    // The weight is under way before anything else is asked for.
    for (unsigned i = 0; i < Shared::AHEAD * RUN; i++)
        fetch(i / RUN, i % RUN);
    Scales<ROWS> scales(a, n0, lane);
    scales.load(a.weight, warp * RUN + lane % 4, pieces);
    const float offset = load_nested(a.weight, shared.nested, LUT4_THREADS);
    const float unit = shared.table.fill(a.weight.codebook, LUT4_THREADS);
    lowbit_cuda_lut4_rows rows = a.rows;
    if constexpr (Shared::FUSED) {
        rows = {shared.rows.halves, shared.rows.scale};
        for (size_t m = 0; m < a.m; m++) {
            __syncthreads();
            const float scale =
                prepare_row<type>(static_cast<const lb_bits<type> *>(a.x) + m * a.x_stride, m, a.k,
                                  rows.halves + m * a.k, a.m * a.k, shared.rows.of_warp);
            if (threadIdx.x == 0)
                rows.scale[m] = scale;
        }
    } else {
        ptx::wait_for_last();
    }
    __syncthreads();
    const uint16_t *x_from[TILES][2]; // of rows behind the last that one
    for (int tile = 0; tile < TILES; tile++)
        for (int half = 0; half < 2; half++) {
            const size_t m = min(static_cast<size_t>(tile * 8 + lane / 4), a.m - 1);
            x_from[tile][half] =
                rows.halves + m * a.k + place_of(m, lane % 4, half) + warp * RUN * PIECE;
        }

    uint32_t x[2][TILES][X_PARTS][8]; // of a piece, and of the next, asked for before it is needed
    const auto load_piece = [&](unsigned piece, unsigned at, uint32_t (&words)[TILES][X_PARTS][8]) {
        if (piece < pieces)
#pragma unroll
            for (int tile = 0; tile < TILES; tile++)
#pragma unroll
                for (int part = 0; part < X_PARTS; part++)
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        load_x(x_from[tile][half] + part * a.m * a.k + at * PIECE,
                               words[tile][part], half);
    };
    load_piece(warp * RUN, 0, x[0]);

    float sum[ROWS][TILES][4] = {};
    for (unsigned run = 0; run < runs; run++) {
        const unsigned first = run * STRIDE + warp * RUN;
        scales.advance(a.weight, shared.nested, offset);
        scales.load(a.weight, first + STRIDE + lane % 4, pieces);
#pragma unroll
        for (unsigned i = 0; i < RUN; i++) {
            const unsigned next = i + 1 < RUN ? i + 1 : STRIDE;
            load_piece(first + next, next, x[next % 2]);
            ptx::cp_async_wait<Shared::AHEAD * RUN - 1>();
            __syncwarp();
            uint2 codes[2 * ROWS];
#pragma unroll
            for (int row = 0; row < 2 * ROWS; row++)
                codes[row] = *reinterpret_cast<const uint2 *>(
                    &shared.codes[warp][run % Shared::AHEAD][i][8 * row + lane / 4][lane % 4 * 8]);
            __syncwarp();
            fetch(run + Shared::AHEAD, i);
            float scale[2 * ROWS];
            scales.get(lane, i, scale);
            if (first + i < pieces)
#pragma unroll
                for (int row = 0; row < ROWS; row++) {
                    Piece<C_PARTS> w;
                    w.look_up(shared.table, lane, codes[2 * row], codes[2 * row + 1]);
#pragma unroll
                    for (int tile = 0; tile < TILES; tile++)
                        w.multiply(x[i % 2][tile], scale[2 * row], scale[2 * row + 1],
                                   sum[row][tile]);
                }
        }
        for (int tile = 0; tile < TILES; tile++)
            for (int half = 0; half < 2; half++)
                x_from[tile][half] += STRIDE * PIECE;
    }
    ptx::cp_async_wait<0>();
    __syncthreads(); // nothing is under way to the codes, and nobody reads them
    for (int row = 0; row < ROWS; row++)
        for (int tile = 0; tile < TILES; tile++)
            for (int i = 0; i < 4; i++)
                shared
                    .sums[warp][8 * tile + lane % 4 * 2 + i % 2][16 * row + i / 2 * 8 + lane / 4] =
                    sum[row][tile][i];
    __syncthreads();
    for (int e = threadIdx.x; e < 8 * TILES * 16 * ROWS; e += LUT4_THREADS) {
        const int row = e % (16 * ROWS), m = e / (16 * ROWS);
        if (n0 + row >= a.n || static_cast<size_t>(m) >= a.m)
            continue;
        float total = 0.0f;
        for (int w = 0; w < LUT4_WARPS; w++)
            total = __fadd_rn(total, shared.sums[w][m][row]);
        store_sum(a, m, n0 + row, total, rows.scale[m], unit);
    }
}

// ---------------------------------------------------------------------------------------------
// More rows of x: tiles of y, x and the weight by way of shared memory. So few tiles leave most of
// a GPU idle; K is split among blocks then, whose sums are added in a fixed order.

constexpr int TILE_WARPS = 4, TILE_THREADS = 32 * TILE_WARPS, TILE_ROWS = 2;
constexpr int TILE_N = 16 * TILE_ROWS * TILE_WARPS;

template <int TILES, lowbit_float type> struct TileStage {
    uint16_t x[x_parts<type>][8 * TILES][PIECE];
    uint8_t weight[TILE_N][PIECE / 2];
};
template <int TILES, lowbit_float type> struct TileShared {
    static constexpr int STAGES = 3; // at most 82 KB with the table: every GPU has 99
    union {
        TileStage<TILES, type> stage[STAGES];
        float sums[8 * TILES][TILE_N + 4]; // afterwards; lanes write them to 32 different banks
    };
    Table<c_parts<type>> table;
    float nested[256];
};

template <int TILES, lowbit_float type>
__global__ void __launch_bounds__(TILE_THREADS, c_parts<type> == 1 ? 3 : 2)
    tiles_kernel(lowbit_cuda_lut4_linear a) {
    using Shared = TileShared<TILES, type>;
    constexpr int X_PARTS = x_parts<type>, C_PARTS = c_parts<type>;
    constexpr int TILE_M = 8 * TILES;
    ptx::begin_next();
    LB_DYNAMIC_SHARED(shared, Shared);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const size_t n0 = static_cast<size_t>(blockIdx.x) * TILE_N,
                 m0 = static_cast<size_t>(blockIdx.y) * TILE_M;
    const size_t pieces = a.k / PIECE;
    const unsigned begin = static_cast<unsigned>(pieces * blockIdx.z / a.splits),
                   end = static_cast<unsigned>(pieces * (blockIdx.z + 1) / a.splits);
    // Behind the last row no byte is read, and zeros come.
    constexpr int X_ROWS = TILE_THREADS / 8, W_ROWS = TILE_THREADS / 2; // at once
    const int x_row = threadIdx.x / 8, x_at = threadIdx.x % 8 * 8;
    const int w_row = threadIdx.x / 2, w_at = threadIdx.x % 2 * 16;
    const uint16_t *const x_from = a.rows.halves + (m0 + x_row) * a.k + x_at;
    const uint8_t *const w_from = a.weight.packed + (n0 + w_row) * a.k / 2 + w_at;
    const auto fetch_weight = [&](unsigned piece) {
        if (piece < end)
#pragma unroll
            for (int i = 0; i < TILE_N; i += W_ROWS)
                ptx::cp_async16(&shared.stage[piece % Shared::STAGES].weight[w_row + i][w_at],
                                w_from + i / 2 * a.k + static_cast<size_t>(piece) * (PIECE / 2),
                                n0 + w_row + i < a.n ? 16 : 0);
    };
    const auto fetch_x = [&](unsigned piece) {
        if (piece < end)
#pragma unroll
            for (int part = 0; part < X_PARTS; part++)
#pragma unroll
                for (int i = 0; i < TILE_M; i += X_ROWS)
                    ptx::cp_async16(&shared.stage[piece % Shared::STAGES].x[part][x_row + i][x_at],
                                    x_from + (part * a.m + i) * a.k +
                                        static_cast<size_t>(piece) * PIECE,
                                    m0 + x_row + i < a.m ? 16 : 0);
    };
    for (int i = 0; i < Shared::STAGES - 1; i++)
        fetch_weight(begin + i);
    const int row = warp * 16 * TILE_ROWS + lane / 4; // the first of the lane's, in the tile
    Scales<TILE_ROWS> scales(a, n0 + warp * 16 * TILE_ROWS, lane);
    scales.load(a.weight, begin + lane % 4, end);
    const float offset = load_nested(a.weight, shared.nested, TILE_THREADS);
    const float unit = shared.table.fill(a.weight.codebook, TILE_THREADS);
    ptx::wait_for_last();
    for (int i = 0; i < Shared::STAGES - 1; i++) {
        fetch_x(begin + i);
        ptx::cp_async_commit(); // also an empty group: they are counted
    }

    float sum[TILE_ROWS][TILES][4] = {};
    for (unsigned piece = begin; piece < end; piece++) {
        ptx::cp_async_wait<Shared::STAGES - 2>();
        __syncthreads(); // this piece is there, and the stage of the one before is no longer read
        fetch_weight(piece + Shared::STAGES - 1);
        fetch_x(piece + Shared::STAGES - 1);
        ptx::cp_async_commit();
        const unsigned turn = piece - begin;
        if (turn % 4 == 0) {
            scales.advance(a.weight, shared.nested, offset);
            scales.load(a.weight, piece + 4 + lane % 4, end);
        }
        float scale[2 * TILE_ROWS];
        scales.get(lane, turn, scale);
        const auto &stage = shared.stage[piece % Shared::STAGES];
        uint2 codes[2 * TILE_ROWS];
#pragma unroll
        for (int i = 0; i < 2 * TILE_ROWS; i++)
            codes[i] = *reinterpret_cast<const uint2 *>(&stage.weight[row + 8 * i][lane % 4 * 8]);
        Piece<C_PARTS> w[TILE_ROWS];
#pragma unroll
        for (int r = 0; r < TILE_ROWS; r++)
            w[r].look_up(shared.table, lane, codes[2 * r], codes[2 * r + 1]);
#pragma unroll
        for (int tile = 0; tile < TILES; tile++) {
            const int m = tile * 8 + lane / 4;
            uint32_t x[X_PARTS][8];
#pragma unroll
            for (int part = 0; part < X_PARTS; part++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    load_x(&stage.x[part][m][place_of(m, lane % 4, half)], x[part], half);
#pragma unroll
            for (int r = 0; r < TILE_ROWS; r++)
                w[r].multiply(x, scale[2 * r], scale[2 * r + 1], sum[r][tile]);
        }
    }
    __syncthreads(); // nothing is under way to the stages, and nobody reads them
#pragma unroll
    for (int r = 0; r < TILE_ROWS; r++)
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                shared.sums[tile * 8 + lane % 4 * 2 + i % 2][row + 16 * r + i / 2 * 8] =
                    sum[r][tile][i];
    __syncthreads();
    static_assert(TILE_N == TILE_THREADS, "a column of y for each thread");
    const size_t n = n0 + threadIdx.x;
    for (size_t m = m0; m < m0 + TILE_M && m < a.m && n < a.n; m++) {
        const float total = shared.sums[m - m0][threadIdx.x];
        if (a.splits == 1)
            store_sum(a, m, n, total, a.rows.scale[m], unit);
        else
            a.partial[(blockIdx.z * a.m + m) * a.n + n] = total;
    }
}

// A block adds up columns of one row of y.
__global__ void __launch_bounds__(LUT4_THREADS) add_splits_kernel(lowbit_cuda_lut4_linear a) {
    const size_t m = blockIdx.y, n = static_cast<size_t>(blockIdx.x) * LUT4_THREADS + threadIdx.x;
    const float unit = codebook_unit(a.weight.codebook);
    ptx::wait_for_last();
    if (n >= a.n)
        return;
    float sum = a.partial[m * a.n + n];
    for (int split = 1; split < a.splits; split++)
        sum = __fadd_rn(sum, a.partial[(split * a.m + m) * a.n + n]);
    store_sum(a, m, n, sum, a.rows.scale[m], unit);
}

} // namespace

#endif
