// SPDX-License-Identifier: MIT
// The linear layer with 4-bit weights.
#ifndef LOWBIT_LUT4_LINEAR_H
#define LOWBIT_LUT4_LINEAR_H

#include "lowbit/executor.h"
#include "lowbit/lut4_weight.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// y = x W^T + bias, with W [N, K] of lut4_weight.h:
//
//   y[m, n] = sum over k of x[m, k] * w[n, k], + bias[n]
//
// Products and sums are fp32, in an order that depends on the level of lowbit_cpu_isa() and on M,
// and the result is rounded once, half to even, to y's dtype. For bfloat16 x a processor that
// multiplies bf16 numbers (levels avx512bf16 and amx) may round w to bf16 first, as if the weight
// had been dequantized to x's dtype, and take subnormal numbers for zero. A result does not depend
// on the executor, nor a row of it on the other rows as long as there are equally many. Nothing of
// W is ever dequantized but a panel for each task.
typedef struct lowbit_lut4_linear_args {
    const lowbit_tensor *x; // float32, float16 or bfloat16 [M, K]
    lowbit_lut4_weight weight;
    const lowbit_tensor *bias; // float32, float16 or bfloat16 [N], contiguous, or null
    const lowbit_tensor *y;    // float32, float16 or bfloat16 [M, N]
} lowbit_lut4_linear_args;

// workspace: at least lowbit_lut4_linear_workspace_size(M, N, K, executor's max_tasks or 1) bytes,
// aligned to 64. It grows with min(M, 1024) * K, with N and with the number of tasks, never with N
// * K. On a GPU max_tasks is 0 in that call, and it grows with min(M, 1024) * (K + N). There K is a
// multiple of 64 and of the blocksize, which is at least 64, packed is aligned to 16 bytes, and M
// is at most 256 in bfloat16 and 128 in float16. Other calls are LOWBIT_UNSUPPORTED: it is faster
// to dequantize the weight once and leave the product of many rows to another library. A row of x
// with an infinity may become NaN there.
LOWBIT_API lowbit_status lowbit_lut4_linear(const lowbit_lut4_linear_args *args,
                                            const lowbit_executor *executor, void *workspace,
                                            size_t workspace_size);

LOWBIT_API size_t lowbit_lut4_linear_workspace_size(size_t m, size_t n, size_t k, size_t max_tasks);

// The micro-kernel that a call with these sizes runs, for reports: "bf16_8x16__avx512bf16", of the
// lut4 family for few rows, of the dense family for more.
LOWBIT_API const char *lowbit_lut4_linear_ukernel(lowbit_dtype x, size_t m, size_t k,
                                                  size_t blocksize);

#ifdef __cplusplus
}
#endif

#endif
