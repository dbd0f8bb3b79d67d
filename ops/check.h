// SPDX-License-Identifier: MIT
// Argument checks that the operators share.
#ifndef LOWBIT_OPS_CHECK_H
#define LOWBIT_OPS_CHECK_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#include <stdint.h>

// Returns the status of a call that failed.
#define LOWBIT_TRY(call)                                                                           \
    do {                                                                                           \
        lowbit_status status_ = (call);                                                            \
        if (status_ != LOWBIT_OK)                                                                  \
            return status_;                                                                        \
    } while (0)

// Sets lowbit_last_error and returns status.
__attribute__((format(printf, 2, 3))) lowbit_status lowbit_fail(lowbit_status status,
                                                                const char *format, ...);

enum {
    LOWBIT_FLOAT_DTYPES = 1 << LOWBIT_FLOAT32 | 1 << LOWBIT_FLOAT16 | 1 << LOWBIT_BFLOAT16,
    LOWBIT_SCALE_DTYPES = 1 << LOWBIT_FLOAT32 | 1 << LOWBIT_FLOAT16,
    LOWBIT_INT8_DTYPE = 1 << LOWBIT_INT8,
    LOWBIT_INT32_DTYPE = 1 << LOWBIT_INT32,
    LOWBIT_UINT8_DTYPE = 1 << LOWBIT_UINT8,
    LOWBIT_FLOAT32_DTYPE = 1 << LOWBIT_FLOAT32,
};
#define LOWBIT_ANY SIZE_MAX

// The tensor is there, of one of these dtypes and of this size (LOWBIT_ANY: of any), its stride and
// data are possible. op and name are for the message.
lowbit_status lowbit_check_tensor(const char *op, const char *name, const lowbit_tensor *tensor,
                                  unsigned dtypes, size_t rows, size_t cols);

// As lowbit_check_tensor, with rows that follow each other directly.
lowbit_status lowbit_check_contiguous(const char *op, const char *name, const lowbit_tensor *tensor,
                                      unsigned dtypes, size_t rows, size_t cols);

// A contiguous vector of this size.
lowbit_status lowbit_check_vector(const char *op, const char *name, const lowbit_tensor *tensor,
                                  unsigned dtypes, size_t size);

// absmax and, unless null, offset: scales [rows] of one dtype.
lowbit_status lowbit_check_scales(const char *op, const lowbit_tensor *absmax,
                                  const lowbit_tensor *offset, size_t rows);

// A threshold is finite and not negative.
lowbit_status lowbit_check_threshold(const char *op, float threshold);

// A blocksize is a power of two from 32 to 4096.
lowbit_status lowbit_check_blocksize(const char *op, size_t blocksize);

// The executor is usable, and the instruction sets to choose from are known.
lowbit_status lowbit_check_executor(const char *op, const lowbit_executor *executor);

lowbit_status lowbit_check_workspace(const char *op, const void *workspace, size_t size,
                                     size_t needed);

#endif
