// SPDX-License-Identifier: MIT
// A weight of 4-bit codes that look up a codebook: NF4, FP4 or any other 16 values.
#ifndef LOWBIT_LUT4_WEIGHT_H
#define LOWBIT_LUT4_WEIGHT_H

#include "lowbit/tensor.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// The elements of a weight [N, K] are numbered row by row, i = n * K + k, and every blocksize of
// them in a row share a scale:
//
//   w_i = codebook[code_i] * scale[i / blocksize]             in fp32
//   code_i = i even ? packed[i / 2] >> 4 : packed[i / 2] & 15
//
// K need not be a multiple of blocksize: a block may straddle rows. This is the layout of QLoRA
// (Dettmers et al., 2023, arXiv:2305.14314) and of the checkpoints that bitsandbytes writes.
//
// The B = ceil(N * K / blocksize) scales are absmax itself when that is float32, or with double
// quantization its uint8 codes, 256 of which share a scale again:
//
//   scale_b = nested_codebook[absmax_b] * nested_absmax[b / 256] + nested_offset
//
// with the product and the sum each rounded to fp32. All vectors are contiguous.
typedef struct lowbit_lut4_weight {
    const lowbit_tensor *packed;   // uint8 [ceil(N * K / 2)]
    const lowbit_tensor *absmax;   // float32 or uint8 [B]
    const lowbit_tensor *codebook; // float32 [16], finite, in any order
    size_t blocksize;              // a power of two from 32 to 4096

    // With uint8 absmax; null otherwise.
    const lowbit_tensor *nested_absmax;   // float32 [ceil(B / 256)]
    const lowbit_tensor *nested_codebook; // float32 [256], finite
    const lowbit_tensor *nested_offset;   // float32 [1]
} lowbit_lut4_weight;

#ifdef __cplusplus
}
#endif

#endif
