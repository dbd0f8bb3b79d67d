// SPDX-License-Identifier: MIT
// Which instruction sets this machine runs, and which of them lowbit may use.
#ifndef LOWBIT_CPU_H
#define LOWBIT_CPU_H

#include "lowbit/status.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Levels, each including those below it. avx2: AVX2, FMA, F16C. avx512vnni: AVX-512 F, BW, DQ, VL
// and VNNI. avx512bf16: AVX-512 BF16 and VBMI. amx: the tile instructions for int8 and bf16,
// enabled for this process.
enum {
    LOWBIT_ISA_SCALAR = 1 << 0,
    LOWBIT_ISA_AVX2 = 1 << 1,
    LOWBIT_ISA_AVX512VNNI = 1 << 2,
    LOWBIT_ISA_AVX512BF16 = 1 << 3,
    LOWBIT_ISA_AMX = 1 << 4,
};

// The levels that the operators choose from: what the machine and its operating system support,
// capped by the environment variable LOWBIT_CPU_ISA (read once) or by lowbit_cpu_isa_cap. Zero when
// LOWBIT_CPU_ISA holds a word that is none of scalar, avx2, avx512vnni, avx512bf16, amx: every
// operator then fails and says so.
LOWBIT_API uint32_t lowbit_cpu_isa(void);

// Caps the level for the whole process from now on, as LOWBIT_CPU_ISA does; null lifts any cap. For
// tests and measurements: all but lut4_linear and, for bfloat16, the gradients give the same bits
// at every level.
LOWBIT_API lowbit_status lowbit_cpu_isa_cap(const char *level);

// "scalar", "avx2", ... for one LOWBIT_ISA_ bit; null for anything else.
LOWBIT_API const char *lowbit_cpu_isa_name(uint32_t isa);

#ifdef __cplusplus
}
#endif

#endif
