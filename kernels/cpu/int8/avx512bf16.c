// SPDX-License-Identifier: MIT
// The gradient for bf16 with AVX-512 BF16. ukernels.h says what each micro-kernel computes.

#include "ukernels.h"
#include "../common/avx512.h"

// An int8 has at most 8 significant bits, so the upper half of its float is exactly its bf16.
void lowbit_int8_pairs_ukernel__avx512bf16(size_t k, const int8_t *first, const int8_t *second,
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

float lowbit_int8_scale_ukernel__avx512bf16(size_t n, const uint16_t *x, const float *s,
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

// Up to 6 rows x 64 columns: 24 sums, 4 registers for the panel, 1 for g.
LOWBIT_INLINE void grad_rows(const struct lowbit_int8_grad_args *a, size_t rows) {
    const size_t pairs = a->n / 2;
    for (size_t k = 0; k < a->k; k += 64) {
        __m512 sum[6][4];
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 4; v++)
                sum[m][v] = _mm512_loadu_ps(a->sum + m * a->stride + k + 16 * v);
        for (size_t j = 0; j < pairs; j++) {
            __m512bh w[4];
            for (int v = 0; v < 4; v++)
                w[v] = (__m512bh)_mm512_loadu_si512(a->panel + j * a->stride + k + 16 * v);
            for (size_t m = 0; m < rows; m++) {
                int32_t pair;
                memcpy(&pair, a->g + m * a->g_stride + 2 * j, 4);
                __m512bh g = (__m512bh)_mm512_set1_epi32(pair);
                for (int v = 0; v < 4; v++)
                    sum[m][v] = _mm512_dpbf16_ps(sum[m][v], g, w[v]);
            }
        }
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 4; v++)
                _mm512_storeu_ps(a->sum + m * a->stride + k + 16 * v, sum[m][v]);
    }
}

void lowbit_int8_grad_ukernel_6x64__avx512bf16(const struct lowbit_int8_grad_args *a) {
    switch (a->m) {
    case 1: grad_rows(a, 1); break;
    case 2: grad_rows(a, 2); break;
    case 3: grad_rows(a, 3); break;
    case 4: grad_rows(a, 4); break;
    case 5: grad_rows(a, 5); break;
    case 6: grad_rows(a, 6); break;
    }
}
