// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX2, FMA and F16C.

#include "instantiate.h"
#include "../blockwise/avx2.h"

LOWBIT_INLINE __m256 abs8(__m256 x) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}

// The new moments of the elements i to i + 7. most is raised to the largest of them as integers without
// a sign, by which NaN and negative numbers are above the finite ones.
LOWBIT_INLINE void moments8(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                            const struct lowbit_adam8bit_part *part,
                            const struct lowbit_adam8bit_rule *rule, size_t i,
                            struct moments *moments, __m256i most[2]) {
    const __m256 m_old = _mm256_mul_ps(lowbit_decode8(&rule->decoder1, part->exp_avg + i),
                                       _mm256_set1_ps(*part->exp_avg_absmax));
    const __m256 v_old = _mm256_mul_ps(lowbit_decode8(&rule->decoder2, part->exp_avg_sq + i),
                                       _mm256_set1_ps(*part->exp_avg_sq_absmax));
    const __m256 p =
        has_master ? lowbit_load8(f32, part->master, i) : lowbit_load8(param, part->param, i);
    const __m256 g = _mm256_fmadd_ps(
        _mm256_set1_ps(rule->l2), p,
        _mm256_mul_ps(lowbit_load8(grad, part->grad, i), _mm256_set1_ps(rule->scale)));
    const __m256 m = _mm256_fmadd_ps(_mm256_set1_ps(rule->b1), m_old,
                                     _mm256_mul_ps(_mm256_set1_ps(rule->r1), g));
    const __m256 v = _mm256_fmadd_ps(_mm256_set1_ps(rule->b2), v_old,
                                     _mm256_mul_ps(_mm256_set1_ps(rule->r2), _mm256_mul_ps(g, g)));
    _mm256_store_ps(moments->m + i, m);
    _mm256_store_ps(moments->v + i, v);
    most[0] = _mm256_max_epu32(most[0], _mm256_castps_si256(abs8(m)));
    most[1] = _mm256_max_epu32(most[1], _mm256_castps_si256(v));
}

LOWBIT_INLINE void step8(enum lowbit_float param, bool has_master,
                         const struct lowbit_adam8bit_part *part,
                         const struct lowbit_adam8bit_rule *rule, size_t i,
                         const struct moments *moments) {
    const __m256 m = _mm256_load_ps(moments->m + i), v = _mm256_load_ps(moments->v + i);
    const __m256 p =
        has_master ? lowbit_load8(f32, part->master, i) : lowbit_load8(param, part->param, i);
    const __m256 d = _mm256_add_ps(
        _mm256_max_ps(_mm256_sqrt_ps(v), _mm256_mul_ps(abs8(m), _mm256_set1_ps(rule->floor))),
        _mm256_set1_ps(rule->e));
    const __m256 stepped = _mm256_fnmadd_ps(_mm256_set1_ps(rule->size), _mm256_div_ps(m, d),
                                            _mm256_mul_ps(p, _mm256_set1_ps(rule->keep)));
    if (has_master)
        lowbit_store8(f32, part->master, i, stepped);
    lowbit_store8(param, part->param, i, stepped);
}

LOWBIT_INLINE void encode32(bool has_decades, bool with_sign,
                            const struct lowbit_blockwise_encoder *encoder, const float *x,
                            float inv, size_t n, uint8_t *q) {
    __m256 v[4];
    for (size_t j = 0; j < 4; j++)
        v[j] = _mm256_mul_ps(_mm256_load_ps(x + 8 * j), _mm256_set1_ps(inv));
    if (!has_decades) {
        lowbit_store_codes(q, n, lowbit_encode32_any(encoder, v));
        return;
    }
    uint32_t near;
    lowbit_store_codes(q, n, lowbit_encode32(encoder, with_sign, v, &near));
    for (; near; near &= near - 1) {
        const size_t k = (size_t)__builtin_ctz(near);
        if (k < n)
            q[k] = lowbit_encode(encoder, x[k] * inv);
    }
}

LOWBIT_INLINE size_t find_moments(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                                  size_t n, const struct lowbit_adam8bit_part *part,
                                  const struct lowbit_adam8bit_rule *rule,
                                  struct moments *moments) {
    __m256i most[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    size_t whole = n / 8 * 8;
    for (size_t i = 0; i < whole; i += 8) {
        if (i % 64 == 0)
            prefetch(param, grad, 64, part, i);
        moments8(param, grad, has_master, part, rule, i, moments, most);
    }
    const __m256i finite = _mm256_set1_epi32(0x7f7fffff), both = _mm256_max_epu32(most[0], most[1]);
    if (_mm256_movemask_epi8(_mm256_cmpeq_epi32(_mm256_max_epu32(both, finite), finite)) != -1) {
        whole = 0; // some elements have to stay
        most[0] = most[1] = _mm256_setzero_si256();
    }
    moments->absmax_m = lowbit_max8(_mm256_castsi256_ps(most[0]));
    moments->absmax_v = lowbit_max8(_mm256_castsi256_ps(most[1]));
    step_elements(param, grad, whole, n, part, rule, moments);
    for (size_t i = n; i % 32; i++) // encoding takes 32 at a time
        moments->m[i] = moments->v[i] = 0.0f;
    return whole;
}

LOWBIT_INLINE void step_and_encode(enum lowbit_float param, bool has_master, bool has_decades,
                                   size_t n, size_t unstepped,
                                   const struct lowbit_adam8bit_part *part,
                                   const struct lowbit_adam8bit_rule *rule,
                                   const struct moments *moments) {
    const float inv_m = lowbit_blockwise_inverse(moments->absmax_m);
    const float inv_v = lowbit_blockwise_inverse(moments->absmax_v);
    for (size_t i = 0; i < n; i += 32) {
        for (size_t j = i; j < unstepped && j < i + 32; j += 8)
            step8(param, has_master, part, rule, j, moments);
        encode32(has_decades, true, &rule->encoder1, moments->m + i, inv_m, n - i,
                 part->exp_avg + i);
        encode32(has_decades, false, &rule->encoder2, moments->v + i, inv_v, n - i,
                 part->exp_avg_sq + i);
    }
}

LOWBIT_INSTANTIATE(avx2)
