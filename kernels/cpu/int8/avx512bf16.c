// SPDX-License-Identifier: MIT
// The operands of a product of bf16 numbers, for AVX-512 BF16. ukernels.h says what each micro-kernel
// computes.

#include "ukernels.h"
#include "../common/avx512.h"

// An int8 has at most 8 significant bits, so the upper half of its float is exactly its bf16.
void lowbit_int8_pairs_ukernel_bf16__avx512bf16(size_t k, const int8_t *first, const int8_t *second,
                                                uint32_t *panel) {
    for (size_t i = 0; i < k; i += 16) {
        const __mmask16 in = lowbit_first16(k - i);
        __m512i low = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(in, first + i));
        __m512i high = _mm512_setzero_si512();
        if (second)
            high = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(in, second + i));
        low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_cvtepi32_ps(low)), 16);
        high = _mm512_castps_si512(_mm512_cvtepi32_ps(high));
        _mm512_mask_storeu_epi32(panel + i, in, _mm512_or_si512(low, high));
    }
}

float lowbit_int8_scale_ukernel_bf16__avx512bf16(size_t n, const uint16_t *x, const float *s,
                                                 const float *offset, uint16_t *y) {
    __m512 sum = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __mmask16 in = lowbit_first16(n - i);
        __m512 v = lowbit_load16(bf16, x, i, in);
        lowbit_store16(bf16, y, i, in, _mm512_mul_ps(v, _mm512_maskz_loadu_ps(in, s + i)));
        if (offset)
            sum = _mm512_fmadd_ps(v, _mm512_maskz_loadu_ps(in, offset + i), sum);
    }
    return _mm512_reduce_add_ps(sum);
}
