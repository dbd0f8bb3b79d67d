// SPDX-License-Identifier: MIT
// The rows of elementwise.inc that come in every float type, for one instruction set: included at the
// end of a file that defines range, codes, dequantize and epilogue as inline functions of the
// type, LOWBIT_INSTANTIATE(avx2) makes the functions that the table names.
#ifndef LOWBIT_KERNELS_CPU_INT8_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_INT8_INSTANTIATE_H

#define LOWBIT_INSTANTIATE(isa)                                                                    \
    LOWBIT_INSTANTIATE_TYPE(f32, isa)                                                              \
    LOWBIT_INSTANTIATE_TYPE(f16, isa)                                                              \
    LOWBIT_INSTANTIATE_TYPE(bf16, isa)

#define LOWBIT_INSTANTIATE_TYPE(type, isa)                                                         \
    void lowbit_int8_range_ukernel_##type##__##isa(size_t k, const void *x, float t,               \
                                                   uint64_t *mask, struct lowbit_int8_range *r) {  \
        range(type, k, x, t, mask, r);                                                             \
    }                                                                                              \
    int32_t lowbit_int8_codes_ukernel_##type##__##isa(size_t k, const void *x, float t,            \
                                                      float center, float inv, int8_t *q) {        \
        return codes(type, k, x, t, center, inv, q);                                               \
    }                                                                                              \
    void lowbit_int8_dequantize_ukernel_##type##__##isa(size_t k, const int8_t *q, float s,        \
                                                        const float *offset, void *y) {            \
        dequantize(type, k, q, s, offset, y);                                                      \
    }                                                                                              \
    void lowbit_int8_epilogue_ukernel_##type##__##isa(                                             \
        const struct lowbit_int8_epilogue_args *args) {                                            \
        epilogue(type, args);                                                                      \
    }

#endif
