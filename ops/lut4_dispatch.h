// SPDX-License-Identifier: MIT
// Choosing micro-kernels of the lut4 family. A choice is a pure function of its arguments.
#ifndef LOWBIT_OPS_LUT4_DISPATCH_H
#define LOWBIT_OPS_LUT4_DISPATCH_H

#include "lowbit/tensor.h"

#include "../kernels/cpu/lut4/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// A row of kernels/cpu/lut4/gemm.inc.
struct lowbit_lut4_gemm {
    const char *name;  // "f32_8x16__avx2"
    lowbit_dtype type; // of arranged x
    uint32_t isa, unless;
    size_t mr, nr;
    size_t m_min, m_max;
    size_t least_blocksize;
    enum lowbit_lut4_x_layout x_layout;
    lowbit_lut4_arrange_ukernel *arrange[3]; // by x's dtype; null where it takes another
    lowbit_lut4_gemm_ukernel *run;
};

// The best gemm for m rows of x, k wide, among the instruction sets in isa, a mask of LOWBIT_ISA_
// bits; null when the weight has to be dequantized in panels.
const struct lowbit_lut4_gemm *lowbit_lut4_select_gemm(uint32_t isa, lowbit_dtype x, size_t m,
                                                       size_t k, size_t blocksize);

// The best of the other micro-kernels, those for each float type indexed by lowbit_dtype.
struct lowbit_lut4_ukernels {
    lowbit_lut4_quantize_ukernel *quantize[3];
    lowbit_lut4_dequantize_ukernel *dequantize[3];
    lowbit_lut4_scales_ukernel *scales;
};
struct lowbit_lut4_ukernels lowbit_lut4_select_ukernels(uint32_t isa);

#ifdef __cplusplus
}
#endif

#endif
