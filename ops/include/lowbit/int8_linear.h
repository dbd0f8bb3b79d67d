// SPDX-License-Identifier: MIT
// The linear layer with int8 weights and outlier decomposition.
#ifndef LOWBIT_INT8_LINEAR_H
#define LOWBIT_INT8_LINEAR_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// The largest K for which 127 * 127 * K stays within int32.
#define LOWBIT_INT8_LINEAR_MAX_K 133144

// y = x W^T + bias with W[n, k] = weight[n, k] * absmax[n] / 127 + offset[n]: the activations are
// quantized row by row, the products summed as integers, and the elements of x that reach the
// threshold (outliers) multiplied in fp32 instead (LLM.int8, arXiv:2208.07339, with the
// decomposition per element rather than per column).
//
// This is the exact meaning, for one row of x and one row n of the weight. Every operation is fp32
// and rounded once, half to even; subnormal numbers are kept.
//
//   t = threshold, +inf when it is 0
//   outlier: !(|x_k| < t)                        so NaN and infinities always are
//   a = max |x_k| over the others, 0 if none
//   inv = a >= 2^-118 ? 127 / a : 0
//   q_k = round_half_even(x_k * inv)             0 at outliers
//   acc = sum of q_k * weight_k                  int32, exact
//   xsum = sum of q_k                            int32, exact
//   s = absmax / 127,  r = a / 127
//   w_k = offset ? fma(weight_k, s, offset) : weight_k * s
//   main = r * (offset ? fma(s, (float)acc, offset * (float)xsum) : s * (float)acc)
//   o = sum from +0, over blocks of 1024 k in ascending order, of the block's sum:
//           c = +0, then c = fma(x_k, w_k, c) for the block's outliers, k ascending
//   y = (main + o) + bias                        rounded to y's dtype, half to even
//   a NaN is stored as the positive quiet NaN (7fc00000, 7e00, 7fc0)
//
// Nothing here depends on the other rows, so a row's result is the same bits in any batch, for any
// executor, and at every level of lowbit_cpu_isa().
typedef struct lowbit_int8_linear_args {
    const lowbit_tensor *x;      // float32, float16 or bfloat16 [M, K]
    const lowbit_tensor *weight; // int8 [N, K], contiguous, values in [-127, 127]
    const lowbit_tensor *absmax; // float32 or float16 [N], contiguous
    const lowbit_tensor *offset; // the same dtype and shape as absmax, or null
    const lowbit_tensor *bias;   // float32, float16 or bfloat16 [N], contiguous, or null
    float threshold;             // finite, >= 0; 0 decomposes only NaN and infinities
    const lowbit_tensor *y;      // float32, float16 or bfloat16 [M, N]
} lowbit_int8_linear_args;

// workspace: at least lowbit_int8_linear_workspace_size(M, N, K, executor's max_tasks or 1) bytes,
// aligned to 64. It grows with min(M, 1024) * K and with the number of tasks, never with N * K. On
// a GPU max_tasks is 0 in that call, and it grows with min(M, 8192) * K and up to 64 MiB with N.
LOWBIT_API lowbit_status lowbit_int8_linear(const lowbit_int8_linear_args *args,
                                            const lowbit_executor *executor, void *workspace,
                                            size_t workspace_size);

LOWBIT_API size_t lowbit_int8_linear_workspace_size(size_t m, size_t n, size_t k, size_t max_tasks);

// The micro-kernel that a call with these sizes runs, for reports: "6x64__avx512vnni".
LOWBIT_API const char *lowbit_int8_linear_ukernel(size_t m, size_t k);

#ifdef __cplusplus
}
#endif

#endif
