// SPDX-License-Identifier: MIT
// The blockwise operators on a GPU, their arguments checked.
#ifndef LOWBIT_OPS_BLOCKWISE_CUDA_H
#define LOWBIT_OPS_BLOCKWISE_CUDA_H

#include "lowbit/status.h"
#include "lowbit/tensor.h"

lowbit_status lowbit_blockwise_quantize_cuda(const char *op, const lowbit_tensor *x,
                                             const lowbit_tensor *codebook, size_t blocksize,
                                             const lowbit_tensor *q, const lowbit_tensor *absmax,
                                             void *stream);
lowbit_status lowbit_blockwise_dequantize_cuda(const char *op, const lowbit_tensor *q,
                                               const lowbit_tensor *absmax,
                                               const lowbit_tensor *codebook, size_t blocksize,
                                               const lowbit_tensor *out, void *stream);

#endif
