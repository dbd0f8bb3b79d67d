// SPDX-License-Identifier: MIT
// Choosing micro-kernels of 8-bit Adam: a pure function of the instruction sets.
#ifndef LOWBIT_OPS_ADAM8BIT_DISPATCH_H
#define LOWBIT_OPS_ADAM8BIT_DISPATCH_H

#include "../kernels/cpu/adam8bit/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// The best micro-kernels among the instruction sets in isa, a mask of LOWBIT_ISA_ bits that holds
// LOWBIT_ISA_SCALAR; indexed by the lowbit_dtype of the parameter and of the gradient.
struct lowbit_adam8bit_ukernels {
    lowbit_adam8bit_ukernel *step[3][3];
};
struct lowbit_adam8bit_ukernels lowbit_adam8bit_select_ukernels(uint32_t isa);

#ifdef __cplusplus
}
#endif

#endif
