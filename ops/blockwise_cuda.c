// SPDX-License-Identifier: MIT

#include "blockwise_cuda.h"

#include "cuda.h"

#include "../kernels/cuda/blockwise/launch.h"

lowbit_status lowbit_blockwise_quantize_cuda(const char *op, const lowbit_tensor *x,
                                             const lowbit_tensor *codebook, size_t blocksize,
                                             const lowbit_tensor *q, const lowbit_tensor *absmax,
                                             void *stream) {
    if (!x->rows)
        return LOWBIT_OK;
    return lowbit_cuda_status(op, lowbit_blockwise_quantize_launch(
                                      (enum lowbit_float)x->dtype, x->rows, blocksize, x->data,
                                      codebook->data, q->data, absmax->data, stream));
}

lowbit_status lowbit_blockwise_dequantize_cuda(const char *op, const lowbit_tensor *q,
                                               const lowbit_tensor *absmax,
                                               const lowbit_tensor *codebook, size_t blocksize,
                                               const lowbit_tensor *out, void *stream) {
    if (!q->rows)
        return LOWBIT_OK;
    return lowbit_cuda_status(op, lowbit_blockwise_dequantize_launch(
                                      (enum lowbit_float)out->dtype, q->rows, blocksize, q->data,
                                      absmax->data, codebook->data, out->data, stream));
}
