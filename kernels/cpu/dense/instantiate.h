// SPDX-License-Identifier: MIT
// The rows of elementwise.inc that come in every float type, for one instruction set: included at the
// end of a file that defines load and store as inline functions of the type, LOWBIT_INSTANTIATE(avx2)
// makes the functions that the table names.
#ifndef LOWBIT_KERNELS_CPU_DENSE_INSTANTIATE_H
#define LOWBIT_KERNELS_CPU_DENSE_INSTANTIATE_H

#define LOWBIT_INSTANTIATE(isa)                                                                    \
    LOWBIT_INSTANTIATE_TYPE(f32, isa)                                                              \
    LOWBIT_INSTANTIATE_TYPE(f16, isa)                                                              \
    LOWBIT_INSTANTIATE_TYPE(bf16, isa)

#define LOWBIT_INSTANTIATE_TYPE(type, isa)                                                         \
    void lowbit_dense_load_ukernel_##type##__##isa(size_t k, const void *x, float *y) {            \
        load(type, k, x, y);                                                                       \
    }                                                                                              \
    void lowbit_dense_store_ukernel_##type##__##isa(size_t k, const float *x, float base,          \
                                                    void *y) {                                     \
        store(type, k, x, base, y);                                                                \
    }

#endif
