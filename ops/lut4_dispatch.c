// SPDX-License-Identifier: MIT

#include "lut4_dispatch.h"

#include "lowbit/cpu.h"

#include <stddef.h>

enum { f32 = LOWBIT_FLOAT32, f16 = LOWBIT_FLOAT16, bf16 = LOWBIT_BFLOAT16 };

// Which arrange functions a gemm of this type can use.
#define ARRANGE_f32(isa)                                                                           \
    {lowbit_lut4_arrange_ukernel_f32_f32__##isa, lowbit_lut4_arrange_ukernel_f16_f32__##isa,       \
     lowbit_lut4_arrange_ukernel_bf16_f32__##isa}
#define ARRANGE_bf16(isa) {NULL, NULL, lowbit_lut4_arrange_ukernel_bf16_bf16__##isa}

static const struct lowbit_lut4_gemm gemms[] = {
#define LOWBIT_LUT4_GEMM(type, mr, nr, isa, ISA, m_min, m_max, blocksize, arrange, x_layout,       \
                         unless)                                                                   \
    {#type "_" #mr "x" #nr "__" #isa,                                                              \
     (lowbit_dtype)type,                                                                           \
     ISA,                                                                                          \
     unless,                                                                                       \
     mr,                                                                                           \
     nr,                                                                                           \
     m_min,                                                                                        \
     m_max,                                                                                        \
     blocksize,                                                                                    \
     LOWBIT_LUT4_##x_layout,                                                                       \
     ARRANGE_##type(arrange),                                                                      \
     lowbit_lut4_gemm_ukernel_##type##_##mr##x##nr##__##isa},
#include "../kernels/cpu/lut4/gemm.inc"
};

const struct lowbit_lut4_gemm *lowbit_lut4_select_gemm(uint32_t isa, lowbit_dtype x, size_t m,
                                                       size_t k, size_t blocksize) {
    for (size_t i = 0; i < sizeof gemms / sizeof *gemms; i++) {
        const struct lowbit_lut4_gemm *gemm = &gemms[i];
        if (gemm->isa & isa && !(gemm->unless & isa) && gemm->arrange[x] && m >= gemm->m_min &&
            m <= gemm->m_max && blocksize >= gemm->least_blocksize && k % blocksize == 0)
            return gemm;
    }
    return NULL;
}

struct lowbit_lut4_ukernels lowbit_lut4_select_ukernels(uint32_t isa) {
    struct lowbit_lut4_ukernels k = {0};
#define CHOOSE(member, function, ISA)                                                              \
    if (!k.member && isa & ISA)                                                                    \
        k.member = function;
#define LOWBIT_LUT4_QUANTIZE(type, isa, ISA)                                                       \
    CHOOSE(quantize[type], lowbit_lut4_quantize_ukernel_##type##__##isa, ISA)
#define LOWBIT_LUT4_DEQUANTIZE(type, isa, ISA)                                                     \
    CHOOSE(dequantize[type], lowbit_lut4_dequantize_ukernel_##type##__##isa, ISA)
#define LOWBIT_LUT4_SCALES(isa, ISA) CHOOSE(scales, lowbit_lut4_scales_ukernel__##isa, ISA)
#include "../kernels/cpu/lut4/elementwise.inc"
    return k;
}
