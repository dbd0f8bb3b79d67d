// SPDX-License-Identifier: MIT
// 8-bit Adam in plain C: the specification that the other micro-kernels equal in bits, and what runs
// where nothing better does.

#include "instantiate.h"
#include "scalar.h"
#include "../blockwise/scalar.h"

LOWBIT_INLINE void update(enum lowbit_float param, enum lowbit_float grad, size_t n,
                          const struct lowbit_adam8bit_part *part,
                          const struct lowbit_adam8bit_rule *rule, struct moments *moments) {
    moments->absmax_m = moments->absmax_v = 0.0f;
    for (size_t i = 0; i < n; i++) {
        lowbit_adam8bit_element(param, grad, part, rule, i, moments->m, moments->v);
        moments->absmax_m = fmaxf(moments->absmax_m, fabsf(moments->m[i]));
        moments->absmax_v = fmaxf(moments->absmax_v, moments->v[i]);
    }
}

static float encode_moments(const struct lowbit_blockwise_encoder *encoder, size_t n,
                            const float *x, float absmax, uint8_t *q) {
    const float inv = lowbit_blockwise_inverse(absmax);
    for (size_t i = 0; i < n; i++)
        q[i] = lowbit_encode(encoder, x[i] * inv);
    return absmax;
}

static void encode(size_t n, const struct lowbit_adam8bit_part *part,
                   const struct lowbit_adam8bit_rule *rule, const struct moments *moments) {
    *part->exp_avg_absmax =
        encode_moments(&rule->encoder1, n, moments->m, moments->absmax_m, part->exp_avg);
    *part->exp_avg_sq_absmax =
        encode_moments(&rule->encoder2, n, moments->v, moments->absmax_v, part->exp_avg_sq);
}

LOWBIT_INSTANTIATE(scalar)
