// SPDX-License-Identifier: MIT
// The micro-kernels of the blockwise family: what each signature computes, and the table of all of
// them. What ../int8/ukernels.h says of every micro-kernel holds here too.
#ifndef LOWBIT_KERNELS_CPU_BLOCKWISE_UKERNELS_H
#define LOWBIT_KERNELS_CPU_BLOCKWISE_UKERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LOWBIT_BLOCKWISE_LARGEST = 4096,          // block
    LOWBIT_BLOCKWISE_THRESHOLDS = 255,        // between 256 values
    LOWBIT_BLOCKWISE_FIRST = (127 - 24) << 7, // the upper half of 2^-24
    LOWBIT_BLOCKWISE_BUCKETS = 24 * 128 + 1,  // of each sign, up to the one that begins at 1
};

// What finds the value of a codebook that is nearest to a number v, |v| < 1 + 2^-7:
//
//   code(v) = the number of thresholds below v
//
// threshold[i] is the largest fp32 number up to the exact midpoint of values i and i + 1: v is nearer
// to the latter exactly where it is above the threshold, and a tie goes to the smaller value. Equal
// values share the threshold behind the last of them, so that the first one's code is chosen.
// Ascending; +inf from LOWBIT_BLOCKWISE_THRESHOLDS on.
//
// A bucket says where the search begins. That of v >= 0 is
//
//   BUCKETS + clamp((bits of v >> 16) - FIRST, 0, BUCKETS - 1)
//
// and that of -v as far from the middle on the other side. Bits 16..23 are the code of its least
// number; the codes of the others are fewer than 2 * span above that. When direct is true, the bucket
// suffices: where (bits of v ^ (v < 0 ? ~0 : 0)) % 2^16 is above its bits 0..15, the code stands in
// bits 24..31.
//
// When has_decades is true, the codebook is much like the dynamic map (ops/blockwise_codebook.c says
// when), and a line through each decade suffices for nearly all numbers. With y = |v|, in fp32:
//
//   d = trunc(max(fma((float)(bits of y), DECADES_PER_BIT, DECADES_AT_ZERO), 0))
//   d += 2 * (bits of y) + (v < 0) > edge[d]
//   place = trunc(min(fma(y, slope[d], offset[d]), most[d]))
//   code(v) = clamp(zero + (v < 0 ? -1 : 1) * (place >> 16), 0, 255)
//
// unless place % 2^16 < NEAR: then y lies too near to a threshold, and the threshold has to tell.
struct lowbit_blockwise_encoder {
    uint32_t bucket[2 * LOWBIT_BLOCKWISE_BUCKETS];
    float threshold[LOWBIT_BLOCKWISE_THRESHOLDS + 128];
    uint32_t span; // a power of two, at most 128
    bool direct, has_decades;
    uint8_t zero; // the code of 0
    // What lies below the decades, seven decades, and 1. The last one stands for negative d.
    __attribute__((aligned(64))) int32_t edge[16];
    float slope[16], offset[16], most[16];
};
#define LOWBIT_BLOCKWISE_DECADES_PER_BIT (0.30103f * 0x1p-23f)      // log10 of 2
#define LOWBIT_BLOCKWISE_DECADES_AT_ZERO (7.3f - 127.0f * 0.30103f) // so that 1 is at 7.3
enum { LOWBIT_BLOCKWISE_NEAR = 8 };

// The 256 values of a codebook, whole and in pieces of 16 and of 8 bits, the lowest first.
struct lowbit_blockwise_decoder {
    __attribute__((aligned(64))) float value[256];
    uint16_t half[2][256];
    uint8_t byte[4][256];
};

// quantize: n elements in blocks of blocksize, a multiple of 32; the last block may be shorter. For
// each block, with v_i = 0 where x_i is not finite:
//
//   absmax = max |x_i| over finite x_i, +0 if there are none
//   inv = absmax >= 2^-126 ? 1 / absmax : 0         v_i = x_i * inv         q_i = code(v_i)
typedef void lowbit_blockwise_quantize_ukernel(size_t n, size_t blocksize, const void *x,
                                               const struct lowbit_blockwise_encoder *encoder,
                                               uint8_t *q, float *absmax);

// dequantize: y_i = value[q_i] * absmax of its block, rounded half to even; NaN becomes the positive
// quiet NaN.
typedef void lowbit_blockwise_dequantize_ukernel(size_t n, size_t blocksize, const uint8_t *q,
                                                 const float *absmax,
                                                 const struct lowbit_blockwise_decoder *decoder,
                                                 void *y);

#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA)                                                  \
    lowbit_blockwise_quantize_ukernel lowbit_blockwise_quantize_ukernel_##type##__##isa;
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA)                                                \
    lowbit_blockwise_dequantize_ukernel lowbit_blockwise_dequantize_ukernel_##type##__##isa;
#include "blockwise.inc"

#ifdef __cplusplus
}
#endif

#endif
