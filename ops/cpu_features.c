// SPDX-License-Identifier: MIT

#include "check.h"

#include "lowbit/cpu.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Linux hands the tile registers to processes that ask (arch_prctl ARCH_REQ_XCOMP_PERM for
// XFEATURE_XTILEDATA). The permission covers the threads started later and those that run now.
static bool amx_usable(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx))
        return false;
    const unsigned tile = 1u << 24, int8 = 1u << 25, bf16 = 1u << 22;
    if ((edx & (tile | int8 | bf16)) != (tile | int8 | bf16))
        return false;
#if defined(__linux__)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}
#endif

static uint32_t detect(void) {
    uint32_t isa = LOWBIT_ISA_SCALAR;
#if defined(__x86_64__)
    __builtin_cpu_init(); // checks the operating system's support as well as the processor's
    unsigned eax, ebx, ecx, edx;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __get_cpuid(1, &eax, &ebx, &ecx, &edx) && ecx & bit_F16C)
        isa |= LOWBIT_ISA_AVX2;
    if (isa & LOWBIT_ISA_AVX2 && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        isa |= LOWBIT_ISA_AVX512VNNI;
    if (isa & LOWBIT_ISA_AVX512VNNI && __builtin_cpu_supports("avx512bf16") &&
        __builtin_cpu_supports("avx512vbmi"))
        isa |= LOWBIT_ISA_AVX512BF16;
    if (isa & LOWBIT_ISA_AVX512BF16 && amx_usable())
        isa |= LOWBIT_ISA_AMX;
#endif
    return isa;
}

static const char *const names[] = {"scalar", "avx2", "avx512vnni", "avx512bf16", "amx"};
enum { LEVELS = 5 };

const char *lowbit_cpu_isa_name(uint32_t isa) {
    for (int i = 0; i < LEVELS; i++)
        if (isa == 1u << i)
            return names[i];
    return NULL;
}

// The level named and those below it; all for null; none for an unknown name.
static uint32_t up_to(const char *level) {
    if (!level)
        return (1u << LEVELS) - 1;
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(level, names[i]) == 0)
            return (2u << i) - 1;
    return 0;
}

enum { UNKNOWN = 1u << 31 };
static _Atomic uint32_t detected = UNKNOWN, cap = UNKNOWN;

uint32_t lowbit_cpu_isa(void) {
    uint32_t isa = atomic_load_explicit(&detected, memory_order_relaxed);
    if (isa == UNKNOWN) {
        isa = detect();
        atomic_store_explicit(&detected, isa, memory_order_relaxed);
    }
    uint32_t allowed = atomic_load_explicit(&cap, memory_order_relaxed);
    if (allowed == UNKNOWN) {
        uint32_t expected = UNKNOWN;
        allowed = up_to(getenv("LOWBIT_CPU_ISA"));
        if (!atomic_compare_exchange_strong(&cap, &expected, allowed))
            allowed = expected;
    }
    return isa & allowed;
}

lowbit_status lowbit_cpu_isa_cap(const char *level) {
    uint32_t allowed = up_to(level);
    if (!allowed)
        return lowbit_fail(
            LOWBIT_INVALID_ARGUMENT,
            "cpu_isa_cap: level is \"%s\", expected scalar, avx2, avx512vnni, avx512bf16 or amx",
            level);
    atomic_store_explicit(&cap, allowed, memory_order_relaxed);
    return LOWBIT_OK;
}
