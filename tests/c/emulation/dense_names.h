// SPDX-License-Identifier: MIT
// Gives the dense micro-kernels other names in the object file, so that emulated copies link beside
// the real ones: emulated_lowbit_dense_... Included before a kernel's own source.
#ifndef LOWBIT_TESTS_EMULATION_DENSE_NAMES_H
#define LOWBIT_TESTS_EMULATION_DENSE_NAMES_H

#include "../../../kernels/cpu/dense/ukernels.h"

#define RENAME(signature, function)                                                                \
    lowbit_dense_##signature##_ukernel function __asm__("emulated_" #function);
#define LOWBIT_LOAD(type, isa, ISA) RENAME(load, lowbit_dense_load_ukernel_##type##__##isa)
#define LOWBIT_STORE(type, isa, ISA) RENAME(store, lowbit_dense_store_ukernel_##type##__##isa)
#define LOWBIT_TRANSPOSE(isa, ISA) RENAME(transpose, lowbit_dense_transpose_ukernel__##isa)
#define LOWBIT_INTERLEAVE(isa, ISA) RENAME(interleave, lowbit_dense_interleave_ukernel__##isa)
#include "../../../kernels/cpu/dense/elementwise.inc"

#define LOWBIT_GEMM(type, mr, nr, isa, ISA)                                                        \
    RENAME(gemm, lowbit_dense_gemm_ukernel_##type##_##mr##x##nr##__##isa)
#include "../../../kernels/cpu/dense/gemm.inc"

void lowbit_dense_tiles__amx(size_t m, size_t bytes, const void *x, size_t x_stride,
                             void *tiles) __asm__("emulated_lowbit_dense_tiles__amx");

#undef RENAME

#endif
