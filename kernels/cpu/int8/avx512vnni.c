// SPDX-License-Identifier: MIT
// The int8 micro-kernels for AVX-512 F, BW, DQ, VL and VNNI. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx512.h"

// ---------------------------------------------------------------------------------------------
// Row quantization

// The lanes of 16 elements that are no outliers, and their place in the range.
LOWBIT_INLINE __mmask16 range16(enum lowbit_float type, const void *x, size_t i, __mmask16 valid,
                                __m512 limit, __m512 *lo, __m512 *hi) {
    __m512 v = lowbit_load16(type, x, i, valid);
    __mmask16 in = _mm512_mask_cmp_ps_mask(valid, _mm512_abs_ps(v), limit, _CMP_LT_OQ);
    *lo = _mm512_mask_min_ps(*lo, in, *lo, v);
    *hi = _mm512_mask_max_ps(*hi, in, *hi, v);
    return in;
}

LOWBIT_INLINE void range(enum lowbit_float type, size_t k, const void *x, float t, uint64_t *mask,
                         struct lowbit_int8_range *out) {
    const __m512 limit = _mm512_set1_ps(t);
    __m512 lo[4], hi[4]; // four, for the latency of min and max
    for (int j = 0; j < 4; j++) {
        lo[j] = _mm512_set1_ps(INFINITY);
        hi[j] = _mm512_set1_ps(-INFINITY);
    }
    size_t outliers = 0;
    for (size_t i = 0; i < k; i += 64) {
        uint64_t in = 0, valid = ~(uint64_t)0;
        if (k - i >= 64) {
            for (int j = 0; j < 4; j++)
                in |= (uint64_t)range16(type, x, i + 16 * (size_t)j, 0xffff, limit, &lo[j], &hi[j])
                      << 16 * j;
        } else {
            valid = ((uint64_t)1 << (k - i)) - 1;
            for (int j = 0; j < 4; j++)
                in |= (uint64_t)range16(type, x, i + 16 * (size_t)j, (__mmask16)(valid >> 16 * j),
                                        limit, &lo[j], &hi[j])
                      << 16 * j;
        }
        const uint64_t word = valid & ~in;
        if (word)
            outliers += (size_t)__builtin_popcountll(word);
        if (mask)
            mask[i / 64] = word;
    }
    lo[0] = _mm512_min_ps(_mm512_min_ps(lo[0], lo[1]), _mm512_min_ps(lo[2], lo[3]));
    hi[0] = _mm512_max_ps(_mm512_max_ps(hi[0], hi[1]), _mm512_max_ps(hi[2], hi[3]));
    out->lo = outliers == k ? 0.0f : _mm512_reduce_min_ps(lo[0]) + 0.0f;
    out->hi = outliers == k ? 0.0f : _mm512_reduce_max_ps(hi[0]) + 0.0f;
    out->outliers = outliers;
}

LOWBIT_INLINE __m512i codes16(enum lowbit_float type, const void *x, size_t i, __mmask16 valid,
                              __m512 limit, __m512 center, __m512 inv) {
    __m512 v = lowbit_load16(type, x, i, valid);
    __mmask16 in = _mm512_mask_cmp_ps_mask(valid, _mm512_abs_ps(v), limit, _CMP_LT_OQ);
    v = _mm512_mul_ps(_mm512_sub_ps(v, center), inv);
    v = _mm512_max_ps(_mm512_min_ps(v, _mm512_set1_ps(127.0f)), _mm512_set1_ps(-127.0f));
    return _mm512_maskz_cvtps_epi32(in, v);
}

LOWBIT_INLINE int32_t codes(enum lowbit_float type, size_t k, const void *x, float t, float center,
                            float inv, int8_t *q) {
    const __m512 limit = _mm512_set1_ps(t), c = _mm512_set1_ps(center), scale = _mm512_set1_ps(inv);
    __m512i sum = _mm512_setzero_si512();
    size_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m512i code = codes16(type, x, i, 0xffff, limit, c, scale);
        sum = _mm512_add_epi32(sum, code);
        _mm_storeu_si128((__m128i *)(q + i), _mm512_cvtepi32_epi8(code));
    }
    if (i < k) {
        const __mmask16 valid = lowbit_first16(k - i);
        __m512i code = codes16(type, x, i, valid, limit, c, scale);
        sum = _mm512_add_epi32(sum, code);
        _mm_mask_storeu_epi8(q + i, valid, _mm512_cvtepi32_epi8(code));
    }
    return _mm512_reduce_add_epi32(sum);
}

// ---------------------------------------------------------------------------------------------
// From codes back to floats

LOWBIT_INLINE __m512 floats_of(__m128i sixteen_codes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(sixteen_codes));
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t k, const int8_t *q, float s,
                              const float *offset, void *y) {
    const __m512 scale = _mm512_set1_ps(s), base = _mm512_set1_ps(offset ? *offset : 0.0f);
    for (size_t i = 0; i < k; i += 16) {
        __mmask16 in = lowbit_first16(k - i);
        __m512 v = floats_of(_mm_maskz_loadu_epi8(in, q + i));
        v = offset ? _mm512_fmadd_ps(v, scale, base) : _mm512_mul_ps(v, scale);
        lowbit_store16(type, y, i, in, v);
    }
}

LOWBIT_INLINE void epilogue(enum lowbit_float type, const struct lowbit_int8_epilogue_args *a) {
    for (size_t m = 0; m < a->m; m++) {
        const int32_t *acc = a->acc + m * a->acc_stride;
        const float *o = a->o ? a->o + m * a->o_stride : NULL;
        char *y = (char *)a->y + m * a->y_stride;
        const __m512 r = _mm512_set1_ps(a->r[m]), xsum = _mm512_set1_ps((float)a->xsum[m]);
        for (size_t n = 0; n < a->n; n += 16) {
            const __mmask16 in = lowbit_first16(a->n - n);
            __m512 s = _mm512_maskz_loadu_ps(in, a->s + n);
            __m512 v = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(in, acc + n));
            if (a->offset)
                v = _mm512_fmadd_ps(s, v,
                                    _mm512_mul_ps(_mm512_maskz_loadu_ps(in, a->offset + n), xsum));
            else
                v = _mm512_mul_ps(s, v);
            v = _mm512_mul_ps(r, v);
            v = _mm512_add_ps(v, o ? _mm512_maskz_loadu_ps(in, o + n) : _mm512_setzero_ps());
            if (a->bias)
                v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(in, a->bias + n));
            lowbit_store16(type, y, n, in, v);
        }
    }
}

// Sixteen columns of sixteen rows: bytes are transposed in four rounds of unpacking.
LOWBIT_INLINE void panel_16x16(const int8_t *w, size_t w_stride, __m512 s, const __m512 *offset,
                               float *panel, size_t panel_stride) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; i++)
        a[i] = _mm_loadu_si128((const __m128i *)(w + (size_t)i * w_stride));
    for (int i = 0; i < 8; i++) { // pairs of rows
        b[2 * i] = _mm_unpacklo_epi8(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi8(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) // four rows
        for (int j = 0; j < 2; j++) {
            a[4 * i + 2 * j] = _mm_unpacklo_epi16(b[4 * i + j], b[4 * i + 2 + j]);
            a[4 * i + 2 * j + 1] = _mm_unpackhi_epi16(b[4 * i + j], b[4 * i + 2 + j]);
        }
    for (int i = 0; i < 2; i++) // eight rows
        for (int j = 0; j < 4; j++) {
            b[8 * i + 2 * j] = _mm_unpacklo_epi32(a[8 * i + j], a[8 * i + 4 + j]);
            b[8 * i + 2 * j + 1] = _mm_unpackhi_epi32(a[8 * i + j], a[8 * i + 4 + j]);
        }
    for (int k = 0; k < 16; k++) {
        __m128i column = k & 1 ? _mm_unpackhi_epi64(b[k / 2], b[8 + k / 2])
                               : _mm_unpacklo_epi64(b[k / 2], b[8 + k / 2]);
        __m512 v = floats_of(column);
        v = offset ? _mm512_fmadd_ps(v, s, *offset) : _mm512_mul_ps(v, s);
        _mm512_storeu_ps(panel + (size_t)k * panel_stride, v);
    }
}

// One column of up to sixteen rows.
LOWBIT_INLINE void panel_column(size_t n, const int8_t *w, size_t w_stride, const float *s,
                                const float *offset, float *panel) {
    const __mmask16 in = lowbit_first16(n);
    int8_t column[16] = {0};
    for (size_t i = 0; i < n; i++)
        column[i] = w[i * w_stride];
    __m512 v = floats_of(_mm_loadu_si128((const __m128i *)column));
    __m512 scale = _mm512_maskz_loadu_ps(in, s);
    v = offset ? _mm512_fmadd_ps(v, scale, _mm512_maskz_loadu_ps(in, offset))
               : _mm512_mul_ps(v, scale);
    _mm512_mask_storeu_ps(panel, in, v);
}

void lowbit_int8_panel_ukernel_f32__avx512vnni(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                               const float *s, const float *offset, float *panel,
                                               size_t panel_stride) {
    for (size_t j = 0; j < n; j += 16) {
        const int8_t *rows = w + j * w_stride;
        size_t height = n - j < 16 ? n - j : 16, i = 0;
        if (height == 16 && k >= 16) {
            __m512 scale = _mm512_loadu_ps(s + j), base;
            if (offset)
                base = _mm512_loadu_ps(offset + j);
            for (; i + 16 <= k; i += 16)
                panel_16x16(rows + i, w_stride, scale, offset ? &base : NULL,
                            panel + i * panel_stride + j, panel_stride);
        }
        for (; i < k; i++)
            panel_column(height, rows + i, w_stride, s + j, offset ? offset + j : NULL,
                         panel + i * panel_stride + j);
    }
}

// ---------------------------------------------------------------------------------------------
// Products with a panel. 4 rows x 64 columns make 16 independent sums, enough to hide the latency
// of the FMA.

LOWBIT_INLINE void fma_columns(const struct lowbit_int8_fma_args *a, size_t n, int vectors,
                               size_t rows, bool finite, __mmask16 in) {
    for (size_t b = 0; b < a->blocks; b++) {
        __m512 c[4][4];
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++)
                c[m][v] = _mm512_setzero_ps();
        for (size_t j = a->begin[b]; j < a->begin[b + 1]; j++) {
            const float *row = a->panel + a->index[j] * a->panel_stride + n, *x = a->x + 4 * j;
            __m512 p[4];
            for (int v = 0; v < vectors; v++)
                p[v] = _mm512_maskz_loadu_ps(in, row + 16 * v);
            for (size_t m = 0; m < rows; m++) {
                if (!finite && lowbit_float_bits(x[m]) == 0)
                    continue;
                __m512 xm = _mm512_set1_ps(x[m]);
                for (int v = 0; v < vectors; v++)
                    c[m][v] = _mm512_fmadd_ps(xm, p[v], c[m][v]);
            }
        }
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++) {
                float *o = a->o + m * a->o_stride + n + 16 * v;
                _mm512_mask_storeu_ps(o, in, _mm512_add_ps(_mm512_maskz_loadu_ps(in, o), c[m][v]));
            }
    }
}

LOWBIT_INLINE void fma_rows(const struct lowbit_int8_fma_args *a, size_t rows, bool finite) {
    size_t n = 0;
    for (; n + 64 <= a->n; n += 64)
        fma_columns(a, n, 4, rows, finite, 0xffff);
    for (; n < a->n; n += 16)
        fma_columns(a, n, 1, rows, finite, lowbit_first16(a->n - n));
}

void lowbit_int8_fma_ukernel_f32__avx512vnni(const struct lowbit_int8_fma_args *a) {
    switch (a->finite ? a->m : 0) {
    case 0: fma_rows(a, a->m, false); break;
    case 1: fma_rows(a, 1, true); break;
    case 2: fma_rows(a, 2, true); break;
    case 3: fma_rows(a, 3, true); break;
    case 4: fma_rows(a, 4, true); break;
    }
}

// ---------------------------------------------------------------------------------------------
// Matrix products. vpdpbusd multiplies unsigned by signed bytes, so w + 128 stands in for w, made
// by flipping its top bit, and 128 * xsum is taken off again (modulo 2^32, like every sum here).

enum { PREFETCH_AHEAD = 4096 };

LOWBIT_INLINE __m512i plus_128(__m512i w) {
    return _mm512_xor_si512(w, _mm512_set1_epi8(-128));
}

LOWBIT_INLINE int32_t minus_128(int32_t xsum) {
    return (int32_t)(0u - 128u * (uint32_t)xsum);
}

// The sums of four vectors.
LOWBIT_INLINE __m128i sum_each(__m512i a, __m512i b, __m512i c, __m512i d) {
    __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    __m512i abcd = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(abcd), _mm512_extracti64x4_epi64(abcd, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

// Columns k0 to end of the weight, in place, against a few rows of x. For one row of x memory is the
// limit, and a single stream reaches it best; with more, each load of x serves 2 rows of the weight.
// (4 rows a multiple of 4096 bytes apart would fight for the same cache sets.) Prefetching further
// than the second-level cache costs half of the speed.
LOWBIT_INLINE void gemm_columns(const struct lowbit_int8_gemm_args *a, size_t rows, size_t height,
                                size_t k0, size_t end) {
    const size_t ahead = end - k0 == a->k ? PREFETCH_AHEAD * height : a->w_stride * height;
    for (size_t n = 0; n < a->n; n += height) {
        // Past the last row, its sums are computed twice.
        const int8_t *w[2] = {a->w + n * a->w_stride,
                              a->w + (n + height <= a->n ? n + height - 1 : n) * a->w_stride};
        __m512i acc[2][8];
        for (size_t j = 0; j < height; j++)
            for (size_t m = 0; m < 8; m++)
                acc[j][m] = _mm512_setzero_si512();
        size_t k = k0;
        for (; k + 64 <= end; k += 64) {
            __m512i wk[2];
            for (size_t j = 0; j < height; j++) {
                wk[j] = plus_128(_mm512_loadu_si512(w[j] + k));
                _mm_prefetch((const char *)w[j] + k + ahead, _MM_HINT_T1);
            }
            for (size_t m = 0; m < rows; m++) {
                __m512i x = _mm512_load_si512(a->x + m * a->x_stride + k);
                for (size_t j = 0; j < height; j++)
                    acc[j][m] = _mm512_dpbusd_epi32(acc[j][m], wk[j], x);
            }
        }
        if (k < end) // x is padded with zeros
            for (size_t j = 0; j < height; j++) {
                __m512i tail = plus_128(_mm512_maskz_loadu_epi8(lowbit_first64(end - k), w[j] + k));
                for (size_t m = 0; m < rows; m++)
                    acc[j][m] = _mm512_dpbusd_epi32(acc[j][m], tail,
                                                    _mm512_load_si512(a->x + m * a->x_stride + k));
            }
        for (size_t j = 0; j < height && n + j < a->n; j++)
            for (size_t m0 = 0; m0 < rows; m0 += 4) {
                uint32_t sums[4];
                _mm_storeu_si128((__m128i *)sums, sum_each(acc[j][m0], acc[j][m0 + 1],
                                                           acc[j][m0 + 2], acc[j][m0 + 3]));
                for (size_t m = m0; m < rows && m < m0 + 4; m++) {
                    int32_t *sum = a->acc + m * a->acc_stride + n + j;
                    const int32_t before = k0 ? *sum : minus_128(a->xsum[m]);
                    *sum = (int32_t)((uint32_t)before + sums[m - m0]);
                }
            }
    }
}

// Few rows of x: as many columns at a time as keep x in half of the first-level cache.
LOWBIT_INLINE void gemm_in_place(const struct lowbit_int8_gemm_args *a, size_t rows,
                                 size_t height) {
    const size_t columns = 16384 / rows / 64 * 64;
    size_t k0 = 0;
    do {
        gemm_columns(a, rows, height, k0, a->k - k0 < columns ? a->k : k0 + columns);
        k0 += columns;
    } while (k0 < a->k);
    for (size_t i = 0; i < a->prefetch_size && i < PREFETCH_AHEAD; i += 64)
        _mm_prefetch((const char *)a->prefetch + i, _MM_HINT_T1);
}

void lowbit_int8_gemm_ukernel_8x64__avx512vnni(const struct lowbit_int8_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_in_place(a, 1, 1); break;
    case 2: gemm_in_place(a, 2, 2); break;
    case 3: gemm_in_place(a, 3, 2); break;
    case 4: gemm_in_place(a, 4, 2); break;
    case 5: gemm_in_place(a, 5, 2); break;
    case 6: gemm_in_place(a, 6, 2); break;
    case 7: gemm_in_place(a, 7, 2); break;
    case 8: gemm_in_place(a, 8, 2); break;
    }
}

void lowbit_int8_pack_ukernel__avx512vnni(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                          int8_t *panel) {
    const size_t steps = (k + 3) / 4;
    for (size_t n0 = 0; n0 < n; n0 += 16) {
        int8_t *to = panel + n0 / 16 * steps * 64;
        for (size_t k0 = 0; k0 < k; k0 += 64) {
            const __mmask64 in = lowbit_first64(k - k0);
            __m512i r[16];
            for (size_t i = 0; i < 16; i++)
                r[i] = plus_128(
                    _mm512_maskz_loadu_epi8(n0 + i < n ? in : 0, w + (n0 + i) * w_stride + k0));
            lowbit_transpose16(r);
            if (k - k0 >= 64)
                for (size_t i = 0; i < 16; i++)
                    _mm512_storeu_si512(to + (k0 / 4 + i) * 64, r[i]);
            else
                for (size_t i = 0; k0 / 4 + i < steps; i++)
                    _mm512_storeu_si512(to + (k0 / 4 + i) * 64, r[i]);
        }
    }
}

// Up to 6 rows of x against up to 4 panels: 24 sums, 4 registers for w, 1 for x.
LOWBIT_INLINE void gemm_panels(const struct lowbit_int8_gemm_args *a, size_t p, int panels,
                               size_t rows, size_t share, size_t *touched) {
    const size_t steps = (a->k + 3) / 4;
    const int8_t *w = a->w + p * steps * 64;
    __m512i acc[6][4];
    for (size_t m = 0; m < rows; m++)
        for (int v = 0; v < panels; v++)
            acc[m][v] = _mm512_set1_epi32(minus_128(a->xsum[m]));
    for (size_t step0 = 0; step0 < steps; step0 += 16) {
        for (size_t i = 0; i < share && *touched < a->prefetch_size; i += 64, *touched += 64)
            _mm_prefetch((const char *)a->prefetch + *touched, _MM_HINT_T1);
        const size_t last = steps - step0 < 16 ? steps : step0 + 16;
        for (size_t step = step0; step < last; step++) {
            __m512i wk[4];
            for (int v = 0; v < panels; v++)
                wk[v] = _mm512_loadu_si512(w + ((size_t)v * steps + step) * 64);
            for (size_t m = 0; m < rows; m++) {
                int32_t four;
                memcpy(&four, a->x + m * a->x_stride + 4 * step, 4);
                __m512i x = _mm512_set1_epi32(four);
                for (int v = 0; v < panels; v++)
                    acc[m][v] = _mm512_dpbusd_epi32(acc[m][v], wk[v], x);
            }
        }
    }
    for (size_t m = 0; m < rows; m++)
        for (int v = 0; v < panels; v++)
            _mm512_store_si512(a->acc + m * a->acc_stride + 16 * (p + (size_t)v), acc[m][v]);
}

LOWBIT_INLINE void gemm_rows(const struct lowbit_int8_gemm_args *a, size_t rows) {
    const size_t blocks = (a->k + 63) / 64, panels = (a->n + 15) / 16;
    const size_t rounds = blocks * (panels == 4 ? 1 : panels);
    const size_t share = a->prefetch_size / (rounds + !rounds) / 64 * 64 + 64;
    size_t touched = 0;
    if (panels == 4)
        gemm_panels(a, 0, 4, rows, share, &touched);
    else
        for (size_t p = 0; p < panels; p++)
            gemm_panels(a, p, 1, rows, share, &touched);
}

void lowbit_int8_gemm_ukernel_6x64__avx512vnni(const struct lowbit_int8_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_rows(a, 1); break;
    case 2: gemm_rows(a, 2); break;
    case 3: gemm_rows(a, 3); break;
    case 4: gemm_rows(a, 4); break;
    case 5: gemm_rows(a, 5); break;
    case 6: gemm_rows(a, 6); break;
    }
}

LOWBIT_INSTANTIATE(avx512vnni)
