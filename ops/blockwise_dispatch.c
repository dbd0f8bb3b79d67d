// SPDX-License-Identifier: MIT

#include "blockwise_dispatch.h"

#include "lowbit/cpu.h"
#include "lowbit/tensor.h"

struct lowbit_blockwise_ukernels lowbit_blockwise_select_ukernels(uint32_t isa) {
    enum { f32 = LOWBIT_FLOAT32, f16 = LOWBIT_FLOAT16, bf16 = LOWBIT_BFLOAT16 };
    struct lowbit_blockwise_ukernels k = {0};
#define CHOOSE(member, function, ISA)                                                              \
    if (!k.member && isa & ISA)                                                                    \
        k.member = function;
#define LOWBIT_BLOCKWISE_QUANTIZE(type, isa, ISA)                                                  \
    CHOOSE(quantize[type], lowbit_blockwise_quantize_ukernel_##type##__##isa, ISA)
#define LOWBIT_BLOCKWISE_DEQUANTIZE(type, isa, ISA)                                                \
    CHOOSE(dequantize[type], lowbit_blockwise_dequantize_ukernel_##type##__##isa, ISA)
#include "../kernels/cpu/blockwise/blockwise.inc"
    return k;
}
