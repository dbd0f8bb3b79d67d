// SPDX-License-Identifier: MIT
// Vectors of sixteen floats, loaded from and stored to any of lowbit's float types under a lane
// mask (AVX-512 F, BW, VL).
#ifndef LOWBIT_KERNELS_CPU_COMMON_AVX512_H
#define LOWBIT_KERNELS_CPU_COMMON_AVX512_H

#include "floats.h"

#include <immintrin.h>
#include <math.h>

// The first n of sixteen lanes; all of them when n >= 16.
LOWBIT_INLINE __mmask16 lowbit_first16(size_t n) {
    return n < 16 ? (__mmask16)((1u << n) - 1) : (__mmask16)0xffff;
}

// The first n of 64 lanes; all of them when n >= 64.
LOWBIT_INLINE __mmask64 lowbit_first64(size_t n) {
    return n < 64 ? ((__mmask64)1 << n) - 1 : ~(__mmask64)0;
}

// Memory of lanes outside the mask is not touched; they are +0.
LOWBIT_INLINE __m512 lowbit_load16(enum lowbit_float type, const void *array, size_t i,
                                   __mmask16 in) {
    if (type == f32)
        return _mm512_maskz_loadu_ps(in, (const float *)array + i);
    __m256i half = _mm256_maskz_loadu_epi16(in, (const uint16_t *)array + i);
    if (type == f16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// A NaN becomes the positive quiet NaN.
LOWBIT_INLINE __m512 lowbit_quiet16(__m512 value) {
    __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    return _mm512_mask_mov_ps(value, nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}

// Sixteen values, none a negative NaN, as f16 or bf16, rounded half to even. bf16 is rounded with
// integers: the instruction for it flushes subnormals.
LOWBIT_INLINE __m256i lowbit_halves16(enum lowbit_float type, __m512 value) {
    if (type == f16)
        return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512i bits = _mm512_castps_si512(value);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16));
}

// Rounds half to even; a NaN becomes the positive quiet NaN.
LOWBIT_INLINE void lowbit_store16(enum lowbit_float type, void *array, size_t i, __mmask16 in,
                                  __m512 value) {
    value = lowbit_quiet16(value);
    if (type == f32)
        _mm512_mask_storeu_ps((float *)array + i, in, value);
    else
        _mm256_mask_storeu_epi16((uint16_t *)array + i, in, lowbit_halves16(type, value));
}

// Rows of sixteen dwords become columns.
LOWBIT_INLINE void lowbit_transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

#endif
