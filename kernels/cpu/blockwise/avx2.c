// SPDX-License-Identifier: MIT
// The blockwise micro-kernels for AVX2, FMA and F16C. ukernels.h says what each computes.

#include "instantiate.h"
#include "../common/avx2.h"

enum { BUCKETS = LOWBIT_BLOCKWISE_BUCKETS, FIRST = LOWBIT_BLOCKWISE_FIRST };

// Eight elements of a table, one load each: vpgatherdd is no faster, and several times slower where
// microcode keeps it from leaking data.
LOWBIT_INLINE __m256i lookup8(const uint32_t *table, __m256i index) {
    int32_t i[8];
    _mm256_storeu_si256((__m256i *)i, index);
    return _mm256_setr_epi32((int)table[i[0]], (int)table[i[1]], (int)table[i[2]], (int)table[i[3]],
                             (int)table[i[4]], (int)table[i[5]], (int)table[i[6]],
                             (int)table[i[7]]);
}

// The codes of eight numbers.
LOWBIT_INLINE __m256i encode8(const struct lowbit_blockwise_encoder *e, __m256 v) {
    const __m256i half = _mm256_set1_epi32(0xffff), byte = _mm256_set1_epi32(0xff);
    const __m256i bits = _mm256_castps_si256(v), sign = _mm256_srai_epi32(bits, 31);
    __m256i bucket = _mm256_srli_epi32(_mm256_slli_epi32(bits, 1), 17);
    bucket = _mm256_subs_epu16(bucket, _mm256_set1_epi32(FIRST));
    bucket = _mm256_min_epi32(bucket, _mm256_set1_epi32(BUCKETS - 1));
    const __m256i entry = lookup8(e->bucket + BUCKETS, _mm256_xor_si256(bucket, sign));
    __m256i code = _mm256_srli_epi32(entry, 16);
    if (e->direct) {
        __m256i above = _mm256_cmpgt_epi32(_mm256_and_si256(_mm256_xor_si256(bits, sign), half),
                                           _mm256_and_si256(entry, half));
        code = _mm256_blendv_epi8(code, _mm256_srli_epi32(entry, 24), above);
        return _mm256_and_si256(code, byte);
    }
    code = _mm256_and_si256(code, byte);
    for (int step = (int)e->span; step; step /= 2) {
        __m256i tried = _mm256_add_epi32(code, _mm256_set1_epi32(step - 1));
        __m256 threshold = _mm256_i32gather_ps(e->threshold, tried, 4);
        __m256i above = _mm256_castps_si256(_mm256_cmp_ps(v, threshold, _CMP_GT_OQ));
        code = _mm256_add_epi32(code, _mm256_and_si256(above, _mm256_set1_epi32(step)));
    }
    return code;
}

// 32 numbers' codes as bytes, in their order.
LOWBIT_INLINE __m256i bytes_of(const __m256i code[4]) {
    __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(code[0], code[1]),
                                        _mm256_packus_epi32(code[2], code[3]));
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

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

LOWBIT_INLINE void codes(enum lowbit_float type, size_t n, const void *x, float inv,
                         const struct lowbit_blockwise_encoder *encoder, uint8_t *q) {
    char tail[32 * 4];
    uint8_t tail_codes[32];
    for (size_t i = 0; i < n; i += 32) {
        const void *from = load32(type, n, x, i, tail);
        __m256i code[4];
        for (size_t j = 0; j < 4; j++) {
            __m256 v = finite8(lowbit_load8(type, from, 8 * j));
            code[j] = encode8(encoder, _mm256_mul_ps(v, _mm256_set1_ps(inv)));
        }
        if (n - i >= 32) {
            _mm256_storeu_si256((__m256i *)(q + i), bytes_of(code));
        } else {
            _mm256_storeu_si256((__m256i *)tail_codes, bytes_of(code));
            memcpy(q + i, tail_codes, n - i);
        }
    }
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t n, const uint8_t *q, float absmax,
                              const float *codebook, void *y) {
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const uint8_t *c = q + i;
        __m256 v = _mm256_setr_ps(codebook[c[0]], codebook[c[1]], codebook[c[2]], codebook[c[3]],
                                  codebook[c[4]], codebook[c[5]], codebook[c[6]], codebook[c[7]]);
        lowbit_store8(type, y, i, _mm256_mul_ps(v, _mm256_set1_ps(absmax)));
    }
    for (; i < n; i++)
        lowbit_float_store(type, y, i, codebook[q[i]] * absmax);
}

LOWBIT_INSTANTIATE(avx2)
