// SPDX-License-Identifier: MIT
// The lut4 micro-kernels for AVX2, FMA and F16C: the codebook fills two registers, and a value is
// looked up in both. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx2.h"

#include <stdbool.h>

struct table {
    __m256 low, high; // codes 0 to 7, 8 to 15
};

LOWBIT_INLINE struct table load_table(const float *values) {
    return (struct table){_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
}

// Eight values by the four bits of each dword from bit `at` on, whatever its other bits are.
LOWBIT_INLINE __m256 look_up(struct table table, __m256i dwords, int at) {
    const __m256i index = _mm256_srli_epi32(dwords, at);
    const __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(dwords, 28 - at)); // sign: bit 3
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.low, index),
                            _mm256_permutevar8x32_ps(table.high, index), upper);
}

// ---------------------------------------------------------------------------------------------
// Quantization

// Up to 8 elements; those missing are +0.
LOWBIT_INLINE __m256 load_some(enum lowbit_float type, const void *x, size_t i, size_t n) {
    if (n >= 8)
        return lowbit_load8(type, x, i);
    unsigned char copy[32] = {0};
    memcpy(copy, (const char *)x + i * lowbit_float_size(type), n * lowbit_float_size(type));
    return lowbit_load8(type, copy, 0);
}

LOWBIT_INLINE __m256 finite_magnitude(__m256 v) {
    const __m256 magnitude = _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    return _mm256_and_ps(magnitude, _mm256_cmp_ps(magnitude, _mm256_set1_ps(INFINITY), _CMP_LT_OQ));
}

// The midpoints in the order of a bisection: the first decides between the halves, the next two
// within them, and so on; step i has 2^i of them.
struct bisection {
    __m256 step[4];
};

LOWBIT_INLINE struct bisection load_bisection(const float *midpoint) {
    struct bisection b;
    for (int i = 0; i < 4; i++) {
        float step[8] = {0};
        for (int j = 0; j < 1 << i; j++)
            step[j] = midpoint[(2 * j + 1) * (8 >> i) - 1];
        b.step[i] = _mm256_loadu_ps(step);
    }
    return b;
}

LOWBIT_INLINE float quantize(enum lowbit_float type, size_t n, const void *x,
                             const struct lowbit_lut4_levels *levels, uint8_t *packed) {
    __m256 most = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += 8)
        most = _mm256_max_ps(most, finite_magnitude(load_some(type, x, i, n - i)));
    const float absmax = lowbit_max8(most);
    const __m256 inv = _mm256_set1_ps(lowbit_lut4_inverse(absmax));
    const __m256 inf = _mm256_set1_ps(INFINITY);
    const struct bisection bisection = load_bisection(levels->midpoint);
    const __m256i codes =
        _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)levels->code));
    for (size_t i = 0; i < n; i += 8) {
        const __m256 value = load_some(type, x, i, n - i);
        const __m256 magnitude =
            _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
        const __m256 v =
            _mm256_and_ps(_mm256_mul_ps(value, inv), _mm256_cmp_ps(magnitude, inf, _CMP_LT_OQ));
        __m256i rank = _mm256_setzero_si256();
        for (int step = 0; step < 4; step++) {
            const __m256 midpoint = _mm256_permutevar8x32_ps(bisection.step[step], rank);
            const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(v, midpoint, _CMP_GT_OQ));
            rank = _mm256_sub_epi32(_mm256_add_epi32(rank, rank), above);
        }
        // Bytes 0 and 4 of each qword are its two codes; the others are code[0] and shifted out.
        const __m256i code =
            _mm256_and_si256(_mm256_shuffle_epi8(codes, rank), _mm256_set1_epi32(15));
        const __m256i pairs =
            _mm256_or_si256(_mm256_slli_epi64(code, 4), _mm256_srli_epi64(code, 32));
        const uint32_t bytes[4] = {
            (uint32_t)_mm256_extract_epi8(pairs, 0), (uint32_t)_mm256_extract_epi8(pairs, 8),
            (uint32_t)_mm256_extract_epi8(pairs, 16), (uint32_t)_mm256_extract_epi8(pairs, 24)};
        for (size_t j = 0; j < 4 && 2 * j < n - i; j++)
            packed[i / 2 + j] = (uint8_t)bytes[j];
    }
    return absmax;
}

// ---------------------------------------------------------------------------------------------
// Back to floats

LOWBIT_INLINE void dequantize(enum lowbit_float type, const struct lowbit_lut4_run *run, void *y) {
    const struct table codebook = load_table(run->codebook);
    const float *s = run->s;
    size_t i = run->begin;
    const size_t end = run->begin + run->n, size = lowbit_float_size(type);
    char *to = y;
    while (i < end) {
        const size_t left = run->blocksize - i % run->blocksize;
        const size_t n = left < end - i ? left : end - i;
        const __m256 scale = _mm256_set1_ps(*s++);
        const struct table values = {_mm256_mul_ps(codebook.low, scale),
                                     _mm256_mul_ps(codebook.high, scale)};
        const size_t last = i + n;
        if (i % 2) {
            lowbit_float_store(type, to, 0, lowbit_lut4_element(run, i++));
            to += size;
        }
        for (; i + 8 <= last; i += 8, to += 8 * size) {
            int32_t four;
            memcpy(&four, run->packed + i / 2, 4);
            const __m256i byte = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
            const __m256i codes =
                _mm256_or_si256(_mm256_srli_epi64(byte, 4), _mm256_slli_epi64(byte, 32));
            lowbit_store8(type, to, 0, look_up(values, codes, 0));
        }
        for (; i < last; i++, to += size)
            lowbit_float_store(type, to, 0, lowbit_lut4_element(run, i));
    }
}

// ---------------------------------------------------------------------------------------------
// Products for few rows of x. A byte shuffle looks up 32 codes at once, but only a byte of each value:
// the four bytes of the floats are looked up apart and put together again by unpacking. So a unit of
// 64 elements comes out in eight vectors, in the order that x is arranged in. (A permutation looks up
// eight floats, but needs the codes shifted into place, and both compete for the same two ports.)

enum { UNIT = 64, PREFETCH_AHEAD = 4096, ROWS = 16 };

// The codebook by bytes: plane[b] holds byte b of each value, in both lanes.
struct planes {
    __m256i plane[4];
};

LOWBIT_INLINE struct planes load_planes(const float *codebook) {
    struct planes planes;
    uint8_t bytes[16][4], plane[16];
    memcpy(bytes, codebook, sizeof bytes);
    for (int b = 0; b < 4; b++) {
        for (int i = 0; i < 16; i++)
            plane[i] = bytes[i][b];
        planes.plane[b] = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)plane));
    }
    return planes;
}

LOWBIT_INLINE void arrange(enum lowbit_float type, size_t k, const void *x, float *y) {
    const size_t padded = (k + LOWBIT_LUT4_X_ALIGN - 1) / LOWBIT_LUT4_X_ALIGN * LOWBIT_LUT4_X_ALIGN;
    for (size_t u = 0; u < padded; u += UNIT) {
        float unit[UNIT];
        for (size_t i = 0; i < UNIT; i += 8)
            _mm256_storeu_ps(unit + i, u + i < k ? load_some(type, x, u + i, k - u - i)
                                                 : _mm256_setzero_ps());
        for (size_t half = 0; half < 2; half++) // high nibbles, low nibbles
            for (size_t q = 0; q < 4; q++)
                for (size_t d = 0; d < 8; d++)
                    y[u + half * 32 + q * 8 + d] = unit[d / 4 * 32 + q * 8 + d % 4 * 2 + half];
    }
}

// Eight values of a unit against a few rows of x, from element k of their arrangement on.
LOWBIT_INLINE void multiply(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t k,
                            bool first, __m256i bits, __m256 scales, __m256 sum[8]) {
    __m256 value = _mm256_castsi256_ps(bits);
    if (rows > 3)
        value = _mm256_mul_ps(value, scales);
    for (size_t m = 0; m < rows; m++) {
        const __m256 x = _mm256_load_ps((const float *)((const char *)a->x + m * a->x_stride) + k);
        sum[m] = first ? _mm256_mul_ps(value, x) : _mm256_fmadd_ps(value, x, sum[m]);
    }
}

// One unit of a row of the weight against a few rows of x, from column k on.
LOWBIT_INLINE void gemm_unit(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t k,
                             const struct planes *p, __m256i codes, __m256 scales,
                             __m256 total[8]) {
    for (size_t half = 0; half < 2; half++) {
        const __m256i index =
            _mm256_and_si256(half ? codes : _mm256_srli_epi16(codes, 4), _mm256_set1_epi8(15));
        const __m256i b0 = _mm256_shuffle_epi8(p->plane[0], index),
                      b1 = _mm256_shuffle_epi8(p->plane[1], index),
                      b2 = _mm256_shuffle_epi8(p->plane[2], index),
                      b3 = _mm256_shuffle_epi8(p->plane[3], index);
        __m256 part[8], *sum = rows > 3 ? total : part;
        __m256i low = _mm256_unpacklo_epi8(b0, b1), high = _mm256_unpacklo_epi8(b2, b3);
        k += half * 32;
        multiply(a, rows, k, rows <= 3, _mm256_unpacklo_epi16(low, high), scales, sum);
        multiply(a, rows, k + 8, false, _mm256_unpackhi_epi16(low, high), scales, sum);
        low = _mm256_unpackhi_epi8(b0, b1);
        high = _mm256_unpackhi_epi8(b2, b3);
        multiply(a, rows, k + 16, false, _mm256_unpacklo_epi16(low, high), scales, sum);
        multiply(a, rows, k + 24, false, _mm256_unpackhi_epi16(low, high), scales, sum);
        if (rows <= 3)
            for (size_t m = 0; m < rows; m++)
                total[m] = _mm256_fmadd_ps(part[m], scales, total[m]);
    }
}

// Columns k0 to end of the weight's rows against a few rows of x.
LOWBIT_INLINE void gemm_columns(const struct lowbit_lut4_gemm_args *a, size_t rows, size_t k0,
                                size_t end, __m256 sum[ROWS][8]) {
    const struct planes codebook = load_planes(a->codebook);
    const int shift = __builtin_ctzll(a->blocksize);
    const size_t ahead = end - k0 == a->k ? PREFETCH_AHEAD : a->k / 2;
    for (size_t n = 0; n < a->n; n++) {
        const uint8_t *w = a->packed + n * (a->k / 2);
        const float *s = a->s + n * a->s_stride;
        __m256 total[8];
        for (size_t m = 0; m < rows; m++)
            total[m] = sum[n][m];
        size_t k = k0;
        for (; k + UNIT <= end; k += UNIT) {
            const __m256i codes = _mm256_loadu_si256((const __m256i *)(w + k / 2));
            _mm_prefetch((const char *)w + k / 2 + ahead, _MM_HINT_T1);
            __m256 scales = _mm256_broadcast_ss(s + (k >> shift));
            if (shift < 6) // two blocks in a unit
                scales = _mm256_insertf128_ps(scales, _mm_broadcast_ss(s + (k >> shift) + 1), 1);
            gemm_unit(a, rows, k, &codebook, codes, scales, total);
        }
        if (k < end) // half a unit, one block of 32; nothing of the other half, not 0 * infinity
            gemm_unit(a, rows, k, &codebook,
                      _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(w + k / 2))),
                      _mm256_zextps128_ps256(_mm_set1_ps(s[k >> shift])), total);
        for (size_t m = 0; m < rows; m++)
            sum[n][m] = total[m];
    }
}

LOWBIT_INLINE float sum_of(__m256 v) {
    __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

LOWBIT_INLINE void gemm(const struct lowbit_lut4_gemm_args *a, size_t rows) {
    __m256 sum[ROWS][8];
    for (size_t n = 0; n < a->n; n++)
        for (size_t m = 0; m < rows; m++)
            sum[n][m] = _mm256_setzero_ps();
    const size_t columns = rows == 1 ? a->k : 4096 / rows / UNIT * UNIT;
    for (size_t k0 = 0; k0 < a->k; k0 += columns)
        gemm_columns(a, rows, k0, a->k - k0 < columns ? a->k : k0 + columns, sum);
    for (size_t n = 0; n < a->n; n++)
        for (size_t m = 0; m < rows; m++)
            a->acc[m * a->acc_stride + n] = sum_of(sum[n][m]);
}

LOWBIT_LUT4_GEMM_OF_8(f32_8x16__avx2)

LOWBIT_LUT4_INSTANTIATE(avx2)
