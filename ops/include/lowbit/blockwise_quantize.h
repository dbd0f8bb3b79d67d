// SPDX-License-Identifier: MIT
// Blockwise 8-bit quantization with a codebook.
#ifndef LOWBIT_BLOCKWISE_QUANTIZE_H
#define LOWBIT_BLOCKWISE_QUANTIZE_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// For every block of blocksize elements of x, in their order, the last one perhaps shorter, in
// fp32:
//
//   absmax = max |x_i| over the block's finite elements, 0 if there are none
//   inv = absmax >= 2^-126 ? 1 / absmax : 0
//   v_i = x_i * inv, 0 where x_i is not finite
//   q_i = the code of the codebook's value nearest to v_i, distances taken exactly: of two equally
//         near values the smaller one's, of equal values the smallest code
//
// so x is about codebook[q] * absmax, and a zero stays zero where the codebook holds 0. The format
// of 8-bit optimizer states and of double quantization (Dettmers et al., 2022, arXiv:2110.02861).
//
//   x           float32, float16 or bfloat16 [n], contiguous
//   codebook    float32 [256], contiguous: finite values in ascending order
//   blocksize   a power of two from 32 to 4096
//   q           uint8 [n], contiguous
//   absmax      float32 [ceil(n / blocksize)], contiguous
//
// On an error nothing is written.
LOWBIT_API lowbit_status lowbit_blockwise_quantize(const lowbit_tensor *x,
                                                   const lowbit_tensor *codebook, size_t blocksize,
                                                   const lowbit_tensor *q,
                                                   const lowbit_tensor *absmax,
                                                   const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
