// SPDX-License-Identifier: MIT
// Quantization to 4-bit codes of a codebook.
#ifndef LOWBIT_LUT4_QUANTIZE_H
#define LOWBIT_LUT4_QUANTIZE_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// For every block of blocksize elements of weight [N, K], taken row by row (the last may be short),
// in fp32:
//
//   absmax = max |w_i| over the finite elements, 0 if there are none
//   inv = absmax >= 2^-126 ? 1 / absmax : 0
//   v_i = w_i * inv, 0 where w_i is not finite
//   code_i: that of the nearest value of the codebook: of the sorted values the one that has so many
//           below it as there are midpoints 0.5 * a + 0.5 * b (in fp32) of neighbours a, b below v_i.
//           So a tie goes to the smaller value; of equal values the smallest code is taken.
//
//   weight     float32, float16 or bfloat16 [N, K], contiguous
//   codebook   float32 [16], finite, in any order
//   blocksize  a power of two from 32 to 4096
//   packed     uint8 [ceil(N * K / 2)], contiguous: the layout of lut4_weight.h. After an odd number of
//              elements the last low nibble is the code of 0.
//   absmax     float32 [ceil(N * K / blocksize)], contiguous
//
// On an error nothing is written.
LOWBIT_API lowbit_status lowbit_lut4_quantize(const lowbit_tensor *weight,
                                              const lowbit_tensor *codebook, size_t blocksize,
                                              const lowbit_tensor *packed,
                                              const lowbit_tensor *absmax,
                                              const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
