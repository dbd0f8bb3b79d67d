// SPDX-License-Identifier: MIT
// The blockwise micro-kernels for AVX-512 F, BW, DQ and VL. ukernels.h says what each computes.

#include "avx512.h"
#include "instantiate.h"

// x where its magnitude is finite, otherwise 0.
LOWBIT_INLINE __m512 finite16(__m512 x) {
    return _mm512_maskz_mov_ps(
        _mm512_cmp_ps_mask(_mm512_abs_ps(x), _mm512_set1_ps(INFINITY), _CMP_LT_OQ), x);
}

LOWBIT_INLINE float largest(enum lowbit_float type, size_t n, const void *x) {
    __m512 most[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (size_t i = 0; i < n; i += 32)
        for (size_t j = 0; j < 2 && i + 16 * j < n; j++) {
            __m512 v = lowbit_load16(type, x, i + 16 * j, lowbit_first16(n - i - 16 * j));
            most[j] = _mm512_max_ps(most[j], _mm512_abs_ps(finite16(v)));
        }
    return _mm512_reduce_max_ps(_mm512_max_ps(most[0], most[1]));
}

LOWBIT_INLINE void codes_by(bool has_decades, enum lowbit_float type, size_t n, const void *x,
                            float inv, const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    for (size_t i = 0; i < n; i += 64) {
        __m512 v[4];
        for (size_t j = 0; j < 4; j++) {
            const size_t k = i + 16 * j;
            const __mmask16 in = lowbit_first16(n > k ? n - k : 0);
            v[j] = _mm512_mul_ps(finite16(lowbit_load16(type, x, k, in)), _mm512_set1_ps(inv));
        }
        if (!has_decades) {
            lowbit_encode64_any(encoder, v, n - i, q + i);
            continue;
        }
        __mmask64 near = lowbit_encode64(encoder, true, v, n - i, q + i);
        for (; near; near &= near - 1) {
            const size_t k = i + (size_t)__builtin_ctzll(near);
            q[k] = lowbit_encode(encoder, lowbit_float_load(type, x, k) * inv);
        }
    }
}

LOWBIT_INLINE void codes(enum lowbit_float type, size_t n, const void *x, float inv,
                         const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    if (encoder->has_decades)
        codes_by(true, type, n, x, inv, encoder, q);
    else
        codes_by(false, type, n, x, inv, encoder, q);
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t n, const uint8_t *q, float absmax,
                              const struct lowbit_blockwise_decoder *decoder, void *y) {
    for (size_t i = 0; i < n; i += 64) {
        const __mmask64 in = lowbit_first64(n - i);
        __m512 values[4];
        lowbit_decode64(decoder, _mm512_maskz_loadu_epi8(in, q + i), values);
        for (size_t j = 0; j < 4; j++)
            lowbit_store16(type, y, i + 16 * j, (__mmask16)(in >> 16 * j),
                           _mm512_mul_ps(values[j], _mm512_set1_ps(absmax)));
    }
}

LOWBIT_INSTANTIATE(avx512vnni)
