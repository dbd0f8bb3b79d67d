// SPDX-License-Identifier: MIT
// The micro-kernels of 8-bit Adam: what they compute, and the table of all of them. They encode and
// decode with the code of ../blockwise. What ../int8/ukernels.h says of every micro-kernel holds here
// too.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_UKERNELS_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_UKERNELS_H

#include "../blockwise/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// What does not depend on the element, with the names of ops/include/lowbit/adam8bit_step.h.
struct lowbit_adam8bit_rule {
    float b1, r1, b2, r2, size, e, l2, keep, floor, scale;
    struct lowbit_blockwise_decoder decoder1, decoder2;
    struct lowbit_blockwise_encoder encoder1, encoder2;
};

// Elements of a parameter that begin at a block.
struct lowbit_adam8bit_part {
    void *param;
    const void *grad;
    float *master; // may be null
    uint8_t *exp_avg;
    float *exp_avg_absmax;
    uint8_t *exp_avg_sq;
    float *exp_avg_sq_absmax;
};

// n elements in blocks of blocksize, a multiple of 32 up to LOWBIT_BLOCKWISE_LARGEST; the last block
// may be shorter. Each is stepped as ops/include/lowbit/adam8bit_step.h says.
typedef void lowbit_adam8bit_ukernel(size_t n, size_t blocksize,
                                     const struct lowbit_adam8bit_part *part,
                                     const struct lowbit_adam8bit_rule *rule);

#define LOWBIT_ADAM8BIT(param, grad, isa, ISA)                                                     \
    lowbit_adam8bit_ukernel lowbit_adam8bit_ukernel_##param##_##grad##__##isa;
#include "adam8bit.inc"

#ifdef __cplusplus
}
#endif

#endif
