// SPDX-License-Identifier: MIT
// The lut4 micro-kernels in plain C: the specification, and what runs where nothing better does.

#include "instantiate.h"
#include "ukernels.h"

#include <math.h>

LOWBIT_INLINE uint8_t nearest(const struct lowbit_lut4_levels *levels, float v) {
    size_t rank = 0;
    for (size_t j = 0; j < 15; j++)
        rank += v > levels->midpoint[j];
    return levels->code[rank];
}

LOWBIT_INLINE float quantize(enum lowbit_float type, size_t n, const void *x,
                             const struct lowbit_lut4_levels *levels, uint8_t *packed) {
    float absmax = 0.0f;
    for (size_t i = 0; i < n; i++) {
        const float magnitude = fabsf(lowbit_float_load(type, x, i));
        if (magnitude < INFINITY && magnitude > absmax)
            absmax = magnitude;
    }
    const float inv = lowbit_lut4_inverse(absmax);
    for (size_t i = 0; i < n + n % 2; i++) {
        const float value = i < n ? lowbit_float_load(type, x, i) : 0.0f;
        const uint8_t code = nearest(levels, fabsf(value) < INFINITY ? value * inv : 0.0f);
        packed[i / 2] = i % 2 ? packed[i / 2] | code : (uint8_t)(code << 4);
    }
    return absmax;
}

LOWBIT_INLINE void dequantize(enum lowbit_float type, const struct lowbit_lut4_run *run, void *y) {
    for (size_t i = 0; i < run->n; i++)
        lowbit_float_store(type, y, i, lowbit_lut4_element(run, run->begin + i));
}

LOWBIT_INLINE void arrange(enum lowbit_float type, size_t k, const void *x, float *y) {
    for (size_t i = 0;
         i < (k + LOWBIT_LUT4_X_ALIGN - 1) / LOWBIT_LUT4_X_ALIGN * LOWBIT_LUT4_X_ALIGN; i++)
        y[i] = i < k ? lowbit_float_load(type, x, i) : 0.0f;
}

LOWBIT_LUT4_INSTANTIATE(scalar)

void lowbit_lut4_scales_ukernel__scalar(size_t n, const uint8_t *q, const float *codebook,
                                        float nested, float offset, float *s) {
    for (size_t i = 0; i < n; i++)
        s[i] = codebook[q[i]] * nested + offset;
}

// Parts of a row are summed on their own: the error of one long sum would grow with K.
enum { PART = 32 };

void lowbit_lut4_gemm_ukernel_f32_8x16__scalar(const struct lowbit_lut4_gemm_args *a) {
    for (size_t n = 0; n < a->n; n++) {
        float sum[8] = {0};
        for (size_t k0 = 0; k0 < a->k; k0 += PART) {
            float part[8] = {0};
            for (size_t k = k0; k < k0 + PART; k++) {
                const uint8_t byte = a->packed[(n * a->k + k) / 2];
                const float w = a->codebook[k % 2 ? byte & 15 : byte >> 4];
                for (size_t m = 0; m < a->m; m++)
                    part[m] += w * ((const float *)((const char *)a->x + m * a->x_stride))[k];
            }
            for (size_t m = 0; m < a->m; m++)
                sum[m] += part[m] * a->s[n * a->s_stride + k0 / a->blocksize];
        }
        for (size_t m = 0; m < a->m; m++)
            a->acc[m * a->acc_stride + n] = sum[m];
    }
}
