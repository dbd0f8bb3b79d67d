// SPDX-License-Identifier: MIT
// int8_linear for many rows of x: tiles of y, each a tensor-core product of tiles of q and of the
// weight that come through shared memory.
#ifndef LOWBIT_KERNELS_CUDA_INT8_GEMM_CUH
#define LOWBIT_KERNELS_CUDA_INT8_GEMM_CUH

#include "rows.cuh"

namespace {

constexpr int GEMM_K = 128;     // columns at a time: a line of shared memory
constexpr int PANEL_ROWS = 256; // of the weight, at a time in a block of the panel kernel
constexpr int PANEL_BLOCKS = 4; // that share out the rows of 32 columns

// The columns of the weight that hold outliers, as rows of the panel: 32 columns in a block, which
// has nothing to do where no row of x has an outlier.
template <bool ALIGNED>
__global__ void __launch_bounds__(PANEL_ROWS)
    gather_columns_kernel(const int8_t *weight, size_t n, size_t k, lowbit_cuda_int8_panel panel) {
    ptx::begin_next();
    ptx::wait_for_last();
    LB_SHARED(of_warp, int[PANEL_ROWS / 32]);
    const size_t word = blockIdx.x;
    const uint32_t columns = panel.columns[word].marked;
    if (!columns)
        return;
    int before = 0;
    for (size_t i = threadIdx.x; i < word; i += PANEL_ROWS)
        before += __popc(panel.columns[i].marked);
    before = block_scan(before, of_warp).all;
    if (blockIdx.y == 0 && threadIdx.x == 0)
        panel.columns[word].before = before;
    for (size_t row = blockIdx.y * PANEL_ROWS + threadIdx.x; row < panel.stride;
         row += gridDim.y * PANEL_ROWS) {
        const int8_t *from = weight + row * k;
        size_t slot = before;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const uint4 v = load_codes<ALIGNED>(from, word * 32 + half * 16, k, row < n);
            const uint32_t codes[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (int i = 0; i < 16; i++)
                if (columns >> (half * 16 + i) & 1 && slot < panel.capacity)
                    panel.values[slot++ * panel.stride + row] =
                        static_cast<int8_t>(codes[i / 4] >> (i % 4 * 8));
        }
    }
}

// Warps of 2 x 4 have tiles of 16 MT x 8 NT. q and the weight arrive STAGES - 1 steps ahead. A row
// of a tile in shared memory is a line of 128 bytes whose eight pieces of 16 are permuted by the
// row's number: ldmatrix reads eight rows at once, from eight different pieces.
//
// Then what y is made of takes their place, and where a tile has all rows of x a panel of its own,
// of SLOTS columns.
template <int MT_> struct Tile {
    static constexpr int WARPS_N = 4, MT = MT_, NT = 4;
    static constexpr int STAGES = MT < 4 ? 4 : 3, SLOTS = MT < 4 ? 256 : 128; // that fit
    static constexpr int M = 2 * MT * 16, N = WARPS_N * NT * 8;
    static constexpr int THREADS = 2 * WARPS_N * 32;
    static constexpr int THREADS_OF_ROW = N / 4; // where each makes four columns of y
    struct Stage {
        int8_t a[M][GEMM_K], b[N][GEMM_K];
    };
    struct Panel {
        lowbit_cuda_int8_columns columns[LOWBIT_CUDA_LOCAL_K / 32];
        uint32_t k[SLOTS];
        int of_warp[THREADS / 32];
        int8_t values[SLOTS][N];
    };
    struct Sources {
        int32_t acc[M][N + 8]; // rows that a warp writes at once are in different banks
        Panel panel;
        bool last; // of the blocks that share the tile
    };
    union Shared {
        Stage stage[STAGES];
        Sources sources;
    };
    using Sums = int32_t[MT][NT][4];
    static_assert(sizeof(Shared) + M * sizeof(OfRow) + N * sizeof(OfColumn) <= 99 << 10,
                  "shared memory that every GPU has");

    // The calling thread's first row and column in the tile; a row and 8 further ones, two columns
    // of every 8.
    __device__ static int row() { return warp() / WARPS_N * MT * 16 + threadIdx.x % 32 / 4; }
    __device__ static int column() { return warp() % WARPS_N * NT * 8 + threadIdx.x % 4 * 2; }
    __device__ static int warp() { return threadIdx.x / 32; }
};

__device__ __forceinline__ int swizzled(int row, int piece) {
    return (piece ^ (row & 7)) * 16;
}

constexpr uint32_t NEAR = 8; // tiles of rows that go through the weight together

// Where in [m, n] the block's tile begins. What runs at the same time shares rows and columns: the
// codes come from L2.
struct Origin {
    size_t m, n;
};
template <class Tile> __device__ __forceinline__ Origin origin_of_tile(size_t m, size_t n) {
    const uint32_t m_tiles = static_cast<uint32_t>((m + Tile::M - 1) / Tile::M),
                   n_tiles = static_cast<uint32_t>((n + Tile::N - 1) / Tile::N);
    const uint32_t first = blockIdx.x / (NEAR * n_tiles) * NEAR, at = blockIdx.x - first * n_tiles,
                   rows = min(NEAR, m_tiles - first);
    return {static_cast<size_t>(first + at % rows) * Tile::M,
            static_cast<size_t>(at / rows) * Tile::N};
}

// Rows of int8 codes. ALIGNED: they start at 16 bytes, stride and k are multiples of 16.
template <bool ALIGNED_> struct Matrix {
    static constexpr bool ALIGNED = ALIGNED_;
    const int8_t *codes;
    size_t rows, stride, k;
};

// ROWS rows of a matrix from row first on, columns k0 to k0 + GEMM_K; zeros beyond.
template <int ROWS, int THREADS, class Matrix>
__device__ __forceinline__ void fetch(int8_t (&to)[ROWS][GEMM_K], const Matrix &from, size_t first,
                                      uint32_t k0) {
    const int8_t *codes = from.codes + first * from.stride + k0;
    const uint32_t rows =
                       from.rows - first < ROWS ? static_cast<uint32_t>(from.rows - first) : ROWS,
                   columns = static_cast<uint32_t>(from.k) - k0,
                   stride = static_cast<uint32_t>(from.stride);
    static_assert(ROWS * 8 % THREADS == 0, "every thread has as many pieces");
#pragma unroll
    for (uint32_t each = 0; each < ROWS * 8; each += THREADS) {
        const uint32_t i = each + threadIdx.x, row = i / 8, at = i % 8 * 16;
        int8_t *target = &to[row][swizzled(row, i % 8)];
        if (Matrix::ALIGNED) {
            const bool there = row < rows && at < columns;
            ptx::cp_async16(target, codes + (there ? row * stride + at : 0), there ? 16 : 0);
        } else {
            *reinterpret_cast<uint4 *>(target) =
                load_codes<false>(codes + row * stride, at, columns, row < rows);
        }
    }
}

// How much of K each of the blocks has that share a tile: whole steps.
__device__ __forceinline__ uint32_t share_of(uint32_t k) {
    return (k + gridDim.y * GEMM_K - 1) / (gridDim.y * GEMM_K) * GEMM_K;
}

// acc += a b^T for the tile that begins at row m0 of a and row n0 of b: the block's share of K, of
// gridDim.y. b is there when the launch begins, a may not be. Calls meanwhile() while the first
// codes are on their way. shared is free after the next barrier.
template <class Tile, class A, class B, class F>
__device__ __forceinline__ void multiply(typename Tile::Shared &shared, const A &a, const B &b,
                                         size_t m0, size_t n0, typename Tile::Sums &acc,
                                         F meanwhile) {
    const int lane = threadIdx.x % 32, warp_m = Tile::warp() / Tile::WARPS_N * Tile::MT * 16,
              warp_n = Tile::warp() % Tile::WARPS_N * Tile::NT * 8;
    const uint32_t k = static_cast<uint32_t>(b.k), each = share_of(k),
                   begin = min(blockIdx.y * each, k), end = min(begin + each, k);
    const int steps = static_cast<int>((end - begin + GEMM_K - 1) / GEMM_K);
    const auto stage_of = [&](int step) ->
        typename Tile::Stage & { return shared.stage[step % Tile::STAGES]; };
    const auto fetch_a = [&](int step) {
        if (step < steps)
            fetch<Tile::M, Tile::THREADS>(stage_of(step).a, a, m0, begin + step * GEMM_K);
    };
    const auto fetch_b = [&](int step) {
        if (step < steps)
            fetch<Tile::N, Tile::THREADS>(stage_of(step).b, b, n0, begin + step * GEMM_K);
    };
    for (int step = 0; step < Tile::STAGES - 1; step++)
        fetch_b(step);
    ptx::wait_for_last();
    for (int step = 0; step < Tile::STAGES - 1; step++) {
        fetch_a(step);
        ptx::cp_async_commit(); // also an empty group: they are counted
    }
    meanwhile();
    for (int step = 0; step < steps; step++) {
        ptx::cp_async_wait<Tile::STAGES - 2>();
        __syncthreads(); // this step is there, and the stage before it is no longer read
        fetch_a(step + Tile::STAGES - 1);
        fetch_b(step + Tile::STAGES - 1);
        ptx::cp_async_commit();
        const auto &stage = stage_of(step);
#pragma unroll
        for (int piece = 0; piece < GEMM_K / 16; piece += 2) {
            uint32_t left[Tile::MT][4], right[Tile::NT][2];
#pragma unroll
            for (int i = 0; i < Tile::MT; i++) {
                const int row = warp_m + i * 16 + lane % 16;
                ptx::ldmatrix_x4(left[i], &stage.a[row][swizzled(row, piece + lane / 16)]);
            }
#pragma unroll
            for (int j = 0; j < Tile::NT; j += 2) {
                const int row = warp_n + j * 8 + lane / 16 * 8 + lane % 8;
                uint32_t four[4];
                ptx::ldmatrix_x4(four, &stage.b[row][swizzled(row, piece + lane / 8 % 2)]);
                right[j][0] = four[0], right[j][1] = four[1];
                right[j + 1][0] = four[2], right[j + 1][1] = four[3];
            }
#pragma unroll
            for (int i = 0; i < Tile::MT; i++)
#pragma unroll
                for (int j = 0; j < Tile::NT; j++)
                    ptx::mma_m16n8k32_s8(acc[i][j], left[i], right[j]);
        }
    }
}

// Where several blocks share a tile: adds acc to sums, which begin with zeros. The last block to
// come is told so, and has what all have added.
template <class Tile>
__device__ __forceinline__ bool add_shares(typename Tile::Shared &shared, int32_t *sums,
                                           typename Tile::Sums &acc) {
    constexpr size_t SIZE = Tile::M * Tile::N;
    int32_t *of_tile = sums + blockIdx.x * SIZE + threadIdx.x;
    const auto each = [&](auto f) {
#pragma unroll
        for (int i = 0; i < Tile::MT; i++)
#pragma unroll
            for (int j = 0; j < Tile::NT; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    f(acc[i][j][e], of_tile + ((i * Tile::NT + j) * 4 + e) * Tile::THREADS);
    };
    each([](int32_t &mine, int32_t *sum) { atomicAdd(sum, mine); });
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const int32_t before = atomicAdd(sums + gridDim.x * SIZE + blockIdx.x, 1);
        __threadfence();
        shared.sources.last = before == static_cast<int32_t>(gridDim.y) - 1;
    }
    __syncthreads();
    if (!shared.sources.last)
        return false;
    each([](int32_t &mine, int32_t *sum) { mine = *sum; });
    return true;
}

template <class Tile, bool ALIGNED>
__global__ void __launch_bounds__(Tile::THREADS, 2)
    matmul_kernel(Matrix<ALIGNED> a, Matrix<ALIGNED> b, int32_t *c, size_t c_stride) {
    LB_DYNAMIC_SHARED(shared, typename Tile::Shared);
    const Origin origin = origin_of_tile<Tile>(a.rows, b.rows);
    const size_t m0 = origin.m, n0 = origin.n;
    typename Tile::Sums acc = {};
    multiply<Tile>(shared, a, b, m0, n0, acc, [] {});
#pragma unroll
    for (int i = 0; i < Tile::MT; i++)
#pragma unroll
        for (int j = 0; j < Tile::NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const size_t m = m0 + Tile::row() + i * 16 + e / 2 * 8,
                             n = n0 + Tile::column() + j * 8 + e % 2;
                if (m < a.rows && n < b.rows)
                    c[m * c_stride + n] = acc[i][j][e];
            }
}

constexpr uint32_t NOT_IN_PANEL = ~0u;
constexpr uint32_t TOGETHER = 8; // outliers that a thread looks up at once
static_assert(LISTED % TOGETHER == 0, "those that are listed");

// A panel as the tile sees it: values from the tile's first column of y on.
struct PanelView : lowbit_cuda_int8_panel {
    __device__ __forceinline__ uint32_t slot(uint32_t k) const {
        const uint2 word = *reinterpret_cast<const uint2 *>(&columns[k / 32]); // at once
        const uint32_t bit = 1u << k % 32;
        return word.x & bit ? word.y + __popc(word.x & (bit - 1)) : NOT_IN_PANEL;
    }
    // Four codes from a column on; without a branch, so that many can be on their way. Some that
    // are there if these are not.
    __device__ __forceinline__ uint32_t four(uint32_t slot, int column) const {
        return *reinterpret_cast<const uint32_t *>(values + (slot < capacity ? slot : 0) * stride +
                                                   column);
    }
};

// The tile's own panel, of the listed outliers' columns.
template <class Tile>
__device__ __forceinline__ PanelView gather(const lowbit_cuda_int8_linear &a, size_t m0, size_t n0,
                                            const OfRow (&of_row)[Tile::M],
                                            typename Tile::Panel &panel) {
    for (uint32_t i = threadIdx.x; i < a.rows.stride / 32; i += Tile::THREADS)
        panel.columns[i].marked = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < Tile::M * LISTED; i += Tile::THREADS) {
        const uint32_t row = i % Tile::M, at = i / Tile::M; // most rows have few
        if (at < of_row[row].outliers) {
            const uint32_t k = a.rows.list[(m0 + row) * LISTED + at].k;
            atomicOr(&panel.columns[k / 32].marked, 1u << k % 32);
        }
    }
    __syncthreads();
    const uint32_t words = a.rows.stride / 32, each = (words + Tile::THREADS - 1) / Tile::THREADS;
    const uint32_t begin = min(threadIdx.x * each, words), end = min(begin + each, words);
    int mine = 0;
    for (uint32_t word = begin; word < end; word++)
        mine += __popc(panel.columns[word].marked);
    const Scan slots = block_scan(mine, panel.of_warp);
    int slot = slots.before;
    for (uint32_t word = begin; word < end; word++) {
        panel.columns[word].before = slot;
        for (uint32_t bits = panel.columns[word].marked; bits; bits &= bits - 1, slot++)
            if (slot < Tile::SLOTS)
                panel.k[slot] = word * 32 + __ffs(bits) - 1;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < min(slots.all, Tile::SLOTS) * Tile::N; i += Tile::THREADS) {
        const size_t n = n0 + i % Tile::N;
        panel.values[i / Tile::N][i % Tile::N] =
            n < a.n ? a.weight[n * a.k + panel.k[i / Tile::N]] : 0;
    }
    return {{panel.columns, panel.values[0], Tile::N, Tile::SLOTS}};
}

template <class Tile, bool ALIGNED>
__global__ void __launch_bounds__(Tile::THREADS, 2)
    linear_kernel(lowbit_cuda_int8_linear a, Matrix<ALIGNED> weight) {
    LB_DYNAMIC_SHARED(shared, typename Tile::Shared);
    LB_SHARED(of_row, OfRow[Tile::M]);
    LB_SHARED(of_column, OfColumn[Tile::N]);
    const Origin origin = origin_of_tile<Tile>(a.m, a.n);
    const size_t m0 = origin.m, n0 = origin.n;
    typename Tile::Sums acc = {};
    const Matrix<true> q = {a.rows.q, a.m, a.rows.stride, a.rows.stride};
    uint32_t any = 0;
    multiply<Tile>(shared, q, weight, m0, n0, acc, [&] {
        for (int i = threadIdx.x; i < Tile::M; i += Tile::THREADS) {
            const size_t m = m0 + i;
            of_row[i] = m < a.m ? a.rows.of_row[m] : OfRow{};
            any |= of_row[i].outliers;
        }
        for (int i = threadIdx.x; i < Tile::N; i += Tile::THREADS)
            of_column[i] = column_of(a, n0 + i);
    });
    if (gridDim.y > 1 && !add_shares<Tile>(shared, a.sums, acc))
        return;
    const int with_outliers = __syncthreads_count(any != 0);
    typename Tile::Sources &sources = shared.sources;
#pragma unroll
    for (int i = 0; i < Tile::MT; i++)
#pragma unroll
        for (int j = 0; j < Tile::NT; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                *reinterpret_cast<int2 *>(
                    &sources.acc[Tile::row() + i * 16 + half * 8][Tile::column() + j * 8]) =
                    make_int2(acc[i][j][half * 2], acc[i][j][half * 2 + 1]);
    PanelView panel = {};
    if (a.panel.columns)
        panel = {{a.panel.columns, a.panel.values + n0, a.panel.stride, a.panel.capacity}};
    else if (with_outliers)
        panel = gather<Tile>(a, m0, n0, of_row, sources.panel);
    __syncthreads();

    const int column = threadIdx.x % Tile::THREADS_OF_ROW * 4;
    if (n0 + column >= a.n)
        return;
    OfColumn of[4];
    for (int j = 0; j < 4; j++)
        of[j] = of_column[column + j];
    for (int i = threadIdx.x / Tile::THREADS_OF_ROW; i < Tile::M;
         i += Tile::THREADS / Tile::THREADS_OF_ROW) {
        const size_t m = m0 + i;
        if (m >= a.m)
            return;
        OutlierSums<4> sums(of);
        const auto add = [&](uint32_t k, float x, uint32_t slot, uint32_t four) {
            int codes[4];
            for (int j = 0; j < 4; j++)
                codes[j] = static_cast<int8_t>(four >> j * 8);
            if (slot >= panel.capacity)
                for (int j = 0; j < 4; j++)
                    codes[j] = n0 + column + j < a.n ? a.weight[(n0 + column + j) * a.k + k] : 0;
            sums.add(k, x, codes);
        };
        const uint32_t outliers = of_row[i].outliers;
        const lowbit_cuda_int8_outlier *list = a.rows.list + m * LISTED;
        for (uint32_t e = 0; e < listed(outliers); e += TOGETHER) {
            uint2 found[TOGETHER]; // k and x
            uint32_t slots[TOGETHER], four[TOGETHER];
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++)
                found[j] = *reinterpret_cast<const uint2 *>(list + min(e + j, outliers - 1));
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++)
                slots[j] = panel.slot(found[j].x);
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++)
                four[j] = panel.four(slots[j], column);
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; j++)
                if (e + j < outliers)
                    add(found[j].x, __uint_as_float(found[j].y), slots[j], four[j]);
        }
        if (outliers > LISTED)
            each_unlisted(a, a.rows, m, list[LISTED - 1].k, [&](uint32_t k, float x) {
                const uint32_t slot = panel.slot(k);
                add(k, x, slot, panel.four(slot, column));
            });
        const int4 acc4 = *reinterpret_cast<const int4 *>(&sources.acc[i][column]);
        const int32_t acc_of[4] = {acc4.x, acc4.y, acc4.z, acc4.w};
        float y[4];
        for (int j = 0; j < 4; j++)
            y[j] = of[j].output(of_row[i], acc_of[j], sums.sum(j));
        store_outputs(a, m, n0 + column, y);
    }
}

} // namespace

#endif
