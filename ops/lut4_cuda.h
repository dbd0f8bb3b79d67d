// SPDX-License-Identifier: MIT
// The lut4 operators on a GPU, their arguments checked.
#ifndef LOWBIT_OPS_LUT4_CUDA_H
#define LOWBIT_OPS_LUT4_CUDA_H

#include "lowbit/lut4_linear.h"

#ifdef __cplusplus
extern "C" {
#endif

size_t lowbit_lut4_linear_cuda_workspace_size(size_t m, size_t n, size_t k);
lowbit_status lowbit_lut4_linear_cuda(const char *op, const lowbit_lut4_linear_args *args,
                                      void *stream, void *workspace, size_t workspace_size);
lowbit_status lowbit_lut4_dequantize_cuda(const char *op, const lowbit_lut4_weight *weight,
                                          const lowbit_tensor *out, void *stream);
lowbit_status lowbit_lut4_quantize_cuda(const char *op, const lowbit_tensor *weight,
                                        const lowbit_tensor *codebook, size_t blocksize,
                                        const lowbit_tensor *packed, const lowbit_tensor *absmax,
                                        void *stream);

#ifdef __cplusplus
}
#endif

#endif
