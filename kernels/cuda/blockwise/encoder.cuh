// SPDX-License-Identifier: MIT
// Finds the value of a codebook that is nearest to a number, as struct lowbit_blockwise_encoder
// does on the CPU: kernels/cpu/blockwise/ukernels.h says what buckets and thresholds are. Here the
// threads of a block make one for themselves, in shared memory, from a codebook on the device.
#ifndef LOWBIT_KERNELS_CUDA_BLOCKWISE_ENCODER_CUH
#define LOWBIT_KERNELS_CUDA_BLOCKWISE_ENCODER_CUH

#include <lb_cuda.cuh>

#include "../../cpu/blockwise/ukernels.h"

// Without signs: for numbers that are not negative, and codebooks of such.
template <bool with_signs> struct Encoder {
    uint32_t bucket[(with_signs ? 2 : 1) * LOWBIT_BLOCKWISE_BUCKETS];
    float threshold[LOWBIT_BLOCKWISE_THRESHOLDS];
    float value[LOWBIT_BLOCKWISE_THRESHOLDS + 1]; // the codebook
};

// The float below v, of v that is finite.
__device__ __forceinline__ float lb_float_below(float v) {
    const uint32_t bits = __float_as_uint(v);
    return __uint_as_float(bits << 1 == 0 ? 0x80000001 : bits >> 31 ? bits + 1 : bits - 1);
}

// The largest float up to the midpoint of a < b, never -0. In double precision a + b is a sum and
// an error (Knuth's TwoSum), and halving is exact.
__device__ inline float lb_midpoint_down(float a, float b) {
    const double sum = (double)a + b, b_used = sum - a, a_used = sum - b_used;
    const double error = (a - a_used) + (b - b_used);
    const float middle = (float)(0.5 * sum);
    const bool above = 2.0 * middle > sum || (2.0 * middle == sum && error < 0.0);
    return above ? lb_float_below(middle) : middle;
}

// Of |v| < 1 + 2^-7.
template <bool with_signs> __device__ __forceinline__ int lb_bucket_of(float v) {
    const uint32_t bits = __float_as_uint(v);
    const int bucket = max((int)(bits >> 16 & 0x7fff) - LOWBIT_BLOCKWISE_FIRST, 0);
    return !with_signs ? bucket : LOWBIT_BLOCKWISE_BUCKETS + (bits >> 31 ? ~bucket : bucket);
}

// By all threads of the block, at least 256; no barrier is needed after it. Returns whether the
// buckets suffice.
template <bool with_signs>
__device__ bool lb_encoder_init(Encoder<with_signs> &e, const float *codebook) {
    enum { THRESHOLDS = LOWBIT_BLOCKWISE_THRESHOLDS, BUCKETS = sizeof e.bucket / sizeof *e.bucket };
    const float end_of_buckets = 1 + 0x1p-7f; // no number is above it
    const unsigned t = threadIdx.x, lane = t % LB_WARP, warp = t / LB_WARP;
    if (t <= THRESHOLDS)
        e.value[t] = codebook[t];
    __syncthreads();

    float threshold = INFINITY;
    if (t < THRESHOLDS) {
        unsigned i = t; // equal values share the threshold behind the last of them
        while (i < THRESHOLDS && e.value[i] == e.value[i + 1])
            i++;
        if (i < THRESHOLDS)
            threshold = lb_midpoint_down(e.value[i], e.value[i + 1]);
        e.threshold[t] = threshold;
    }
    const unsigned used = (unsigned)__syncthreads_count(threshold < end_of_buckets);

    // A warp fills the buckets from one threshold to the next. Those beyond 1 are in the last.
    const auto bucket_of = [&](unsigned i) {
        return lb_bucket_of<with_signs>(fminf(fmaxf(e.threshold[i], -1.0f), 1.0f));
    };
    bool direct = true;
    for (unsigned i = warp; i <= used; i += blockDim.x / LB_WARP) {
        const int before = i > 0 ? bucket_of(i - 1) : -1;
        const int here = i < used ? bucket_of(i) : BUCKETS;
        for (int bucket = before + 1 + (int)lane; bucket < here; bucket += LB_WARP)
            e.bucket[bucket] = i << 16 | 0xffff; // nothing is above 0xffff
        if (lane == 0 && before != here && i < used) {
            unsigned end = i + 1; // thresholds i to end - 1 share the bucket
            while (end < used && bucket_of(end) == here)
                end++;
            const float first = e.threshold[i], magnitude = fabsf(first);
            const uint32_t bits = __float_as_uint(first),
                           lower = (bits >> 31 ? ~bits : bits) & 0xffff;
            e.bucket[here] = end << 24 | i << 16 | lower;
            // Numbers in this bucket share the threshold's upper half, but for the first of each
            // sign.
            direct = direct && first == e.threshold[end - 1] &&
                     magnitude >= 0x1p-24f * (1 + 0x1p-7f) && magnitude < end_of_buckets;
        }
    }
    return __syncthreads_and(direct);
}

// Puts the code of v, |v| < 1 + 2^-7, into byte i of codes, which is 0; with what lb_encoder_init
// returned.
template <bool with_signs>
__device__ __forceinline__ void lb_encode_direct(const Encoder<with_signs> &e, float v, int i,
                                                 uint32_t &codes) {
    const uint32_t bits = __float_as_uint(v), lower = bits >> 31 ? ~bits : bits;
    const uint32_t entry = e.bucket[lb_bucket_of<with_signs>(v)];
    const bool above = (lower & 0xffff) > (entry & 0xffff);
    const uint32_t others = 0x3210 & ~(15u << 4 * i);
    codes = __byte_perm(codes, entry, above ? others | 7u << 4 * i : others | 6u << 4 * i);
}
template <bool with_signs>
__device__ __forceinline__ void lb_encode_search(const Encoder<with_signs> &e, float v, int i,
                                                 uint32_t &codes) {
    uint32_t code = 0;
    for (uint32_t step = 128; step; step /= 2)
        code += v > e.threshold[code + step - 1] ? step : 0;
    codes |= code << 8 * i;
}

#endif
