// SPDX-License-Identifier: MIT
// Checking a 4-bit weight, and reading it piece by piece.
#ifndef LOWBIT_OPS_LUT4_WEIGHT_H
#define LOWBIT_OPS_LUT4_WEIGHT_H

#include "lowbit/executor.h"
#include "lowbit/lut4_weight.h"
#include "lowbit/status.h"

#include "lut4_dispatch.h"

// A codebook of so many finite values, which are only looked at on the CPU.
lowbit_status lowbit_lut4_check_codebook(const char *op, const char *name,
                                         const lowbit_tensor *codebook, size_t values,
                                         const lowbit_executor *executor);

// The weight is a whole one of n rows of k elements.
lowbit_status lowbit_lut4_check_weight(const char *op, const lowbit_lut4_weight *weight, size_t n,
                                       size_t k, const lowbit_executor *executor);

// The most scales that n elements, starting anywhere, may touch, whatever the blocksize.
static inline size_t lowbit_lut4_most_scales(size_t n) {
    return n / 32 + 2;
}

// The scales of `count` blocks from block `first` on: where they stand, or, with double
// quantization, computed into buffer.
const float *lowbit_lut4_scales(const lowbit_lut4_weight *weight,
                                const struct lowbit_lut4_ukernels *ukernels, size_t first,
                                size_t count, float *buffer);

// n elements from element `begin` on, rounded to type, a float. buffer holds
// lowbit_lut4_most_scales(n) floats.
void lowbit_lut4_read(const lowbit_lut4_weight *weight, const struct lowbit_lut4_ukernels *ukernels,
                      lowbit_dtype type, size_t begin, size_t n, float *buffer, void *to);

#endif
