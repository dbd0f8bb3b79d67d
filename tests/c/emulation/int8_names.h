// SPDX-License-Identifier: MIT
// Gives the int8 micro-kernels other names in the object file, so that emulated copies link beside
// the real ones: emulated_lowbit_int8_... Included before a kernel's own source.
#ifndef LOWBIT_TESTS_EMULATION_INT8_NAMES_H
#define LOWBIT_TESTS_EMULATION_INT8_NAMES_H

#include "../../../kernels/cpu/int8/ukernels.h"

#define RENAME(signature, function)                                                                \
    lowbit_int8_##signature##_ukernel function __asm__("emulated_" #function);
#define LOWBIT_RANGE(type, isa, ISA) RENAME(range, lowbit_int8_range_ukernel_##type##__##isa)
#define LOWBIT_CODES(type, isa, ISA) RENAME(codes, lowbit_int8_codes_ukernel_##type##__##isa)
#define LOWBIT_DEQUANTIZE(type, isa, ISA)                                                          \
    RENAME(dequantize, lowbit_int8_dequantize_ukernel_##type##__##isa)
#define LOWBIT_EPILOGUE(type, isa, ISA)                                                            \
    RENAME(epilogue, lowbit_int8_epilogue_ukernel_##type##__##isa)
#define LOWBIT_PANEL(type, isa, ISA) RENAME(panel, lowbit_int8_panel_ukernel_##type##__##isa)
#define LOWBIT_FMA(type, isa, ISA) RENAME(fma, lowbit_int8_fma_ukernel_##type##__##isa)
#define LOWBIT_PAIRS(type, isa, ISA) RENAME(pairs, lowbit_int8_pairs_ukernel_##type##__##isa)
#define LOWBIT_SCALE(type, isa, ISA) RENAME(scale, lowbit_int8_scale_ukernel_##type##__##isa)
#include "../../../kernels/cpu/int8/elementwise.inc"

#define LOWBIT_PACK(isa) RENAME(pack, lowbit_int8_pack_ukernel__##isa)
#define LOWBIT_GEMM(mr, nr, isa, ISA, m_min, m_max, x_layout, pack, full_range)                    \
    RENAME(gemm, lowbit_int8_gemm_ukernel_##mr##x##nr##__##isa)
#include "../../../kernels/cpu/int8/gemm.inc"

#undef RENAME

#endif
