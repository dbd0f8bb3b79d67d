// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX-512 F, BW, DQ, VL and VBMI.

#define LOWBIT_VBMI
#include "avx512.h"

LOWBIT_INSTANTIATE(avx512bf16)
