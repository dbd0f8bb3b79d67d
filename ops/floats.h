// SPDX-License-Identifier: MIT
// Reading elements of float tensors, and the scales of an int8 weight.
#ifndef LOWBIT_OPS_FLOATS_H
#define LOWBIT_OPS_FLOATS_H

#include "lowbit/tensor.h"

#include "../kernels/cpu/common/floats.h"
#include "../kernels/cpu/int8/ukernels.h"

#include <math.h>

_Static_assert((int)f32 == LOWBIT_FLOAT32 && (int)f16 == LOWBIT_FLOAT16 &&
                   (int)bf16 == LOWBIT_BFLOAT16,
               "kernels and operators number the float types alike");

static inline enum lowbit_float lowbit_float_type(const lowbit_tensor *tensor) {
    return (enum lowbit_float)tensor->dtype;
}

// Element (row, col) of a float tensor.
static inline float lowbit_element(const lowbit_tensor *tensor, size_t row, size_t col) {
    const size_t i = row * tensor->stride + col;
    switch (tensor->dtype) {
    case LOWBIT_FLOAT32: return lowbit_float_load(f32, tensor->data, i);
    case LOWBIT_FLOAT16: return lowbit_float_load(f16, tensor->data, i);
    default: return lowbit_float_load(bf16, tensor->data, i);
    }
}

// The first element of a row of a float tensor.
static inline void *lowbit_float_row(const lowbit_tensor *tensor, size_t row) {
    const size_t element = lowbit_float_size(lowbit_float_type(tensor));
    return (char *)tensor->data + row * tensor->stride * element;
}

// s = absmax / 127 and offset of n rows from row n0 on, in fp32.
static inline void lowbit_int8_read_scales(const lowbit_tensor *absmax, const lowbit_tensor *offset,
                                           size_t n0, size_t n, float *s, float *offsets) {
    for (size_t i = 0; i < n; i++)
        s[i] = lowbit_element(absmax, n0 + i, 0) / 127.0f;
    for (size_t i = 0; offset && i < n; i++)
        offsets[i] = lowbit_element(offset, n0 + i, 0);
}

// The threshold as the limit that magnitudes stay below: +inf for 0. Compared by its bits, since
// the calling thread may treat a subnormal threshold as zero.
static inline float lowbit_int8_limit(float threshold) {
    return lowbit_float_bits(threshold) << 1 ? threshold : INFINITY;
}

// The largest magnitude within a range, never -0.
static inline float lowbit_int8_absmax(const struct lowbit_int8_range *range) {
    return fmaxf(range->hi, -range->lo) + 0.0f;
}

// 127 / absmax, or 0 where that would overflow or absmax is NaN.
static inline float lowbit_int8_inverse(float absmax) {
    return absmax >= 0x1p-118f ? 127.0f / absmax : 0.0f;
}

#endif
