// SPDX-License-Identifier: MIT
// Blockwise quantization, a tile at a time.

#include "launch.h"

#include "encoder.cuh"
#include "tile.cuh"

#include <floats.cuh>
#include <grid.cuh>

namespace {

constexpr unsigned BLOCKS_PER_MULTIPROCESSOR = 3;

// What 16 bytes hold.
template <lowbit_float type> constexpr int VECTOR = 16 / sizeof(typename Float<type>::Bits);

// A tile of n elements, n = TILE unless V = 1. largest [TILE_BLOCKS] holds zeros. Contains one
// barrier.
template <lowbit_float type, int V>
__device__ __forceinline__ void quantize_tile(unsigned n, unsigned log2_blocksize,
                                              const typename Float<type>::Bits *x,
                                              const Encoder<true> &encoder, bool direct,
                                              uint32_t *largest, uint8_t *q, float *absmax) {
    float value[PER_THREAD / V][V], most[PER_THREAD / V] = {};
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (V > 1 || i < n)
            lb_load<type>(value[step], x + i);
        else
            value[step][0] = 0;
    }
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        float nothing = 0; // NaN, if a value is or is infinite
        for (int k = 0; k < V; k++)
            nothing = __fmaf_rn(value[step][k], 0.0f, nothing);
        if (nothing != 0)
            for (int k = 0; k < V; k++)
                value[step][k] = finite(value[step][k]);
        for (int k = 0; k < V; k++)
            most[step] = fmaxf(most[step], fabsf(value[step][k]));
    }
    note_largest<V>(most, log2_blocksize, largest);
    __syncthreads();
    float inv = 0;
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (step == 0 || !one_block(log2_blocksize))
            inv = inverse(__uint_as_float(largest[i >> log2_blocksize]));
        const auto codes = encode(encoder, direct, value[step], inv);
        if (V > 1 || i < n)
            lb_write(q + i, codes);
    }
    if (threadIdx.x << log2_blocksize < n)
        absmax[threadIdx.x] = __uint_as_float(largest[threadIdx.x]);
}

template <lowbit_float type>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)
    quantize_kernel(size_t n, unsigned log2_blocksize, bool vectors,
                    const typename Float<type>::Bits *x, const float *codebook, uint8_t *q,
                    float *absmax) {
    LB_SHARED(encoder, Encoder<true>);
    LB_SHARED(largest, uint32_t[3][TILE_BLOCKS]); // they take turns: tile.cuh
    if (threadIdx.x < TILE_BLOCKS)
        largest[0][threadIdx.x] = 0;
    const bool direct = lb_encoder_init(encoder, codebook);
    unsigned turn = 0;
    for (size_t i = (size_t)blockIdx.x * TILE; i < n; i += (size_t)gridDim.x * TILE) {
        const unsigned next = turn < 2 ? turn + 1 : 0, size = (unsigned)min(n - i, (size_t)TILE);
        if (threadIdx.x < TILE_BLOCKS)
            largest[next][threadIdx.x] = 0;
        if (vectors && size == TILE)
            quantize_tile<type, VECTOR<type>>(size, log2_blocksize, x + i, encoder, direct,
                                              largest[turn], q + i, absmax + (i >> log2_blocksize));
        else
            quantize_tile<type, 1>(size, log2_blocksize, x + i, encoder, direct, largest[turn],
                                   q + i, absmax + (i >> log2_blocksize));
        turn = next;
    }
}

template <lowbit_float type, int V>
__device__ __forceinline__ void
dequantize_tile(unsigned n, unsigned log2_blocksize, const uint8_t *q, const float *absmax,
                const float *codebook, typename Float<type>::Bits *y) {
    lb_pack<uint8_t, V> codes[PER_THREAD / V];
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (V > 1 || i < n)
            codes[step] = lb_read<uint8_t, V>(q + i);
    }
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (V == 1 && i >= n)
            return;
        const float scale = absmax[i >> log2_blocksize];
        float value[V];
        for (int k = 0; k < V; k++)
            value[k] = __fmul_rn(codebook[codes[step].get(k)], scale);
        lb_store<type>(y + i, value);
    }
}

template <lowbit_float type>
__global__ void __launch_bounds__(THREADS)
    dequantize_kernel(size_t n, unsigned log2_blocksize, bool vectors, const uint8_t *q,
                      const float *absmax, const float *codebook, typename Float<type>::Bits *y) {
    LB_SHARED(values, float[256]);
    if (threadIdx.x < 256)
        values[threadIdx.x] = codebook[threadIdx.x];
    __syncthreads();
    for (size_t i = (size_t)blockIdx.x * TILE; i < n; i += (size_t)gridDim.x * TILE) {
        const unsigned size = (unsigned)min(n - i, (size_t)TILE);
        if (vectors && size == TILE)
            dequantize_tile<type, VECTOR<type>>(size, log2_blocksize, q + i,
                                                absmax + (i >> log2_blocksize), values, y + i);
        else
            dequantize_tile<type, 1>(size, log2_blocksize, q + i, absmax + (i >> log2_blocksize),
                                     values, y + i);
    }
}

// Whether VECTOR elements at a time are aligned, of 16 bytes in floats and of as many codes.
template <lowbit_float type> bool aligned(const void *floats, const uint8_t *codes) {
    return (uintptr_t)floats % 16 == 0 && (uintptr_t)codes % VECTOR<type> == 0;
}

template <lowbit_float type>
int quantize(size_t n, size_t blocksize, const void *x, const float *codebook, uint8_t *q,
             float *absmax, cudaStream_t stream) {
    unsigned blocks;
    const cudaError_t error = lb_grid((n + TILE - 1) / TILE, BLOCKS_PER_MULTIPROCESSOR, &blocks);
    if (error != cudaSuccess || blocks == 0)
        return error;
    return lb_launch(quantize_kernel<type>, blocks, THREADS, 0, stream, n, log2_of(blocksize),
                     aligned<type>(x, q), (const typename Float<type>::Bits *)x, codebook, q,
                     absmax);
}

template <lowbit_float type>
int dequantize(size_t n, size_t blocksize, const uint8_t *q, const float *absmax,
               const float *codebook, void *y, cudaStream_t stream) {
    unsigned blocks;
    const cudaError_t error = lb_grid((n + TILE - 1) / TILE, 2048 / THREADS, &blocks);
    if (error != cudaSuccess || blocks == 0)
        return error;
    return lb_launch(dequantize_kernel<type>, blocks, THREADS, 0, stream, n, log2_of(blocksize),
                     aligned<type>(y, q), q, absmax, codebook, (typename Float<type>::Bits *)y);
}

} // namespace

int lowbit_blockwise_quantize_launch(enum lowbit_float type, size_t n, size_t blocksize,
                                     const void *x, const float *codebook, uint8_t *q,
                                     float *absmax, void *stream) {
    const auto launch = type == f32 ? quantize<f32> : type == f16 ? quantize<f16> : quantize<bf16>;
    return launch(n, blocksize, x, codebook, q, absmax, (cudaStream_t)stream);
}

int lowbit_blockwise_dequantize_launch(enum lowbit_float type, size_t n, size_t blocksize,
                                       const uint8_t *q, const float *absmax, const float *codebook,
                                       void *y, void *stream) {
    const auto launch = type == f32   ? dequantize<f32>
                        : type == f16 ? dequantize<f16>
                                      : dequantize<bf16>;
    return launch(n, blocksize, q, absmax, codebook, y, (cudaStream_t)stream);
}
