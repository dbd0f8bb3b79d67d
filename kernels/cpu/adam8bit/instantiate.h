// SPDX-License-Identifier: MIT
// What the files of all instruction sets share: the walk over the blocks, and the functions that
// adam8bit.inc names.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_INSTANTIATE_H

#include "ukernels.h"
#include "../common/floats.h"

// A block's new moments, and the largest magnitudes among them.
struct moments {
    _Alignas(64) float m[LOWBIT_BLOCKWISE_LARGEST], v[LOWBIT_BLOCKWISE_LARGEST];
    float absmax_m, absmax_v;
};

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

// Included at the end of a file that defines, for one block,
//
//   void update(param_type, grad_type, n, part, rule, moments)   inline: param, master, moments
//   void encode(n, part, rule, moments)                          the state
//
// LOWBIT_INSTANTIATE(avx2) makes the functions that the table names. A block is encoded behind the
// update of the next one, so that nothing waits for the largest of its moments.
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
        struct moments moments[2];                                                                 \
        struct lowbit_adam8bit_part before, block = *part;                                         \
        size_t i = 0;                                                                              \
        for (size_t begin = 0; begin < n; begin += blocksize, i = !i) {                            \
            const size_t size = n - begin < blocksize ? n - begin : blocksize;                     \
            update(param, grad, size, &block, rule, &moments[i]);                                  \
            if (begin)                                                                             \
                encode(blocksize, &before, rule, &moments[!i]);                                    \
            before = block;                                                                        \
            block = next_block(param, grad, blocksize, block);                                     \
        }                                                                                          \
        if (n)                                                                                     \
            encode((n - 1) % blocksize + 1, &before, rule, &moments[!i]);                          \
    }

#endif
