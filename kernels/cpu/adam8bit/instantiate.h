// SPDX-License-Identifier: MIT
// What the files of all instruction sets share: the walk over the blocks, and the functions that
// adam8bit.inc names.
#ifndef LOWBIT_KERNELS_CPU_ADAM8BIT_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_ADAM8BIT_INSTANTIATE_H

#include "scalar.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// A block's new moments, and the largest magnitudes among them.
struct moments {
    _Alignas(64) float m[LOWBIT_BLOCKWISE_LARGEST], v[LOWBIT_BLOCKWISE_LARGEST];
    float absmax_m, absmax_v;
};

// Steps the elements from begin to end one after the other; absmax_m and absmax_v are those of the
// elements before.
LOWBIT_INLINE void step_elements(enum lowbit_float param, enum lowbit_float grad, size_t begin,
                                 size_t end, const struct lowbit_adam8bit_part *part,
                                 const struct lowbit_adam8bit_rule *rule, struct moments *moments) {
    for (size_t i = begin; i < end; i++) {
        lowbit_adam8bit_element(param, grad, part, rule, i, moments->m, moments->v);
        moments->absmax_m = fmaxf(moments->absmax_m, fabsf(moments->m[i]));
        moments->absmax_v = fmaxf(moments->absmax_v, moments->v[i]);
    }
}

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

#if defined(__x86_64__)
enum { AHEAD = 256 }; // elements: the processor's own prefetching loses its way among the arrays

// What belongs to n elements from i + AHEAD on. They need not exist.
LOWBIT_INLINE void prefetch(enum lowbit_float param, enum lowbit_float grad, size_t n,
                            const struct lowbit_adam8bit_part *part, size_t i) {
    const char *const p = (const char *)part->param, *const g = (const char *)part->grad;
    i += AHEAD;
    for (size_t j = i * lowbit_float_size(param); j < (i + n) * lowbit_float_size(param); j += 64)
        _mm_prefetch(p + j, _MM_HINT_T0);
    for (size_t j = i * lowbit_float_size(grad); j < (i + n) * lowbit_float_size(grad); j += 64)
        _mm_prefetch(g + j, _MM_HINT_T0);
    for (size_t j = i * 4; part->master && j < (i + n) * 4; j += 64)
        _mm_prefetch((const char *)part->master + j, _MM_HINT_T0);
    for (size_t j = i; j < i + n; j += 64) {
        _mm_prefetch(part->exp_avg + j, _MM_HINT_T0);
        _mm_prefetch(part->exp_avg_sq + j, _MM_HINT_T0);
    }
}
#endif

// What the file of an instruction set defines, for one block. Finding the moments is a long chain of
// operations, and stepping waits for a root and a division: apart, more of each is under way, and
// stepping takes its time beside encoding.

// Returns how many elements, the first ones, it has not stepped: all but those left to step_elements.
LOWBIT_INLINE size_t find_moments(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                                  size_t n, const struct lowbit_adam8bit_part *part,
                                  const struct lowbit_adam8bit_rule *rule, struct moments *moments);
// Steps these, and writes the codes of all. has_decades: what both encoders' of that name say.
LOWBIT_INLINE void step_and_encode(enum lowbit_float param, bool has_master, bool has_decades,
                                   size_t n, size_t unstepped,
                                   const struct lowbit_adam8bit_part *part,
                                   const struct lowbit_adam8bit_rule *rule,
                                   const struct moments *moments);

LOWBIT_INLINE void step_blocks(enum lowbit_float param, enum lowbit_float grad, bool has_master,
                               size_t n, size_t blocksize, struct lowbit_adam8bit_part block,
                               const struct lowbit_adam8bit_rule *rule) {
    struct moments moments;
    for (size_t begin = 0; begin < n; begin += blocksize) {
        const size_t size = n - begin < blocksize ? n - begin : blocksize;
        const size_t unstepped =
            find_moments(param, grad, has_master, size, &block, rule, &moments);
        *block.exp_avg_absmax = moments.absmax_m;
        *block.exp_avg_sq_absmax = moments.absmax_v;
        if (rule->encoder1.has_decades && rule->encoder2.has_decades)
            step_and_encode(param, has_master, true, size, unstepped, &block, rule, &moments);
        else
            step_and_encode(param, has_master, false, size, unstepped, &block, rule, &moments);
        block = next_block(param, grad, blocksize, block);
    }
}

// LOWBIT_INSTANTIATE(avx2) at the end of that file makes the functions that the table names.
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
        if (part->master)                                                                          \
            step_blocks(param, grad, true, n, blocksize, *part, rule);                             \
        else                                                                                       \
            step_blocks(param, grad, false, n, blocksize, *part, rule);                            \
    }

#endif
