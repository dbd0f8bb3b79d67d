// SPDX-License-Identifier: MIT

#include "adam8bit_dispatch.h"

#include "lowbit/cpu.h"
#include "lowbit/tensor.h"

struct lowbit_adam8bit_ukernels lowbit_adam8bit_select_ukernels(uint32_t isa) {
    enum { f32 = LOWBIT_FLOAT32, f16 = LOWBIT_FLOAT16, bf16 = LOWBIT_BFLOAT16 };
    struct lowbit_adam8bit_ukernels k = {0};
#define LOWBIT_ADAM8BIT(param, grad, isa_name, ISA)                                                \
    if (!k.step[param][grad] && isa & ISA)                                                         \
        k.step[param][grad] = lowbit_adam8bit_ukernel_##param##_##grad##__##isa_name;
#include "../kernels/cpu/adam8bit/adam8bit.inc"
    return k;
}
