// SPDX-License-Identifier: MIT
// Gives the lut4 micro-kernels other names in the object file, as int8_names.h does for int8.
#ifndef LOWBIT_TESTS_EMULATION_LUT4_NAMES_H
#define LOWBIT_TESTS_EMULATION_LUT4_NAMES_H

#include "../../../kernels/cpu/lut4/ukernels.h"

#define RENAME(signature, function)                                                                \
    lowbit_lut4_##signature##_ukernel function __asm__("emulated_" #function);
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA)                                                       \
    RENAME(quantize, lowbit_lut4_quantize_ukernel_##type##__##isa)
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA)                                                     \
    RENAME(dequantize, lowbit_lut4_dequantize_ukernel_##type##__##isa)
#define LOWBIT_LUT4_SCALES(isa, ISA) RENAME(scales, lowbit_lut4_scales_ukernel__##isa)
#include "../../../kernels/cpu/lut4/elementwise.inc"

#define LOWBIT_LUT4_ARRANGE(from, to, isa)                                                         \
    RENAME(arrange, lowbit_lut4_arrange_ukernel_##from##_##to##__##isa)
#define LOWBIT_LUT4_GEMM(type, mr, nr, isa, ISA, m_min, m_max, blocksize, arrange, x_layout,       \
                         unless)                                                                   \
    RENAME(gemm, lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa)
#include "../../../kernels/cpu/lut4/gemm.inc"
#undef RENAME

#endif
