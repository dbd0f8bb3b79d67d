// SPDX-License-Identifier: MIT
// The int8 kernels for sm_80 and later. launch.h says what each launcher does.

#include "decode.cuh"
#include "elementwise.cuh"
#include "gemm.cuh"

#include <grid.cuh>

namespace {

constexpr size_t MOST_BLOCKS = 132 * 16; // of threads, in a kernel that loops over its work

dim3 grid_for(size_t pieces) {
    return dim3(static_cast<unsigned>(pieces < MOST_BLOCKS ? pieces : MOST_BLOCKS));
}

bool aligned(const int8_t *rows, size_t k) {
    return lb_aligned(rows, 16) && k % 16 == 0;
}

// Calls launch with how many threads a row of k elements takes, as a constant.
template <class Launch> cudaError_t with_row_threads(size_t k, Launch launch) {
    if (k <= LONG_ROW)
        return launch(std::integral_constant<int, ROW_THREADS>());
    return launch(std::integral_constant<int, LONG_ROW_THREADS>());
}

cudaError_t quantize_x(const lowbit_cuda_int8_linear &a, cudaStream_t stream) {
    return lb_with_type(a.x_type, [&](auto constant) {
        constexpr lowbit_float type = decltype(constant)::value;
        return with_row_threads(a.k, [&](auto threads) {
            return lb_launch(quantize_rows_kernel<type, threads()>,
                             dim3(static_cast<unsigned>(a.m)), dim3(threads()), 0, stream,
                             static_cast<const lb_bits<type> *>(a.x), a.x_stride, a.k, a.threshold,
                             a.rows, a.panel.columns);
        });
    });
}

template <lowbit_float type, int TILES, int ROWS, bool FUSED>
cudaError_t decode(const lowbit_cuda_int8_linear &a, cudaStream_t stream) {
    unsigned blocks = 0;
    const cudaError_t error = lb_grid((a.n + ROWS - 1) / ROWS, DECODE_BLOCKS, &blocks);
    if (error != cudaSuccess)
        return error;
    const size_t shared = FUSED ? a.m * (a.rows.stride + a.rows.stride / 8) : 0;
    return lb_launch(aligned(a.weight, a.k) ? decode_kernel<type, TILES, ROWS, FUSED, true>
                                            : decode_kernel<type, TILES, ROWS, FUSED, false>,
                     dim3(blocks), dim3(ROW_THREADS), shared, stream, a);
}

// Launches a kernel of tiles on all of [m, n].
template <class Tile, class... Params, class... Args>
cudaError_t launch_tiles(void (*kernel)(Params...), size_t m, size_t n, cudaStream_t stream,
                         Args... args) {
    const size_t shared = sizeof(typename Tile::Shared);
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess)
        return error;
    const dim3 grid(
        static_cast<unsigned>((n + Tile::N - 1) / Tile::N * ((m + Tile::M - 1) / Tile::M)));
    return lb_launch(kernel, grid, dim3(Tile::THREADS), shared, stream, args...);
}

// Few rows: small tiles, so that there are enough of them to keep memory busy. None needs more than the
// 99 KB of shared memory that every GPU has.
template <class Launch> cudaError_t with_tile(size_t m, Launch launch) {
    static_assert(LOWBIT_CUDA_LOCAL_M == 128, "up to so many rows a tile has all of them");
    if (m <= 32)
        return launch(Tile<2, 2, 1, 2, 6, 256>());
    if (m <= 64)
        return launch(Tile<4, 2, 1, 2, 5, 256>());
    if (m <= 128)
        return launch(Tile<4, 2, 2, 4, 4, 256>());
    if (m <= 256)
        return launch(Tile<2, 4, 2, 2, 4>());
    return launch(Tile<2, 4, 4, 4, 3>());
}

template <bool ALIGNED> cudaError_t linear(const lowbit_cuda_int8_linear &a, cudaStream_t stream) {
    const Matrix<ALIGNED> weight = {a.weight, a.n, a.k, a.k};
    return with_tile(a.m, [&](auto tile) {
        using Tile = decltype(tile);
        return launch_tiles<Tile>(linear_kernel<Tile, Matrix<ALIGNED>>, a.m, a.n, stream, a,
                                  weight);
    });
}

template <bool ALIGNED>
cudaError_t matmul(const int8_t *a, size_t a_stride, const int8_t *b, size_t m, size_t n, size_t k,
                   int32_t *c, size_t c_stride, cudaStream_t stream) {
    const Matrix<ALIGNED> left = {a, m, a_stride, k}, right = {b, n, k, k};
    return with_tile(m, [&](auto tile) {
        using Tile = decltype(tile);
        return launch_tiles<Tile>(matmul_kernel<Tile, Matrix<ALIGNED>, Matrix<ALIGNED>>, m, n,
                                  stream, left, right, c, c_stride);
    });
}

} // namespace

extern "C" int lowbit_int8_linear_decode_launch(const lowbit_cuda_int8_linear *args, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const lowbit_cuda_int8_linear &a = *args;
    if (a.m <= 2 && a.m * a.k <= LOWBIT_CUDA_FUSED) {
        return lb_with_type(a.x_type, [&](auto type) {
            return decode<decltype(type)::value, 1, 16, true>(a, stream);
        });
    }
    const cudaError_t error = quantize_x(a, stream);
    if (error != cudaSuccess)
        return error;
    return a.m <= 8 ? decode<f32, 1, 32, false>(a, stream) : decode<f32, 2, 32, false>(a, stream);
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
        error = quantize_x(a, stream);
    if (error == cudaSuccess && panel.columns && a.k)
        error = lb_launch(aligned(a.weight, a.k) ? gather_columns_kernel<true>
                                                 : gather_columns_kernel<false>,
                          dim3(static_cast<unsigned>((a.k + 31) / 32), PANEL_BLOCKS),
                          dim3(PANEL_ROWS), 0, stream, a.weight, a.n, a.k, panel);
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
    return lb_with_type(x_type, [&](auto constant) {
        constexpr lowbit_float type = decltype(constant)::value;
        return with_row_threads(k, [&](auto threads) {
            return lb_launch(quantize_kernel<type, threads()>, grid_for(m), dim3(threads()), 0,
                             stream, static_cast<const lb_bits<type> *>(x), m, k, x_stride,
                             threshold, q, q_stride, scale_type, absmax);
        });
    });
}

extern "C" int lowbit_int8_quantize_offset_launch(const void *weight, lowbit_float type, size_t n,
                                                  size_t k, size_t stride, int8_t *q,
                                                  size_t q_stride, lowbit_float scale_type,
                                                  void *absmax, void *offset, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    return lb_with_type(type, [&](auto constant) {
        constexpr lowbit_float type = decltype(constant)::value;
        return with_row_threads(k, [&](auto threads) {
            return lb_launch(quantize_offset_kernel<type, threads()>, grid_for(n), dim3(threads()),
                             0, stream, static_cast<const lb_bits<type> *>(weight), n, k, stride, q,
                             q_stride, scale_type, absmax, offset);
        });
    });
}

extern "C" int lowbit_int8_dequantize_launch(const int8_t *q, size_t m, size_t k, size_t q_stride,
                                             lowbit_float scale_type, const void *absmax,
                                             const void *offset, lowbit_float y_type, void *y,
                                             size_t y_stride, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    return lb_with_type(y_type, [&](auto constant) {
        constexpr lowbit_float type = decltype(constant)::value;
        const size_t pieces = m * ((k + 8 * ROW_THREADS - 1) / (8 * ROW_THREADS));
        return lb_launch(dequantize_kernel<type>, grid_for(pieces), dim3(ROW_THREADS), 0, stream, q,
                         m, k, q_stride, scale_type, absmax, offset,
                         static_cast<lb_bits<type> *>(y), y_stride);
    });
}
