// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX-512 F, BW, DQ and VL, with VBMI and without.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_AVX512_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_AVX512_H

#include "instantiate.h"
#include "../blockwise/avx512.h"

// The new moments of those of the elements i to i + 15 that are in the mask, 0 outside. The old ones are
// given without scales. most is raised to the largest as integers without a sign, by which NaN and
// negative numbers are above the finite ones.
LOWBIT_INLINE void moments16(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                             const struct lowbit_adam8bit_part *part,
                             const struct lowbit_adam8bit_rule *rule, size_t i, __mmask16 in,
                             __m512 m_old, __m512 v_old, struct moments *moments, __m512i most[2]) {
    m_old = _mm512_mul_ps(m_old, _mm512_set1_ps(*part->exp_avg_absmax));
    v_old = _mm512_mul_ps(v_old, _mm512_set1_ps(*part->exp_avg_sq_absmax));
    const __m512 p = has_master ? lowbit_load16(f32, part->master, i, in)
                                : lowbit_load16(param, part->param, i, in);
    const __m512 g = _mm512_fmadd_ps(
        _mm512_set1_ps(rule->l2), p,
        _mm512_mul_ps(lowbit_load16(grad, part->grad, i, in), _mm512_set1_ps(rule->scale)));
    const __m512 m = _mm512_maskz_fmadd_ps(in, _mm512_set1_ps(rule->b1), m_old,
                                           _mm512_mul_ps(_mm512_set1_ps(rule->r1), g));
    const __m512 v =
        _mm512_maskz_fmadd_ps(in, _mm512_set1_ps(rule->b2), v_old,
                              _mm512_mul_ps(_mm512_set1_ps(rule->r2), _mm512_mul_ps(g, g)));
    _mm512_store_ps(moments->m + i, m);
    _mm512_store_ps(moments->v + i, v);
    most[0] = _mm512_max_epu32(most[0], _mm512_castps_si512(_mm512_abs_ps(m)));
    most[1] = _mm512_max_epu32(most[1], _mm512_castps_si512(v));
}

LOWBIT_INLINE void moments64(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                             const struct lowbit_adam8bit_part *part,
                             const struct lowbit_adam8bit_rule *rule, size_t i, __mmask64 in,
                             struct moments *moments, __m512i most[2]) {
    __m512 m[4], v[4];
    prefetch(param, grad, 64, part, i);
    lowbit_decode64(&rule->decoder1, _mm512_maskz_loadu_epi8(in, part->exp_avg + i), m);
    lowbit_decode64(&rule->decoder2, _mm512_maskz_loadu_epi8(in, part->exp_avg_sq + i), v);
    for (size_t j = 0; j < 4; j++)
        moments16(param, grad, has_master, part, rule, i + 16 * j, (__mmask16)(in >> 16 * j), m[j],
                  v[j], moments, most);
}

LOWBIT_INLINE size_t find_moments(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                                  size_t n, const struct lowbit_adam8bit_part *part,
                                  const struct lowbit_adam8bit_rule *rule,
                                  struct moments *moments) {
    __m512i most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        moments64(param, grad, has_master, part, rule, i, ~(__mmask64)0, moments, most);
    if (i < n)
        moments64(param, grad, has_master, part, rule, i, lowbit_first64(n - i), moments, most);
    const __mmask16 finite = _mm512_mask_cmplt_epu32_mask(
        0xffff, _mm512_max_epu32(most[0], most[1]), _mm512_set1_epi32(0x7f800000));
    if (finite != 0xffff) { // some elements have to stay
        moments->absmax_m = moments->absmax_v = 0.0f;
        step_elements(param, grad, 0, n, part, rule, moments);
        return 0;
    }
    moments->absmax_m = _mm512_reduce_max_ps(_mm512_castsi512_ps(most[0]));
    moments->absmax_v = _mm512_reduce_max_ps(_mm512_castsi512_ps(most[1]));
    return n;
}

LOWBIT_INLINE void step16(enum lowbit_float param, bool has_master,
                          const struct lowbit_adam8bit_part *part,
                          const struct lowbit_adam8bit_rule *rule, size_t i, __mmask16 in,
                          const struct moments *moments) {
    const __m512 m = _mm512_load_ps(moments->m + i), v = _mm512_load_ps(moments->v + i);
    const __m512 p = has_master ? lowbit_load16(f32, part->master, i, in)
                                : lowbit_load16(param, part->param, i, in);
    const __m512 d =
        _mm512_add_ps(_mm512_max_ps(_mm512_sqrt_ps(v),
                                    _mm512_mul_ps(_mm512_abs_ps(m), _mm512_set1_ps(rule->floor))),
                      _mm512_set1_ps(rule->e));
    const __m512 stepped = _mm512_fnmadd_ps(_mm512_set1_ps(rule->size), _mm512_div_ps(m, d),
                                            _mm512_mul_ps(p, _mm512_set1_ps(rule->keep)));
    if (has_master)
        lowbit_store16(f32, part->master, i, in, stepped);
    lowbit_store16(param, part->param, i, in, stepped);
}

LOWBIT_INLINE void encode64(bool has_decades, bool with_sign,
                            const struct lowbit_blockwise_encoder *encoder, const float *x,
                            float inv, size_t n, uint8_t *q) {
    __m512 v[4];
    for (size_t j = 0; j < 4; j++)
        v[j] = _mm512_mul_ps(_mm512_load_ps(x + 16 * j), _mm512_set1_ps(inv));
    if (!has_decades) {
        lowbit_encode64_any(encoder, v, n, q);
        return;
    }
    __mmask64 near = lowbit_encode64(encoder, with_sign, v, n, q);
    for (; near; near &= near - 1) {
        const size_t k = (size_t)__builtin_ctzll(near);
        q[k] = lowbit_encode(encoder, x[k] * inv);
    }
}

LOWBIT_INLINE void step_and_encode(enum lowbit_float param, bool has_master, bool has_decades,
                                   size_t n, size_t unstepped,
                                   const struct lowbit_adam8bit_part *part,
                                   const struct lowbit_adam8bit_rule *rule,
                                   const struct moments *moments) {
    const float inv_m = lowbit_blockwise_inverse(moments->absmax_m);
    const float inv_v = lowbit_blockwise_inverse(moments->absmax_v);
    for (size_t i = 0; i < n; i += 64) {
        if (i + 64 <= unstepped)
            for (size_t j = i; j < i + 64; j += 16)
                step16(param, has_master, part, rule, j, 0xffff, moments);
        else
            for (size_t j = i; j < unstepped; j += 16)
                step16(param, has_master, part, rule, j, lowbit_first16(unstepped - j), moments);
        encode64(has_decades, true, &rule->encoder1, moments->m + i, inv_m, n - i,
                 part->exp_avg + i);
        encode64(has_decades, false, &rule->encoder2, moments->v + i, inv_v, n - i,
                 part->exp_avg_sq + i);
    }
}

#endif
