// SPDX-License-Identifier: MIT
// The lut4 kernels for sm_80 and later. launch.h says what each launcher does.

#include "elementwise.cuh"
#include "product.cuh"

namespace {

constexpr size_t MOST_BLOCKS = 132 * 16; // of threads, in a kernel that loops over its work

unsigned blocks_for(size_t pieces) {
    return static_cast<unsigned>(pieces < MOST_BLOCKS ? pieces : MOST_BLOCKS);
}

template <lowbit_float type, int PARTS>
cudaError_t prepare(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    const size_t pieces = (a.k + 255) / 256 * 32; // of eight columns
    const unsigned threads =
        static_cast<unsigned>(pieces < PREPARE_THREADS ? pieces : PREPARE_THREADS);
    return lb_launch(prepare_rows_kernel<type, PARTS>, dim3(static_cast<unsigned>(a.m)),
                     dim3(threads), 0, stream, static_cast<const lb_bits<type> *>(a.x), a.x_stride,
                     a.k, a.rows);
}

cudaError_t prepare(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    switch (a.x_type) {
    case f16: return prepare<f16, 1>(a, stream);
    case bf16: return prepare<bf16, 1>(a, stream);
    default: return prepare<f32, 2>(a, stream);
    }
}

template <int X_PARTS, int C_PARTS>
cudaError_t decode(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((a.n + 15) / 16)), block(LUT4_THREADS);
    if (a.m <= 8)
        return lb_launch(decode_kernel<1, X_PARTS, C_PARTS>, grid, block, 0, stream, a);
    return lb_launch(decode_kernel<2, X_PARTS, C_PARTS>, grid, block, 0, stream, a);
}

template <int X_PARTS, int C_PARTS>
cudaError_t tiles(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    const auto kernel = tiles_kernel<X_PARTS, C_PARTS>;
    const int shared = sizeof(TileShared<X_PARTS, C_PARTS>);
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess)
        return error;
    const dim3 grid(static_cast<unsigned>((a.n + TILE_N - 1) / TILE_N),
                    static_cast<unsigned>((a.m + TILE_M - 1) / TILE_M),
                    static_cast<unsigned>(a.splits));
    return lb_launch(kernel, grid, dim3(TILE_THREADS), shared, stream, a);
}

// A float16 weight that torch rounded has errors as large as those of an fp16 codebook: to stay beneath
// them, a codebook for float16 x keeps more bits.
template <class Bf16, class F16, class F32>
cudaError_t linear(const lowbit_cuda_lut4_linear &a, cudaStream_t stream, Bf16 for_bf16,
                   F16 for_f16, F32 for_f32) {
    const cudaError_t error = prepare(a, stream);
    if (error != cudaSuccess)
        return error;
    switch (a.x_type) {
    case f16: return for_f16(a, stream);
    case bf16: return for_bf16(a, stream);
    default: return for_f32(a, stream);
    }
}

} // namespace

extern "C" int lowbit_lut4_dequantize_launch(const lowbit_cuda_lut4_weight *weight,
                                             lowbit_float y_type, void *y, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const size_t each = 8 * LUT4_THREADS, pieces = (weight->elements + each - 1) / each;
    return lb_with_type(y_type, [&](auto constant) {
        constexpr lowbit_float type = decltype(constant)::value;
        return lb_launch(dequantize_kernel<type>, dim3(blocks_for(pieces)), dim3(LUT4_THREADS), 0,
                         stream, *weight, static_cast<lb_bits<type> *>(y));
    });
}

extern "C" int lowbit_lut4_quantize_launch(const void *x, lowbit_float x_type,
                                           const float *codebook, size_t elements,
                                           unsigned log2_blocksize, uint8_t *packed, float *absmax,
                                           void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const size_t blocks =
                     (elements + (static_cast<size_t>(1) << log2_blocksize) - 1) >> log2_blocksize,
                 pieces = (blocks + LUT4_WARPS - 1) / LUT4_WARPS;
    return lb_with_type(x_type, [&](auto constant) {
        constexpr lowbit_float type = decltype(constant)::value;
        return lb_launch(quantize_kernel<type>, dim3(blocks_for(pieces)), dim3(LUT4_THREADS), 0,
                         stream, static_cast<const lb_bits<type> *>(x), codebook, elements,
                         log2_blocksize, packed, absmax);
    });
}

extern "C" int lowbit_lut4_linear_decode_launch(const lowbit_cuda_lut4_linear *args, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    return linear(*args, stream, decode<1, 1>, decode<1, 2>, decode<2, 2>);
}

extern "C" int lowbit_lut4_linear_tiles_launch(const lowbit_cuda_lut4_linear *args, void *queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    const cudaError_t error = linear(*args, stream, tiles<1, 1>, tiles<1, 2>, tiles<2, 2>);
    if (error != cudaSuccess || args->splits == 1)
        return error;
    const size_t pieces = (args->m * args->n + LUT4_THREADS - 1) / LUT4_THREADS;
    return lb_launch(add_splits_kernel, dim3(blocks_for(pieces)), dim3(LUT4_THREADS), 0, stream,
                     *args);
}
