// SPDX-License-Identifier: MIT
// One step of Adam with 8-bit state, for a whole list of parameters.
#ifndef LOWBIT_ADAM8BIT_STEP_H
#define LOWBIT_ADAM8BIT_STEP_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// A parameter of n elements with its gradient and state; every vector contiguous. The state is what
// blockwise_quantize makes of both moments: codes, and a scale for each block.
typedef struct lowbit_adam8bit_param {
    lowbit_tensor param;             // float32, float16 or bfloat16 [n]
    lowbit_tensor grad;              // float32, float16 or bfloat16 [n], also another dtype
    lowbit_tensor exp_avg;           // uint8 [n], values of codebook1
    lowbit_tensor exp_avg_absmax;    // float32 [ceil(n / blocksize)]
    lowbit_tensor exp_avg_sq;        // uint8 [n], values of codebook2
    lowbit_tensor exp_avg_sq_absmax; // float32 [ceil(n / blocksize)]
    const lowbit_tensor *master; // float32 [n]: the parameter, of which param is a rounded copy;
                                 // or null
} lowbit_adam8bit_param;

// Adam (Kingma and Ba, 2015, arXiv:1412.6980), with decoupled weight decay AdamW
// (arXiv:1711.05101), with its state in 8 bits (Dettmers et al., 2022, arXiv:2110.02861).
//
// What does not depend on the element is computed in double precision, beta^step by repeated
// squaring (as long as step is not 0: if step is odd, product *= beta; beta *= beta; step /= 2),
// and then rounded once to fp32:
//
//   c1 = 1 - beta1^step,  c2 = 1 - beta2^step
//   b1 = beta1,  r1 = 1 - beta1,  b2 = beta2,  r2 = 1 - beta2
//   size = lr * sqrt(c2) / c1
//   e = max(eps * sqrt(c2), 2^-126)
//   l2 = decoupled ? 0 : weight_decay
//   keep = decoupled ? 1 - lr * weight_decay : 1
//   floor = beta1^2 < beta2 ? sqrt((1 - beta2) * (1 - beta1^2 / beta2)) / (1 - beta1) : 0
//   scale = 1 / grad_scale, negated with maximize; this division in fp32
//
// This is the exact meaning for one element. Every operation is fp32 and rounded once, half to
// even; subnormal numbers are kept.
//
//   p = master ? master : param
//   m_old = codebook1[exp_avg] * exp_avg_absmax,  v_old = codebook2[exp_avg_sq] * exp_avg_sq_absmax
//   g = fma(l2, p, grad * scale)
//   m = fma(b1, m_old, r1 * g),  v = fma(b2, v_old, r2 * (g * g))
//   d = max(sqrt(v), |m| * floor) + e
//   p' = fma(-size, m / d, p * keep)
//
// p' is stored, rounded to param's dtype and to the master if there is one; then the moments of a
// block are encoded as blockwise_quantize does. So an element whose gradient was always zero does
// not move where the codebooks hold zero.
//
// With exact state |m| <= sqrt(v) / floor by the Cauchy-Schwarz inequality, whatever the gradients
// were. Rounded state may break it: a second moment becomes zero long before its first moment does,
// and m / e would be a step without bound.
//
// An element stays as it was unless m is finite and v is finite and not negative: its param and
// master are not written, and m_old and v_old (0 if negative) are encoded with its block. That is
// what a gradient does that is NaN, infinite or too large to be squared, and a parameter that is
// NaN or infinite. The other elements do not notice.
//
// The result is the same bits for every executor, at every level of lowbit_cpu_isa(), and for any
// order and grouping of the parameters.
typedef struct lowbit_adam8bit_step_args {
    const lowbit_adam8bit_param *params; // that share no memory
    size_t count;                        // of them
    const lowbit_tensor *codebook1;      // float32 [256]: finite values in ascending order
    const lowbit_tensor *codebook2;      // the same, none negative
    double step;                         // a whole number from 1 to 2^53: this is step number step
    double lr;                           // finite, >= 0
    double beta1, beta2;                 // >= 0 and < 1
    double eps;                          // finite, >= 0
    double weight_decay;                 // finite, >= 0
    bool decoupled;                      // AdamW's weight decay rather than that of an L2 penalty
    bool maximize;                       // climb
    size_t blocksize;                    // a power of two from 32 to 4096
    float grad_scale;                    // what the gradients were multiplied by: finite, > 0
    float found_inf;                     // not 0: the arguments are checked, and nothing changes
} lowbit_adam8bit_step_args;

// In place, without a workspace. On an error nothing is written.
LOWBIT_API lowbit_status lowbit_adam8bit_step(const lowbit_adam8bit_step_args *args,
                                              const lowbit_executor *executor);

// On a GPU step, lr, grad_scale and found_inf of args do not count, but what stands here in its
// memory when the kernel runs, and is not checked.
typedef struct lowbit_device_number {
    const void *data;
    enum { LOWBIT_DEVICE_FLOAT32, LOWBIT_DEVICE_FLOAT64, LOWBIT_DEVICE_INT64 } type;
} lowbit_device_number;

typedef struct lowbit_adam8bit_device_numbers {
    lowbit_device_number step, lr;
    const float *grad_scale; // or null: 1
    const float *found_inf;  // or null: 0
} lowbit_adam8bit_device_numbers;

// In a build with CUDA. The same bits as lowbit_adam8bit_step; one launch for every 400 parameters.
LOWBIT_API lowbit_status lowbit_adam8bit_step_cuda(const lowbit_adam8bit_step_args *args,
                                                   const lowbit_adam8bit_device_numbers *numbers,
                                                   const lowbit_executor *executor);

#ifdef __cplusplus
}
#endif

#endif
