// SPDX-License-Identifier: MIT
// What the operators on a GPU share.
#ifndef LOWBIT_OPS_CUDA_H
#define LOWBIT_OPS_CUDA_H

#include "check.h"

#include <cuda_runtime_api.h>

static inline lowbit_status lowbit_cuda_status(const char *op, int error) {
    return !error ? LOWBIT_OK
                  : lowbit_fail(LOWBIT_CUDA_ERROR, "%s: CUDA says: %s", op,
                                cudaGetErrorString((cudaError_t)error));
}

#endif
