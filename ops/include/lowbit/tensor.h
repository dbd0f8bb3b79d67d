// SPDX-License-Identifier: MIT
// The matrices that operators read and write.
#ifndef LOWBIT_TENSOR_H
#define LOWBIT_TENSOR_H

#include <stddef.h>

typedef enum lowbit_dtype {
    LOWBIT_FLOAT32 = 0,
    LOWBIT_FLOAT16 = 1,  // IEEE 754 binary16
    LOWBIT_BFLOAT16 = 2, // the upper half of a binary32
    LOWBIT_INT8 = 3,
    LOWBIT_INT32 = 4,
    LOWBIT_UINT8 = 5,
} lowbit_dtype;

// A row-major matrix in the caller's memory: element (i, j) is data[i * stride + j], counted in
// elements, with stride >= cols. A vector of n elements is rows = n, cols = 1, stride = 1. data may
// be null when the matrix is empty; otherwise it is aligned to its element. Memory behind an input
// is never written, and an output may not overlap anything else.
typedef struct lowbit_tensor {
    void *data;
    lowbit_dtype dtype;
    size_t rows;
    size_t cols;
    size_t stride;
} lowbit_tensor;

#endif
