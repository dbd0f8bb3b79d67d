// SPDX-License-Identifier: MIT
// Choosing micro-kernels of the int8 family. A choice is a pure function of its arguments.
#ifndef LOWBIT_OPS_INT8_DISPATCH_H
#define LOWBIT_OPS_INT8_DISPATCH_H

#include "../kernels/cpu/int8/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// A row of kernels/cpu/int8/gemm.inc.
struct lowbit_int8_gemm {
    const char *name; // "6x64__avx512vnni"
    uint32_t isa;
    size_t mr, nr;
    size_t m_min, m_max; // m_max 0: no limit
    enum lowbit_int8_x_layout x_layout;
    lowbit_int8_pack_ukernel *pack; // null: the weight is read in place
    bool full_range;
    lowbit_int8_gemm_ukernel *run;
};

// The best gemm for m rows of x among the instruction sets in isa, a mask of LOWBIT_ISA_ bits that
// holds LOWBIT_ISA_SCALAR; with full_range, one whose x may hold -128.
const struct lowbit_int8_gemm *lowbit_int8_select_gemm(uint32_t isa, size_t m, bool full_range);

// The best of the other micro-kernels; those for each float type are indexed by lowbit_dtype.
struct lowbit_int8_ukernels {
    lowbit_int8_range_ukernel *range[3];
    lowbit_int8_codes_ukernel *codes[3];
    lowbit_int8_dequantize_ukernel *dequantize[3];
    lowbit_int8_epilogue_ukernel *epilogue[3];
    lowbit_int8_panel_ukernel *panel;
    lowbit_int8_fma_ukernel *fma;
    lowbit_int8_pairs_ukernel *pairs; // null, and scale too, where no processor multiplies bf16
    lowbit_int8_scale_ukernel *scale;
};
struct lowbit_int8_ukernels lowbit_int8_select_ukernels(uint32_t isa);

#ifdef __cplusplus
}
#endif

#endif
