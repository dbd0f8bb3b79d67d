// SPDX-License-Identifier: MIT
// The whole C library: low-bit linear algebra without torch, threads or allocation of its own.
#ifndef LOWBIT_LOWBIT_H
#define LOWBIT_LOWBIT_H

#include "lowbit/adam8bit_step.h"
#include "lowbit/blockwise_dequantize.h"
#include "lowbit/blockwise_quantize.h"
#include "lowbit/cpu.h"
#include "lowbit/executor.h"
#include "lowbit/int8_dequantize.h"
#include "lowbit/int8_linear.h"
#include "lowbit/int8_linear_grad_input.h"
#include "lowbit/int8_matmul.h"
#include "lowbit/int8_quantize.h"
#include "lowbit/lut4_dequantize.h"
#include "lowbit/lut4_linear.h"
#include "lowbit/lut4_linear_grad_input.h"
#include "lowbit/lut4_quantize.h"
#include "lowbit/lut4_weight.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#endif
