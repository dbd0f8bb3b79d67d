// SPDX-License-Identifier: MIT
// Encoding one number, for plain C and for the rest behind the last whole vector.
#ifndef LOWBIT_KERNELS_CPU_BLOCKWISE_SCALAR_H
#define LOWBIT_KERNELS_CPU_BLOCKWISE_SCALAR_H

#include "ukernels.h"
#include "../common/floats.h"

// 1 / absmax, or 0 where that would overflow.
LOWBIT_INLINE float lowbit_blockwise_inverse(float absmax) {
    return absmax >= 0x1p-126f ? 1.0f / absmax : 0.0f;
}

LOWBIT_INLINE uint8_t lowbit_encode(const struct lowbit_blockwise_encoder *e, float v) {
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

#endif
