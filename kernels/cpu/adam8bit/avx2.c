// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX2, FMA and F16C.

#include "instantiate.h"
#include "scalar.h"
#include "../blockwise/avx2.h"

LOWBIT_INLINE __m256 abs8(__m256 x) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}

// Steps the elements i to i + 7, or leaves them as they are and returns false where one of them has to
// stay.
LOWBIT_INLINE bool step8(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                         const struct lowbit_adam8bit_part *part,
                         const struct lowbit_adam8bit_rule *rule, size_t i,
                         struct moments *moments) {
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
    // As integers without a sign, NaN and negative numbers are above the finite ones.
    const __m256i largest = _mm256_max_epu32(_mm256_castps_si256(v), _mm256_castps_si256(abs8(m)));
    const __m256i good =
        _mm256_cmpeq_epi32(_mm256_min_epu32(largest, _mm256_set1_epi32(0x7f7fffff)), largest);
    if (_mm256_movemask_epi8(good) != -1)
        return false;
    const __m256 d = _mm256_add_ps(
        _mm256_max_ps(_mm256_sqrt_ps(v), _mm256_mul_ps(abs8(m), _mm256_set1_ps(rule->floor))),
        _mm256_set1_ps(rule->e));
    const __m256 stepped = _mm256_fnmadd_ps(_mm256_set1_ps(rule->size), _mm256_div_ps(m, d),
                                            _mm256_mul_ps(p, _mm256_set1_ps(rule->keep)));
    if (has_master)
        lowbit_store8(f32, part->master, i, stepped);
    lowbit_store8(param, part->param, i, stepped);
    _mm256_store_ps(moments->m + i, m);
    _mm256_store_ps(moments->v + i, v);
    return true;
}

LOWBIT_INLINE void update_all(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                              size_t n, const struct lowbit_adam8bit_part *part,
                              const struct lowbit_adam8bit_rule *rule, struct moments *moments) {
    __m256 most_m = _mm256_setzero_ps(), most_v = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 8) {
        if (n - i < 8 || !step8(param, grad, has_master, part, rule, i, moments)) {
            _mm256_store_ps(moments->m + i, _mm256_setzero_ps());
            _mm256_store_ps(moments->v + i, _mm256_setzero_ps());
            for (size_t j = i; j < n && j < i + 8; j++)
                lowbit_adam8bit_element(param, grad, part, rule, j, moments->m, moments->v);
        }
        most_m = _mm256_max_ps(most_m, abs8(_mm256_load_ps(moments->m + i)));
        most_v = _mm256_max_ps(most_v, _mm256_load_ps(moments->v + i));
    }
    moments->absmax_m = lowbit_max8(most_m);
    moments->absmax_v = lowbit_max8(most_v);
}

LOWBIT_INLINE void update(enum lowbit_float param, enum lowbit_float grad, size_t n,
                          const struct lowbit_adam8bit_part *part,
                          const struct lowbit_adam8bit_rule *rule, struct moments *moments) {
    if (part->master)
        update_all(param, grad, true, n, part, rule, moments);
    else
        update_all(param, grad, false, n, part, rule, moments);
    const size_t behind = (n + 7) / 8 * 8; // encoding takes 32 at a time
    for (size_t i = behind; i % 32; i += 8) {
        _mm256_store_ps(moments->m + i, _mm256_setzero_ps());
        _mm256_store_ps(moments->v + i, _mm256_setzero_ps());
    }
}

LOWBIT_INLINE void encode_by(bool has_decades, const struct lowbit_blockwise_encoder *encoder,
                             size_t n, const float *x, float inv, uint8_t *q) {
    for (size_t i = 0; i < n; i += 32) {
        __m256 v[4];
        for (size_t j = 0; j < 4; j++)
            v[j] = _mm256_mul_ps(_mm256_load_ps(x + i + 8 * j), _mm256_set1_ps(inv));
        if (!has_decades) {
            lowbit_store_codes(q + i, n - i, lowbit_encode32_any(encoder, v));
            continue;
        }
        uint32_t near;
        lowbit_store_codes(q + i, n - i, lowbit_encode32(encoder, v, &near));
        for (; near; near &= near - 1) {
            const size_t k = i + (size_t)__builtin_ctz(near);
            if (k < n)
                q[k] = lowbit_encode(encoder, x[k] * inv);
        }
    }
}

static void encode_moments(const struct lowbit_blockwise_encoder *encoder, size_t n, const float *x,
                           float absmax, uint8_t *q) {
    const float inv = lowbit_blockwise_inverse(absmax);
    if (encoder->has_decades)
        encode_by(true, encoder, n, x, inv, q);
    else
        encode_by(false, encoder, n, x, inv, q);
}

static void encode(size_t n, const struct lowbit_adam8bit_part *part,
                   const struct lowbit_adam8bit_rule *rule, const struct moments *moments) {
    *part->exp_avg_absmax = moments->absmax_m;
    *part->exp_avg_sq_absmax = moments->absmax_v;
    encode_moments(&rule->encoder1, n, moments->m, moments->absmax_m, part->exp_avg);
    encode_moments(&rule->encoder2, n, moments->v, moments->absmax_v, part->exp_avg_sq);
}

LOWBIT_INSTANTIATE(avx2)
