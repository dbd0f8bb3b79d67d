// SPDX-License-Identifier: MIT
// The launchers of the lut4 family. They trust their caller as micro-kernels do: sizes and
// pointers, all on the stream's device, are valid. They never wait, and return what the launch
// returned.
#ifndef LOWBIT_KERNELS_CUDA_LUT4_LAUNCH_H
#define LOWBIT_KERNELS_CUDA_LUT4_LAUNCH_H

#include "../../cpu/common/floats.h"

#ifdef __cplusplus
extern "C" {
#endif

// A weight of 4-bit codes as ../../cpu/lut4/ukernels.h describes it, and its scales: absmax as
// float32 [blocks], or with double quantization as uint8 codes of
//   nested_codebook[code] * nested_absmax[block / 256] + nested_offset
typedef struct lowbit_cuda_lut4_weight {
    const uint8_t *packed;
    const float *codebook; // [16]
    size_t elements;
    unsigned log2_blocksize;
    const void *absmax;
    const float *nested_absmax;   // null without double quantization
    const float *nested_codebook; // [256]
    const float *nested_offset;   // [1]
} lowbit_cuda_lut4_weight;

int lowbit_lut4_dequantize_launch(const lowbit_cuda_lut4_weight *weight, enum lowbit_float type,
                                  void *y, void *stream);

// packed and absmax [blocks] are written.
int lowbit_lut4_quantize_launch(const void *x, enum lowbit_float type, const float *codebook,
                                size_t elements, unsigned log2_blocksize, uint8_t *packed,
                                float *absmax, void *stream);

// Rows of x as sums of fp16 numbers, each row divided by a power of two that brings it into their
// range. A bfloat16 or float16 row takes one number per element, a float32 row two. Elements far
// below the row's largest lose the bits under 2^-40 of that.
typedef struct lowbit_cuda_lut4_rows {
    // [m][k], the columns in an order of the kernels' own, then [m][k] again for float32
    uint16_t *halves;
    float *scale; // [m] the powers of two
} lowbit_cuda_lut4_rows;

typedef struct lowbit_cuda_lut4_linear {
    size_t m, n, k; // k is a multiple of 64 and of the blocksize, which is at least 64
    enum lowbit_float x_type, bias_type, y_type;
    const void *x;   // [m][x_stride]
    size_t x_stride; // elements
    lowbit_cuda_lut4_weight weight;
    const void *bias; // [n] or null
    void *y;          // [m][y_stride]
    size_t y_stride;
    lowbit_cuda_lut4_rows rows; // scratch
    float *partial; // scratch [splits][m][n] of the tiled product; null where splits is 1
    int splits;     // of k
} lowbit_cuda_lut4_linear;

// At most 16 rows of x.
int lowbit_lut4_linear_decode_launch(const lowbit_cuda_lut4_linear *args, void *stream);
// Any number of rows, 64 at a time.
int lowbit_lut4_linear_tiles_launch(const lowbit_cuda_lut4_linear *args, void *stream);

#ifdef __cplusplus
}
#endif

#endif
