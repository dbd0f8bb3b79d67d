// SPDX-License-Identifier: MIT
// The blockwise micro-kernels in plain C: the specification that the others equal in bits, and what
// runs where nothing better does.

#include "instantiate.h"
#include "scalar.h"

#include <math.h>

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
        q[i] = lowbit_encode(encoder, fabsf(value) < INFINITY ? value * inv : 0.0f);
    }
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t n, const uint8_t *q, float absmax,
                              const struct lowbit_blockwise_decoder *decoder, void *y) {
    for (size_t i = 0; i < n; i++)
        lowbit_float_store(type, y, i, decoder->value[q[i]] * absmax);
}

LOWBIT_INSTANTIATE(scalar)
