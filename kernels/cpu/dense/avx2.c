// SPDX-License-Identifier: MIT
// The dense micro-kernels for AVX2, FMA and F16C. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx2.h"

LOWBIT_INLINE void load(enum lowbit_float type, size_t k, const void *x, float *y) {
    size_t i = 0;
    for (; i + 8 <= k; i += 8)
        _mm256_storeu_ps(y + i, lowbit_load8(type, x, i));
    for (; i < k; i++)
        y[i] = lowbit_float_load(type, x, i);
}

LOWBIT_INLINE void store(enum lowbit_float type, size_t k, const float *x, float base, void *y) {
    size_t i = 0;
    for (; i + 8 <= k; i += 8)
        lowbit_store8(type, y, i, _mm256_add_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(base)));
    for (; i < k; i++)
        lowbit_float_store(type, y, i, x[i] + base);
}

LOWBIT_INSTANTIATE(avx2)

void lowbit_dense_transpose_ukernel__avx2(size_t rows, size_t cols, const uint32_t *from,
                                          size_t from_stride, uint32_t *to, size_t to_stride) {
    for (size_t i0 = 0; i0 < rows; i0 += 8) {
        const size_t height = rows - i0 < 8 ? rows - i0 : 8;
        const __m256i down = lowbit_first8(height);
        for (size_t j0 = 0; j0 < cols; j0 += 8) {
            const size_t width = cols - j0 < 8 ? cols - j0 : 8;
            const __m256i across = lowbit_first8(width);
            __m256i r[8];
            for (size_t i = 0; i < 8; i++)
                r[i] = i < height ? _mm256_maskload_epi32(
                                        (const int *)(from + (i0 + i) * from_stride + j0), across)
                                  : _mm256_setzero_si256();
            lowbit_transpose8(r);
            for (size_t j = 0; j < width; j++)
                _mm256_maskstore_epi32((int *)(to + (j0 + j) * to_stride + i0), down, r[j]);
        }
    }
}

void lowbit_dense_interleave_ukernel__avx2(size_t k, const uint16_t *first, const uint16_t *second,
                                           uint32_t *panel) {
    size_t i = 0;
    for (; i + 8 <= k; i += 8) {
        __m256i pairs = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(first + i)));
        if (second) {
            __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(second + i)));
            pairs = _mm256_or_si256(pairs, _mm256_slli_epi32(high, 16));
        }
        _mm256_storeu_si256((__m256i *)(panel + i), pairs);
    }
    for (; i < k; i++)
        panel[i] = first[i] | (second ? (uint32_t)second[i] << 16 : 0);
}

// Up to 6 rows x 16 columns: 12 sums, which hides the latency of the FMA, 2 registers for the
// panel, 1 for x.
LOWBIT_INLINE void gemm_rows(const struct lowbit_dense_gemm_args *a, size_t rows) {
    for (size_t c = 0; c < a->c; c += 16) {
        const float *x = a->x, *panel = (const float *)a->panel + c;
        __m256 sum[6][2];
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 2; v++)
                sum[m][v] = _mm256_setzero_ps();
        for (size_t r = 0; r < a->r; r++, panel += a->stride) {
            const __m256 p[2] = {_mm256_loadu_ps(panel), _mm256_loadu_ps(panel + 8)};
            for (size_t m = 0; m < rows; m++) {
                const __m256 xm = _mm256_broadcast_ss(x + m * a->x_stride + r);
                for (int v = 0; v < 2; v++)
                    sum[m][v] = _mm256_fmadd_ps(xm, p[v], sum[m][v]);
            }
        }
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < 2; v++) {
                const size_t at = c + 8 * (size_t)v;
                const __m256 start = _mm256_loadu_ps(a->start + m * a->start_stride + at);
                _mm256_storeu_ps(a->sum + m * a->stride + at, _mm256_add_ps(start, sum[m][v]));
            }
    }
}

void lowbit_dense_gemm_ukernel_f32_6x16__avx2(const struct lowbit_dense_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_rows(a, 1); break;
    case 2: gemm_rows(a, 2); break;
    case 3: gemm_rows(a, 3); break;
    case 4: gemm_rows(a, 4); break;
    case 5: gemm_rows(a, 5); break;
    case 6: gemm_rows(a, 6); break;
    }
}
