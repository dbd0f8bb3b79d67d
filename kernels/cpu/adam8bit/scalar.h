// SPDX-License-Identifier: MIT
// 8-bit Adam for one element: the specification, and what runs behind the last whole vector.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_SCALAR_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_SCALAR_H

#include "ukernels.h"
#include "../common/floats.h"

#include <math.h>
#include <stdbool.h>

LOWBIT_INLINE float lowbit_finite(float x) {
    return fabsf(x) < INFINITY ? x : 0.0f;
}

// Steps element i. Its moments are left in m[i] and v[i], 0 where a scale was of no use.
LOWBIT_INLINE void lowbit_adam8bit_element(enum lowbit_float param, enum lowbit_float grad,
                                           const struct lowbit_adam8bit_part *part,
                                           const struct lowbit_adam8bit_rule *rule, size_t i,
                                           float *m, float *v) {
    const float p = part->master ? part->master[i] : lowbit_float_load(param, part->param, i);
    const float m_old = rule->decoder1.value[part->exp_avg[i]] * *part->exp_avg_absmax;
    const float v_old = rule->decoder2.value[part->exp_avg_sq[i]] * *part->exp_avg_sq_absmax;
    const float g = fmaf(rule->l2, p, lowbit_float_load(grad, part->grad, i) * rule->scale);
    m[i] = fmaf(rule->b1, m_old, rule->r1 * g);
    v[i] = fmaf(rule->b2, v_old, rule->r2 * (g * g));
    if (!(fabsf(m[i]) < INFINITY && v[i] >= 0.0f && v[i] < INFINITY)) {
        m[i] = lowbit_finite(m_old);
        v[i] = v_old > 0.0f ? lowbit_finite(v_old) : 0.0f;
        return;
    }
    const float root = sqrtf(v[i]), least = fabsf(m[i]) * rule->floor;
    const float d = (root > least ? root : least) + rule->e;
    const float stepped = fmaf(-rule->size, m[i] / d, p * rule->keep);
    if (part->master)
        lowbit_float_store(f32, part->master, i, stepped);
    lowbit_float_store(param, part->param, i, stepped);
}

#endif
