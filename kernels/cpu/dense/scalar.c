// SPDX-License-Identifier: MIT
// The dense micro-kernels in plain C: the specification that the others equal in bits, and what runs
// where nothing better does.

#include "instantiate.h"
#include "ukernels.h"
#include "../common/floats.h"

#include <math.h>

LOWBIT_INLINE void load(enum lowbit_float type, size_t k, const void *x, float *y) {
    for (size_t i = 0; i < k; i++)
        y[i] = lowbit_float_load(type, x, i);
}

LOWBIT_INLINE void store(enum lowbit_float type, size_t k, const float *x, float base, void *y) {
    for (size_t i = 0; i < k; i++)
        lowbit_float_store(type, y, i, x[i] + base);
}

LOWBIT_INSTANTIATE(scalar)

void lowbit_dense_transpose_ukernel__scalar(size_t rows, size_t cols, const uint32_t *from,
                                            size_t from_stride, uint32_t *to, size_t to_stride) {
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            to[j * to_stride + i] = from[i * from_stride + j];
}

void lowbit_dense_interleave_ukernel__scalar(size_t k, const uint16_t *first,
                                             const uint16_t *second, uint32_t *panel) {
    for (size_t i = 0; i < k; i++)
        panel[i] = first[i] | (second ? (uint32_t)second[i] << 16 : 0);
}

void lowbit_dense_gemm_ukernel_f32_4x1__scalar(const struct lowbit_dense_gemm_args *a) {
    const float *panel = a->panel;
    for (size_t m = 0; m < a->m; m++) {
        const float *x = (const float *)a->x + m * a->x_stride;
        for (size_t c = 0; c < a->c; c++) {
            float sum = 0.0f;
            for (size_t r = 0; r < a->r; r++)
                sum = fmaf(x[r], panel[r * a->stride + c], sum);
            a->sum[m * a->stride + c] = a->start[m * a->start_stride + c] + sum;
        }
    }
}
