// SPDX-License-Identifier: MIT

#include "dense_dispatch.h"

#include "lowbit/cpu.h"

enum { f32 = LOWBIT_FLOAT32, f16 = LOWBIT_FLOAT16, bf16 = LOWBIT_BFLOAT16 };

static const struct lowbit_dense_gemm gemms[] = {
#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    {#type "_" #mr "x" #nr "__" #isa,                                                              \
     ISA,                                                                                          \
     (lowbit_dtype)type,                                                                           \
     mr,                                                                                           \
     nr,                                                                                           \
     lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa},
#include "../kernels/cpu/dense/gemm.inc"
};

const struct lowbit_dense_gemm *lowbit_dense_select_gemm(uint32_t isa, lowbit_dtype type) {
    for (size_t i = 0; i < sizeof gemms / sizeof *gemms; i++)
        if (gemms[i].isa & isa && gemms[i].type == type)
            return &gemms[i];
    return NULL;
}

struct lowbit_dense_ukernels lowbit_dense_select_ukernels(uint32_t isa) {
    struct lowbit_dense_ukernels k = {0};
#define CHOOSE(member, function, ISA)                                                              \
    if (!k.member && isa & ISA)                                                                    \
        k.member = function;
#define LOWBIT_LOAD(type, isa, ISA)                                                                \
    CHOOSE(load[type], lowbit_dense_load_ukernel_##type##__##isa, ISA)
#define LOWBIT_STORE(type, isa, ISA)                                                               \
    CHOOSE(store[type], lowbit_dense_store_ukernel_##type##__##isa, ISA)
#define LOWBIT_TRANSPOSE(isa, ISA) CHOOSE(transpose, lowbit_dense_transpose_ukernel__##isa, ISA)
#define LOWBIT_INTERLEAVE(isa, ISA) CHOOSE(interleave, lowbit_dense_interleave_ukernel__##isa, ISA)
#include "../kernels/cpu/dense/elementwise.inc"
    return k;
}
