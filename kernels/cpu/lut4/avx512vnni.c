// SPDX-License-Identifier: MIT
// The lut4 micro-kernels for AVX-512 F, BW, DQ and VL: a register holds the whole codebook, and one
// permutation looks up 16 floats or 32 halves. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx512.h"

// ---------------------------------------------------------------------------------------------
// Quantization

// How many midpoints v exceeds, by bisection; sorted holds them and +inf.
LOWBIT_INLINE __m512i rank16(__m512 v, __m512 sorted) {
    __m512i rank = _mm512_setzero_si512();
    for (int step = 8; step; step /= 2) {
        const __m512i middle = _mm512_add_epi32(rank, _mm512_set1_epi32(step - 1));
        const __mmask16 above =
            _mm512_cmp_ps_mask(v, _mm512_permutexvar_ps(middle, sorted), _CMP_GT_OQ);
        rank = _mm512_mask_add_epi32(rank, above, rank, _mm512_set1_epi32(step));
    }
    return rank;
}

LOWBIT_INLINE float quantize(enum lowbit_float type, size_t n, const void *x,
                             const struct lowbit_lut4_levels *levels, uint8_t *packed) {
    const __m512 inf = _mm512_set1_ps(INFINITY);
    __m512 most = _mm512_setzero_ps();
    for (size_t i = 0; i < n; i += 16) {
        const __m512 magnitude = _mm512_abs_ps(lowbit_load16(type, x, i, lowbit_first16(n - i)));
        const __mmask16 finite = _mm512_cmp_ps_mask(magnitude, inf, _CMP_LT_OQ);
        most = _mm512_mask_max_ps(most, finite, most, magnitude);
    }
    const float absmax = _mm512_reduce_max_ps(most);
    const __m512 inv = _mm512_set1_ps(lowbit_lut4_inverse(absmax));
    const __m512 sorted =
        _mm512_mask_mov_ps(inf, 0x7fff, _mm512_maskz_loadu_ps(0x7fff, levels->midpoint));
    const __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)levels->code));
    for (size_t i = 0; i < n; i += 16) {
        const __m512 value = lowbit_load16(type, x, i, lowbit_first16(n - i));
        const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(value), inf, _CMP_LT_OQ);
        const __m512 v = _mm512_maskz_mul_ps(finite, value, inv);
        const __m512i code = _mm512_permutexvar_epi32(rank16(v, sorted), codes);
        const __m512i pairs =
            _mm512_or_si512(_mm512_slli_epi64(code, 4), _mm512_srli_epi64(code, 32));
        const __mmask16 bytes = lowbit_first16((n - i + 1) / 2) & 0xff;
        _mm_mask_storeu_epi8(packed + i / 2, bytes, _mm512_cvtepi64_epi8(pairs));
    }
    return absmax;
}

// ---------------------------------------------------------------------------------------------
// Back to floats

// The halves of 256 floats, 32 in a register: one permutation looks up 64 of them.
struct halves {
    __m512i half[8];
};

LOWBIT_INLINE __m512i look_up_half(const struct halves *h, __m512i index, __mmask32 bit6,
                                   __mmask32 bit7) {
    __m512i quarter[4];
    for (int i = 0; i < 4; i++)
        quarter[i] = _mm512_permutex2var_epi16(h->half[2 * i], index, h->half[2 * i + 1]);
    return _mm512_mask_blend_epi16(bit7, _mm512_mask_blend_epi16(bit6, quarter[0], quarter[1]),
                                   _mm512_mask_blend_epi16(bit6, quarter[2], quarter[3]));
}

// A gather takes two and a half times as long.
void lowbit_lut4_scales_ukernel__avx512vnni(size_t n, const uint8_t *q, const float *codebook,
                                            float nested, float offset, float *s) {
    if (n < 64) { // not worth making the tables
        for (size_t i = 0; i < n; i++)
            s[i] = codebook[q[i]] * nested + offset;
        return;
    }
    const __m512i two = _mm512_set1_epi32(2 << 16 | 2);
    __m512i even = _mm512_set1_epi32(2 << 16),
            steps = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
    even = _mm512_add_epi16(even, _mm512_or_si512(steps, _mm512_slli_epi32(steps, 16)));
    const __m512i odd = _mm512_add_epi16(even, _mm512_srli_epi16(two, 1));
    struct halves low, high;
    for (int i = 0; i < 8; i++) {
        const __m512i a = _mm512_loadu_si512(codebook + 32 * i),
                      b = _mm512_loadu_si512(codebook + 32 * i + 16);
        low.half[i] = _mm512_permutex2var_epi16(a, even, b);
        high.half[i] = _mm512_permutex2var_epi16(a, odd, b);
    }
    const __m512 factor = _mm512_set1_ps(nested), base = _mm512_set1_ps(offset);
    for (size_t i = 0; i < n; i += 32) {
        const __m512i codes =
            _mm512_maskz_loadu_epi8(lowbit_first64(n - i < 32 ? n - i : 32), q + i);
        const __m512i index = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(codes));
        const __mmask32 bit6 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64)),
                        bit7 = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
        const __m512i l = look_up_half(&low, index, bit6, bit7),
                      h = look_up_half(&high, index, bit6, bit7);
        // Unpacking goes by quarters of a register, 4 floats each.
        const __m512i first = _mm512_unpacklo_epi16(l, h), second = _mm512_unpackhi_epi16(l, h);
        for (size_t j = 0; j < 2; j++) {
            const __m512i quarters = _mm512_add_epi64(_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                                                      _mm512_set1_epi64((long long)j * 4));
            const __m512 value =
                _mm512_castsi512_ps(_mm512_permutex2var_epi64(first, quarters, second));
            if (i + 16 * j < n)
                _mm512_mask_storeu_ps(s + i + 16 * j, lowbit_first16(n - i - 16 * j),
                                      _mm512_add_ps(_mm512_mul_ps(value, factor), base));
        }
    }
}

// Up to 32 elements of a block as halves, or up to 16 as floats, the first in a high nibble. values are
// the block's, rounded already, and only looked up.
LOWBIT_INLINE void look_up_halves(size_t n, const uint8_t *bytes, __m512i values, void *y) {
    const __m512i byte =
        _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(lowbit_first16((n + 1) / 2), bytes));
    const __m512i codes = _mm512_or_si512(_mm512_srli_epi32(byte, 4), _mm512_slli_epi32(byte, 16));
    _mm512_mask_storeu_epi16(y, (__mmask32)lowbit_first64(n),
                             _mm512_permutexvar_epi16(codes, values));
}

LOWBIT_INLINE void look_up_floats(size_t n, const uint8_t *bytes, __m512 values, void *y) {
    const __mmask16 there = lowbit_first16((n + 1) / 2) & 0xff;
    const __m512i byte = _mm512_cvtepu8_epi64(_mm_maskz_loadu_epi8(there, bytes));
    const __m512i codes = _mm512_or_si512(_mm512_srli_epi64(byte, 4), _mm512_slli_epi64(byte, 32));
    _mm512_mask_storeu_ps(y, lowbit_first16(n), _mm512_permutexvar_ps(codes, values));
}

// Elements of one block, the first in a high nibble.
LOWBIT_INLINE void dequantize_bytes(enum lowbit_float type, size_t n, const uint8_t *bytes,
                                    __m512 values, void *y) {
    values = lowbit_quiet16(values);
    size_t i = 0;
    if (type == f32) {
        float *to = y;
        for (; i + 16 <= n; i += 16)
            look_up_floats(16, bytes + i / 2, values, to + i);
        if (i < n)
            look_up_floats(n - i, bytes + i / 2, values, to + i);
    } else {
        const __m512i table = _mm512_broadcast_i64x4(lowbit_halves16(type, values));
        uint16_t *to = y;
        for (; i + 32 <= n; i += 32)
            look_up_halves(32, bytes + i / 2, table, to + i);
        if (i < n)
            look_up_halves(n - i, bytes + i / 2, table, to + i);
    }
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, const struct lowbit_lut4_run *run, void *y) {
    const __m512 codebook = _mm512_loadu_ps(run->codebook);
    const float *s = run->s;
    size_t i = run->begin;
    const size_t end = run->begin + run->n, size = lowbit_float_size(type);
    char *to = y;
    while (i < end) {
        if (i % 2) {
            lowbit_float_store(type, to, 0, lowbit_lut4_element(run, i));
            to += size;
            i++;
        } else {
            const size_t left = run->blocksize - i % run->blocksize;
            const size_t n = left < end - i ? left : end - i;
            dequantize_bytes(type, n, run->packed + i / 2,
                             _mm512_mul_ps(codebook, _mm512_set1_ps(*s)), to);
            to += n * size;
            i += n;
        }
        s += i % run->blocksize == 0;
    }
}

// ---------------------------------------------------------------------------------------------
// Products for few rows of x. Sixteen dwords of packed codes hold 128 elements of a row, eight in
// each dword: shifting all dwords by the same amount brings eight times 16 codes into place for the
// permutation, which looks at the lowest four bits alone. x is arranged to match.

enum { UNIT = 128, PREFETCH_AHEAD = 4096, ROWS = 16 };

LOWBIT_INLINE void arrange(enum lowbit_float type, size_t k, const void *x, float *y) {
    for (size_t u = 0; u < k; u += UNIT) {
        float unit[UNIT];
        for (size_t i = 0; i < UNIT; i += 16)
            _mm512_storeu_ps(
                unit + i, lowbit_load16(type, x, u + i, u + i < k ? lowbit_first16(k - u - i) : 0));
        for (size_t e = 0; e < 8; e++)
            for (size_t d = 0; d < 16; d++)
                y[u + e * 16 + d] = unit[d * 8 + e];
    }
}

// One unit of `height` rows of the weight against a few rows of x, from column k on.
LOWBIT_INLINE void gemm_unit(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t height,
                             size_t k, __m512 codebook, const __m512i codes[2],
                             const __m512 scales[2], __m512 total[2][8]) {
    __m512 part[2][8];
    for (int e = 0; e < 8; e++) {
        const unsigned at = (unsigned)(e / 2 * 8 + (e % 2 ? 0 : 4)); // high nibble first
        __m512 value[2];
        for (size_t j = 0; j < height; j++) {
            value[j] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes[j], at), codebook);
            if (rows > 2)
                value[j] = _mm512_mul_ps(value[j], scales[j]);
        }
        for (size_t m = 0; m < rows; m++) {
            const __m512 x = _mm512_load_ps((const float *)((const char *)a->x + m * a->x_stride) +
                                            k + (size_t)e * 16);
            for (size_t j = 0; j < height; j++)
                if (rows > 2)
                    total[j][m] = _mm512_fmadd_ps(value[j], x, total[j][m]);
                else if (e == 0)
                    part[j][m] = _mm512_mul_ps(value[j], x);
                else
                    part[j][m] = _mm512_fmadd_ps(value[j], x, part[j][m]);
        }
    }
    if (rows <= 2)
        for (size_t m = 0; m < rows; m++)
            for (size_t j = 0; j < height; j++)
                total[j][m] = _mm512_fmadd_ps(part[j][m], scales[j], total[j][m]);
}

// Columns k0 to end of the weight's rows against a few rows of x. For one row of x memory is the
// limit; with more, each load of x serves two rows of the weight, and the columns are few enough to
// keep x in the first-level cache.
LOWBIT_INLINE void gemm_columns(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t height,
                                size_t k0, size_t end, __m512 sum[ROWS][8]) {
    const __m512 codebook = _mm512_loadu_ps(a->codebook);
    // A unit is 1, 2 or 4 blocks, or part of one; blocks[d] is that of dword d.
    const int shift = __builtin_ctzll(a->blocksize);
    const size_t per_unit = a->blocksize < UNIT ? UNIT / a->blocksize : 1;
    const __m512i blocks =
        _mm512_srl_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm_cvtsi32_si128(shift < 7 ? shift - 3 : 4));
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
        __m512i codes[2];
        __m512 scales[2];
        for (; k + UNIT <= end; k += UNIT) {
            for (size_t j = 0; j < height; j++) {
                codes[j] = _mm512_loadu_si512(w[j] + k / 2);
                scales[j] = _mm512_permutexvar_ps(
                    blocks, _mm512_maskz_loadu_ps(lowbit_first16(per_unit), s[j] + (k >> shift)));
                _mm_prefetch((const char *)w[j] + k / 2 + ahead, _MM_HINT_T1);
            }
            gemm_unit(a, rows, height, k, codebook, codes, scales, total);
        }
        if (k < end) {
            const size_t left = end - k, there = per_unit > 1 ? left >> shift : 1;
            for (size_t j = 0; j < height; j++) {
                codes[j] = _mm512_maskz_loadu_epi8(lowbit_first64(left / 2), w[j] + k / 2);
                scales[j] = _mm512_permutexvar_ps(
                    blocks, _mm512_maskz_loadu_ps(lowbit_first16(there), s[j] + (k >> shift)));
            }
            gemm_unit(a, rows, height, k, codebook, codes, scales, total);
        }
        for (size_t j = 0; j < height; j++)
            for (size_t m = 0; m < rows; m++)
                sum[n + j][m] = total[j][m];
    }
}

LOWBIT_INLINE void gemm(const struct lowbit_lut4_gemm_args *a, size_t rows) {
    const size_t height = rows == 1 ? 1 : 2;
    __m512 sum[ROWS][8];
    for (size_t n = 0; n < ROWS; n++)
        for (size_t m = 0; m < rows; m++)
            sum[n][m] = _mm512_setzero_ps();
    const size_t columns = rows == 1 ? a->k : 4096 / rows / UNIT * UNIT;
    for (size_t k0 = 0; k0 < a->k; k0 += columns)
        gemm_columns(a, rows, height, k0, a->k - k0 < columns ? a->k : k0 + columns, sum);
    for (size_t n = 0; n < a->n; n++)
        for (size_t m = 0; m < rows; m++)
            a->acc[m * a->acc_stride + n] = _mm512_reduce_add_ps(sum[n][m]);
}

LOWBIT_LUT4_GEMM_OF_8(f32_8x16__avx512vnni)

LOWBIT_LUT4_INSTANTIATE(avx512vnni)
