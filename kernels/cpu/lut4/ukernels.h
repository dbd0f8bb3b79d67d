// SPDX-License-Identifier: MIT
// The micro-kernels of the lut4 family: what each signature computes, and the table of all of them.
//
// A weight of 4-bit codes is one flat sequence of elements, row after row. Element i has its code in
// byte i / 2, in the high nibble when i is even, and belongs to block i / blocksize, whose scale it
// is multiplied by: w_i = codebook[code_i] * s[i / blocksize], in fp32. A blocksize is a power of two
// from 32 to 4096.
//
// A micro-kernel trusts its caller: sizes and pointers are valid, pointers do not overlap, and the
// floating-point environment is the default one (round to nearest, no flush to zero). None reads or
// writes outside the elements it is given. Every instruction set produces the same bits, except that
// the gemms sum in the order that suits them.
#ifndef LOWBIT_KERNELS_CPU_LUT4_UKERNELS_H
#define LOWBIT_KERNELS_CPU_LUT4_UKERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LOWBIT_LUT4_UNIT_M = 16,   // rows of x that the TILES layout keeps together
    LOWBIT_LUT4_X_ALIGN = 128, // arranged rows of x are padded with zeros to a multiple of this
};

// quantize: one block of n elements, n even unless the weight ends here.
//
//   absmax = max |x_i| over the finite elements, +0 if there are none
//   inv = absmax >= 2^-126 ? 1 / absmax : 0
//   v_i = x_i * inv, 0 where x_i is not finite
//   code_i = code[number of j with v_i > midpoint[j]]
//
// Writes ceil(n / 2) bytes; the low nibble after an odd last element is the code of v = 0. Returns
// absmax.
struct lowbit_lut4_levels {
    float midpoint[15]; // between neighbours of the sorted codebook, ascending
    uint8_t code[16];   // of the sorted values; of equal ones the smallest
};
typedef float lowbit_lut4_quantize_ukernel(size_t n, const void *x,
                                           const struct lowbit_lut4_levels *levels,
                                           uint8_t *packed);

// scales: s_i = codebook[q_i] * nested + offset for i < n, the product and the sum each rounded to fp32.
// codebook has 256 values.
typedef void lowbit_lut4_scales_ukernel(size_t n, const uint8_t *q, const float *codebook,
                                        float nested, float offset, float *s);

// dequantize: y_i = w_{begin + i} for i < n, rounded half to even to y's type; a NaN becomes the
// positive quiet NaN. packed is the whole weight, s the scale of the block that holds begin, and
// those of the blocks after it.
struct lowbit_lut4_run {
    const uint8_t *packed;
    size_t begin, n;
    const float *codebook; // [16]
    const float *s;
    size_t blocksize;
};
typedef void lowbit_lut4_dequantize_ukernel(const struct lowbit_lut4_run *run, void *y);

// arrange: a row of x, k wide, in the order in which its gemm meets the elements of the weight: a
// permutation within every 128, of which each instruction set has its own. The row is padded with zeros
// to a multiple of that many.
//
// f32 gemms take floats, bf16 ones bfloat16. The argument type is that of x.
typedef void lowbit_lut4_arrange_ukernel(size_t k, const void *x, void *y);

// gemm: acc[m][n] = sum over k of x[m][k] * w[n][k] for m <= MR rows of x and n <= NR rows of the
// weight, in fp32. k is a multiple of blocksize, so that every row starts with a block; blocksize is at
// least the least that the table names. In bf16 gemms w is rounded to bf16 first and subnormal numbers
// count as zero. For m > 3 the sums of a row do not depend on m.
//
// x, arranged rows, 64-byte aligned, is laid out as the table's row says:
//   ROWS     row m starts x_stride bytes after row m - 1
//   TILES    blocks of 16 rows, x_stride bytes apart, put there by lowbit_dense_tiles__amx
// prefetch..+prefetch_size is memory that the next call will read: worth touching, never needed.
struct lowbit_lut4_gemm_args {
    size_t m, n, k;
    const void *x;
    size_t x_stride;
    const uint8_t *packed; // rows of k / 2 bytes
    const float *codebook; // [16]
    const float *s;        // row n's scales start at s + n * s_stride
    size_t s_stride;       //
    size_t blocksize;
    float *acc; // [m][acc_stride]
    size_t acc_stride;
    const uint8_t *prefetch;
    size_t prefetch_size;
};
typedef void lowbit_lut4_gemm_ukernel(const struct lowbit_lut4_gemm_args *args);

enum lowbit_lut4_x_layout { LOWBIT_LUT4_ROWS, LOWBIT_LUT4_TILES };

// The tables. A row names its kernel's function by the grammar
//   lowbit_lut4_<signature>_ukernel[_<type>][_<MR>x<NR>]__<isa>
// and ops, tests and benchmarks read the same rows.
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA)                                                       \
    lowbit_lut4_quantize_ukernel lowbit_lut4_quantize_ukernel_##type##__##isa;
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA)                                                     \
    lowbit_lut4_dequantize_ukernel lowbit_lut4_dequantize_ukernel_##type##__##isa;
#define LOWBIT_LUT4_SCALES(isa, ISA) lowbit_lut4_scales_ukernel lowbit_lut4_scales_ukernel__##isa;
#include "elementwise.inc"
#define LOWBIT_LUT4_ARRANGE(from, to, isa)                                                         \
    lowbit_lut4_arrange_ukernel lowbit_lut4_arrange_ukernel_##from##_##to##__##isa;
#define LOWBIT_LUT4_GEMM(type, mr, nr, isa, ISA, m_min, m_max, least_blocksize, arrange, x_layout, \
                         unless)                                                                   \
    lowbit_lut4_gemm_ukernel lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa;
#include "gemm.inc"

#ifdef __cplusplus
}
#endif

#endif
