// SPDX-License-Identifier: MIT
// The int8 micro-kernels in plain C: the specification that the others equal in bits, and what runs
// where nothing better does.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/floats.h"

#include <math.h>

LOWBIT_INLINE bool is_outlier(float x, float t) {
    return !(fabsf(x) < t);
}

LOWBIT_INLINE void range(enum lowbit_float type, size_t k, const void *x, float t, uint64_t *mask,
                         struct lowbit_int8_range *range) {
    float lo = INFINITY, hi = -INFINITY;
    size_t outliers = 0;
    for (size_t k0 = 0; k0 < k; k0 += 64) {
        uint64_t word = 0;
        for (size_t i = k0; i < k && i < k0 + 64; i++) {
            float value = lowbit_float_load(type, x, i);
            if (is_outlier(value, t)) {
                word |= (uint64_t)1 << (i - k0);
                outliers++;
            } else {
                lo = value < lo ? value : lo;
                hi = value > hi ? value : hi;
            }
        }
        if (mask)
            mask[k0 / 64] = word;
    }
    // + 0 makes one zero of the two, whichever was met first.
    range->lo = outliers == k ? 0.0f : lo + 0.0f;
    range->hi = outliers == k ? 0.0f : hi + 0.0f;
    range->outliers = outliers;
}

LOWBIT_INLINE int32_t codes(enum lowbit_float type, size_t k, const void *x, float t, float center,
                            float inv, int8_t *q) {
    int32_t sum = 0;
    for (size_t i = 0; i < k; i++) {
        float value = lowbit_float_load(type, x, i);
        float code = is_outlier(value, t) ? 0.0f : rintf((value - center) * inv);
        q[i] = (int8_t)fmaxf(-127.0f, fminf(code, 127.0f));
        sum += q[i];
    }
    return sum;
}

LOWBIT_INLINE float dequantized(int8_t q, float s, const float *offset) {
    return offset ? fmaf((float)q, s, *offset) : (float)q * s;
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, size_t k, const int8_t *q, float s,
                              const float *offset, void *y) {
    for (size_t i = 0; i < k; i++)
        lowbit_float_store(type, y, i, dequantized(q[i], s, offset));
}

LOWBIT_INLINE void epilogue(enum lowbit_float type, const struct lowbit_int8_epilogue_args *a) {
    for (size_t m = 0; m < a->m; m++)
        for (size_t n = 0; n < a->n; n++) {
            float sum = (float)a->acc[m * a->acc_stride + n];
            float y = a->s[n] * sum;
            if (a->offset)
                y = fmaf(a->s[n], sum, a->offset[n] * (float)a->xsum[m]);
            y = a->r[m] * y + (a->o ? a->o[m * a->o_stride + n] : 0.0f);
            if (a->bias)
                y += a->bias[n];
            lowbit_float_store(type, (char *)a->y + m * a->y_stride, n, y);
        }
}

LOWBIT_INSTANTIATE(scalar)

void lowbit_int8_gemm_ukernel_1x64__scalar(const struct lowbit_int8_gemm_args *a) {
    for (size_t m = 0; m < a->m; m++)
        for (size_t n = 0; n < a->n; n++) {
            const int8_t *x = a->x + m * a->x_stride, *w = a->w + n * a->w_stride;
            int32_t sum = 0;
            for (size_t k = 0; k < a->k; k++)
                sum += x[k] * w[k];
            a->acc[m * a->acc_stride + n] = sum;
        }
}

void lowbit_int8_panel_ukernel_f32__scalar(size_t n, size_t k, const int8_t *w, size_t w_stride,
                                           const float *s, const float *offset, float *panel,
                                           size_t panel_stride) {
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < n; j++)
            panel[i * panel_stride + j] =
                dequantized(w[j * w_stride + i], s[j], offset ? offset + j : NULL);
}

void lowbit_int8_fma_ukernel_f32__scalar(const struct lowbit_int8_fma_args *a) {
    for (size_t b = 0; b < a->blocks; b++)
        for (size_t m = 0; m < a->m; m++)
            for (size_t n = 0; n < a->n; n++) {
                float c = 0.0f;
                for (size_t j = a->begin[b]; j < a->begin[b + 1]; j++) {
                    float x = a->x[j * LOWBIT_INT8_FMA_ROWS + m];
                    if (a->finite || lowbit_float_bits(x) != 0)
                        c = fmaf(x, a->panel[a->index[j] * a->panel_stride + n], c);
                }
                a->o[m * a->o_stride + n] += c;
            }
}
