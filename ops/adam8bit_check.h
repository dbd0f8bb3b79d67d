// SPDX-License-Identifier: MIT
// Checking the arguments of 8-bit Adam.
#ifndef LOWBIT_OPS_ADAM8BIT_CHECK_H
#define LOWBIT_OPS_ADAM8BIT_CHECK_H

#include "lowbit/adam8bit_step.h"

// All of them; on a GPU neither step, lr, grad_scale and found_inf nor the values of codebooks.
lowbit_status lowbit_adam8bit_check(const lowbit_adam8bit_step_args *args,
                                    const lowbit_executor *executor);

#endif
