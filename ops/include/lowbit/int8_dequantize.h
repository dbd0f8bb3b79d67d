// SPDX-License-Identifier: MIT
#ifndef LOWBIT_INT8_DEQUANTIZE_H
#define LOWBIT_INT8_DEQUANTIZE_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// out[m, k] = q[m, k] * s[m], or fma(q[m, k], s[m], offset[m]), with s = absmax / 127, in fp32,
// rounded half to even to out's dtype (float32, float16 or bfloat16); NaN as the positive quiet
// NaN.
//
//   q        int8 [M, K]
//   absmax   float32 or float16 [M], contiguous; offset likewise, or null
//   out      [M, K]
LOWBIT_API lowbit_status lowbit_int8_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                                const lowbit_tensor *offset,
                                                const lowbit_tensor *out,
                                                const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
