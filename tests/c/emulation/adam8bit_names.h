// SPDX-License-Identifier: MIT
// Gives the micro-kernels of 8-bit Adam other names in the object file, as int8_names.h does for int8.
#ifndef LOWBIT_TESTS_EMULATION_ADAM8BIT_NAMES_H
#define LOWBIT_TESTS_EMULATION_ADAM8BIT_NAMES_H

#include "../../../kernels/cpu/adam8bit/ukernels.h"

#define LOWBIT_ADAM8BIT(param, grad, isa, ISA)                                                     \
    lowbit_adam8bit_ukernel lowbit_adam8bit_ukernel_##param##_##grad##__##isa __asm__(             \
        "emulated_lowbit_adam8bit_ukernel_" #param "_" #grad "__" #isa);
#include "../../../kernels/cpu/adam8bit/adam8bit.inc"

#endif
