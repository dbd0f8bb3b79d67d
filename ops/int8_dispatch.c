// SPDX-License-Identifier: MIT

#include "int8_dispatch.h"

#include "lowbit/cpu.h"
#include "lowbit/tensor.h"

#include <stddef.h>

#define lowbit_int8_pack_ukernel__none NULL

static const struct lowbit_int8_gemm gemms[] = {
#define LOWBIT_GEMM(mr, nr, isa, ISA, m_min, m_max, x_layout, pack, full_range)                    \
    {#mr "x" #nr "__" #isa,                                                                        \
     ISA,                                                                                          \
     mr,                                                                                           \
     nr,                                                                                           \
     m_min,                                                                                        \
     m_max,                                                                                        \
     LOWBIT_INT8_##x_layout,                                                                       \
     lowbit_int8_pack_ukernel__##pack,                                                             \
     full_range,                                                                                   \
     lowbit_int8_gemm_ukernel_##mr##x##nr##__##isa},
#include "../kernels/cpu/int8/gemm.inc"
};

const struct lowbit_int8_gemm *lowbit_int8_select_gemm(uint32_t isa, size_t m, bool full_range) {
    const struct lowbit_int8_gemm *gemm = gemms;
    while (!(gemm->isa & isa) || m < gemm->m_min || (gemm->m_max && m > gemm->m_max) ||
           (full_range && !gemm->full_range))
        gemm++; // the scalar row, the last, takes everything
    return gemm;
}

struct lowbit_int8_ukernels lowbit_int8_select_ukernels(uint32_t isa) {
    enum { f32 = LOWBIT_FLOAT32, f16 = LOWBIT_FLOAT16, bf16 = LOWBIT_BFLOAT16 };
    struct lowbit_int8_ukernels k = {0};
#define CHOOSE(member, function, ISA)                                                              \
    if (!k.member && isa & ISA)                                                                    \
        k.member = function;
#define LOWBIT_RANGE(type, isa, ISA)                                                               \
    CHOOSE(range[type], lowbit_int8_range_ukernel_##type##__##isa, ISA)
#define LOWBIT_CODES(type, isa, ISA)                                                               \
    CHOOSE(codes[type], lowbit_int8_codes_ukernel_##type##__##isa, ISA)
#define LOWBIT_DEQUANTIZE(type, isa, ISA)                                                          \
    CHOOSE(dequantize[type], lowbit_int8_dequantize_ukernel_##type##__##isa, ISA)
#define LOWBIT_EPILOGUE(type, isa, ISA)                                                            \
    CHOOSE(epilogue[type], lowbit_int8_epilogue_ukernel_##type##__##isa, ISA)
#define LOWBIT_PANEL(type, isa, ISA) CHOOSE(panel, lowbit_int8_panel_ukernel_##type##__##isa, ISA)
#define LOWBIT_FMA(type, isa, ISA) CHOOSE(fma, lowbit_int8_fma_ukernel_##type##__##isa, ISA)
#define LOWBIT_PAIRS(type, isa, ISA) CHOOSE(pairs, lowbit_int8_pairs_ukernel_##type##__##isa, ISA)
#define LOWBIT_SCALE(type, isa, ISA) CHOOSE(scale, lowbit_int8_scale_ukernel_##type##__##isa, ISA)
#include "../kernels/cpu/int8/elementwise.inc"
    return k;
}
