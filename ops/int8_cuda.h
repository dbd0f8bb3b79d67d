// SPDX-License-Identifier: MIT
// The int8 operators on a GPU, their arguments checked.
#ifndef LOWBIT_OPS_INT8_CUDA_H
#define LOWBIT_OPS_INT8_CUDA_H

#include "lowbit/int8_linear.h"

#ifdef __cplusplus
extern "C" {
#endif

size_t lowbit_int8_linear_cuda_workspace_size(size_t m, size_t n, size_t k);
lowbit_status lowbit_int8_linear_cuda(const char *op, const lowbit_int8_linear_args *args,
                                      float threshold, void *stream, void *workspace,
                                      size_t workspace_size);
lowbit_status lowbit_int8_matmul_cuda(const char *op, const lowbit_tensor *a,
                                      const lowbit_tensor *b, const lowbit_tensor *out,
                                      void *stream);
// offset may be null.
lowbit_status lowbit_int8_quantize_cuda(const char *op, const lowbit_tensor *x, float threshold,
                                        const lowbit_tensor *q, const lowbit_tensor *absmax,
                                        const lowbit_tensor *offset, void *stream);
lowbit_status lowbit_int8_dequantize_cuda(const char *op, const lowbit_tensor *q,
                                          const lowbit_tensor *absmax, const lowbit_tensor *offset,
                                          const lowbit_tensor *out, void *stream);

#ifdef __cplusplus
}
#endif

#endif
