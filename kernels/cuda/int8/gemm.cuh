// SPDX-License-Identifier: MIT
// int8_linear for many rows of x: tiles of y, each a tensor-core product of tiles of q and of the
// weight that come through shared memory.
#ifndef LOWBIT_KERNELS_CUDA_INT8_GEMM_CUH
#define LOWBIT_KERNELS_CUDA_INT8_GEMM_CUH

#include "rows.cuh"

#include <ptx.cuh>

namespace {

constexpr int GEMM_K = 128;     // columns at a time: a line of shared memory
constexpr int PANEL_ROWS = 256; // of the weight, at a time in a block of the panel kernel
constexpr int PANEL_BLOCKS = 4; // that share out the rows of 32 columns

// The columns of the weight that hold outliers, as rows of the panel: 32 columns in a block, which has
// nothing to do where no row of x has an outlier.
__global__ void __launch_bounds__(PANEL_ROWS)
    gather_columns_kernel(const int8_t *weight, size_t n, size_t k, lowbit_cuda_int8_panel panel) {
    LB_SHARED(of_warp, int[ROW_WARPS]);
    const size_t word = blockIdx.x;
    const uint32_t columns = panel.columns[word];
    if (!columns)
        return;
    int before = 0;
    for (size_t i = threadIdx.x; i < word; i += PANEL_ROWS)
        before += __popc(panel.columns[i]);
    before = block_sum(before, of_warp);
    if (blockIdx.y == 0 && threadIdx.x == 0)
        panel.first[word] = before;
    for (size_t row = blockIdx.y * PANEL_ROWS + threadIdx.x; row < n;
         row += gridDim.y * PANEL_ROWS) {
        size_t slot = before;
        for (uint32_t bits = columns; bits && slot < panel.capacity; bits &= bits - 1, slot++)
            panel.values[slot * n + row] = weight[row * k + word * 32 + __ffs(bits) - 1];
    }
}

// Warps of WARPS_M x WARPS_N have tiles of 16 MT x 8 NT. q and the weight arrive STAGES - 1 steps
// ahead. A row of a tile in shared memory is a line of 128 bytes whose eight pieces of 16 are
// permuted by the row's number: ldmatrix reads eight rows at once, from eight different pieces.
template <int WARPS_M_, int WARPS_N_, int MT_, int NT_, int STAGES_> struct Tile {
    static constexpr int WARPS_N = WARPS_N_, MT = MT_, NT = NT_, STAGES = STAGES_;
    static constexpr int M = WARPS_M_ * MT * 16, N = WARPS_N * NT * 8;
    static constexpr int THREADS = WARPS_M_ * WARPS_N * 32;
    struct Stage {
        int8_t a[M][GEMM_K], b[N][GEMM_K];
    };
    struct Shared {
        Stage stage[STAGES];
    };
    using Sums = int32_t[MT][NT][4];

    // The calling thread's first row and column in the tile; a row and 8 further ones, two columns of
    // every 8.
    __device__ static int row() { return warp() / WARPS_N * MT * 16 + threadIdx.x % 32 / 4; }
    __device__ static int column() { return warp() % WARPS_N * NT * 8 + threadIdx.x % 4 * 2; }
    __device__ static int warp() { return threadIdx.x / 32; }
};

__device__ __forceinline__ int swizzled(int row, int piece) {
    return (piece ^ (row & 7)) * 16;
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
                                      size_t k0) {
    for (int i = threadIdx.x; i < ROWS * 8; i += THREADS) {
        const int row = i / 8, piece = i % 8;
        const size_t at = k0 + piece * 16;
        const bool there = first + row < from.rows && at < from.k;
        const int8_t *source = there ? from.codes + (first + row) * from.stride + at : from.codes;
        int8_t *target = &to[row][swizzled(row, piece)];
        if (Matrix::ALIGNED) {
            ptx::cp_async16(target, source, there ? 16 : 0);
        } else {
            uint32_t words[4] = {0, 0, 0, 0};
            for (int j = 0; j < 16; j++)
                if (there && at + j < from.k)
                    words[j / 4] |= static_cast<uint32_t>(static_cast<uint8_t>(source[j]))
                                    << (j % 4 * 8);
            *reinterpret_cast<uint4 *>(target) = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// acc += a b^T for the tile that begins at row m0 of a and row n0 of b.
template <class Tile, class A, class B>
__device__ __forceinline__ void multiply(typename Tile::Shared &shared, const A &a, const B &b,
                                         size_t m0, size_t n0, typename Tile::Sums &acc) {
    const int lane = threadIdx.x % 32, warp_m = Tile::warp() / Tile::WARPS_N * Tile::MT * 16,
              warp_n = Tile::warp() % Tile::WARPS_N * Tile::NT * 8;
    const int steps = static_cast<int>((b.k + GEMM_K - 1) / GEMM_K);
    const auto fetch_step = [&](int step) {
        if (step < steps) {
            auto &stage = shared.stage[step % Tile::STAGES];
            const size_t k0 = static_cast<size_t>(step) * GEMM_K;
            fetch<Tile::M, Tile::THREADS>(stage.a, a, m0, k0);
            fetch<Tile::N, Tile::THREADS>(stage.b, b, n0, k0);
        }
        ptx::cp_async_commit(); // also an empty group: they are counted
    };
    for (int step = 0; step < Tile::STAGES - 1; step++)
        fetch_step(step);
    for (int step = 0; step < steps; step++) {
        ptx::cp_async_wait<Tile::STAGES - 2>();
        __syncthreads(); // this step is there, and the stage before it is no longer read
        fetch_step(step + Tile::STAGES - 1);
        const auto &stage = shared.stage[step % Tile::STAGES];
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

template <class Tile, class A, class B>
__global__ void __launch_bounds__(Tile::THREADS, 1)
    matmul_kernel(A a, B b, int32_t *c, size_t c_stride) {
    LB_DYNAMIC_SHARED(shared, typename Tile::Shared);
    const size_t n0 = static_cast<size_t>(blockIdx.x) * Tile::N,
                 m0 = static_cast<size_t>(blockIdx.y) * Tile::M;
    typename Tile::Sums acc = {};
    multiply<Tile>(shared, a, b, m0, n0, acc);
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

template <class Tile, class Weight>
__global__ void __launch_bounds__(Tile::THREADS, 1)
    linear_kernel(lowbit_cuda_int8_linear a, Weight weight) {
    constexpr int MT = Tile::MT, NT = Tile::NT;
    LB_DYNAMIC_SHARED(shared, typename Tile::Shared);
    const size_t n0 = static_cast<size_t>(blockIdx.x) * Tile::N,
                 m0 = static_cast<size_t>(blockIdx.y) * Tile::M;
    typename Tile::Sums acc = {};
    const Matrix<true> q = {a.rows.q, a.m, a.rows.stride, a.rows.stride};
    multiply<Tile>(shared, q, weight, m0, n0, acc);

    const auto column = [&](int j) { return n0 + Tile::column() + j / 2 * 8 + j % 2; };
    Scale scales[2 * NT];
#pragma unroll
    for (int j = 0; j < 2 * NT; j++)
        scales[j] = column(j) < a.n ? scale_of(a, column(j)) : Scale{0.0f, 0.0f, false};
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const size_t m = m0 + Tile::row() + i * 16 + half * 8;
            if (m >= a.m)
                continue;
            float o[2 * NT];
            outlier_sums(a.x_type, a.x, m * a.x_stride, a.rows.mask + m * 32 * a.rows.chunks,
                         a.rows.summary + m * a.rows.chunks, a.rows.chunks, scales, o,
                         [&](size_t k, int (&codes)[2 *NT]) {
                             const uint32_t before = (1u << (k % 32)) - 1;
                             const size_t slot =
                                 a.panel.first[k / 32] + __popc(a.panel.columns[k / 32] & before);
                             const bool in_panel = slot < a.panel.capacity;
#pragma unroll
                             for (int j = 0; j < 2 * NT; j++)
                                 codes[j] = column(j) >= a.n ? 0
                                            : in_panel ? a.panel.values[slot * a.n + column(j)]
                                                       : a.weight[column(j) * a.k + k];
                         });
            const float largest = a.rows.largest[m];
            const int sum = a.rows.sum[m];
#pragma unroll
            for (int j = 0; j < 2 * NT; j++)
                if (column(j) < a.n)
                    store_output(a, m, column(j),
                                 scales[j].product(largest, acc[i][j / 2][half * 2 + j % 2], sum),
                                 o[j]);
        }
}

} // namespace

#endif
