// SPDX-License-Identifier: MIT
// What the lut4 micro-kernels of every instruction set share, and, included at the end of a file that
// defines quantize, dequantize and arrange as inline functions of the type, the functions that the
// tables name.
#ifndef LOWBIT_KERNELS_CPU_LUT4_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_LUT4_INSTANTIATE_H

#include "ukernels.h"
#include "../common/floats.h"

// 1 / absmax, or 0 where that would overflow.
LOWBIT_INLINE float lowbit_lut4_inverse(float absmax) {
    return absmax >= 0x1p-126f ? 1.0f / absmax : 0.0f;
}

// Element i of the weight of which the run is a part.
LOWBIT_INLINE float lowbit_lut4_element(const struct lowbit_lut4_run *run, size_t i) {
    const uint8_t byte = run->packed[i / 2];
    return run->codebook[i % 2 ? byte & 15 : byte >> 4] *
           run->s[i / run->blocksize - run->begin / run->blocksize];
}

#define LOWBIT_LUT4_INSTANTIATE(isa)                                                               \
    LOWBIT_LUT4_INSTANTIATE_TYPE(f32, isa)                                                         \
    LOWBIT_LUT4_INSTANTIATE_TYPE(f16, isa)                                                         \
    LOWBIT_LUT4_INSTANTIATE_TYPE(bf16, isa)

#define LOWBIT_LUT4_INSTANTIATE_TYPE(type, isa)                                                    \
    float lowbit_lut4_quantize_ukernel_##type##__##isa(                                            \
        size_t n, const void *x, const struct lowbit_lut4_levels *levels, uint8_t *packed) {       \
        return quantize(type, n, x, levels, packed);                                               \
    }                                                                                              \
    void lowbit_lut4_dequantize_ukernel_##type##__##isa(const struct lowbit_lut4_run *run,         \
                                                        void *y) {                                 \
        dequantize(type, run, y);                                                                  \
    }                                                                                              \
    void lowbit_lut4_arrange_ukernel_##type##_f32__##isa(size_t k, const void *x, void *y) {       \
        arrange(type, k, x, y);                                                                    \
    }

// The function of a table's row with MR = 8, from gemm(args, rows), an inline function of the rows of x.
#define LOWBIT_LUT4_GEMM_OF_8(row)                                                                 \
    void lowbit_lut4_gemm_ukernel_##row(const struct lowbit_lut4_gemm_args *a) {                   \
        switch (a->m) {                                                                            \
        case 1: gemm(a, 1); break;                                                                 \
        case 2: gemm(a, 2); break;                                                                 \
        case 3: gemm(a, 3); break;                                                                 \
        case 4: gemm(a, 4); break;                                                                 \
        case 5: gemm(a, 5); break;                                                                 \
        case 6: gemm(a, 6); break;                                                                 \
        case 7: gemm(a, 7); break;                                                                 \
        case 8: gemm(a, 8); break;                                                                 \
        }                                                                                          \
    }

#endif
