// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX-512 F, BW, DQ and VL.

#include "instantiate.h"
#include "../blockwise/avx512.h"

struct context {
    const struct lowbit_adam8bit_rule *rule;
    struct lowbit_decoder decoder1, decoder2;
};

LOWBIT_INLINE struct context begin(const struct lowbit_adam8bit_rule *rule) {
    return (struct context){rule, lowbit_decoder(rule->codebook1),
                            lowbit_decoder(rule->codebook2)};
}

// The rule's constants and a block's scales.
struct vectors {
    __m512 b1, r1, b2, r2, size, e, l2, keep, floor, scale, absmax1, absmax2;
};

// A block's new moments, and the largest magnitudes among them so far.
struct moments {
    float m[LOWBIT_BLOCKWISE_LARGEST], v[LOWBIT_BLOCKWISE_LARGEST];
    __m512 most_m, most_v;
};

LOWBIT_INLINE __m512 finite16(__m512 x) {
    return _mm512_maskz_mov_ps(
        _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(INFINITY), _CMP_LT_OQ), x);
}

// Steps the elements i to i + 15 that are in the mask, whose old moments are given without scales.
LOWBIT_INLINE void step16(enum lowbit_float param, enum lowbit_float grad,
                          const struct lowbit_adam8bit_part *part, const struct vectors *c,
                          size_t i, __mmask16 in, __m512 m_old, __m512 v_old,
                          struct moments *moments) {
    m_old = _mm512_mul_ps(m_old, c->absmax1);
    v_old = _mm512_mul_ps(v_old, c->absmax2);
    const __m512 p = part->master ? lowbit_load16(f32, part->master, i, in)
                                  : lowbit_load16(param, part->param, i, in);
    __m512 g = _mm512_mul_ps(lowbit_load16(grad, part->grad, i, in), c->scale);
    g = _mm512_fmadd_ps(c->l2, p, g);
    __m512 m = _mm512_fmadd_ps(c->b1, m_old, _mm512_mul_ps(c->r1, g));
    __m512 v = _mm512_fmadd_ps(c->b2, v_old, _mm512_mul_ps(c->r2, _mm512_mul_ps(g, g)));
    const __m512 size = _mm512_abs_ps(m);
    // As integers, NaN and negative numbers are above infinity.
    const __mmask16 good = _mm512_mask_cmplt_epu32_mask(
        in, _mm512_max_epu32(_mm512_castps_si512(v), _mm512_castps_si512(size)),
        _mm512_set1_epi32(0x7f800000));
    const __m512 d = _mm512_add_ps(_mm512_max_ps(_mm512_sqrt_ps(v), _mm512_mul_ps(size, c->floor)),
                                   c->e);
    const __m512 stepped =
        _mm512_fnmadd_ps(c->size, _mm512_div_ps(m, d), _mm512_mul_ps(p, c->keep));
    if (part->master)
        lowbit_store16(f32, part->master, i, good, stepped);
    lowbit_store16(param, part->param, i, good, stepped);
    if (good != 0xffff) {
        m = _mm512_maskz_mov_ps(in, _mm512_mask_mov_ps(finite16(m_old), good, m));
        v = _mm512_maskz_mov_ps(in, _mm512_mask_mov_ps(finite16(v_old), good, v));
        v = _mm512_max_ps(v, _mm512_setzero_ps());
    }
    _mm512_storeu_ps(moments->m + i, m);
    _mm512_storeu_ps(moments->v + i, v);
    moments->most_m = _mm512_max_ps(moments->most_m, _mm512_abs_ps(m));
    moments->most_v = _mm512_max_ps(moments->most_v, v);
}

// Steps the elements of a block that the mask has among 32.
LOWBIT_INLINE void step32(enum lowbit_float param, enum lowbit_float grad,
                          const struct lowbit_adam8bit_part *part, const struct context *context,
                          const struct vectors *c, size_t i, __mmask32 in,
                          struct moments *moments) {
    __m512 m_old[2], v_old[2];
    lowbit_decode32(&context->decoder1, _mm256_maskz_loadu_epi8(in, part->exp_avg + i), m_old);
    lowbit_decode32(&context->decoder2, _mm256_maskz_loadu_epi8(in, part->exp_avg_sq + i), v_old);
    for (size_t j = 0; j < 2; j++)
        step16(param, grad, part, c, i + 16 * j, (__mmask16)(in >> 16 * j), m_old[j], v_old[j],
               moments);
}

// Encodes the moments x of a block, of which the largest has magnitude absmax.
static void encode(size_t n, const float *x, float absmax, bool with_sign,
                   const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    const __m512 inv = _mm512_set1_ps(lowbit_blockwise_inverse(absmax));
    for (size_t i = 0; i < n; i += 64) {
        __m512 v[4];
        for (size_t j = 0; j < 4; j++)
            v[j] = _mm512_mul_ps(_mm512_loadu_ps(x + i + 16 * j), inv);
        if (encoder->has_decades)
            lowbit_encode64(encoder, true, with_sign, v, n - i, q + i);
        else
            lowbit_encode64(encoder, false, with_sign, v, n - i, q + i);
    }
}

LOWBIT_INLINE void step(enum lowbit_float param, enum lowbit_float grad, size_t n,
                        const struct lowbit_adam8bit_part *part, const struct context *context) {
    const struct lowbit_adam8bit_rule *rule = context->rule;
    const struct vectors c = {
        .b1 = _mm512_set1_ps(rule->b1),
        .r1 = _mm512_set1_ps(rule->r1),
        .b2 = _mm512_set1_ps(rule->b2),
        .r2 = _mm512_set1_ps(rule->r2),
        .size = _mm512_set1_ps(rule->size),
        .e = _mm512_set1_ps(rule->e),
        .l2 = _mm512_set1_ps(rule->l2),
        .keep = _mm512_set1_ps(rule->keep),
        .floor = _mm512_set1_ps(rule->floor),
        .scale = _mm512_set1_ps(rule->scale),
        .absmax1 = _mm512_set1_ps(*part->exp_avg_absmax),
        .absmax2 = _mm512_set1_ps(*part->exp_avg_sq_absmax),
    };
    struct moments moments;
    moments.most_m = moments.most_v = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        step32(param, grad, part, context, &c, i, 0xffffffff, &moments);
    if (i < n)
        step32(param, grad, part, context, &c, i, (__mmask32)lowbit_first64(n - i), &moments);
    if (n % 64) { // encoding takes 64 at a time
        const size_t behind = (n + 31) / 32 * 32, missing = (n + 63) / 64 * 64 - behind;
        memset(moments.m + behind, 0, missing * sizeof(float));
        memset(moments.v + behind, 0, missing * sizeof(float));
    }
    *part->exp_avg_absmax = _mm512_reduce_max_ps(moments.most_m);
    *part->exp_avg_sq_absmax = _mm512_reduce_max_ps(moments.most_v);
    encode(n, moments.m, *part->exp_avg_absmax, true, &rule->encoder1, part->exp_avg);
    encode(n, moments.v, *part->exp_avg_sq_absmax, false, &rule->encoder2, part->exp_avg_sq);
}

LOWBIT_INSTANTIATE(avx512vnni)
