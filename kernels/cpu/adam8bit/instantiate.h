// SPDX-License-Identifier: MIT
// What the files of all instruction sets share: the walk over the blocks, and the functions that
// adam8bit.inc names.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_INSTANTIATE_H

#include "ukernels.h"
#include "../common/floats.h"

// The part without its first n elements, a whole block.
LOWBIT_INLINE struct lowbit_adam8bit_part next_block(enum lowbit_float param,
                                                     enum lowbit_float grad, size_t n,
                                                     struct lowbit_adam8bit_part part) {
    part.param = (char *)part.param + n * lowbit_float_size(param);
    part.grad = (const char *)part.grad + n * lowbit_float_size(grad);
    part.master = part.master ? part.master + n : NULL;
    part.exp_avg += n;
    part.exp_avg_absmax++;
    part.exp_avg_sq += n;
    part.exp_avg_sq_absmax++;
    return part;
}

// Included at the end of a file that defines, inline, what it makes of a rule and the step of one
// block,
//
//   struct context begin(rule)
//   void step(param_type, grad_type, n, part, context)
//
// LOWBIT_INSTANTIATE(avx2) makes the functions that the table names.
#define LOWBIT_INSTANTIATE(isa)                                                                    \
    LOWBIT_INSTANTIATE_GRADS(f32, isa)                                                             \
    LOWBIT_INSTANTIATE_GRADS(f16, isa)                                                             \
    LOWBIT_INSTANTIATE_GRADS(bf16, isa)

#define LOWBIT_INSTANTIATE_GRADS(param, isa)                                                       \
    LOWBIT_INSTANTIATE_TYPES(param, f32, isa)                                                      \
    LOWBIT_INSTANTIATE_TYPES(param, f16, isa)                                                      \
    LOWBIT_INSTANTIATE_TYPES(param, bf16, isa)

#define LOWBIT_INSTANTIATE_TYPES(param, grad, isa)                                                 \
    void lowbit_adam8bit_ukernel_##param##_##grad##__##isa(                                        \
        size_t n, size_t blocksize, const struct lowbit_adam8bit_part *part,                       \
        const struct lowbit_adam8bit_rule *rule) {                                                 \
        const struct context context = begin(rule);                                                \
        struct lowbit_adam8bit_part block = *part;                                                 \
        for (; n > blocksize; n -= blocksize) {                                                    \
            step(param, grad, blocksize, &block, &context);                                            \
            block = next_block(param, grad, blocksize, block);                                     \
        }                                                                                          \
        if (n)                                                                                     \
            step(param, grad, n, &block, &context);                                                    \
    }

#endif
