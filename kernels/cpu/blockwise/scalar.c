// SPDX-License-Identifier: MIT
// The blockwise micro-kernels in plain C: the specification that the others equal in bits, and what
// runs where nothing better does.

#include "instantiate.h"

#include <math.h>

LOWBIT_INLINE uint8_t encode(const struct lowbit_blockwise_encoder *e, float v) {
    const uint32_t bits = lowbit_float_bits(v);
    int32_t bucket = (int32_t)(bits >> 16 & 0x7fff) - LOWBIT_BLOCKWISE_FIRST;
    bucket = bucket < 0 ? 0 : bucket;
    bucket = bucket < LOWBIT_BLOCKWISE_BUCKETS ? bucket : LOWBIT_BLOCKWISE_BUCKETS - 1;
    bucket = bits >> 31 ? ~bucket : bucket;
    size_t code = e->bucket[LOWBIT_BLOCKWISE_BUCKETS + bucket] >> 16 & 0xff;
    for (size_t step = e->span; step; step /= 2)
        code += v > e->threshold[code + step - 1] ? step : 0;
    return (uint8_t)code;
}

LOWBIT_INLINE float largest(enum lowbit_float type, size_t n, const void *x) {
    float absmax = 0.0f;
    for (size_t i = 0; i < n; i++) {
        float magnitude = fabsf(lowbit_float_load(type, x, i));
        absmax = magnitude > absmax && magnitude < INFINITY ? magnitude : absmax;
    }
    return absmax;
}

LOWBIT_INLINE void codes(enum lowbit_float type, size_t n, const void *x, float inv,
                         const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    for (size_t i = 0; i < n; i++) {
        float value = lowbit_float_load(type, x, i);
        q[i] = encode(encoder, fabsf(value) < INFINITY ? value * inv : 0.0f);
    }
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t n, const uint8_t *q, float absmax,
                              const float *codebook, void *y) {
    for (size_t i = 0; i < n; i++)
        lowbit_float_store(type, y, i, codebook[q[i]] * absmax);
}

LOWBIT_INSTANTIATE(scalar)
