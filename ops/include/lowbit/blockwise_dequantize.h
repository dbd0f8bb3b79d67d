// SPDX-License-Identifier: MIT
#ifndef LOWBIT_BLOCKWISE_DEQUANTIZE_H
#define LOWBIT_BLOCKWISE_DEQUANTIZE_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// out_i = codebook[q_i] * absmax[i / blocksize] in fp32, rounded half to even to out's dtype
// (float32, float16 or bfloat16); NaN as the positive quiet NaN. Undoes lowbit_blockwise_quantize.
//
//   q           uint8 [n], contiguous
//   absmax      float32 [ceil(n / blocksize)], contiguous
//   codebook    float32 [256], contiguous: finite values in ascending order
//   blocksize   a power of two from 32 to 4096
//   out         [n], contiguous
//
// On an error nothing is written.
LOWBIT_API lowbit_status lowbit_blockwise_dequantize(const lowbit_tensor *q,
                                                     const lowbit_tensor *absmax,
                                                     const lowbit_tensor *codebook,
                                                     size_t blocksize, const lowbit_tensor *out,
                                                     const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
