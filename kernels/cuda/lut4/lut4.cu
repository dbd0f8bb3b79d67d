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

// A kernel that takes all of the shared memory that it likes.
cudaError_t launch(void (*kernel)(lowbit_cuda_lut4_linear), dim3 grid, int threads, int shared,
                   cudaStream_t stream, const lowbit_cuda_lut4_linear &a) {
    const cudaError_t error =
        cudaFuncSetAttribute(reinterpret_cast<const void *>(kernel),
                             cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    return error != cudaSuccess ? error : lb_launch(kernel, grid, threads, shared, stream, a);
}

unsigned groups_of(size_t size, size_t count) {
    return static_cast<unsigned>((count + size - 1) / size);
}

template <int ROWS, int TILES, int X_PARTS, int C_PARTS>
cudaError_t decode(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    return launch(decode_kernel<ROWS, TILES, X_PARTS, C_PARTS>, groups_of(16 * ROWS, a.n),
                  LUT4_THREADS, sizeof(DecodeShared<ROWS, TILES, C_PARTS>), stream, a);
}

// Each block reads all of x, 4 M / ROWS / 16 bytes of it for one of the weight.
template <int X_PARTS, int C_PARTS>
cudaError_t decode(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    return a.m <= 2   ? decode<1, 1, X_PARTS, C_PARTS>(a, stream)
           : a.m <= 8 ? decode<2, 1, X_PARTS, C_PARTS>(a, stream)
                      : decode<2, 2, X_PARTS, C_PARTS>(a, stream);
}

template <int TILES, int X_PARTS, int C_PARTS>
cudaError_t tiles(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    const dim3 grid(groups_of(TILE_N, a.n), groups_of(8 * TILES, a.m),
                    static_cast<unsigned>(a.splits));
    return launch(tiles_kernel<TILES, X_PARTS, C_PARTS>, grid, TILE_THREADS,
                  sizeof(TileShared<TILES, X_PARTS, C_PARTS>), stream, a);
}

template <int X_PARTS, int C_PARTS>
cudaError_t tiles(const lowbit_cuda_lut4_linear &a, cudaStream_t stream) {
    if constexpr (C_PARTS == 1) // else there are no registers for it
        if (a.m > 32)
            return tiles<8, X_PARTS, C_PARTS>(a, stream);
    return tiles<4, X_PARTS, C_PARTS>(a, stream);
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
