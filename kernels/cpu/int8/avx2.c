// SPDX-License-Identifier: MIT
// The int8 micro-kernels for AVX2, FMA and F16C. ukernels.h says what each computes.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/avx2.h"

// ---------------------------------------------------------------------------------------------
// Row quantization. A tail is copied behind NaN, which is an outlier at every threshold: it has the
// code 0 and takes no part in the range.

LOWBIT_INLINE void range(enum lowbit_float type, size_t k, const void *x, float t, uint64_t *mask,
                         struct lowbit_int8_range *out) {
    const __m256 limit = _mm256_set1_ps(t),
                 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256 inf = _mm256_set1_ps(INFINITY), minus_inf = _mm256_set1_ps(-INFINITY);
    __m256 lo = inf, hi = minus_inf;
    size_t outliers = 0;
    unsigned char tail[64 * 4];
    for (size_t k0 = 0; k0 < k; k0 += 64) {
        const void *block = (const char *)x + k0 * lowbit_float_size(type);
        uint64_t valid = ~(uint64_t)0, word = 0;
        if (k - k0 < 64) {
            memset(tail, 0xff, sizeof tail);
            memcpy(tail, block, (k - k0) * lowbit_float_size(type));
            block = tail;
            valid = ((uint64_t)1 << (k - k0)) - 1;
        }
        for (size_t i = 0; i < 64; i += 8) {
            __m256 v = lowbit_load8(type, block, i);
            __m256 in = _mm256_cmp_ps(_mm256_and_ps(v, magnitude), limit, _CMP_LT_OQ);
            lo = _mm256_min_ps(lo, _mm256_blendv_ps(inf, v, in));
            hi = _mm256_max_ps(hi, _mm256_blendv_ps(minus_inf, v, in));
            word |= (uint64_t)(~_mm256_movemask_ps(in) & 0xff) << i;
        }
        word &= valid;
        if (word)
            outliers += (size_t)__builtin_popcountll(word);
        if (mask)
            mask[k0 / 64] = word;
    }
    out->lo = outliers == k ? 0.0f : lowbit_min8(lo) + 0.0f;
    out->hi = outliers == k ? 0.0f : lowbit_max8(hi) + 0.0f;
    out->outliers = outliers;
}

LOWBIT_INLINE int32_t codes(enum lowbit_float type, size_t k, const void *x, float t, float center,
                            float inv, int8_t *q) {
    const __m256 limit = _mm256_set1_ps(t),
                 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256 c = _mm256_set1_ps(center), scale = _mm256_set1_ps(inv);
    const __m256 top = _mm256_set1_ps(127.0f), bottom = _mm256_set1_ps(-127.0f);
    __m256i sum = _mm256_setzero_si256();
    unsigned char tail[32 * 4];
    int8_t tail_codes[32];
    for (size_t k0 = 0; k0 < k; k0 += 32) {
        const void *block = (const char *)x + k0 * lowbit_float_size(type);
        int8_t *to = q + k0;
        if (k - k0 < 32) {
            memset(tail, 0xff, sizeof tail);
            memcpy(tail, block, (k - k0) * lowbit_float_size(type));
            block = tail;
            to = tail_codes;
        }
        __m256i code[4];
        for (size_t i = 0; i < 4; i++) {
            __m256 v = lowbit_load8(type, block, 8 * i);
            __m256 in = _mm256_cmp_ps(_mm256_and_ps(v, magnitude), limit, _CMP_LT_OQ);
            v = _mm256_mul_ps(_mm256_sub_ps(v, c), scale);
            v = _mm256_max_ps(_mm256_min_ps(v, top), bottom);
            code[i] = _mm256_and_si256(_mm256_cvtps_epi32(v), _mm256_castps_si256(in));
            sum = _mm256_add_epi32(sum, code[i]);
        }
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(code[0], code[1]),
                                           _mm256_packs_epi32(code[2], code[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i *)to, bytes);
        if (to == tail_codes)
            memcpy(q + k0, tail_codes, k - k0);
    }
    return lowbit_sum8(sum);
}

// ---------------------------------------------------------------------------------------------
// From codes back to floats

LOWBIT_INLINE __m256 floats_of(__m128i eight_codes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight_codes));
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t k, const int8_t *q, float s,
                              const float *offset, void *y) {
    const __m256 scale = _mm256_set1_ps(s), base = _mm256_set1_ps(offset ? *offset : 0.0f);
    int8_t tail_codes[8] = {0};
    float tail[8];
    for (size_t i = 0; i < k; i += 8) {
        const int8_t *from = q + i;
        if (k - i < 8) {
            memcpy(tail_codes, from, k - i);
            from = tail_codes;
        }
        __m256 v = floats_of(_mm_loadl_epi64((const __m128i *)from));
        v = offset ? _mm256_fmadd_ps(v, scale, base) : _mm256_mul_ps(v, scale);
        if (from != tail_codes) {
            lowbit_store8(type, y, i, v);
        } else {
            lowbit_store8(type, tail, 0, v);
            memcpy((char *)y + i * lowbit_float_size(type), tail,
                   (k - i) * lowbit_float_size(type));
        }
    }
}

LOWBIT_INLINE void epilogue(enum lowbit_float type, const struct lowbit_int8_epilogue_args *a) {
    float tail[8];
    for (size_t m = 0; m < a->m; m++) {
        const int32_t *acc = a->acc + m * a->acc_stride;
        const float *o = a->o ? a->o + m * a->o_stride : NULL;
        char *y = (char *)a->y + m * a->y_stride;
        const __m256 r = _mm256_set1_ps(a->r[m]), xsum = _mm256_set1_ps((float)a->xsum[m]);
        for (size_t n = 0; n < a->n; n += 8) {
            const size_t left = a->n - n;
            const __m256i in = lowbit_first8(left < 8 ? left : 8);
            __m256 s = _mm256_maskload_ps(a->s + n, in);
            __m256 v = _mm256_cvtepi32_ps(_mm256_maskload_epi32(acc + n, in));
            if (a->offset)
                v = _mm256_fmadd_ps(s, v,
                                    _mm256_mul_ps(_mm256_maskload_ps(a->offset + n, in), xsum));
            else
                v = _mm256_mul_ps(s, v);
            v = _mm256_mul_ps(r, v);
            v = _mm256_add_ps(v, o ? _mm256_maskload_ps(o + n, in) : _mm256_setzero_ps());
            if (a->bias)
                v = _mm256_add_ps(v, _mm256_maskload_ps(a->bias + n, in));
            if (left >= 8) {
                lowbit_store8(type, y, n, v);
            } else {
                lowbit_store8(type, tail, 0, v);
                memcpy(y + n * lowbit_float_size(type), tail, left * lowbit_float_size(type));
            }
        }
    }
}

// Eight columns of eight rows: bytes are transposed in three rounds of unpacking.
LOWBIT_INLINE void panel_8x8(const int8_t *w, size_t w_stride, __m256 s, const __m256 *offset,
                             float *panel, size_t panel_stride) {
    __m128i row[8], pair[4], quad[4];
    for (int i = 0; i < 8; i++)
        row[i] = _mm_loadl_epi64((const __m128i *)(w + (size_t)i * w_stride));
    for (int i = 0; i < 4; i++)
        pair[i] = _mm_unpacklo_epi8(row[2 * i], row[2 * i + 1]);
    for (int i = 0; i < 2; i++) {
        quad[2 * i] = _mm_unpacklo_epi16(pair[2 * i], pair[2 * i + 1]);
        quad[2 * i + 1] = _mm_unpackhi_epi16(pair[2 * i], pair[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) { // columns 2 i and 2 i + 1
        __m128i columns = i & 1 ? _mm_unpackhi_epi32(quad[i / 2], quad[i / 2 + 2])
                                : _mm_unpacklo_epi32(quad[i / 2], quad[i / 2 + 2]);
        for (int j = 0; j < 2; j++) {
            __m256 v = floats_of(j ? _mm_srli_si128(columns, 8) : columns);
            v = offset ? _mm256_fmadd_ps(v, s, *offset) : _mm256_mul_ps(v, s);
            _mm256_storeu_ps(panel + (size_t)(2 * i + j) * panel_stride, v);
        }
    }
}

// One column of up to eight rows.
LOWBIT_INLINE void panel_column(size_t n, const int8_t *w, size_t w_stride, const float *s,
                                const float *offset, float *panel) {
    const __m256i in = lowbit_first8(n);
    int8_t column[8] = {0};
    for (size_t i = 0; i < n; i++)
        column[i] = w[i * w_stride];
    __m256 v = floats_of(_mm_loadl_epi64((const __m128i *)column));
    __m256 scale = _mm256_maskload_ps(s, in);
    v = offset ? _mm256_fmadd_ps(v, scale, _mm256_maskload_ps(offset, in))
               : _mm256_mul_ps(v, scale);
    _mm256_maskstore_ps(panel, in, v);
}

void lowbit_int8_panel_ukernel_f32__avx2(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                         const float *s, const float *offset, float *panel,
                                         size_t panel_stride) {
    for (size_t j = 0; j < n; j += 8) {
        const int8_t *rows = w + j * w_stride;
        size_t height = n - j < 8 ? n - j : 8, i = 0;
        if (height == 8 && k >= 8) {
            __m256 scale = _mm256_loadu_ps(s + j), base;
            if (offset)
                base = _mm256_loadu_ps(offset + j);
            for (; i + 8 <= k; i += 8)
                panel_8x8(rows + i, w_stride, scale, offset ? &base : NULL,
                          panel + i * panel_stride + j, panel_stride);
        }
        for (; i < k; i++)
            panel_column(height, rows + i, w_stride, s + j, offset ? offset + j : NULL,
                         panel + i * panel_stride + j);
    }
}

// ---------------------------------------------------------------------------------------------
// Products with a panel. 4 rows x 24 columns fill 12 registers with sums, which hides the latency
// of the FMA; 3 more hold the panel's row and one an element of x.

LOWBIT_INLINE void fma_columns(const struct lowbit_int8_fma_args *a, size_t n, int vectors,
                               size_t rows, bool finite, const __m256i *in) {
    for (size_t b = 0; b < a->blocks; b++) {
        __m256 c[4][3];
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++)
                c[m][v] = _mm256_setzero_ps();
        for (size_t j = a->begin[b]; j < a->begin[b + 1]; j++) {
            const float *row = a->panel + a->index[j] * a->panel_stride + n, *x = a->x + 4 * j;
            __m256 p[3];
            for (int v = 0; v < vectors; v++)
                p[v] = in ? _mm256_maskload_ps(row, *in) : _mm256_loadu_ps(row + 8 * v);
            for (size_t m = 0; m < rows; m++) {
                if (!finite && lowbit_float_bits(x[m]) == 0)
                    continue;
                __m256 xm = _mm256_broadcast_ss(x + m);
                for (int v = 0; v < vectors; v++)
                    c[m][v] = _mm256_fmadd_ps(xm, p[v], c[m][v]);
            }
        }
        for (size_t m = 0; m < rows; m++)
            for (int v = 0; v < vectors; v++) {
                float *o = a->o + m * a->o_stride + n + 8 * v;
                if (in)
                    _mm256_maskstore_ps(o, *in, _mm256_add_ps(_mm256_maskload_ps(o, *in), c[m][v]));
                else
                    _mm256_storeu_ps(o, _mm256_add_ps(_mm256_loadu_ps(o), c[m][v]));
            }
    }
}

LOWBIT_INLINE void fma_rows(const struct lowbit_int8_fma_args *a, size_t rows, bool finite) {
    size_t n = 0;
    for (; n + 24 <= a->n; n += 24)
        fma_columns(a, n, 3, rows, finite, NULL);
    for (; n + 8 <= a->n; n += 8)
        fma_columns(a, n, 1, rows, finite, NULL);
    if (n < a->n) {
        const __m256i in = lowbit_first8(a->n - n);
        fma_columns(a, n, 1, rows, finite, &in);
    }
}

void lowbit_int8_fma_ukernel_f32__avx2(const struct lowbit_int8_fma_args *a) {
    switch (a->finite ? a->m : 0) {
    case 0: fma_rows(a, a->m, false); break;
    case 1: fma_rows(a, 1, true); break;
    case 2: fma_rows(a, 2, true); break;
    case 3: fma_rows(a, 3, true); break;
    case 4: fma_rows(a, 4, true); break;
    }
}

// ---------------------------------------------------------------------------------------------
// Matrix products. maddubs wants one unsigned operand and saturates at 2^15, which |w| * (x with
// the sign of w) stays below as long as x is never -128: 2 * 128 * 127 = 32512.

LOWBIT_INLINE __m256i dot(__m256i acc, __m256i w_abs, __m256i w, __m256i x) {
    __m256i pairs = _mm256_maddubs_epi16(w_abs, _mm256_sign_epi8(x, w));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

enum { PREFETCH_AHEAD = 4096 };

// The same for any x, also -128: 16-bit products.
LOWBIT_INLINE __m256i dot_full_range(__m256i acc, __m256i w, __m256i x) {
    __m256i low = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_castsi256_si128(w)),
                                    _mm256_cvtepi8_epi16(_mm256_castsi256_si128(x)));
    __m256i high = _mm256_madd_epi16(_mm256_cvtepi8_epi16(_mm256_extracti128_si256(w, 1)),
                                     _mm256_cvtepi8_epi16(_mm256_extracti128_si256(x, 1)));
    return _mm256_add_epi32(acc, _mm256_add_epi32(low, high));
}

// 32 columns of a row of the weight against a few rows of x.
LOWBIT_INLINE void dot_rows(__m256i *acc, __m256i w, const int8_t *x, size_t x_stride, size_t rows,
                            bool full_range) {
    const __m256i w_abs = _mm256_abs_epi8(w);
    for (size_t m = 0; m < rows; m++) {
        __m256i xm = _mm256_load_si256((const __m256i *)(x + m * x_stride));
        acc[m] = full_range ? dot_full_range(acc[m], w, xm) : dot(acc[m], w_abs, w, xm);
    }
}

// Few rows of x: each row of the weight is read once, in place.
LOWBIT_INLINE void gemm_in_place(const struct lowbit_int8_gemm_args *a, size_t rows,
                                 bool full_range) {
    const size_t whole = a->k / 32 * 32, x_stride = a->x_stride;
    const int8_t *x = a->x;
    for (size_t n = 0; n < a->n; n++) {
        const int8_t *w = a->w + n * a->w_stride;
        __m256i acc[8];
        for (size_t m = 0; m < rows; m++)
            acc[m] = _mm256_setzero_si256();
        for (size_t k = 0; k < whole; k += 32) {
            _mm_prefetch((const char *)w + k + PREFETCH_AHEAD, _MM_HINT_T1);
            dot_rows(acc, _mm256_loadu_si256((const __m256i *)(w + k)), x + k, x_stride, rows,
                     full_range);
        }
        if (whole < a->k) { // x is padded with zeros
            int8_t tail[32] = {0};
            memcpy(tail, w + whole, a->k - whole);
            dot_rows(acc, _mm256_loadu_si256((const __m256i *)tail), x + whole, x_stride, rows,
                     full_range);
        }
        for (size_t m = 0; m < rows; m++)
            a->acc[m * a->acc_stride + n] = lowbit_sum8(acc[m]);
    }
    for (size_t i = 0; i < a->prefetch_size && i < PREFETCH_AHEAD; i += 64)
        _mm_prefetch((const char *)a->prefetch + i, _MM_HINT_T1);
}

void lowbit_int8_gemm_ukernel_8x64__avx2(const struct lowbit_int8_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_in_place(a, 1, false); break;
    case 2: gemm_in_place(a, 2, false); break;
    case 3: gemm_in_place(a, 3, false); break;
    case 4: gemm_in_place(a, 4, false); break;
    case 5: gemm_in_place(a, 5, false); break;
    case 6: gemm_in_place(a, 6, false); break;
    case 7: gemm_in_place(a, 7, false); break;
    case 8: gemm_in_place(a, 8, false); break;
    }
}

void lowbit_int8_gemm_ukernel_2x64__avx2(const struct lowbit_int8_gemm_args *a) {
    if (a->m == 1)
        gemm_in_place(a, 1, true);
    else
        gemm_in_place(a, 2, true);
}

void lowbit_int8_pack_ukernel__avx2(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                    int8_t *panel) {
    const size_t steps = (k + 3) / 4;
    for (size_t n0 = 0; n0 < (n + 15) / 16 * 16; n0 += 8) {
        const size_t height = n0 >= n ? 0 : n - n0 < 8 ? n - n0 : 8;
        int8_t *to = panel + n0 / 16 * steps * 64 + n0 % 16 * 4;
        for (size_t k0 = 0; k0 < k; k0 += 32) {
            __m256i r[8];
            for (size_t i = 0; i < 8; i++) {
                const int8_t *from = w + (n0 + i) * w_stride + k0;
                if (i < height && k - k0 >= 32) {
                    r[i] = _mm256_loadu_si256((const __m256i *)from);
                } else {
                    int8_t tail[32] = {0};
                    if (i < height)
                        memcpy(tail, from, k - k0);
                    r[i] = _mm256_loadu_si256((const __m256i *)tail);
                }
            }
            lowbit_transpose8(r);
            for (size_t i = 0; i < 8 && k0 / 4 + i < steps; i++)
                _mm256_storeu_si256((__m256i *)(to + (k0 / 4 + i) * 64), r[i]);
        }
    }
}

// 4 rows of x against a panel of 16: 8 sums, 2 x 2 registers for w and |w|, 1 for x.
LOWBIT_INLINE void gemm_panel(const struct lowbit_int8_gemm_args *a, size_t rows) {
    const size_t steps = (a->k + 3) / 4, panels = (a->n + 15) / 16;
    const size_t rounds = panels * ((steps + 15) / 16);
    const size_t share = a->prefetch_size / (rounds + !rounds) / 64 * 64 + 64;
    size_t touched = 0;
    for (size_t p = 0; p < panels; p++) {
        const int8_t *w = a->w + p * steps * 64;
        __m256i acc[4][2];
        for (size_t m = 0; m < rows; m++)
            acc[m][0] = acc[m][1] = _mm256_setzero_si256();
        for (size_t step0 = 0; step0 < steps; step0 += 16) {
            for (size_t i = 0; i < share && touched < a->prefetch_size; i += 64, touched += 64)
                _mm_prefetch((const char *)a->prefetch + touched, _MM_HINT_T1);
            const size_t last = steps - step0 < 16 ? steps : step0 + 16;
            for (size_t step = step0; step < last; step++, w += 64) {
                __m256i w0 = _mm256_loadu_si256((const __m256i *)w), w0_abs = _mm256_abs_epi8(w0);
                __m256i w1 = _mm256_loadu_si256((const __m256i *)(w + 32)),
                        w1_abs = _mm256_abs_epi8(w1);
                for (size_t m = 0; m < rows; m++) {
                    int32_t four;
                    memcpy(&four, a->x + m * a->x_stride + 4 * step, 4);
                    __m256i x = _mm256_set1_epi32(four);
                    acc[m][0] = dot(acc[m][0], w0_abs, w0, x);
                    acc[m][1] = dot(acc[m][1], w1_abs, w1, x);
                }
            }
        }
        for (size_t m = 0; m < rows; m++) {
            _mm256_storeu_si256((__m256i *)(a->acc + m * a->acc_stride + 16 * p), acc[m][0]);
            _mm256_storeu_si256((__m256i *)(a->acc + m * a->acc_stride + 16 * p + 8), acc[m][1]);
        }
    }
}

void lowbit_int8_gemm_ukernel_4x64__avx2(const struct lowbit_int8_gemm_args *a) {
    switch (a->m) {
    case 1: gemm_panel(a, 1); break;
    case 2: gemm_panel(a, 2); break;
    case 3: gemm_panel(a, 3); break;
    case 4: gemm_panel(a, 4); break;
    }
}

LOWBIT_INSTANTIATE(avx2)
