// SPDX-License-Identifier: MIT
// The launcher of 8-bit Adam. What it computes is what lowbit_adam8bit_step of the C library
// computes, in bits: ops/include/lowbit/adam8bit_step.h says it. Shapes and numbers of the host are
// checked there; pointers are to memory of the current device, aligned to their elements.
#ifndef LOWBIT_KERNELS_CUDA_ADAM8BIT_LAUNCH_H
#define LOWBIT_KERNELS_CUDA_ADAM8BIT_LAUNCH_H

#include "../../cpu/common/floats.h"

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

struct lowbit_adam8bit_cuda_param {
    void *param;           // [n]
    const void *grad;      // [n]
    float *master;         // [n], or null
    uint8_t *exp_avg;      // [n]
    float *exp_avg_absmax; // [ceil(n / blocksize)]
    uint8_t *exp_avg_sq;
    float *exp_avg_sq_absmax;
    size_t n;
    enum lowbit_float param_type, grad_type;
};

enum lowbit_number { LOWBIT_NUMBER_FLOAT32, LOWBIT_NUMBER_FLOAT64, LOWBIT_NUMBER_INT64 };

// The numbers behind pointers are read when the kernel runs, and not checked: a codebook that is
// not ascending, finite and (the second) without negative values gives some codes, a step below 1
// some step.
struct lowbit_adam8bit_cuda_args {
    const float *codebook1, *codebook2; // [256]
    const void *step, *lr;
    enum lowbit_number step_type, lr_type;
    double beta1, beta2, eps, weight_decay;
    bool decoupled, maximize;
    size_t blocksize;
    const float *grad_scale, *found_inf; // or null: 1, and 0
};

// One launch for every 400 parameters. Returns 0 or a cudaError_t, and waits for nothing; stream is
// a cudaStream_t.
int lowbit_adam8bit_step_launch(const struct lowbit_adam8bit_cuda_args *args,
                                const struct lowbit_adam8bit_cuda_param *params, size_t count,
                                void *stream);

#ifdef __cplusplus
}
#endif

#endif
