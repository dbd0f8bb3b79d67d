// SPDX-License-Identifier: MIT
// The blockwise micro-kernels for AVX-512 F, BW, DQ and VL. ukernels.h says what each computes.

#include "instantiate.h"
#include "../common/avx512.h"

enum { BUCKETS = LOWBIT_BLOCKWISE_BUCKETS, FIRST = LOWBIT_BLOCKWISE_FIRST };

// The codes of sixteen numbers.
LOWBIT_INLINE __m128i encode16(const struct lowbit_blockwise_encoder *e, __m512 v) {
    const __m512i half = _mm512_set1_epi32(0xffff);
    const __m512i bits = _mm512_castps_si512(v), sign = _mm512_srai_epi32(bits, 31);
    __m512i bucket = _mm512_srli_epi32(_mm512_slli_epi32(bits, 1), 17);
    bucket = _mm512_subs_epu16(bucket, _mm512_set1_epi32(FIRST));
    bucket = _mm512_min_epi32(bucket, _mm512_set1_epi32(BUCKETS - 1));
    const __m512i entry =
        _mm512_i32gather_epi32(_mm512_xor_si512(bucket, sign), e->bucket + BUCKETS, 4);
    __m512i code = _mm512_srli_epi32(entry, 16);
    if (e->direct) {
        __mmask16 above = _mm512_cmpgt_epi32_mask(
            _mm512_and_si512(_mm512_xor_si512(bits, sign), half), _mm512_and_si512(entry, half));
        return _mm512_cvtepi32_epi8(
            _mm512_mask_mov_epi32(code, above, _mm512_srli_epi32(entry, 24)));
    }
    code = _mm512_and_si512(code, _mm512_set1_epi32(0xff));
    for (int step = (int)e->span; step; step /= 2) {
        __m512i tried = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
        __m512 threshold = _mm512_i32gather_ps(tried, e->threshold, 4);
        __mmask16 above = _mm512_cmp_ps_mask(v, threshold, _CMP_GT_OQ);
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
    }
    return _mm512_cvtepi32_epi8(code);
}

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

LOWBIT_INLINE void codes(enum lowbit_float type, size_t n, const void *x, float inv,
                         const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 in = lowbit_first16(n - i);
        __m512 v = finite16(lowbit_load16(type, x, i, in));
        __m128i code = encode16(encoder, _mm512_mul_ps(v, _mm512_set1_ps(inv)));
        _mm_mask_storeu_epi8(q + i, in, code);
    }
}

// The 256 values stay in sixteen registers.
LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t n, const uint8_t *q, float absmax,
                              const float *codebook, void *y) {
    __m512 values[16];
    for (size_t j = 0; j < 16; j++)
        values[j] = _mm512_loadu_ps(codebook + 16 * j);
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 in = lowbit_first16(n - i);
        const __m128i code = _mm_maskz_loadu_epi8(in, q + i);
        const __m512i index = _mm512_cvtepu8_epi32(code); // its low five bits count below
        const __mmask16 bit5 = _mm_movepi8_mask(_mm_slli_epi16(code, 2)),
                        bit6 = _mm_movepi8_mask(_mm_slli_epi16(code, 1)),
                        bit7 = _mm_movepi8_mask(code);
        __m512 v[8];
        for (size_t j = 0; j < 8; j++)
            v[j] = _mm512_permutex2var_ps(values[2 * j], index, values[2 * j + 1]);
        for (size_t j = 0; j < 8; j += 2)
            v[j] = _mm512_mask_mov_ps(v[j], bit5, v[j + 1]);
        for (size_t j = 0; j < 8; j += 4)
            v[j] = _mm512_mask_mov_ps(v[j], bit6, v[j + 2]);
        v[0] = _mm512_mask_mov_ps(v[0], bit7, v[4]);
        lowbit_store16(type, y, i, in, _mm512_mul_ps(v[0], _mm512_set1_ps(absmax)));
    }
}

LOWBIT_INSTANTIATE(avx512vnni)
