// SPDX-License-Identifier: MIT
// The micro-kernels of the dense family: products of float matrices, and what stands around them.
// The other families use them for weights that they have dequantized.
//
// A micro-kernel trusts its caller: sizes and pointers are valid, pointers do not overlap unless
// said, and the floating-point environment is the default one (round to nearest, no flush to zero).
// None reads outside the elements it is given. For one signature every instruction set produces the
// same bits, unless said; the scalar one is the specification. (Which NaN a sum holds is left open:
// every NaN is stored as the same one in the end.)
#ifndef LOWBIT_KERNELS_CPU_DENSE_UKERNELS_H
#define LOWBIT_KERNELS_CPU_DENSE_UKERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// load: y_k = x_k as fp32, which is exact.
typedef void lowbit_dense_load_ukernel(size_t k, const void *x, float *y);

// store: y_k = x_k + base, rounded half to even; NaN becomes the positive quiet NaN.
typedef void lowbit_dense_store_ukernel(size_t k, const float *x, float base, void *y);

// transpose: to[j * to_stride + i] = from[i * from_stride + j] for i < rows and j < cols.
typedef void lowbit_dense_transpose_ukernel(size_t rows, size_t cols, const uint32_t *from,
                                            size_t from_stride, uint32_t *to, size_t to_stride);

// interleave: panel[k] has first[k] in its lower and second[k] in its upper half. second null: a
// row of zeros.
typedef void lowbit_dense_interleave_ukernel(size_t k, const uint16_t *first,
                                             const uint16_t *second, uint32_t *panel);

// gemm: adds products of rows of x with the rows of a panel, for m <= MR rows and c columns.
//
// f32:   p = +0, then p = fma(x[m][r], panel[r][c], p), r ascending
//        sum[m][c] = start[m][c] + p
// bf16:  sum[m][c] = start[m][c] + sum over r of x[m][r] * w[r][c] in fp32, by the processor's
//        instruction for it and in the order that suits it: results differ in the last bits from
//        one instruction set to the next. panel[i][c] has w[2 * i][c] in its lower and
//        w[2 * i + 1][c] in its upper half; r is a multiple of 32.
//
// Rows of the panel and of sum are stride elements apart, a multiple of 64. As many of their
// columns may be read, and those of sum written, as c rounded up to a multiple of 64; in the same
// way rows of x, start and sum, as m rounded up to a multiple of 16. start may be sum itself; with
// a start_stride of 0 it is the same for every row.
struct lowbit_dense_gemm_args {
    size_t m, c, r;
    const void *x; // f32: float, bf16: uint16_t
    size_t x_stride;
    const void *panel; // f32: float [r][stride], bf16: uint32_t [r / 2][stride]
    const float *start;
    size_t start_stride;
    float *sum;
    size_t stride;
};
typedef void lowbit_dense_gemm_ukernel(const struct lowbit_dense_gemm_args *args);

// Puts m <= 16 rows of x, `bytes` wide (a multiple of 64) and x_stride bytes apart, 64-byte aligned,
// into a block of tiles, missing rows zero: byte b of row i goes to
// b / 64 * 1024 + b % 64 / 4 * 64 + i * 4 + b % 4.
void lowbit_dense_tiles__amx(size_t m, size_t bytes, const void *x, size_t x_stride, void *tiles);

// The tables. A row names its kernel's function by the grammar
//   lowbit_dense_<signature>_ukernel[_<type>][_<MR>x<NR>]__<isa>
// and ops, tests and benchmarks read the same rows.
#define LOWBIT_LOAD(type, isa, ISA)                                                                \
    lowbit_dense_load_ukernel lowbit_dense_load_ukernel_##type##__##isa;
#define LOWBIT_STORE(type, isa, ISA)                                                               \
    lowbit_dense_store_ukernel lowbit_dense_store_ukernel_##type##__##isa;
#define LOWBIT_TRANSPOSE(isa, ISA)                                                                 \
    lowbit_dense_transpose_ukernel lowbit_dense_transpose_ukernel__##isa;
#define LOWBIT_INTERLEAVE(isa, ISA)                                                                \
    lowbit_dense_interleave_ukernel lowbit_dense_interleave_ukernel__##isa;
#include "elementwise.inc"
#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    lowbit_dense_gemm_ukernel lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa;
#include "gemm.inc"

#ifdef __cplusplus
}
#endif

#endif
