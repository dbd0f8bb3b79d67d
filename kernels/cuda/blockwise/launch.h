// SPDX-License-Identifier: MIT
// Launchers of the blockwise kernels. What they compute is what lowbit_blockwise_quantize and
// lowbit_blockwise_dequantize of the C library compute, in bits; ops/include/lowbit says it. The
// arguments are checked there; pointers are to memory of the current device, aligned to their
// elements.
//
// Every launcher returns 0 or a cudaError_t, and waits for nothing. stream is a cudaStream_t.
#ifndef LOWBIT_KERNELS_CUDA_BLOCKWISE_LAUNCH_H
#define LOWBIT_KERNELS_CUDA_BLOCKWISE_LAUNCH_H

#include "../../cpu/common/floats.h"

#ifdef __cplusplus
extern "C" {
#endif

// x [n] of the type to q [n] and absmax [ceil(n / blocksize)]. A codebook [256] that is not
// ascending and finite gives some codes, and harms nothing else.
int lowbit_blockwise_quantize_launch(enum lowbit_float type, size_t n, size_t blocksize,
                                     const void *x, const float *codebook, uint8_t *q,
                                     float *absmax, void *stream);

// q [n], absmax [ceil(n / blocksize)] and codebook [256] to y [n] of the type.
int lowbit_blockwise_dequantize_launch(enum lowbit_float type, size_t n, size_t blocksize,
                                       const uint8_t *q, const float *absmax, const float *codebook,
                                       void *y, void *stream);

#ifdef __cplusplus
}
#endif

#endif
