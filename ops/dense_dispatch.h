// SPDX-License-Identifier: MIT
// Choosing micro-kernels of the dense family. A choice is a pure function of its arguments.
#ifndef LOWBIT_OPS_DENSE_DISPATCH_H
#define LOWBIT_OPS_DENSE_DISPATCH_H

#include "lowbit/tensor.h"

#include "../kernels/cpu/dense/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// A row of kernels/cpu/dense/gemm.inc.
struct lowbit_dense_gemm {
    const char *name; // "f32_6x16__avx2"
    uint32_t isa;
    lowbit_dtype type;
    size_t mr, nr;
    lowbit_dense_gemm_ukernel *run;
};

// The best gemm for this type, LOWBIT_FLOAT32 or LOWBIT_BFLOAT16, among the instruction sets in
// isa, a mask of LOWBIT_ISA_ bits that holds LOWBIT_ISA_SCALAR; null for bfloat16 where none of
// them multiplies bf16 numbers.
const struct lowbit_dense_gemm *lowbit_dense_select_gemm(uint32_t isa, lowbit_dtype type);

// The best of the other micro-kernels; those for each float type are indexed by lowbit_dtype.
struct lowbit_dense_ukernels {
    lowbit_dense_load_ukernel *load[3];
    lowbit_dense_store_ukernel *store[3];
    lowbit_dense_transpose_ukernel *transpose;
    lowbit_dense_interleave_ukernel *interleave;
};
struct lowbit_dense_ukernels lowbit_dense_select_ukernels(uint32_t isa);

#ifdef __cplusplus
}
#endif

#endif
