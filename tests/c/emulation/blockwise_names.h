// SPDX-License-Identifier: MIT
// Gives the blockwise micro-kernels other names in the object file, as int8_names.h does for int8.
#ifndef LOWBIT_TESTS_EMULATION_BLOCKWISE_NAMES_H
#define LOWBIT_TESTS_EMULATION_BLOCKWISE_NAMES_H

#include "../../../kernels/cpu/blockwise/ukernels.h"

#define RENAME(signature, function)                                                                \
    lowbit_blockwise_##signature##_ukernel function __asm__("emulated_" #function);
#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA)                                                  \
    RENAME(quantize, lowbit_blockwise_quantize_ukernel_##type##__##isa)
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA)                                                \
    RENAME(dequantize, lowbit_blockwise_dequantize_ukernel_##type##__##isa)
#include "../../../kernels/cpu/blockwise/blockwise.inc"
#undef RENAME

#endif
