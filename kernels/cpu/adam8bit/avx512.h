// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX-512 F, BW, DQ and VL, with VBMI and without.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_AVX512_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_AVX512_H

#include "instantiate.h"
#include "../blockwise/avx512.h"

LOWBIT_INLINE __m512 finite16(__m512 x) {
    return _mm512_maskz_mov_ps(
        _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(INFINITY), _CMP_LT_OQ), x);
}

// Steps those of the elements i to i + 15 that are in the mask. Their old moments are given without
// scales; the new ones are 0 outside the mask, and most is raised to the largest of each.
LOWBIT_INLINE void step16(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                          const struct lowbit_adam8bit_part *part,
                          const struct lowbit_adam8bit_rule *rule, size_t i, __mmask16 in,
                          __m512 m_old, __m512 v_old, struct moments *moments, __m512 most[2]) {
    m_old = _mm512_mul_ps(m_old, _mm512_set1_ps(*part->exp_avg_absmax));
    v_old = _mm512_mul_ps(v_old, _mm512_set1_ps(*part->exp_avg_sq_absmax));
    const __m512 p = has_master ? lowbit_load16(f32, part->master, i, in)
                                : lowbit_load16(param, part->param, i, in);
    const __m512 g = _mm512_fmadd_ps(
        _mm512_set1_ps(rule->l2), p,
        _mm512_mul_ps(lowbit_load16(grad, part->grad, i, in), _mm512_set1_ps(rule->scale)));
    __m512 m = _mm512_fmadd_ps(_mm512_set1_ps(rule->b1), m_old,
                               _mm512_mul_ps(_mm512_set1_ps(rule->r1), g));
    __m512 v = _mm512_fmadd_ps(_mm512_set1_ps(rule->b2), v_old,
                               _mm512_mul_ps(_mm512_set1_ps(rule->r2), _mm512_mul_ps(g, g)));
    const __m512 size = _mm512_abs_ps(m);
    // As integers, NaN and negative numbers are above infinity; adding 0 turns -0 into 0.
    const __m512 not_negative = _mm512_add_ps(v, _mm512_setzero_ps());
    const __mmask16 good = _mm512_mask_cmplt_epu32_mask(
        in, _mm512_max_epu32(_mm512_castps_si512(not_negative), _mm512_castps_si512(size)),
        _mm512_set1_epi32(0x7f800000));
    const __m512 d = _mm512_add_ps(
        _mm512_max_ps(_mm512_sqrt_ps(v), _mm512_mul_ps(size, _mm512_set1_ps(rule->floor))),
        _mm512_set1_ps(rule->e));
    const __m512 stepped = _mm512_fnmadd_ps(_mm512_set1_ps(rule->size), _mm512_div_ps(m, d),
                                            _mm512_mul_ps(p, _mm512_set1_ps(rule->keep)));
    if (has_master)
        lowbit_store16(f32, part->master, i, good, stepped);
    lowbit_store16(param, part->param, i, good, stepped);
    if (good != 0xffff) {
        m = _mm512_maskz_mov_ps(in, _mm512_mask_mov_ps(finite16(m_old), good, m));
        v_old = _mm512_max_ps(finite16(v_old), _mm512_setzero_ps());
        v = _mm512_maskz_mov_ps(in, _mm512_mask_mov_ps(v_old, good, v));
    }
    _mm512_store_ps(moments->m + i, m);
    _mm512_store_ps(moments->v + i, v);
    most[0] = _mm512_max_ps(most[0], _mm512_abs_ps(m));
    most[1] = _mm512_max_ps(most[1], v);
}

// Steps those of the elements i to i + 63 that are in the mask.
LOWBIT_INLINE void step64(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                          const struct lowbit_adam8bit_part *part,
                          const struct lowbit_adam8bit_rule *rule, size_t i, __mmask64 in,
                          struct moments *moments, __m512 most[2]) {
    __m512 m[4], v[4];
    prefetch(param, grad, 64, part, i);
    lowbit_decode64(&rule->decoder1, _mm512_maskz_loadu_epi8(in, part->exp_avg + i), m);
    lowbit_decode64(&rule->decoder2, _mm512_maskz_loadu_epi8(in, part->exp_avg_sq + i), v);
    for (size_t j = 0; j < 4; j++)
        step16(param, grad, has_master, part, rule, i + 16 * j, (__mmask16)(in >> 16 * j), m[j],
               v[j], moments, most);
}

LOWBIT_INLINE void update_all(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                              size_t n, const struct lowbit_adam8bit_part *part,
                              const struct lowbit_adam8bit_rule *rule, struct moments *moments) {
    __m512 most[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        step64(param, grad, has_master, part, rule, i, ~(__mmask64)0, moments, most);
    if (i < n)
        step64(param, grad, has_master, part, rule, i, lowbit_first64(n - i), moments, most);
    moments->absmax_m = _mm512_reduce_max_ps(most[0]);
    moments->absmax_v = _mm512_reduce_max_ps(most[1]);
}

LOWBIT_INLINE void update(enum lowbit_float param, enum lowbit_float grad, size_t n,
                          const struct lowbit_adam8bit_part *part,
                          const struct lowbit_adam8bit_rule *rule, struct moments *moments) {
    if (part->master)
        update_all(param, grad, true, n, part, rule, moments);
    else
        update_all(param, grad, false, n, part, rule, moments);
}

LOWBIT_INLINE void encode_by(bool has_decades, bool with_sign,
                             const struct lowbit_blockwise_encoder *encoder, size_t n,
                             const float *x, float inv, uint8_t *q) {
    for (size_t i = 0; i < n; i += 64) {
        __m512 v[4];
        for (size_t j = 0; j < 4; j++)
            v[j] = _mm512_mul_ps(_mm512_load_ps(x + i + 16 * j), _mm512_set1_ps(inv));
        if (!has_decades) {
            lowbit_encode64_any(encoder, v, n - i, q + i);
            continue;
        }
        __mmask64 near = lowbit_encode64(encoder, with_sign, v, n - i, q + i);
        for (; near; near &= near - 1) {
            const size_t k = i + (size_t)__builtin_ctzll(near);
            q[k] = lowbit_encode(encoder, x[k] * inv);
        }
    }
}

static void encode_moments(const struct lowbit_blockwise_encoder *encoder, bool with_sign, size_t n,
                           const float *x, float absmax, uint8_t *q) {
    const float inv = lowbit_blockwise_inverse(absmax);
    if (!encoder->has_decades)
        encode_by(false, true, encoder, n, x, inv, q);
    else if (with_sign)
        encode_by(true, true, encoder, n, x, inv, q);
    else
        encode_by(true, false, encoder, n, x, inv, q);
}

static void encode(size_t n, const struct lowbit_adam8bit_part *part,
                   const struct lowbit_adam8bit_rule *rule, const struct moments *moments) {
    *part->exp_avg_absmax = moments->absmax_m;
    *part->exp_avg_sq_absmax = moments->absmax_v;
    encode_moments(&rule->encoder1, true, n, moments->m, moments->absmax_m, part->exp_avg);
    encode_moments(&rule->encoder2, false, n, moments->v, moments->absmax_v, part->exp_avg_sq);
}

#endif
