// SPDX-License-Identifier: MIT
// Included before ops/cpu_features.c, makes it find every instruction set: for a library whose
// kernels are emulated.
#ifndef LOWBIT_TESTS_EMULATION_ALL_ISAS_H
#define LOWBIT_TESTS_EMULATION_ALL_ISAS_H

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#undef __builtin_cpu_supports
#define __builtin_cpu_supports(feature) (feature[0] != 0)

#define __get_cpuid_count(leaf, subleaf, a, b, c, d) (*(a) = *(b) = *(c) = *(d) = ~0u)

#define syscall(...) 0

#endif
