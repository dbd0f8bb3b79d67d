// SPDX-License-Identifier: MIT
// The int8 kernels for sm_80 and later. launch.h says what each launcher does.

#include "decode.cuh"
#include "elementwise.cuh"
#include "gemm.cuh"

#include <grid.cuh>

#include <algorithm>

namespace {

bool aligned(const int8_t *rows, size_t k) {
    return lb_aligned(rows, 16) && k % 16 == 0;
}

// Calls launch with the type of a row of k elements and how many threads it takes, as constants.
template <class Launch> cudaError_t with_row(lowbit_float type, size_t k, Launch launch) {
    return lb_with_type(type, [&](auto type) {
        if (k <= LONG_ROW)
            return launch(type, std::integral_constant<int, ROW_THREADS>());
        return launch(type, std::integral_constant<int, LONG_ROW_THREADS>());
    });
}

cudaError_t quantize_x(const lowbit_cuda_int8_linear &a, size_t sums, cudaStream_t stream) {
    return with_row(a.x_type, a.k, [&](auto type, auto threads) {
        return lb_launch(quantize_rows_kernel<type(), threads()>, dim3(static_cast<unsigned>(a.m)),
                         dim3(threads()), 0, stream, static_cast<const lb_bits<type()> *>(a.x),
                         a.x_stride, a.k, a.threshold, a.rows, a.panel.columns,
                         reinterpret_cast<uint4 *>(a.sums), sums / sizeof(uint4));
    });
}

template <lowbit_float type, int TILES, int ROWS, bool FUSED>
cudaError_t decode(const lowbit_cuda_int8_linear &a, cudaStream_t stream) {
    unsigned blocks = 0;
    const cudaError_t error = lb_grid(lb_pieces(a.n, ROWS), DECODE_BLOCKS, &blocks);
    if (error != cudaSuccess)
        return error;
    const size_t shared = FUSED ? a.m * (a.rows.stride + a.rows.stride / 8) : 0;
    const auto kernel = aligned(a.weight, a.k) ? decode_kernel<type, TILES, ROWS, FUSED, true>
                                               : decode_kernel<type, TILES, ROWS, FUSED, false>;
    // A fused kernel reads x, which the last kernel may write.
    return lb_launch_early(!FUSED, kernel, dim3(blocks), dim3(ROW_THREADS), shared, stream, a);
}

template <class Tile> size_t tiles_of(size_t m, size_t n) {
    return static_cast<size_t>(lb_pieces(m, Tile::M)) * lb_pieces(n, Tile::N);
}

// How many blocks share a tile, so that all multiprocessors have one: each with 1024 columns or
// more.
template <class Tile> size_t shares_of(size_t m, size_t n, size_t k) {
    const size_t tiles = tiles_of<Tile>(m, n), most = k / 1024;
    const size_t shares = tiles ? LB_MULTIPROCESSORS / tiles : 0;
    return std::max<size_t>(std::min(shares, most), 1);
}

// Launches a kernel of tiles on all of [m, n].
template <class Tile, class... Params, class... Args>
cudaError_t launch_tiles(bool early, void (*kernel)(Params...), size_t m, size_t n, size_t shares,
                         cudaStream_t stream, Args... args) {
    const dim3 grid(static_cast<unsigned>(tiles_of<Tile>(m, n)), static_cast<unsigned>(shares));
    return lb_launch_early(early, kernel, grid, dim3(Tile::THREADS), sizeof(typename Tile::Shared),
                           stream, args...);
}

// The weight is read once for up to 128 rows.
template <class Launch> auto with_tile(size_t m, Launch launch) {
    static_assert(Tile<4>::M == LOWBIT_CUDA_LOCAL_M, "up to so many rows a tile has all of them");
    if (m <= 32)
        return launch(Tile<1>());
    if (m <= 64)
        return launch(Tile<2>());
    return launch(Tile<4>());
}

template <bool ALIGNED> cudaError_t linear(const lowbit_cuda_int8_linear &a, cudaStream_t stream) {
    const Matrix<ALIGNED> weight = {a.weight, a.n, a.k, a.k};
    return with_tile(a.m, [&](auto tile) {
        using Tile = decltype(tile);
        return launch_tiles<Tile>(true, linear_kernel<Tile, ALIGNED>, a.m, a.n,
                                  a.sums ? shares_of<Tile>(a.m, a.n, a.k) : 1, stream, a, weight);
    });
}

template <bool ALIGNED>
cudaError_t matmul(const int8_t *a, size_t a_stride, const int8_t *b, size_t m, size_t n, size_t k,
                   int32_t *c, size_t c_stride, cudaStream_t stream) {
    const Matrix<ALIGNED> left = {a, m, a_stride, k}, right = {b, n, k, k};
    return with_tile(m, [&](auto tile) {
        using Tile = decltype(tile);
        return launch_tiles<Tile>(false, matmul_kernel<Tile, ALIGNED>, m, n, 1, stream, left, right,
                                  c, c_stride);
    });
}

} // namespace

extern "C" int lowbit_int8_linear_decode_launch(const lowbit_cuda_int8_linear *args, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const lowbit_cuda_int8_linear &a = *args;
    if (a.m <= 2 && a.m * a.k <= LOWBIT_CUDA_FUSED) {
        return lb_with_type(a.x_type,
                            [&](auto type) { return decode<type(), 1, 16, true>(a, stream); });
    }
    const cudaError_t error = quantize_x(a, 0, stream);
    if (error != cudaSuccess)
        return error;
    return a.m <= 8 ? decode<f32, 1, 32, false>(a, stream) : decode<f32, 2, 32, false>(a, stream);
}

extern "C" size_t lowbit_int8_linear_gemm_sums(size_t m, size_t n, size_t k) {
    return with_tile(m, [&](auto tile) {
        using Tile = decltype(tile);
        const size_t size = (Tile::M * Tile::N + 1) * sizeof(int32_t); // and how many have come
        return shares_of<Tile>(m, n, k) == 1 ? 0 : (tiles_of<Tile>(m, n) * size + 15) / 16 * 16;
    });
}

extern "C" int lowbit_int8_linear_gemm_launch(const lowbit_cuda_int8_linear *args, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const lowbit_cuda_int8_linear &a = *args;
    const lowbit_cuda_int8_panel &panel = a.panel;
    cudaError_t error = cudaSuccess;
    if (panel.columns)
        error =
            cudaMemsetAsync(panel.columns, 0, a.rows.stride / 32 * sizeof *panel.columns, stream);
    if (error == cudaSuccess)
        error = quantize_x(a, a.sums ? lowbit_int8_linear_gemm_sums(a.m, a.n, a.k) : 0, stream);
    if (error == cudaSuccess && panel.columns && a.k)
        error = lb_launch_early(true,
                                aligned(a.weight, a.k) ? gather_columns_kernel<true>
                                                       : gather_columns_kernel<false>,
                                dim3(lb_pieces(a.k, 32), PANEL_BLOCKS), dim3(PANEL_ROWS), 0, stream,
                                a.weight, a.n, a.k, panel);
    if (error != cudaSuccess)
        return error;
    return aligned(a.weight, a.k) ? linear<true>(a, stream) : linear<false>(a, stream);
}

extern "C" int lowbit_int8_matmul_launch(const int8_t *a, size_t a_stride, const int8_t *b,
                                         size_t m, size_t n, size_t k, int32_t *c, size_t c_stride,
                                         void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    if (aligned(a, k) && aligned(a, a_stride) && aligned(b, k))
        return matmul<true>(a, a_stride, b, m, n, k, c, c_stride, stream);
    return matmul<false>(a, a_stride, b, m, n, k, c, c_stride, stream);
}

extern "C" int lowbit_int8_quantize_launch(const void *x, lowbit_float x_type, size_t m, size_t k,
                                           size_t x_stride, float threshold, int8_t *q,
                                           size_t q_stride, lowbit_float scale_type, void *absmax,
                                           void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    return with_row(x_type, k, [&](auto type, auto threads) {
        return lb_launch(quantize_kernel<type(), threads()>, lb_blocks(m), threads(), 0, stream,
                         static_cast<const lb_bits<type()> *>(x), m, k, x_stride, threshold, q,
                         q_stride, scale_type, absmax);
    });
}

extern "C" int lowbit_int8_quantize_offset_launch(const void *weight, lowbit_float type, size_t n,
                                                  size_t k, size_t stride, int8_t *q,
                                                  size_t q_stride, lowbit_float scale_type,
                                                  void *absmax, void *offset, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    return with_row(type, k, [&](auto type, auto threads) {
        return lb_launch(quantize_offset_kernel<type(), threads()>, lb_blocks(n), threads(), 0,
                         stream, static_cast<const lb_bits<type()> *>(weight), n, k, stride, q,
                         q_stride, scale_type, absmax, offset);
    });
}

extern "C" int lowbit_int8_dequantize_launch(const int8_t *q, size_t m, size_t k, size_t q_stride,
                                             lowbit_float scale_type, const void *absmax,
                                             const void *offset, lowbit_float y_type, void *y,
                                             size_t y_stride, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    return lb_with_type(y_type, [&](auto type) {
        const unsigned pieces = lb_pieces(k, 8 * ROW_THREADS);
        const size_t rows = std::min(m, std::max<size_t>(LB_MOST_BLOCKS / pieces, 1));
        const dim3 grid(pieces, static_cast<unsigned>(rows));
        return lb_launch(dequantize_kernel<type()>, grid, ROW_THREADS, 0, stream, q, m, k, q_stride,
                         scale_type, absmax, offset, static_cast<lb_bits<type()> *>(y), y_stride);
    });
}
