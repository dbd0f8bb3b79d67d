// SPDX-License-Identifier: MIT
#ifndef LOWBIT_INT8_MATMUL_H
#define LOWBIT_INT8_MATMUL_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

// The largest K for which no sum of K products of two int8 leaves int32: 131071 * 2^14 < 2^31.
#define LOWBIT_INT8_MATMUL_MAX_K 131071

// out[m, n] = sum over k of a[m, k] * b[n, k], exact.
//
//   a     int8 [M, K], any values, also -128;  K <= LOWBIT_INT8_MATMUL_MAX_K
//   b     int8 [N, K], contiguous
//   out   int32 [M, N]
//
// workspace: at least lowbit_int8_matmul_workspace_size(M, N, K, executor's max_tasks or 1) bytes,
// aligned to 64.
LOWBIT_API lowbit_status lowbit_int8_matmul(const lowbit_tensor *a, const lowbit_tensor *b,
                                            const lowbit_tensor *out,
                                            const lowbit_executor *executor, void *workspace,
                                            size_t workspace_size);

LOWBIT_API size_t lowbit_int8_matmul_workspace_size(size_t m, size_t n, size_t k, size_t max_tasks);

#ifdef __cplusplus
}
#endif

#endif
