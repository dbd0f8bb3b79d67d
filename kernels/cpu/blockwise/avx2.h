// SPDX-License-Identifier: MIT
// Encoding and decoding with a codebook of 256 values, for AVX2 and FMA.
#ifndef LOWBIT_KERNELS_CPU_BLOCKWISE_AVX2_H
#define LOWBIT_KERNELS_CPU_BLOCKWISE_AVX2_H

#include "scalar.h"
#include "ukernels.h"
#include "../common/avx2.h"

// The values of eight codes.
LOWBIT_INLINE __m256 lowbit_decode8(const struct lowbit_blockwise_decoder *d, const uint8_t *q) {
    return _mm256_setr_ps(d->value[q[0]], d->value[q[1]], d->value[q[2]], d->value[q[3]],
                          d->value[q[4]], d->value[q[5]], d->value[q[6]], d->value[q[7]]);
}

// Eight elements of a table, one load each: vpgatherdd is no faster, and several times slower where
// microcode keeps it from leaking data.
LOWBIT_INLINE __m256i lowbit_lookup8(const uint32_t *table, __m256i index) {
    int32_t i[8];
    _mm256_storeu_si256((__m256i *)i, index);
    return _mm256_setr_epi32((int)table[i[0]], (int)table[i[1]], (int)table[i[2]], (int)table[i[3]],
                             (int)table[i[4]], (int)table[i[5]], (int)table[i[6]],
                             (int)table[i[7]]);
}

// The codes of eight numbers, for any codebook.
LOWBIT_INLINE __m256i lowbit_encode8(const struct lowbit_blockwise_encoder *e, __m256 v) {
    enum { BUCKETS = LOWBIT_BLOCKWISE_BUCKETS, FIRST = LOWBIT_BLOCKWISE_FIRST };
    const __m256i half = _mm256_set1_epi32(0xffff), byte = _mm256_set1_epi32(0xff);
    const __m256i bits = _mm256_castps_si256(v), sign = _mm256_srai_epi32(bits, 31);
    __m256i bucket = _mm256_srli_epi32(_mm256_slli_epi32(bits, 1), 17);
    bucket = _mm256_subs_epu16(bucket, _mm256_set1_epi32(FIRST));
    bucket = _mm256_min_epi32(bucket, _mm256_set1_epi32(BUCKETS - 1));
    const __m256i entry = lowbit_lookup8(e->bucket + BUCKETS, _mm256_xor_si256(bucket, sign));
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

// The places of eight numbers on the lines through the decades. Unless with_sign, none is negative.
LOWBIT_INLINE __m256i lowbit_place8(const struct lowbit_blockwise_encoder *e, bool with_sign,
                                    __m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    __m256i magnitude = bits, key = _mm256_add_epi32(bits, bits);
    if (with_sign) {
        magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
        key = _mm256_or_si256(key, _mm256_srli_epi32(bits, 31));
    }
    const __m256 log = _mm256_fmadd_ps(_mm256_cvtepi32_ps(magnitude),
                                       _mm256_set1_ps(LOWBIT_BLOCKWISE_DECADES_PER_BIT),
                                       _mm256_set1_ps(LOWBIT_BLOCKWISE_DECADES_AT_ZERO));
    __m256i d = _mm256_cvttps_epi32(_mm256_max_ps(log, _mm256_setzero_ps()));
    const __m256i above = _mm256_cmpgt_epi32(
        key, _mm256_permutevar8x32_epi32(_mm256_load_si256((const __m256i *)e->edge), d));
    // Tables of eight begin with the least decade; what is below it, here -1, takes the last entry.
    d = _mm256_sub_epi32(_mm256_sub_epi32(d, _mm256_set1_epi32(1)), above);
    const __m256 line = _mm256_fmadd_ps(
        _mm256_castsi256_ps(magnitude), _mm256_permutevar8x32_ps(_mm256_loadu_ps(e->slope + 1), d),
        _mm256_permutevar8x32_ps(_mm256_loadu_ps(e->offset + 1), d));
    const __m256i most =
        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)(e->most + 1)), d);
    const __m256i place = _mm256_min_epi32(_mm256_cvttps_epi32(line), most);
    return _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(place),
                                                _mm256_castsi256_ps(_mm256_set1_epi32(e->most[0])),
                                                _mm256_castsi256_ps(d)));
}

// The codes of 32 numbers, for a codebook that has decades. A bit of *near tells which of them are not
// right because they are left to a threshold. Unless with_sign, no number is negative.
LOWBIT_INLINE __m256i lowbit_encode32(const struct lowbit_blockwise_encoder *e, bool with_sign,
                                      const __m256 v[4], uint32_t *near) {
    const __m256i far = _mm256_set1_epi32(0xffff & -LOWBIT_BLOCKWISE_NEAR);
    __m256i place[4], away[4];
    for (int j = 0; j < 4; j++) {
        place[j] = lowbit_place8(e, with_sign, v[j]);
        away[j] = _mm256_srli_epi32(place[j], 16);
        if (with_sign)
            away[j] = _mm256_sign_epi32(away[j], _mm256_castps_si256(v[j]));
    }
    // Packing saturates: what is below 0 becomes 0.
    const __m256i zero = _mm256_set1_epi16(e->zero);
    const __m256i codes =
        _mm256_packus_epi16(_mm256_add_epi16(_mm256_packs_epi32(away[0], away[1]), zero),
                            _mm256_add_epi16(_mm256_packs_epi32(away[2], away[3]), zero));
    // Of both halves, but only the lower ones count.
    const __m256i nearest = _mm256_and_si256(_mm256_min_epu16(_mm256_min_epu16(place[0], place[1]),
                                                              _mm256_min_epu16(place[2], place[3])),
                                             far);
    *near = 0;
    if (_mm256_movemask_epi8(_mm256_cmpeq_epi32(nearest, _mm256_setzero_si256())))
        for (int j = 0; j < 4; j++) {
            const __m256i is =
                _mm256_cmpeq_epi32(_mm256_and_si256(place[j], far), _mm256_setzero_si256());
            *near |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(is)) << 8 * j;
        }
    return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// The same for any codebook.
LOWBIT_INLINE __m256i lowbit_encode32_any(const struct lowbit_blockwise_encoder *e,
                                          const __m256 v[4]) {
    __m256i code[4];
    for (int j = 0; j < 4; j++)
        code[j] = lowbit_encode8(e, v[j]);
    const __m256i codes = _mm256_packus_epi16(_mm256_packus_epi32(code[0], code[1]),
                                              _mm256_packus_epi32(code[2], code[3]));
    return _mm256_permutevar8x32_epi32(codes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

LOWBIT_INLINE void lowbit_store_codes(uint8_t *q, size_t n, __m256i codes) {
    uint8_t tail[32];
    _mm256_storeu_si256((__m256i *)(n >= 32 ? q : tail), codes);
    if (n < 32)
        memcpy(q, tail, n);
}

#endif
