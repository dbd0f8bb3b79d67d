// SPDX-License-Identifier: MIT
// How a block of threads goes through elements in quantization blocks: it takes a tile of 4,096,
// which holds whole blocks of every blocksize, then another. In a tile
//
//   warp w has elements 256 * w to 256 * w + 255, in 8 / V steps of 32 * V
//   lane l has V neighbours of a step, from V * l on
//
// V is a vector's length; or 1 where a kernel wants it so, because the tile is not full or a
// pointer not aligned.
#ifndef LOWBIT_KERNELS_CUDA_BLOCKWISE_TILE_CUH
#define LOWBIT_KERNELS_CUDA_BLOCKWISE_TILE_CUH

#include "encoder.cuh"

#include <floats.cuh>
#include <plain.cuh>
#include <ptx.cuh>

namespace {

constexpr unsigned THREADS = 512;
constexpr unsigned PER_THREAD = 8;
constexpr unsigned TILE = THREADS * PER_THREAD;
constexpr unsigned TILE_BLOCKS = TILE / 32; // at most

// Where a thread's elements of a step begin.
template <int V> __device__ __forceinline__ unsigned first_of_step(unsigned step) {
    const unsigned lane = threadIdx.x % LB_WARP, warp = threadIdx.x / LB_WARP;
    return warp * LB_WARP * PER_THREAD + step * LB_WARP * V + lane * V;
}

// Whether all elements that a warp has of a tile are in one block.
__device__ __forceinline__ bool one_block(unsigned log2_blocksize) {
    return 1u << log2_blocksize >= LB_WARP * PER_THREAD;
}

__device__ __forceinline__ float finite(float v) {
    return fabsf(v) < INFINITY ? v : 0.0f;
}

// Collects the largest magnitudes of a tile's blocks, as bits: numbers that are not negative are in
// the order of theirs. largest [TILE_BLOCKS] holds zeros at first and, after the next barrier, the
// result.
//
// A kernel has three such arrays, which take turns, so that one barrier per tile is enough. Until
// it, some threads may still read those of the tile before; but all have done with those of the
// tile before that, which are set to zero then, for the next tile.
template <int V, int STEPS>
__device__ __forceinline__ void note_largest(const float (&most)[STEPS], // a thread's
                                             unsigned log2_blocksize, uint32_t *largest) {
    const auto note = [&](float value, unsigned step, unsigned lanes) { // of one block
        const unsigned lane = threadIdx.x % LB_WARP;
        const unsigned mask = LB_ALL_LANES >> (LB_WARP - lanes) << (lane & ~(lanes - 1));
        const uint32_t bits = __reduce_max_sync(mask, __float_as_uint(value));
        if (lane % lanes == 0)
            atomicMax(&largest[first_of_step<V>(step) >> log2_blocksize], bits);
    };
    float all = most[0];
#pragma unroll
    for (unsigned step = 1; step < STEPS; step++)
        all = fmaxf(all, most[step]);
    if (one_block(log2_blocksize))
        note(all, 0, LB_WARP);
    else
#pragma unroll
        for (unsigned step = 0; step < STEPS; step++)
            note(most[step], step, min(LB_WARP, (1u << log2_blocksize) / V));
}

// 1 / absmax, or 0 where that would overflow.
__device__ __forceinline__ float inverse(float absmax) {
    if (absmax >= 0x1p-126f && absmax <= 0x1p125f)
        return lb_plain_quotient(1.0f, absmax, ptx::rcp(absmax));
    return absmax > 1 ? __fdiv_rn(1.0f, absmax) : 0.0f;
}

template <bool with_signs, int V>
__device__ __forceinline__ lb_pack<uint8_t, V>
encode(const Encoder<with_signs> &encoder, bool direct, const float (&values)[V], float inverse) {
    float scaled[V];
    for (int k = 0; k < V; k++)
        scaled[k] = __fmul_rn(values[k], inverse);
    uint32_t found[V];
    direct ? lb_encode_direct(encoder, scaled, found) : lb_encode_search(encoder, scaled, found);
    lb_pack<uint8_t, V> codes;
    if constexpr (V == 1)
        codes.set(0, (uint8_t)(found[0] >> 16));
    else
        for (int k = 0; k < V; k += 4)
            codes.word[k / 4] = __byte_perm(__byte_perm(found[k], found[k + 1], 0x62),
                                            __byte_perm(found[k + 2], found[k + 3], 0x62), 0x5410);
    return codes;
}

inline unsigned log2_of(size_t power) {
    unsigned log2 = 0;
    while (power >> log2 > 1)
        log2++;
    return log2;
}

} // namespace

#endif
