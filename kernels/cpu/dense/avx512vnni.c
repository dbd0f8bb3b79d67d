// SPDX-License-Identifier: MIT
// The dense micro-kernels for AVX-512. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx512.h"

LOWBIT_INLINE void load(enum lowbit_float type, size_t k, const void *x, float *y) {
    for (size_t i = 0; i < k; i += 16) {
        const __mmask16 in = lowbit_first16(k - i);
        _mm512_mask_storeu_ps(y + i, in, lowbit_load16(type, x, i, in));
    }
}

LOWBIT_INLINE void store(enum lowbit_float type, size_t k, const float *x, float base, void *y) {
    for (size_t i = 0; i < k; i += 16) {
        const __mmask16 in = lowbit_first16(k - i);
        __m512 v = _mm512_maskz_loadu_ps(in, x + i);
        lowbit_store16(type, y, i, in, _mm512_add_ps(v, _mm512_set1_ps(base)));
    }
}

LOWBIT_INSTANTIATE(avx512vnni)

void lowbit_dense_transpose_ukernel__avx512vnni(size_t rows, size_t cols, const uint32_t *from,
                                                size_t from_stride, uint32_t *to,
                                                size_t to_stride) {
    for (size_t i0 = 0; i0 < rows; i0 += 16) {
        const __mmask16 down = lowbit_first16(rows - i0);
        for (size_t j0 = 0; j0 < cols; j0 += 16) {
            const __mmask16 across = lowbit_first16(cols - j0);
            __m512i r[16];
            for (size_t i = 0; i < 16; i++)
                r[i] = _mm512_maskz_loadu_epi32(i0 + i < rows ? across : 0,
                                                from + (i0 + i) * from_stride + j0);
            lowbit_transpose16(r);
            for (size_t j = 0; j < 16; j++)
                _mm512_mask_storeu_epi32(to + (j0 + j) * to_stride + i0, j0 + j < cols ? down : 0,
                                         r[j]);
        }
    }
}

void lowbit_dense_interleave_ukernel__avx512vnni(size_t k, const uint16_t *first,
                                                 const uint16_t *second, uint32_t *panel) {
    for (size_t i = 0; i < k; i += 16) {
        const __mmask16 in = lowbit_first16(k - i);
        __m512i pairs = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, first + i));
        if (second) {
            __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, second + i));
            pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(high, 16));
        }
        _mm512_mask_storeu_epi32(panel + i, in, pairs);
    }
}

// Up to 6 rows x 64 columns: 24 sums, 4 registers for the panel, 1 for x.
LOWBIT_INLINE void gemm_rows(const struct lowbit_dense_gemm_args *a, size_t rows) {
    for (size_t c = 0; c < a->c; c += 64) {
        const float *x = a->x, *panel = (const float *)a->panel + c;
        __m512 sum[6][4];
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 4; v++)
                sum[m][v] = _mm512_setzero_ps();
        for (size_t r = 0; r < a->r; r++, panel += a->stride) {
            __m512 p[4];
            for (int v = 0; v < 4; v++)
                p[v] = _mm512_loadu_ps(panel + 16 * v);
            for (size_t m = 0; m < rows; m++) {
                const __m512 xm = _mm512_set1_ps(x[m * a->x_stride + r]);
                for (int v = 0; v < 4; v++)
                    sum[m][v] = _mm512_fmadd_ps(xm, p[v], sum[m][v]);
            }
        }
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 4; v++) {
                const size_t at = c + 16 * (size_t)v;
                const __m512 start = _mm512_loadu_ps(a->start + m * a->start_stride + at);
                _mm512_storeu_ps(a->sum + m * a->stride + at, _mm512_add_ps(start, sum[m][v]));
            }
    }
}

void lowbit_dense_gemm_ukernel_f32_6x64__avx512vnni(const struct lowbit_dense_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_rows(a, 1); break;
    case 2: gemm_rows(a, 2); break;
    case 3: gemm_rows(a, 3); break;
    case 4: gemm_rows(a, 4); break;
    case 5: gemm_rows(a, 5); break;
    case 6: gemm_rows(a, 6); break;
    }
}
