// SPDX-License-Identifier: MIT
// Finds the value of a codebook that is nearest to a number, as struct lowbit_blockwise_encoder
// does on the CPU: kernels/cpu/blockwise/ukernels.h says what buckets and thresholds are. Here the
// threads of a block make one for themselves, in shared memory, from a codebook on the device.
#ifndef LOWBIT_KERNELS_CUDA_BLOCKWISE_ENCODER_CUH
#define LOWBIT_KERNELS_CUDA_BLOCKWISE_ENCODER_CUH

#include <lb_cuda.cuh>

#include "../../cpu/blockwise/ukernels.h"

// Without signs: for numbers that are not negative, and codebooks of such.
//
// Buckets are those of the CPU, the negative ones behind the others and away from zero too. An
// entry suffices if no more than one threshold lies in its bucket; then, in 32 bits,
//
//   code(v) = (entry + order(v)) / 2^16 % 256
//   entry = 2^16 * code of the least number + 2^16 - 1 - order(threshold)
//
// where order ascends with v: the bits of max(|v|, 2^-24), all inverted if v is negative.
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

template <bool with_signs> __device__ __forceinline__ uint32_t lb_order(float v) {
    const uint32_t sign = with_signs ? (uint32_t)(__float_as_int(v) >> 31) : 0;
    return __float_as_uint(fmaxf(fabsf(v), 0x1p-24f)) ^ sign;
}

// Of |v| < 1 + 2^-7: ascends with v, from -BUCKETS on where there are negative numbers, else from
// 0.
__device__ __forceinline__ int lb_bucket_of(float v) {
    const uint32_t bits = __float_as_uint(v);
    const int bucket = max((int)(bits >> 16 & 0x7fff) - LOWBIT_BLOCKWISE_FIRST, 0);
    return bits >> 31 ? ~bucket : bucket;
}

// By all threads of the block, at least 256; no barrier is needed after it. Returns whether the
// buckets suffice.
template <bool with_signs>
__device__ bool lb_encoder_init(Encoder<with_signs> &e, const float *codebook) {
    enum {
        THRESHOLDS = LOWBIT_BLOCKWISE_THRESHOLDS,
        FIRST = LOWBIT_BLOCKWISE_FIRST,
        BUCKETS = LOWBIT_BLOCKWISE_BUCKETS
    };
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
        return lb_bucket_of(fminf(fmaxf(e.threshold[i], with_signs ? -1.0f : 0.0f), 1.0f));
    };
    const auto set = [&](int bucket, unsigned code, uint32_t threshold_order) {
        e.bucket[bucket < 0 ? BUCKETS + ~bucket : bucket] = (code << 16) + 0xffff - threshold_order;
    };
    bool direct = true;
    for (unsigned i = warp; i <= used; i += blockDim.x / LB_WARP) {
        const int before = i > 0 ? bucket_of(i - 1) : (with_signs ? -BUCKETS : 0) - 1;
        const int here = i < used ? bucket_of(i) : BUCKETS;
        for (int bucket = before + 1 + (int)lane; bucket < here; bucket += LB_WARP)
            set(bucket, i, (uint32_t)(bucket < 0 ? bucket - FIRST : bucket + FIRST) << 16 | 0xffff);
        if (lane == 0 && before != here && i < used) {
            const float first = e.threshold[i], magnitude = fabsf(first);
            set(here, i, lb_order<with_signs>(first));
            // One code more in this bucket, whose numbers share the threshold's upper half but for
            // the first of each sign.
            direct = direct && (i + 1 == used || bucket_of(i + 1) != here) &&
                     magnitude >= 0x1p-24f * (1 + 0x1p-7f) && magnitude < end_of_buckets;
        }
    }
    return __syncthreads_and(direct);
}

// Both find the codes of numbers v, |v| < 1 + 2^-7, and leave them in bits 16 to 23; the first one
// only if lb_encoder_init returned true.
template <bool with_signs, int n>
__device__ __forceinline__ void lb_encode_direct(const Encoder<with_signs> &e, const float (&v)[n],
                                                 uint32_t (&codes)[n]) {
    for (int i = 0; i < n; i++) {
        const uint32_t magnitude = __float_as_uint(fmaxf(fabsf(v[i]), 0x1p-24f));
        const int sign = with_signs ? __float_as_int(v[i]) >> 31 : 0,
                  bucket = (int)__byte_perm(magnitude, 0, 0x4432);
        codes[i] = e.bucket[bucket - LOWBIT_BLOCKWISE_FIRST - sign * LOWBIT_BLOCKWISE_BUCKETS] +
                   lb_order<with_signs>(v[i]);
    }
}
template <bool with_signs, int n>
__device__ __forceinline__ void lb_encode_search(const Encoder<with_signs> &e, const float (&v)[n],
                                                 uint32_t (&codes)[n]) {
    for (int i = 0; i < n; i++)
        codes[i] = 0;
#pragma unroll 1
    for (uint32_t step = 128; step; step /= 2)
        for (int i = 0; i < n; i++)
            codes[i] += v[i] > e.threshold[codes[i] + step - 1] ? step : 0;
    for (int i = 0; i < n; i++)
        codes[i] <<= 16;
}

#endif
