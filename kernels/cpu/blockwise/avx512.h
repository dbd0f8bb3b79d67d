// SPDX-License-Identifier: MIT
// Encoding and decoding with a codebook of 256 values, for AVX-512 F, BW, DQ and VL.
#ifndef LOWBIT_KERNELS_CPU_BLOCKWISE_AVX512_H
#define LOWBIT_KERNELS_CPU_BLOCKWISE_AVX512_H

#include "scalar.h"
#include "ukernels.h"
#include "../common/avx512.h"

// The lower and the upper halves of the values.
struct lowbit_decoder {
    __m512i halves[2][8];
};

LOWBIT_INLINE struct lowbit_decoder lowbit_decoder(const float *codebook) {
    struct lowbit_decoder decoder;
    for (size_t j = 0; j < 8; j++) {
        __m512i a = _mm512_loadu_si512(codebook + 32 * j),
                b = _mm512_loadu_si512(codebook + 32 * j + 16);
        for (size_t half = 0; half < 2; half++) {
            decoder.halves[half][j] = _mm512_inserti64x4(
                _mm512_castsi256_si512(_mm512_cvtepi32_epi16(a)), _mm512_cvtepi32_epi16(b), 1);
            a = _mm512_srli_epi32(a, 16);
            b = _mm512_srli_epi32(b, 16);
        }
    }
    return decoder;
}

// The values of 32 codes.
LOWBIT_INLINE void lowbit_decode32(const struct lowbit_decoder *decoder, __m256i codes,
                                   __m512 values[2]) {
    // Interleaving works within 128 bits: four codes of the first half beside four of the second.
    codes = _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m512i index = _mm512_cvtepu8_epi16(codes); // its low six bits count below
    const __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64)),
                    bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
    __m512i half[2];
    for (size_t i = 0; i < 2; i++) {
        const __m512i *t = decoder->halves[i];
        __m512i v[4];
        for (size_t j = 0; j < 4; j++)
            v[j] = _mm512_permutex2var_epi16(t[2 * j], index, t[2 * j + 1]);
        half[i] = _mm512_mask_mov_epi16(_mm512_mask_mov_epi16(v[0], bit6, v[1]), bit7,
                                        _mm512_mask_mov_epi16(v[2], bit6, v[3]));
    }
    values[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(half[0], half[1]));
    values[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(half[0], half[1]));
}

// The codes of sixteen numbers by the lines through the decades, perhaps below 0, and where they are
// left to the thresholds. Unless with_sign, none is negative.
LOWBIT_INLINE __m512i lowbit_decades16(const struct lowbit_blockwise_encoder *e, bool with_sign,
                                       __m512 v, __mmask16 *open) {
    const __m512 y = with_sign ? _mm512_abs_ps(v) : v;
    __m512 log = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_castps_si512(y)),
                                 _mm512_set1_ps(LOWBIT_BLOCKWISE_DECADES_PER_BIT),
                                 _mm512_set1_ps(LOWBIT_BLOCKWISE_DECADES_AT_ZERO));
    __m512i d = _mm512_cvttps_epi32(_mm512_max_ps(log, _mm512_setzero_ps()));
    const __m512 edge = _mm512_permutexvar_ps(d, _mm512_loadu_ps(e->edge));
    d = _mm512_mask_add_epi32(d, _mm512_cmp_ps_mask(y, edge, _CMP_GT_OQ), d, _mm512_set1_epi32(1));
    __m512 place = _mm512_fmadd_ps(y, _mm512_permutexvar_ps(d, _mm512_loadu_ps(e->slope)),
                                   _mm512_permutexvar_ps(d, _mm512_loadu_ps(e->offset)));
    place = _mm512_min_ps(place, _mm512_permutexvar_ps(d, _mm512_loadu_ps(e->most)));
    const __m512 above = _mm512_reduce_ps(place, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    *open = _mm512_cmp_ps_mask(above, _mm512_set1_ps(LOWBIT_BLOCKWISE_NEAR), _CMP_LT_OQ);
    if (!with_sign)
        return _mm512_cvttps_epi32(place);
    *open |= _mm512_cmp_ps_mask(y, edge, _CMP_EQ_OQ);
    const __m512 sign = _mm512_set1_ps(-0.0f);
    place = _mm512_or_ps(place, _mm512_and_ps(v, sign));
    return _mm512_add_epi32(_mm512_cvttps_epi32(place), _mm512_set1_epi32(e->zero));
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

// Writes the codes of the first n of 64 numbers.
LOWBIT_INLINE void lowbit_encode64(const struct lowbit_blockwise_encoder *e, bool has_decades,
                                   bool with_sign, const __m512 v[4], size_t n, uint8_t *q) {
    __m512i code[4];
    __mmask16 open[4] = {0};
    for (size_t j = 0; j < 4; j++)
        code[j] = has_decades ? lowbit_decades16(e, with_sign, v[j], &open[j])
                              : lowbit_encode16(e, v[j]);
    // Packing saturates: below 0 becomes 0.
    __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(code[0], code[1]),
                                        _mm512_packs_epi32(code[2], code[3]));
    bytes = _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
    if (n >= 64)
        _mm512_storeu_si512(q, bytes);
    else
        _mm512_mask_storeu_epi8(q, lowbit_first64(n), bytes);
    if (open[0] | open[1] | open[2] | open[3])
        for (size_t j = 0; j < 4; j++)
            for (unsigned rest = open[j]; rest; rest &= rest - 1) {
                float value[16];
                const size_t i = (size_t)__builtin_ctz(rest);
                _mm512_storeu_ps(value, v[j]);
                if (16 * j + i < n)
                    q[16 * j + i] = lowbit_encode(e, value[i]);
            }
}

#endif
