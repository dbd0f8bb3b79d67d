// SPDX-License-Identifier: MIT
// Encoding and decoding with a codebook of 256 values, for AVX-512 F, BW, DQ and VL.
#ifndef LOWBIT_KERNELS_CPU_BLOCKWISE_AVX512_H
#define LOWBIT_KERNELS_CPU_BLOCKWISE_AVX512_H

#include "scalar.h"
#include "ukernels.h"
#include "../common/avx512.h"

// The values of 64 codes. The pieces of values are looked up separately and interleaved, which works
// within 128 bits: so four codes of each vector to be come beside each other first.
//
// A file for processors with VBMI defines LOWBIT_VBMI before it includes this one.
#if defined(LOWBIT_VBMI)
LOWBIT_INLINE void lowbit_decode64(const struct lowbit_blockwise_decoder *d, __m512i codes,
                                   __m512 values[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    codes = _mm512_permutexvar_epi32(order, codes);
    const __mmask64 upper = _mm512_movepi8_mask(codes); // the other seven bits count below
    __m512i byte[4], half[4];
    for (int i = 0; i < 4; i++) {
        const uint8_t *t = d->byte[i];
        const __m512i low =
            _mm512_permutex2var_epi8(_mm512_load_si512(t), codes, _mm512_load_si512(t + 64));
        const __m512i high =
            _mm512_permutex2var_epi8(_mm512_load_si512(t + 128), codes, _mm512_load_si512(t + 192));
        byte[i] = _mm512_mask_mov_epi8(low, upper, high);
    }
    for (int i = 0; i < 2; i++) {
        half[i] = _mm512_unpacklo_epi8(byte[2 * i], byte[2 * i + 1]);
        half[2 + i] = _mm512_unpackhi_epi8(byte[2 * i], byte[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        values[2 * i] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(half[2 * i], half[2 * i + 1]));
        values[2 * i + 1] =
            _mm512_castsi512_ps(_mm512_unpackhi_epi16(half[2 * i], half[2 * i + 1]));
    }
}
#else
LOWBIT_INLINE void lowbit_decode64(const struct lowbit_blockwise_decoder *d, __m512i codes,
                                   __m512 values[4]) {
    const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    codes = _mm512_permutexvar_epi32(order, codes);
    for (int k = 0; k < 2; k++) {
        const __m512i index = _mm512_cvtepu8_epi16(k ? _mm512_extracti64x4_epi64(codes, 1)
                                                     : _mm512_castsi512_si256(codes));
        const __mmask32 bit6 = _mm512_movepi16_mask(_mm512_slli_epi16(index, 9)),
                        bit7 = _mm512_movepi16_mask(_mm512_slli_epi16(index, 8));
        __m512i half[2];
        for (int i = 0; i < 2; i++) {
            __m512i v[4]; // by the lower six bits
            for (int j = 0; j < 4; j++)
                v[j] = _mm512_permutex2var_epi16(_mm512_load_si512(d->half[i] + 64 * j), index,
                                                 _mm512_load_si512(d->half[i] + 64 * j + 32));
            half[i] = _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(v[0], bit6, v[1]), bit7,
                                            _mm512_mask_mov_epi16(v[2], bit6, v[3]));
        }
        values[2 * k] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(half[0], half[1]));
        values[2 * k + 1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(half[0], half[1]));
    }
}
#endif

// The places of 64 numbers on the lines through the decades. Four vectors at a time, step by step: the
// steps wait for each other. Unless with_sign, no number is negative.
LOWBIT_INLINE void lowbit_place64(const struct lowbit_blockwise_encoder *e, bool with_sign,
                                  const __m512 v[4], __m512i place[4]) {
    __m512 y[4], slope[4], offset[4];
    __m512i key[4], d[4], most[4];
    __mmask16 above[4];
    for (int j = 0; j < 4; j++) {
        const __m512i bits = _mm512_castps_si512(v[j]);
        y[j] = with_sign ? _mm512_abs_ps(v[j]) : v[j];
        key[j] = with_sign ? _mm512_rol_epi32(bits, 1) : _mm512_add_epi32(bits, bits);
        const __m512 log = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(y[j])),
                                           _mm512_set1_ps(LOWBIT_BLOCKWISE_DECADES_PER_BIT),
                                           _mm512_set1_ps(LOWBIT_BLOCKWISE_DECADES_AT_ZERO));
        d[j] = _mm512_cvttps_epu32(log); // all ones, whose low four bits count, where negative
    }
    for (int j = 0; j < 4; j++)
        above[j] = _mm512_cmpgt_epi32_mask(
            key[j], _mm512_permutexvar_epi32(d[j], _mm512_load_si512(e->edge)));
    for (int j = 0; j < 4; j++)
        d[j] = _mm512_mask_add_epi32(d[j], above[j], d[j], _mm512_set1_epi32(1));
    for (int j = 0; j < 4; j++) {
        slope[j] = _mm512_permutexvar_ps(d[j], _mm512_load_ps(e->slope));
        offset[j] = _mm512_permutexvar_ps(d[j], _mm512_load_ps(e->offset));
        most[j] = _mm512_permutexvar_epi32(d[j], _mm512_load_si512(e->most));
    }
    for (int j = 0; j < 4; j++)
        place[j] = _mm512_min_epi32(_mm512_cvttps_epi32(_mm512_fmadd_ps(y[j], slope[j], offset[j])),
                                    most[j]);
}

// The places too near to a threshold.
LOWBIT_INLINE __mmask16 lowbit_are_near(__m512i place) {
    const __m512i far = _mm512_set1_epi32(0xffff & -LOWBIT_BLOCKWISE_NEAR);
    return _mm512_cmpeq_epi32_mask(_mm512_and_si512(place, far), _mm512_setzero_si512());
}

// The upper halves of sixteen and sixteen dwords.
LOWBIT_INLINE __m512i lowbit_upper_halves(__m512i a, __m512i b) {
    const __m512i odd =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    return _mm512_permutex2var_epi16(a, odd, b);
}

// The codes of sixteen numbers, for any codebook.
LOWBIT_INLINE __m512i lowbit_encode16(const struct lowbit_blockwise_encoder *e, __m512 v) {
    enum { BUCKETS = LOWBIT_BLOCKWISE_BUCKETS, FIRST = LOWBIT_BLOCKWISE_FIRST };
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
        code = _mm512_mask_mov_epi32(code, above, _mm512_srli_epi32(entry, 24));
        return _mm512_and_si512(code, _mm512_set1_epi32(0xff));
    }
    code = _mm512_and_si512(code, _mm512_set1_epi32(0xff));
    for (int step = (int)e->span; step; step /= 2) {
        __m512i tried = _mm512_add_epi32(code, _mm512_set1_epi32(step - 1));
        __m512 threshold = _mm512_i32gather_ps(tried, e->threshold, 4);
        __mmask16 above = _mm512_cmp_ps_mask(v, threshold, _CMP_GT_OQ);
        code = _mm512_mask_add_epi32(code, above, code, _mm512_set1_epi32(step));
    }
    return code;
}

// Writes the codes of the first n of 64 numbers, for a codebook that has decades. A bit of the result
// tells which of them are not right because they are left to a threshold. Unless with_sign, no number
// is negative.
LOWBIT_INLINE __mmask64 lowbit_encode64(const struct lowbit_blockwise_encoder *e, bool with_sign,
                                        const __m512 v[4], size_t n, uint8_t *q) {
    const __m512i zero = _mm512_set1_epi16(e->zero);
    __m512i place[4], code[2];
    lowbit_place64(e, with_sign, v, place);
    // Of both halves, but only the lower ones count.
    const __m512i nearest = _mm512_min_epu16(_mm512_min_epu16(place[0], place[1]),
                                             _mm512_min_epu16(place[2], place[3]));
    for (size_t j = 0; j < 2; j++) {
        const __m512i away = lowbit_upper_halves(place[2 * j], place[2 * j + 1]);
        code[j] = _mm512_add_epi16(zero, away);
        if (with_sign) {
            const __m512i signs = lowbit_upper_halves(_mm512_castps_si512(v[2 * j]),
                                                      _mm512_castps_si512(v[2 * j + 1]));
            code[j] = _mm512_mask_mov_epi16(code[j], _mm512_movepi16_mask(signs),
                                            _mm512_sub_epi16(zero, away));
        }
    }
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_mask_storeu_epi8( // packing saturates: what is below 0 becomes 0
        q, lowbit_first64(n),
        _mm512_permutexvar_epi64(order, _mm512_packus_epi16(code[0], code[1])));
    if (!lowbit_are_near(nearest))
        return 0;
    __mmask64 near = 0;
    for (size_t j = 0; j < 4; j++)
        near |= (__mmask64)lowbit_are_near(place[j]) << 16 * j;
    return near & lowbit_first64(n);
}

// The same for any codebook.
LOWBIT_INLINE void lowbit_encode64_any(const struct lowbit_blockwise_encoder *e, const __m512 v[4],
                                       size_t n, uint8_t *q) {
    __m512i code[4];
    for (size_t j = 0; j < 4; j++)
        code[j] = lowbit_encode16(e, v[j]);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_mask_storeu_epi8(q, lowbit_first64(n),
                            _mm512_permutexvar_epi32(
                                order, _mm512_packus_epi16(_mm512_packus_epi32(code[0], code[1]),
                                                           _mm512_packus_epi32(code[2], code[3]))));
}

#endif
