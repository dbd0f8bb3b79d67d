// SPDX-License-Identifier: MIT
// Row-wise int8 quantization.
#ifndef LOWBIT_INT8_QUANTIZE_H
#define LOWBIT_INT8_QUANTIZE_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// For every row of x [M, K] (float32, float16 or bfloat16), in fp32:
//
//   t = threshold, or +inf when it is 0
//   outlier: !(|x_k| < t), so NaN and infinities always are
//   absmax = max |x_k| over the others, 0 if there are none, rounded up to absmax's dtype
//   inv = absmax >= 2^-118 ? 127 / absmax : 0
//   q_k = clamp(round_half_even(x_k * inv), -127, 127), 0 at outliers
//
// With float32 absmax this is the format of LLM.int8 checkpoints (Dettmers et al., 2022,
// arXiv:2208.07339): w is about q * absmax / 127.
//
//   threshold   finite, >= 0
//   q           int8 [M, K]
//   absmax      float32 or float16 [M], contiguous. In float16 a row above 65504 is an error.
//
// On an error nothing is written.
LOWBIT_API lowbit_status lowbit_int8_quantize(const lowbit_tensor *x, float threshold,
                                              const lowbit_tensor *q, const lowbit_tensor *absmax,
                                              const lowbit_executor *executor);

// The same without a threshold, for a weight in training that follows its float master [N, K]: q
// and absmax, which hold the former weight, become what lowbit_int8_quantize makes of master.
LOWBIT_API lowbit_status lowbit_int8_requantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                                const lowbit_tensor *master,
                                                const lowbit_executor *executor);

// The zero-point form, for weights. For every row of weight [N, K], in fp32, over its finite
// elements (a row without any counts as all zero):
//
//   offset = 0.5 * max + 0.5 * min, rounded half to even to offset's dtype
//   absmax = max(max - offset, offset - min), the exact differences rounded up to absmax's dtype
//   inv = absmax >= 2^-118 ? 127 / absmax : 0
//   q_k = clamp(round_half_even((w_k - offset) * inv), -127, 127), 0 where w_k is not finite
//
// so that w is about q * absmax / 127 + offset. absmax and offset are float32 or float16, both of
// the same dtype; a value beyond the dtype's range is an error. On an error nothing is written.
LOWBIT_API lowbit_status lowbit_int8_quantize_offset(const lowbit_tensor *weight,
                                                     const lowbit_tensor *q,
                                                     const lowbit_tensor *absmax,
                                                     const lowbit_tensor *offset,
                                                     const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
