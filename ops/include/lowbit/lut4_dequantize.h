// SPDX-License-Identifier: MIT
// From 4-bit codes back to floats.
#ifndef LOWBIT_LUT4_DEQUANTIZE_H
#define LOWBIT_LUT4_DEQUANTIZE_H

#include "lowbit/executor.h"
#include "lowbit/lut4_weight.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// out_i = w_i of lut4_weight.h, rounded half to even to out's dtype; a NaN becomes the positive
// quiet NaN.
//
//   weight   its number of elements is that of out
//   out      float32, float16 or bfloat16 [N, K], contiguous
//
// On an error nothing is written.
LOWBIT_API lowbit_status lowbit_lut4_dequantize(const lowbit_lut4_weight *weight,
                                                const lowbit_tensor *out,
                                                const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
