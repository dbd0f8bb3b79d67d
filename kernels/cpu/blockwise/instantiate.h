// SPDX-License-Identifier: MIT
// What the files of all instruction sets share: the walk over the blocks, and the functions that
// blockwise.inc names.
#ifndef LOWBIT_KERNELS_CPU_BLOCKWISE_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_BLOCKWISE_INSTANTIATE_H

#include "scalar.h"
#include "ukernels.h"
#include "../common/floats.h"

// Included at the end of a file that defines, as inline functions of the type, for one block
//
//   float largest(type, n, x)                       absmax
//   void codes(type, n, x, inv, encoder, q)         q
//   void dequantize(type, n, q, absmax, decoder, y)
//
// LOWBIT_INSTANTIATE(avx2) makes the functions that the table names.
#define LOWBIT_INSTANTIATE(isa)                                                                    \
    LOWBIT_INSTANTIATE_TYPE(f32, isa)                                                              \
    LOWBIT_INSTANTIATE_TYPE(f16, isa)                                                              \
    LOWBIT_INSTANTIATE_TYPE(bf16, isa)

#define LOWBIT_INSTANTIATE_TYPE(type, isa)                                                         \
    void lowbit_blockwise_quantize_ukernel_##type##__##isa(                                        \
        size_t n, size_t blocksize, const void *x, const struct lowbit_blockwise_encoder *encoder, \
        uint8_t *q, float *absmax) {                                                               \
        for (size_t i = 0; i < n; i += blocksize) {                                                \
            const void *block = (const char *)x + i * lowbit_float_size(type);                     \
            const size_t size = n - i < blocksize ? n - i : blocksize;                             \
            const float scale = largest(type, size, block);                                        \
            codes(type, size, block, lowbit_blockwise_inverse(scale), encoder, q + i);             \
            *absmax++ = scale;                                                                     \
        }                                                                                          \
    }                                                                                              \
    void lowbit_blockwise_dequantize_ukernel_##type##__##isa(                                      \
        size_t n, size_t blocksize, const uint8_t *q, const float *absmax,                         \
        const struct lowbit_blockwise_decoder *decoder, void *y) {                                 \
        for (size_t i = 0; i < n; i += blocksize)                                                  \
            dequantize(type, n - i < blocksize ? n - i : blocksize, q + i, *absmax++, decoder,     \
                       (char *)y + i * lowbit_float_size(type));                                   \
    }

#endif
