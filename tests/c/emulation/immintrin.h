// SPDX-License-Identifier: MIT
// Stands before the compiler's <immintrin.h> where a kernel for AVX-512 or AMX is built for a
// machine that has AVX2 alone: AVX-512 comes from SIMDe, AMX from amx.h, and what SIMDe 0.7.4 lacks
// from here. A kernel that uses yet another function does not compile: add it below.
#ifndef LOWBIT_TESTS_EMULATION_IMMINTRIN_H
#define LOWBIT_TESTS_EMULATION_IMMINTRIN_H

#include_next <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#include "amx.h"

static inline __m256 emulated_half_ps(__m512 a, int half) {
    return simde__m512_to_private(a).m256[half];
}

static inline __m512 emulated_join_ps(__m256 low, __m256 high) {
    simde__m512_private r;
    r.m256[0] = low;
    r.m256[1] = high;
    return simde__m512_from_private(r);
}

static inline __m256i emulated_half(__m512i a, int half) {
    return simde__m512i_to_private(a).m256i[half];
}

static inline __m512i emulated_join(__m256i low, __m256i high) {
    simde__m512i_private r;
    r.m256i[0] = low;
    r.m256i[1] = high;
    return simde__m512i_from_private(r);
}

// Loads and stores touch the memory of the lanes in the mask and no other.
static inline void emulated_masked_copy(void *to, const void *from, uint64_t mask, size_t lanes,
                                        size_t lane_bytes) {
    for (size_t i = 0; i < lanes; i++)
        if (mask >> i & 1)
            memcpy((char *)to + i * lane_bytes, (const char *)from + i * lane_bytes, lane_bytes);
}

#define EMULATED_MASKED_LOAD(name, vector, setzero, lanes, lane_bytes)                             \
    static inline vector name(uint64_t mask, const void *from) {                                   \
        vector to = setzero();                                                                     \
        emulated_masked_copy(&to, from, mask, lanes, lane_bytes);                                  \
        return to;                                                                                 \
    }
#define EMULATED_MASKED_STORE(name, vector, lanes, lane_bytes)                                     \
    static inline void name(void *to, uint64_t mask, vector from) {                                \
        emulated_masked_copy(to, &from, mask, lanes, lane_bytes);                                  \
    }
EMULATED_MASKED_LOAD(emulated_maskz_loadu_128_8, __m128i, _mm_setzero_si128, 16, 1)
EMULATED_MASKED_LOAD(emulated_maskz_loadu_256_16, __m256i, _mm256_setzero_si256, 16, 2)
EMULATED_MASKED_LOAD(emulated_maskz_loadu_512_8, __m512i, _mm512_setzero_si512, 64, 1)
EMULATED_MASKED_LOAD(emulated_maskz_loadu_512_32, __m512i, _mm512_setzero_si512, 16, 4)
EMULATED_MASKED_LOAD(emulated_maskz_loadu_512_ps, __m512, _mm512_setzero_ps, 16, 4)
EMULATED_MASKED_STORE(emulated_mask_storeu_128_8, __m128i, 16, 1)
EMULATED_MASKED_STORE(emulated_mask_storeu_256_16, __m256i, 16, 2)
EMULATED_MASKED_STORE(emulated_mask_storeu_512_8, __m512i, 64, 1)
EMULATED_MASKED_STORE(emulated_mask_storeu_512_16, __m512i, 32, 2)
EMULATED_MASKED_STORE(emulated_mask_storeu_512_32, __m512i, 16, 4)
EMULATED_MASKED_STORE(emulated_mask_storeu_512_ps, __m512, 16, 4)

static inline __m512 emulated_cvtepi32_ps(__m512i a) {
    return emulated_join_ps(_mm256_cvtepi32_ps(emulated_half(a, 0)),
                            _mm256_cvtepi32_ps(emulated_half(a, 1)));
}

static inline __m512i emulated_maskz_cvtps_epi32(__mmask16 mask, __m512 a) {
    __m512i r = emulated_join(_mm256_cvtps_epi32(emulated_half_ps(a, 0)),
                              _mm256_cvtps_epi32(emulated_half_ps(a, 1)));
    return _mm512_maskz_mov_epi32(mask, r);
}

static inline __m512i emulated_cvttps_epi32(__m512 a) {
    return emulated_join(_mm256_cvttps_epi32(emulated_half_ps(a, 0)),
                         _mm256_cvttps_epi32(emulated_half_ps(a, 1)));
}

// All ones where the result is none of a uint32_t.
static inline __m512i emulated_cvttps_epu32(__m512 a) {
    float from[16];
    uint32_t to[16];
    memcpy(from, &a, sizeof from);
    for (int i = 0; i < 16; i++)
        to[i] = from[i] > -1.0f && from[i] < 0x1p32f ? (uint32_t)from[i] : UINT32_MAX;
    return _mm512_loadu_si512(to);
}

static inline __m512i emulated_cvtepi8_epi32(__m128i a) {
    return emulated_join(_mm256_cvtepi8_epi32(a), _mm256_cvtepi8_epi32(_mm_srli_si128(a, 8)));
}

static inline __m512i emulated_cvtepu8_epi32(__m128i a) {
    return emulated_join(_mm256_cvtepu8_epi32(a), _mm256_cvtepu8_epi32(_mm_srli_si128(a, 8)));
}

static inline __m512i emulated_cvtepu8_epi16(__m256i a) {
    return emulated_join(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(a)),
                         _mm256_cvtepu8_epi16(_mm256_extracti128_si256(a, 1)));
}

static inline __m512i emulated_cvtepu8_epi64(__m128i a) {
    return emulated_join(_mm256_cvtepu8_epi64(a), _mm256_cvtepu8_epi64(_mm_srli_si128(a, 4)));
}

// Of -0 too, which SIMDe leaves as it is.
static inline __m512 emulated_abs_ps(__m512 a) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return emulated_join_ps(_mm256_and_ps(emulated_half_ps(a, 0), magnitude),
                            _mm256_and_ps(emulated_half_ps(a, 1), magnitude));
}

// SIMDe's wants a literal count.
static inline __m512i emulated_srli_epi16(__m512i a, unsigned count) {
    return emulated_join(_mm256_srli_epi16(emulated_half(a, 0), (int)count),
                         _mm256_srli_epi16(emulated_half(a, 1), (int)count));
}

static inline __m512i emulated_srai_epi32(__m512i a, int count) {
    return emulated_join(_mm256_srai_epi32(emulated_half(a, 0), count),
                         _mm256_srai_epi32(emulated_half(a, 1), count));
}

static inline __m512i emulated_cvtepu16_epi32(__m256i a) {
    return emulated_join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a)),
                         _mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1)));
}

static inline __m512 emulated_cvtph_ps(__m256i a) {
    return emulated_join_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                            _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
}

// Keeps the low half of each lane, the low quarter.
static inline __m256i emulated_cvtepi32_epi16(__m512i a) {
    int32_t from[16];
    int16_t to[16];
    memcpy(from, &a, sizeof from);
    for (int i = 0; i < 16; i++)
        to[i] = (int16_t)from[i];
    return _mm256_loadu_si256((const __m256i *)to);
}

static inline __m128i emulated_cvtepi32_epi8(__m512i a) {
    int32_t from[16];
    int8_t to[16];
    memcpy(from, &a, sizeof from);
    for (int i = 0; i < 16; i++)
        to[i] = (int8_t)from[i];
    return _mm_loadu_si128((const __m128i *)to);
}

static inline __m128i emulated_cvtepi64_epi8(__m512i a) {
    int64_t from[8];
    int8_t to[16] = {0};
    memcpy(from, &a, sizeof from);
    for (int i = 0; i < 8; i++)
        to[i] = (int8_t)from[i];
    return _mm_loadu_si128((const __m128i *)to);
}

// bf16 of the lower sixteen floats, then of the upper ones; rounds half to even and takes subnormal
// numbers for zero. No NaN comes here.
static inline __m512i emulated_cvtne2ps_pbh(__m512 high, __m512 low) {
    uint32_t from[32];
    uint16_t to[32];
    __m512i r;
    memcpy(from, &low, 64);
    memcpy(from + 16, &high, 64);
    for (int i = 0; i < 32; i++) {
        uint32_t bits = from[i] & 0x7f800000 ? from[i] : from[i] & 0x80000000;
        to[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    memcpy(&r, to, sizeof r);
    return r;
}

static inline int32_t emulated_reduce_add_epi32(__m512i a) {
    uint32_t lanes[16], sum = 0;
    memcpy(lanes, &a, sizeof lanes);
    for (int i = 0; i < 16; i++)
        sum += lanes[i];
    return (int32_t)sum;
}

static inline float emulated_reduce_add_ps(__m512 a) {
    float lanes[16], sum;
    memcpy(lanes, &a, sizeof lanes);
    sum = lanes[0];
    for (int i = 1; i < 16; i++)
        sum += lanes[i];
    return sum;
}

static inline float emulated_reduce_min_ps(__m512 a) {
    float lanes[16], min;
    memcpy(lanes, &a, sizeof lanes);
    min = lanes[0];
    for (int i = 1; i < 16; i++)
        min = lanes[i] < min ? lanes[i] : min;
    return min;
}

static inline float emulated_reduce_max_ps(__m512 a) {
    float lanes[16], max;
    memcpy(lanes, &a, sizeof lanes);
    max = lanes[0];
    for (int i = 1; i < 16; i++)
        max = lanes[i] > max ? lanes[i] : max;
    return max;
}

static inline __mmask16 emulated_mask_cmplt_epu32_mask(__mmask16 mask, __m512i a, __m512i b) {
    uint32_t x[16], y[16];
    unsigned less = 0;
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; i++)
        less |= (unsigned)(x[i] < y[i]) << i;
    return (__mmask16)(less & mask);
}

#define EMULATED_GATHER(name, vector, lane)                                                        \
    static inline vector name(__m512i index, const void *from, int scale) {                        \
        int32_t indices[16];                                                                       \
        lane to[16];                                                                               \
        vector r;                                                                                  \
        memcpy(indices, &index, sizeof indices);                                                   \
        for (int i = 0; i < 16; i++)                                                               \
            memcpy(&to[i], (const char *)from + (ptrdiff_t)indices[i] * scale, sizeof to[i]);      \
        memcpy(&r, to, sizeof r);                                                                  \
        return r;                                                                                  \
    }
EMULATED_GATHER(emulated_i32gather_epi32, __m512i, int32_t)
EMULATED_GATHER(emulated_i32gather_ps, __m512, float)

#undef _mm_maskz_loadu_epi8
#undef _mm256_maskz_loadu_epi16
#undef _mm512_maskz_loadu_epi8
#undef _mm512_maskz_loadu_epi32
#undef _mm512_maskz_loadu_ps
#undef _mm_mask_storeu_epi8
#undef _mm256_mask_storeu_epi16
#undef _mm512_mask_storeu_epi8
#undef _mm512_mask_storeu_epi16
#undef _mm512_mask_storeu_epi32
#undef _mm512_mask_storeu_ps
#undef _mm512_cvtepi32_ps
#undef _mm512_maskz_cvtps_epi32
#undef _mm512_cvttps_epi32
#undef _mm512_cvttps_epu32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepu8_epi16
#undef _mm512_cvtepu8_epi64
#undef _mm512_abs_ps
#undef _mm512_srai_epi32
#undef _mm512_srli_epi16
#undef _mm512_i32gather_epi32
#undef _mm512_i32gather_ps
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtepi32_epi8
#undef _mm512_cvtepi64_epi8
#undef _mm512_cvtne2ps_pbh
#undef _mm512_reduce_add_epi32
#undef _mm512_reduce_add_ps
#undef _mm512_reduce_min_ps
#undef _mm512_reduce_max_ps
#undef _mm512_mask_cmp_ps_mask
#undef _mm512_mask_cmplt_epu32_mask
#define _mm_maskz_loadu_epi8 emulated_maskz_loadu_128_8
#define _mm256_maskz_loadu_epi16 emulated_maskz_loadu_256_16
#define _mm512_maskz_loadu_epi8 emulated_maskz_loadu_512_8
#define _mm512_maskz_loadu_epi32 emulated_maskz_loadu_512_32
#define _mm512_maskz_loadu_ps emulated_maskz_loadu_512_ps
#define _mm_mask_storeu_epi8 emulated_mask_storeu_128_8
#define _mm256_mask_storeu_epi16 emulated_mask_storeu_256_16
#define _mm512_mask_storeu_epi8 emulated_mask_storeu_512_8
#define _mm512_mask_storeu_epi16 emulated_mask_storeu_512_16
#define _mm512_mask_storeu_epi32 emulated_mask_storeu_512_32
#define _mm512_mask_storeu_ps emulated_mask_storeu_512_ps
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps
#define _mm512_maskz_cvtps_epi32 emulated_maskz_cvtps_epi32
#define _mm512_cvttps_epi32 emulated_cvttps_epi32
#define _mm512_cvttps_epu32 emulated_cvttps_epu32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepu8_epi16 emulated_cvtepu8_epi16
#define _mm512_cvtepu8_epi64 emulated_cvtepu8_epi64
#define _mm512_abs_ps emulated_abs_ps
#define _mm512_srli_epi16 emulated_srli_epi16
#define _mm512_srai_epi32 emulated_srai_epi32
#define _mm512_i32gather_epi32 emulated_i32gather_epi32
#define _mm512_i32gather_ps emulated_i32gather_ps
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtph_ps emulated_cvtph_ps
#define _mm512_cvtps_ph(a, rounding)                                                               \
    _mm256_set_m128i(_mm256_cvtps_ph(emulated_half_ps(a, 1), (rounding) & 7),                      \
                     _mm256_cvtps_ph(emulated_half_ps(a, 0), (rounding) & 7))
#define _mm512_cvtepi32_epi16 emulated_cvtepi32_epi16
#define _mm512_cvtepi32_epi8 emulated_cvtepi32_epi8
#define _mm512_cvtepi64_epi8 emulated_cvtepi64_epi8
#define _mm512_cvtne2ps_pbh(high, low) ((__m512bh)emulated_cvtne2ps_pbh(high, low))
#define _mm512_reduce_add_epi32 emulated_reduce_add_epi32
#define _mm512_reduce_add_ps emulated_reduce_add_ps
#define _mm512_reduce_min_ps emulated_reduce_min_ps
#define _mm512_reduce_max_ps emulated_reduce_max_ps
#define _mm512_mask_cmplt_epu32_mask emulated_mask_cmplt_epu32_mask
#define _mm512_mask_cmp_ps_mask(mask, a, b, predicate)                                             \
    ((__mmask16)((mask) & _mm512_cmp_ps_mask(a, b, predicate)))

#endif
