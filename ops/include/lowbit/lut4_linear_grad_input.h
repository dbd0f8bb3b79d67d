// SPDX-License-Identifier: MIT
// The gradient of the 4-bit linear layer for its input.
#ifndef LOWBIT_LUT4_LINEAR_GRAD_INPUT_H
#define LOWBIT_LUT4_LINEAR_GRAD_INPUT_H

#include "lowbit/executor.h"
#include "lowbit/lut4_weight.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// grad_input = grad_output W, with W [N, K] of lut4_weight.h: grad_input[m, k] = sum over n of
// grad_output[m, n] * w[n, k].
//
// Products and sums are fp32, and the result is rounded once, half to even, to grad_input's dtype.
// For bfloat16 grad_output a processor that multiplies bf16 numbers (levels avx512bf16 and amx)
// rounds w to bf16 first and takes subnormal numbers for zero. A result does not depend on the
// executor, nor a row of it on the other rows as long as there are equally many.
typedef struct lowbit_lut4_linear_grad_input_args {
    const lowbit_tensor *grad_output; // float32, float16 or bfloat16 [M, N]
    lowbit_lut4_weight weight;
    const lowbit_tensor *grad_input; // float32, float16 or bfloat16 [M, K]
} lowbit_lut4_linear_grad_input_args;

// workspace: at least lowbit_lut4_linear_grad_input_workspace_size(M, N, K, executor's max_tasks or
// 1) bytes, aligned to 64.
LOWBIT_API lowbit_status lowbit_lut4_linear_grad_input(
    const lowbit_lut4_linear_grad_input_args *args, const lowbit_executor *executor,
    void *workspace, size_t workspace_size);

LOWBIT_API size_t lowbit_lut4_linear_grad_input_workspace_size(size_t m, size_t n, size_t k,
                                                               size_t max_tasks);

#ifdef __cplusplus
}
#endif

#endif
