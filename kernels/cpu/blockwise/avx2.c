// SPDX-License-Identifier: MIT
// The blockwise micro-kernels for AVX2, FMA and F16C. ukernels.h says what each computes.

#include "avx2.h"
#include "instantiate.h"

// x where its magnitude is finite, otherwise 0.
LOWBIT_INLINE __m256 finite8(__m256 x) {
    const __m256 magnitude = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    return _mm256_and_ps(x, _mm256_cmp_ps(magnitude, _mm256_set1_ps(INFINITY), _CMP_LT_OQ));
}

// 32 elements, or those that are left and zeros behind them, copied to tail.
LOWBIT_INLINE const void *load32(enum lowbit_float type, size_t n, const void *x, size_t i,
                                 char tail[32 * 4]) {
    const size_t size = lowbit_float_size(type);
    const char *from = (const char *)x + i * size;
    if (n - i >= 32)
        return from;
    memset(tail, 0, 32 * 4);
    memcpy(tail, from, (n - i) * size);
    return tail;
}

LOWBIT_INLINE float largest(enum lowbit_float type, size_t n, const void *x) {
    __m256 most[4];
    char tail[32 * 4];
    for (int j = 0; j < 4; j++)
        most[j] = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 32) {
        const void *from = load32(type, n, x, i, tail);
        for (size_t j = 0; j < 4; j++) {
            __m256 v = finite8(lowbit_load8(type, from, 8 * j));
            v = _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
            most[j] = _mm256_max_ps(most[j], v);
        }
    }
    return lowbit_max8(
        _mm256_max_ps(_mm256_max_ps(most[0], most[1]), _mm256_max_ps(most[2], most[3])));
}

LOWBIT_INLINE void codes_by(bool has_decades, enum lowbit_float type, size_t n, const void *x,
                            float inv, const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    char tail[32 * 4];
    for (size_t i = 0; i < n; i += 32) {
        const void *from = load32(type, n, x, i, tail);
        __m256 v[4];
        for (size_t j = 0; j < 4; j++)
            v[j] = _mm256_mul_ps(finite8(lowbit_load8(type, from, 8 * j)), _mm256_set1_ps(inv));
        if (!has_decades) {
            lowbit_store_codes(q + i, n - i, lowbit_encode32_any(encoder, v));
            continue;
        }
        uint32_t near;
        lowbit_store_codes(q + i, n - i, lowbit_encode32(encoder, true, v, &near));
        for (; near; near &= near - 1) {
            const size_t k = (size_t)__builtin_ctz(near);
            if (i + k < n)
                q[i + k] = lowbit_encode(encoder, lowbit_float_load(type, from, k) * inv);
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
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        lowbit_store8(type, y, i,
                      _mm256_mul_ps(lowbit_decode8(decoder, q + i), _mm256_set1_ps(absmax)));
    for (; i < n; i++)
        lowbit_float_store(type, y, i, decoder->value[q[i]] * absmax);
}

LOWBIT_INSTANTIATE(avx2)
