// SPDX-License-Identifier: MIT
// The gradient of the int8 linear layer for its input.
#ifndef LOWBIT_INT8_LINEAR_GRAD_INPUT_H
#define LOWBIT_INT8_LINEAR_GRAD_INPUT_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// grad_input = grad_output W with W[n, k] = weight[n, k] * absmax[n] / 127 + offset[n]. The
// gradient passes straight through the rounding of the activations, as if the layer had been a
// float one.
//
//   w_k = offset ? fma(weight[n, k], s, offset) : weight[n, k] * s,    s = absmax / 127
//   grad_input[m, k] = sum from +0, over blocks of 256 n in ascending order, of the block's sum:
//           c = +0, then c = fma(grad_output[m, n], w[n, k], c), n ascending
//
// in fp32, rounded half to even to grad_input's dtype; a NaN is stored as the positive quiet NaN.
// These bits are the same at every level of lowbit_cpu_isa(), with one exception: for bfloat16
// grad_output a processor that multiplies bf16 numbers (levels avx512bf16 and amx) does so,
//
//   grad_input[m, k] = sum over n of bf16(grad_output[m, n] * s) * weight[n, k]
//                    + sum over n of grad_output[m, n] * offset[n]
//
// summed in fp32 in its own order, subnormal numbers flushed: the accuracy of a bf16 matrix
// product, and still the same bits for any executor and any batch.
typedef struct lowbit_int8_linear_grad_input_args {
    const lowbit_tensor *grad_output; // float32, float16 or bfloat16 [M, N]
    const lowbit_tensor *weight;      // int8 [N, K], contiguous
    const lowbit_tensor *absmax;      // float32 or float16 [N], contiguous
    const lowbit_tensor *offset;      // the same dtype and shape as absmax, or null
    const lowbit_tensor *grad_input;  // float32, float16 or bfloat16 [M, K]
} lowbit_int8_linear_grad_input_args;

// workspace: at least lowbit_int8_linear_grad_input_workspace_size(M, N, K, executor's max_tasks or
// 1) bytes, aligned to 64.
LOWBIT_API lowbit_status lowbit_int8_linear_grad_input(
    const lowbit_int8_linear_grad_input_args *args, const lowbit_executor *executor,
    void *workspace, size_t workspace_size);

LOWBIT_API size_t lowbit_int8_linear_grad_input_workspace_size(size_t m, size_t n, size_t k,
                                                               size_t max_tasks);

#ifdef __cplusplus
}
#endif

#endif
