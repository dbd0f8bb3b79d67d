// SPDX-License-Identifier: MIT
// The product of bf16 numbers with AVX-512 BF16. ukernels.h says what it computes.

#include "ukernels.h"
#include "../common/avx512.h"

// Up to 6 rows x 64 columns: 24 sums, 4 registers for the panel, 1 for x.
LOWBIT_INLINE void gemm_rows(const struct lowbit_dense_gemm_args *a, size_t rows) {
    for (size_t c = 0; c < a->c; c += 64) {
        const uint16_t *x = a->x;
        const uint32_t *panel = (const uint32_t *)a->panel + c;
        __m512 sum[6][4];
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 4; v++)
                sum[m][v] = _mm512_loadu_ps(a->start + m * a->start_stride + c + 16 * v);
        for (size_t r = 0; r < a->r; r += 2, panel += a->stride) {
            __m512bh p[4];
            for (int v = 0; v < 4; v++)
                p[v] = (__m512bh)_mm512_loadu_si512(panel + 16 * v);
            for (size_t m = 0; m < rows; m++) {
                int32_t pair;
                memcpy(&pair, x + m * a->x_stride + r, 4);
                const __m512bh xm = (__m512bh)_mm512_set1_epi32(pair);
                for (int v = 0; v < 4; v++)
                    sum[m][v] = _mm512_dpbf16_ps(sum[m][v], xm, p[v]);
            }
        }
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 4; v++)
                _mm512_storeu_ps(a->sum + m * a->stride + c + 16 * v, sum[m][v]);
    }
}

void lowbit_dense_gemm_ukernel_bf16_6x64__avx512bf16(const struct lowbit_dense_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_rows(a, 1); break;
    case 2: gemm_rows(a, 2); break;
    case 3: gemm_rows(a, 3); break;
    case 4: gemm_rows(a, 4); break;
    case 5: gemm_rows(a, 5); break;
    case 6: gemm_rows(a, 6); break;
    }
}
