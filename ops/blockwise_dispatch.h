// SPDX-License-Identifier: MIT
// Choosing micro-kernels of the blockwise family: a pure function of the instruction sets.
#ifndef LOWBIT_OPS_BLOCKWISE_DISPATCH_H
#define LOWBIT_OPS_BLOCKWISE_DISPATCH_H

#include "../kernels/cpu/blockwise/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// The best micro-kernels among the instruction sets in isa, a mask of LOWBIT_ISA_ bits that holds
// LOWBIT_ISA_SCALAR; indexed by lowbit_dtype.
struct lowbit_blockwise_ukernels {
    lowbit_blockwise_quantize_ukernel *quantize[3];
    lowbit_blockwise_dequantize_ukernel *dequantize[3];
};
struct lowbit_blockwise_ukernels lowbit_blockwise_select_ukernels(uint32_t isa);

#ifdef __cplusplus
}
#endif

#endif
