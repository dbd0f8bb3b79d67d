// SPDX-License-Identifier: MIT
// 8-bit Adam in plain C: the specification that the other micro-kernels equal in bits, and what runs
// where nothing better does.

#include "instantiate.h"
#include "../blockwise/scalar.h"

LOWBIT_INLINE size_t find_moments(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                                  size_t n, const struct lowbit_adam8bit_part *part,
                                  const struct lowbit_adam8bit_rule *rule,
                                  struct moments *moments) {
    (void)has_master;
    moments->absmax_m = moments->absmax_v = 0.0f;
    step_elements(param, grad, 0, n, part, rule, moments);
    return 0;
}

static void encode(const struct lowbit_blockwise_encoder *encoder, size_t n, const float *x,
                   float absmax, uint8_t *q) {
    const float inv = lowbit_blockwise_inverse(absmax);
    for (size_t i = 0; i < n; i++)
        q[i] = lowbit_encode(encoder, x[i] * inv);
}

LOWBIT_INLINE void step_and_encode(enum lowbit_float param, bool has_master, bool has_decades,
                                   size_t n, size_t unstepped,
                                   const struct lowbit_adam8bit_part *part,
                                   const struct lowbit_adam8bit_rule *rule,
                                   const struct moments *moments) {
    (void)param, (void)has_master, (void)has_decades, (void)unstepped;
    encode(&rule->encoder1, n, moments->m, moments->absmax_m, part->exp_avg);
    encode(&rule->encoder2, n, moments->v, moments->absmax_v, part->exp_avg_sq);
}

LOWBIT_INSTANTIATE(scalar)
