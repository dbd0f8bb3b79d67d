// SPDX-License-Identifier: MIT
// The operators as plain loops over the text of ops/include/lowbit/*.h, one line there to one
// line here: what the library's results must equal in bits. Shares no code with ops/ and kernels/.
//
// Arguments are valid and the floating-point environment is the default one.
#ifndef LOWBIT_TESTS_REFERENCE_H
#define LOWBIT_TESTS_REFERENCE_H

#include "lowbit/adam8bit_step.h"
#include "lowbit/int8_linear.h"
#include "lowbit/int8_linear_grad_input.h"
#include "lowbit/lut4_linear.h"
#include "lowbit/lut4_linear_grad_input.h"
#include "lowbit/lut4_weight.h"
#include "lowbit/tensor.h"

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The number that 16 bits stand for, and the bits of the number nearest to value: ties to even, NaN
// as the positive quiet one.
float reference_from_half(lowbit_dtype dtype, uint16_t bits);
uint16_t reference_to_half(lowbit_dtype dtype, float value);

// Element (row, col) of a float tensor, as fp32.
float reference_get(const lowbit_tensor *tensor, size_t row, size_t col);

// Stores value in a float tensor, rounded as reference_to_half does.
void reference_set(const lowbit_tensor *tensor, size_t row, size_t col, float value);

// These two return false, with the outputs in no defined state, where a scale leaves its dtype's
// range.
bool reference_int8_quantize(const lowbit_tensor *x, float threshold, const lowbit_tensor *q,
                             const lowbit_tensor *absmax);
bool reference_int8_quantize_offset(const lowbit_tensor *weight, const lowbit_tensor *q,
                                    const lowbit_tensor *absmax, const lowbit_tensor *offset);

void reference_blockwise_quantize(const lowbit_tensor *x, const lowbit_tensor *codebook,
                                  size_t blocksize, const lowbit_tensor *q,
                                  const lowbit_tensor *absmax);
void reference_blockwise_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                                    const lowbit_tensor *codebook, size_t blocksize,
                                    const lowbit_tensor *out);

void reference_adam8bit_step(const lowbit_adam8bit_step_args *args);

void reference_int8_dequantize(const lowbit_tensor *q, const lowbit_tensor *absmax,
                               const lowbit_tensor *offset, const lowbit_tensor *out);

void reference_int8_matmul(const lowbit_tensor *a, const lowbit_tensor *b,
                           const lowbit_tensor *out);

void reference_int8_linear(const lowbit_int8_linear_args *args);

void reference_int8_linear_grad_input(const lowbit_int8_linear_grad_input_args *args);

void reference_lut4_quantize(const lowbit_tensor *weight, const lowbit_tensor *codebook,
                             size_t blocksize, const lowbit_tensor *packed,
                             const lowbit_tensor *absmax);

// w_i
float reference_lut4_element(const lowbit_lut4_weight *weight, size_t i);

void reference_lut4_dequantize(const lowbit_lut4_weight *weight, const lowbit_tensor *out);

// The order of the sums of a 4-bit product is left open, so these two are no bits but float64: y[m, n]
// or grad_input[m, k], and the sum of the magnitudes of its terms, which bounds the error. bf16: with
// w rounded to bf16, as where a processor multiplies bf16 numbers.
struct reference_sum {
    double value, magnitude;
};
struct reference_sum reference_lut4_linear(const lowbit_lut4_linear_args *args, size_t m, size_t n,
                                           bool bf16);
struct reference_sum
reference_lut4_linear_grad_input(const lowbit_lut4_linear_grad_input_args *args, size_t m, size_t k,
                                 bool bf16);

#ifdef __cplusplus
}
#endif

#endif
