// SPDX-License-Identifier: MIT
// The lut4 kernels for sm_80 and later. launch.h says what each launcher does.

#include "elementwise.cuh"
#include "product.cuh"

#include <grid.cuh>

namespace {

template <lowbit_float type>
cudaError_t prepare(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    const unsigned warps = lb_pieces(a.k, 256), most = PREPARE_THREADS / 32; // eight columns a lane
    const unsigned threads = 32 * (warps == 0 ? 1 : warps < most ? warps : most);
    return lb_launch(prepare_rows_kernel<type>, dim3(static_cast<unsigned>(a.m)), dim3(threads), 0,
                     stream, static_cast<const lb_bits<type> *>(a.x), a.x_stride, a.k, a.rows);
}

template <int ROWS, int TILES, lowbit_float type>
cudaError_t decode(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    using Shared = DecodeShared<ROWS, TILES, type>;
    static_assert(sizeof(Shared) <= 99 << 10, "every GPU has so much");
    size_t shared = sizeof(Shared);
    if (Shared::FUSED)
        shared -= (FUSED_HALVES - x_parts<type> * a.m * a.k) * sizeof(uint16_t);
    // A fused kernel reads x, which the last kernel may write.
    return lb_launch_early(!Shared::FUSED, decode_kernel<ROWS, TILES, type>,
                           lb_pieces(a.n, 16 * ROWS), LUT4_THREADS, shared, stream, a);
}

// Each block reads all of x from L2, M / (4 ROWS) bytes for each byte of the weight.
template <lowbit_float type>
cudaError_t decode(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    if (a.m <= 2 && x_parts<type> * a.m * a.k <= FUSED_HALVES)
        return decode<1, 1, type>(a, stream);
    const cudaError_t error = prepare<type>(a, stream);
    if (error != cudaSuccess)
        return error;
    return a.m <= 8 ? decode<2, 1, type>(a, stream) : decode<2, 2, type>(a, stream);
}

template <int TILES, lowbit_float type>
cudaError_t tiles(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    const dim3 grid(lb_pieces(a.n, TILE_N), lb_pieces(a.m, 8 * TILES),
                    static_cast<unsigned>(a.splits));
    return lb_launch_early(true, tiles_kernel<TILES, type>, grid, TILE_THREADS,
                           sizeof(TileShared<TILES, type>), stream, a);
}

template <lowbit_float type>
cudaError_t tiles(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    cudaError_t error = prepare<type>(a, stream);
    if (error != cudaSuccess)
        return error;
    if (c_parts<type> == 1 && a.m > 32) // for other types there are no registers
        error = tiles<c_parts<type> == 1 ? 8 : 4, type>(a, stream);
    else
        error = tiles<4, type>(a, stream);
    if (error != cudaSuccess || a.splits == 1)
        return error;
    return lb_launch_early(true, add_splits_kernel,
                           dim3(lb_pieces(a.n, LUT4_THREADS), static_cast<unsigned>(a.m)),
                           LUT4_THREADS, 0, stream, a);
}

} // namespace

extern "C" int lowbit_lut4_dequantize_launch(const lowbit_cuda_lut4_weight *weight,
                                             lowbit_float y_type, void *y, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const unsigned blocks = lb_blocks(lb_pieces(weight->elements, 8 * LUT4_THREADS));
    return lb_with_type(y_type, [&](auto type) {
        return lb_launch(dequantize_kernel<type()>, blocks, LUT4_THREADS, 0, stream, *weight,
                         static_cast<lb_bits<type()> *>(y));
    });
}

extern "C" int lowbit_lut4_quantize_launch(const void *x, lowbit_float x_type,
                                           const float *codebook, size_t elements,
                                           unsigned log2_blocksize, uint8_t *packed, float *absmax,
                                           void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const size_t each =
        LUT4_WARPS * max(static_cast<size_t>(256), static_cast<size_t>(1) << log2_blocksize);
    const unsigned blocks = lb_blocks(lb_pieces(elements, each));
    return lb_with_type(x_type, [&](auto type) {
        return lb_launch(quantize_kernel<type()>, blocks, LUT4_THREADS, 0, stream,
                         static_cast<const lb_bits<type()> *>(x), codebook, elements,
                         log2_blocksize, packed, absmax);
    });
}

extern "C" int lowbit_lut4_linear_decode_launch(const lowbit_cuda_lut4_linear *args, void *queue) {
    return lb_with_type(args->x_type, [&](auto type) {
        return decode<type()>(*args, static_cast<cudaStream_t>(queue));
    });
}

extern "C" int lowbit_lut4_linear_tiles_launch(const lowbit_cuda_lut4_linear *args, void *queue) {
    return lb_with_type(args->x_type, [&](auto type) {
        return tiles<type()>(*args, static_cast<cudaStream_t>(queue));
    });
}
