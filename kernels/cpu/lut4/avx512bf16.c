// SPDX-License-Identifier: MIT
// The lut4 products of bf16 numbers with AVX-512 BF16. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx512.h"

// Thirty-two words of packed codes hold 128 elements of a row, four in each word, the codes of two or
// fewer blocks: the words of the second half may belong to another block than those of the first. The
// scaled and rounded values of both blocks make one table of 32, in which bit 4 of an index picks the
// block.
enum { UNIT = 128, PREFETCH_AHEAD = 4096, ROWS = 16 };

void lowbit_lut4_arrange_ukernel_bf16_bf16__avx512bf16(size_t k, const void *x, void *y) {
    const uint16_t *from = x;
    uint16_t *to = y;
    for (size_t u = 0; u < k; u += UNIT) {
        uint16_t unit[UNIT] = {0};
        memcpy(unit, from + u, (k - u < UNIT ? k - u : UNIT) * sizeof *unit);
        for (size_t e = 0; e < 4; e++)
            for (size_t d = 0; d < 32; d++)
                to[u + e * 32 + d] = unit[d * 4 + e];
    }
}

// One unit of `height` rows of the weight against a few rows of x, from column k on.
LOWBIT_INLINE void gemm_unit(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t height,
                             size_t k, const __m512i codes[2], const __m512i tables[2],
                             __m512 sum[2][8]) {
    const __m512i nibble = _mm512_set1_epi16(15);
    const __m512i block = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    for (int e = 0; e < 4; e++) {
        __m512bh value[2];
        for (size_t j = 0; j < height; j++) {
            const unsigned at = (unsigned)(e / 2 * 8 + (e % 2 ? 0 : 4)); // high nibble first
            const __m512i code = _mm512_srli_epi16(codes[j], at);
            // (code & nibble) | block
            const __m512i index = _mm512_ternarylogic_epi32(code, nibble, block, 0xea);
            value[j] = (__m512bh)_mm512_permutexvar_epi16(index, tables[j]);
        }
        for (size_t m = 0; m < rows; m++) {
            const __m512bh x = (__m512bh)_mm512_load_si512(
                (const uint16_t *)((const char *)a->x + m * a->x_stride) + k + (size_t)e * 32);
            for (size_t j = 0; j < height; j++)
                sum[j][m] = _mm512_dpbf16_ps(sum[j][m], value[j], x);
        }
    }
}

LOWBIT_INLINE __m512i table_of(__m512 codebook, float first, float second) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_mul_ps(codebook, _mm512_set1_ps(second)),
                                        _mm512_mul_ps(codebook, _mm512_set1_ps(first)));
}

// Columns k0 to end of the weight's rows against a few rows of x, few enough columns to keep x in the
// first-level cache.
LOWBIT_INLINE void gemm_columns(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t height,
                                size_t k0, size_t end, __m512 sum[ROWS][8]) {
    const __m512 codebook = _mm512_loadu_ps(a->codebook);
    const int shift = __builtin_ctzll(a->blocksize);
    const size_t ahead = end - k0 == a->k ? PREFETCH_AHEAD : a->k / 2 * height;
    for (size_t n = 0; n < a->n; n += height) {
        const uint8_t *w[2];
        const float *s[2];
        __m512 total[2][8];
        for (size_t j = 0; j < height; j++) {
            const size_t row = n + j < a->n ? n + j : n; // past the last row, once more
            w[j] = a->packed + row * (a->k / 2);
            s[j] = a->s + row * a->s_stride;
            for (size_t m = 0; m < rows; m++)
                total[j][m] = sum[n + j][m];
        }
        size_t k = k0;
        __m512i codes[2], tables[2];
        for (; k + UNIT <= end; k += UNIT) {
            for (size_t j = 0; j < height; j++) {
                codes[j] = _mm512_loadu_si512(w[j] + k / 2);
                tables[j] = table_of(codebook, s[j][k >> shift], s[j][(k + UNIT / 2) >> shift]);
                _mm_prefetch((const char *)w[j] + k / 2 + ahead, _MM_HINT_T1);
            }
            gemm_unit(a, rows, height, k, codes, tables, total);
        }
        if (k < end) { // half a unit, one block of 64
            for (size_t j = 0; j < height; j++) {
                codes[j] = _mm512_maskz_loadu_epi8(0xffffffff, w[j] + k / 2);
                tables[j] = table_of(codebook, s[j][k >> shift], 0.0f);
            }
            gemm_unit(a, rows, height, k, codes, tables, total);
        }
        for (size_t j = 0; j < height; j++)
            for (size_t m = 0; m < rows; m++)
                sum[n + j][m] = total[j][m];
    }
}

LOWBIT_INLINE void gemm(const struct lowbit_lut4_gemm_args *a, size_t rows) {
    const size_t height = 2; // two chains of sums at the least, to hide the latency
    __m512 sum[ROWS][8];
    for (size_t n = 0; n < ROWS; n++)
        for (size_t m = 0; m < rows; m++)
            sum[n][m] = _mm512_setzero_ps();
    const size_t columns = rows == 1 ? a->k : 8192 / rows / UNIT * UNIT;
    for (size_t k0 = 0; k0 < a->k; k0 += columns)
        gemm_columns(a, rows, height, k0, a->k - k0 < columns ? a->k : k0 + columns, sum);
    for (size_t n = 0; n < a->n; n++)
        for (size_t m = 0; m < rows; m++)
            a->acc[m * a->acc_stride + n] = _mm512_reduce_add_ps(sum[n][m]);
}

LOWBIT_LUT4_GEMM_OF_8(bf16_8x16__avx512bf16)
