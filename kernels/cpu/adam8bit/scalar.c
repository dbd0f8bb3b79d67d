// SPDX-License-Identifier: MIT
// 8-bit Adam in plain C: the specification that the other micro-kernels equal in bits, and what runs
// where nothing better does.

#include "instantiate.h"
#include "scalar.h"
#include "../blockwise/scalar.h"

// Encodes the moments x of a block and returns their scale.
LOWBIT_INLINE float encode(size_t n, const float *x, const struct lowbit_blockwise_encoder *encoder,
                           uint8_t *q) {
    float absmax = 0.0f;
    for (size_t i = 0; i < n; i++)
        absmax = fabsf(x[i]) > absmax ? fabsf(x[i]) : absmax;
    const float inv = lowbit_blockwise_inverse(absmax);
    for (size_t i = 0; i < n; i++)
        q[i] = lowbit_encode(encoder, x[i] * inv);
    return absmax;
}

struct context {
    const struct lowbit_adam8bit_rule *rule;
};

LOWBIT_INLINE struct context begin(const struct lowbit_adam8bit_rule *rule) {
    return (struct context){rule};
}

LOWBIT_INLINE void step(enum lowbit_float param, enum lowbit_float grad, size_t n,
                        const struct lowbit_adam8bit_part *part, const struct context *context) {
    const struct lowbit_adam8bit_rule *rule = context->rule;
    float m[LOWBIT_BLOCKWISE_LARGEST], v[LOWBIT_BLOCKWISE_LARGEST];
    for (size_t i = 0; i < n; i++)
        lowbit_adam8bit_element(param, grad, part, rule, i, m, v);
    *part->exp_avg_absmax = encode(n, m, &rule->encoder1, part->exp_avg);
    *part->exp_avg_sq_absmax = encode(n, v, &rule->encoder2, part->exp_avg_sq);
}

LOWBIT_INSTANTIATE(scalar)
