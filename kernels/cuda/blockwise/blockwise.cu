// SPDX-License-Identifier: MIT
// Blockwise quantization. A block of threads takes a tile of 4,096 elements, which holds whole
// blocks of every blocksize, then another. In a tile
//
//   warp w has elements 512 * w to 512 * w + 511, in 16 / V steps of 32 * V
//   lane l has V neighbours of a step, from V * l on
//
// V is as many as 16 bytes of the float type hold, or 1 where the tile is the last and not full, or
// a pointer is not aligned to that.

#include "launch.h"

#include "encoder.cuh"

#include <floats.cuh>
#include <grid.cuh>

namespace {

enum : unsigned {
    THREADS = 256,
    PER_THREAD = 16,
    TILE = THREADS * PER_THREAD,
    TILE_BLOCKS = TILE / 32,
    BLOCKS_PER_MULTIPROCESSOR = 5, // as many encoders fit in the shared memory of sm_80
};

// Where a thread's elements of a step begin.
template <int V> __device__ __forceinline__ unsigned first_of_step(unsigned step) {
    const unsigned lane = threadIdx.x % LB_WARP, warp = threadIdx.x / LB_WARP;
    return warp * LB_WARP * PER_THREAD + step * LB_WARP * V + lane * V;
}

__device__ __forceinline__ float finite(float v) {
    return fabsf(v) < INFINITY ? v : 0.0f;
}

// A tile of n elements, n = TILE unless V = 1. largest [TILE_BLOCKS] holds zeros. Contains one
// barrier.
template <lowbit_float type, int V>
__device__ __forceinline__ void
quantize_tile(unsigned n, unsigned log2_blocksize, const typename Float<type>::Bits *x,
              const Encoder &encoder, bool direct, uint32_t *largest, uint8_t *q, float *absmax) {
    const unsigned lane = threadIdx.x % LB_WARP;
    float value[PER_THREAD / V][V];
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (V > 1 || i < n)
            lb_load<type>(value[step], x + i);
        else
            value[step][0] = 0;
    }
    const unsigned lanes = min(LB_WARP, (1u << log2_blocksize) / V); // of one block
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        float most = 0;
        for (int k = 0; k < V; k++) {
            value[step][k] = finite(value[step][k]);
            most = fmaxf(most, fabsf(value[step][k]));
        }
        for (unsigned other = lanes / 2; other; other /= 2)
            most = fmaxf(most, __shfl_xor_sync(LB_ALL_LANES, most, other));
        if (lane % lanes == 0) // numbers that are not negative are in the order of their bits
            atomicMax(&largest[first_of_step<V>(step) >> log2_blocksize], __float_as_uint(most));
    }
    __syncthreads();
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        const float scale = __uint_as_float(largest[i >> log2_blocksize]);
        const float inverse = scale >= 0x1p-126f ? __fdiv_rn(1.0f, scale) : 0.0f;
        Bytes<V> codes;
        for (int k = 0; k < V; k++)
            codes.byte[k] = (uint8_t)lb_encode(encoder, direct, __fmul_rn(value[step][k], inverse));
        if (V > 1 || i < n)
            *reinterpret_cast<decltype(codes.word) *>(q + i) = codes.word;
    }
    if (threadIdx.x << log2_blocksize < n)
        absmax[threadIdx.x] = __uint_as_float(largest[threadIdx.x]);
}

// Three sets of largest magnitudes take turns, so that a tile needs one barrier: until it, the last
// threads may still read those of the tile before, and all have done with those of the one before
// that, which the next tile gets.
template <lowbit_float type>
__global__ void __launch_bounds__(THREADS, BLOCKS_PER_MULTIPROCESSOR)
    quantize_kernel(size_t n, unsigned log2_blocksize, bool vectors,
                    const typename Float<type>::Bits *x, const float *codebook, uint8_t *q,
                    float *absmax) {
    LB_SHARED(encoder, Encoder);
    LB_SHARED(largest, uint32_t[3][TILE_BLOCKS]);
    if (threadIdx.x < TILE_BLOCKS)
        largest[0][threadIdx.x] = 0;
    const bool direct = lb_encoder_init(encoder, codebook);
    unsigned turn = 0;
    for (size_t i = (size_t)blockIdx.x * TILE; i < n; i += (size_t)gridDim.x * TILE) {
        const unsigned next = turn < 2 ? turn + 1 : 0, size = (unsigned)min(n - i, (size_t)TILE);
        if (threadIdx.x < TILE_BLOCKS)
            largest[next][threadIdx.x] = 0;
        if (vectors && size == TILE)
            quantize_tile<type, lb_vector<type>>(size, log2_blocksize, x + i, encoder, direct,
                                                 largest[turn], q + i,
                                                 absmax + (i >> log2_blocksize));
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
    Bytes<V> codes[PER_THREAD / V];
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (V > 1 || i < n)
            codes[step].word = *reinterpret_cast<const decltype(codes[step].word) *>(q + i);
    }
#pragma unroll
    for (unsigned step = 0; step < PER_THREAD / V; step++) {
        const unsigned i = first_of_step<V>(step);
        if (V == 1 && i >= n)
            return;
        const float scale = absmax[i >> log2_blocksize];
        float value[V];
        for (int k = 0; k < V; k++)
            value[k] = __fmul_rn(codebook[codes[step].byte[k]], scale);
        lb_store<type>(y + i, value);
    }
}

template <lowbit_float type>
__global__ void __launch_bounds__(THREADS)
    dequantize_kernel(size_t n, unsigned log2_blocksize, bool vectors, const uint8_t *q,
                      const float *absmax, const float *codebook, typename Float<type>::Bits *y) {
    LB_SHARED(values, float[256]);
    values[threadIdx.x] = codebook[threadIdx.x];
    __syncthreads();
    for (size_t i = (size_t)blockIdx.x * TILE; i < n; i += (size_t)gridDim.x * TILE) {
        const unsigned size = (unsigned)min(n - i, (size_t)TILE);
        if (vectors && size == TILE)
            dequantize_tile<type, lb_vector<type>>(size, log2_blocksize, q + i,
                                                   absmax + (i >> log2_blocksize), values, y + i);
        else
            dequantize_tile<type, 1>(size, log2_blocksize, q + i, absmax + (i >> log2_blocksize),
                                     values, y + i);
    }
}

unsigned log2_of(size_t power) {
    unsigned log2 = 0;
    while (power >> log2 > 1)
        log2++;
    return log2;
}

// Whether lb_vector elements at a time are aligned, of 16 bytes in floats and of as many codes.
template <lowbit_float type> bool aligned(const void *floats, const uint8_t *codes) {
    return (uintptr_t)floats % 16 == 0 && (uintptr_t)codes % lb_vector<type> == 0;
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
