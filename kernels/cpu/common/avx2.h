// SPDX-License-Identifier: MIT
// Vectors of eight floats, loaded from and stored to any of lowbit's float types (AVX2, FMA, F16C).
#ifndef LOWBIT_KERNELS_CPU_COMMON_AVX2_H
#define LOWBIT_KERNELS_CPU_COMMON_AVX2_H

#include "floats.h"

#include <immintrin.h>
#include <math.h>

LOWBIT_INLINE __m256 lowbit_load8(enum lowbit_float type, const void *array, size_t i) {
    if (type == f32)
        return _mm256_loadu_ps((const float *)array + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)array + i));
    if (type == f16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// A NaN becomes the positive quiet NaN.
LOWBIT_INLINE __m256 lowbit_quiet8(__m256 value) {
    __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
    return _mm256_blendv_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan);
}

// Rounds half to even; a NaN becomes the positive quiet NaN. bf16 is rounded with integers: the
// instruction for it flushes subnormals.
LOWBIT_INLINE void lowbit_store8(enum lowbit_float type, void *array, size_t i, __m256 value) {
    value = lowbit_quiet8(value);
    if (type == f32) {
        _mm256_storeu_ps((float *)array + i, value);
        return;
    }
    __m128i half;
    if (type == f16) {
        half = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    } else {
        __m256i bits = _mm256_castps_si256(value);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        bits = _mm256_srli_epi32(bits, 16);
        bits = _mm256_permute4x64_epi64(_mm256_packus_epi32(bits, bits), 0x08);
        half = _mm256_castsi256_si128(bits);
    }
    _mm_storeu_si128((__m128i *)((uint16_t *)array + i), half);
}

// All ones in the first n of eight lanes.
LOWBIT_INLINE __m256i lowbit_first8(size_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

LOWBIT_INLINE int32_t lowbit_sum8(__m256i v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

LOWBIT_INLINE float lowbit_min8(__m256 v) {
    __m128 min = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    min = _mm_min_ps(min, _mm_movehl_ps(min, min));
    return _mm_cvtss_f32(_mm_min_ss(min, _mm_movehdup_ps(min)));
}

LOWBIT_INLINE float lowbit_max8(__m256 v) {
    __m128 max = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    max = _mm_max_ps(max, _mm_movehl_ps(max, max));
    return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}

// Rows of eight dwords become columns.
LOWBIT_INLINE void lowbit_transpose8(__m256i r[8]) {
    __m256i t[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) {
            r[4 * i + 2 * j] = _mm256_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            r[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    memcpy(r, t, sizeof t);
}

#endif
