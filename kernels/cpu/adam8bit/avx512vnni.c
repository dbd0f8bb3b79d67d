// SPDX-License-Identifier: MIT
// 8-bit Adam for AVX-512 F, BW, DQ and VL.

#include "avx512.h"

LOWBIT_INSTANTIATE(avx512vnni)
