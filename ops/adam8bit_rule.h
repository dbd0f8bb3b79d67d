// SPDX-License-Identifier: MIT
// What the micro-kernels of 8-bit Adam need to know of a call.
#ifndef LOWBIT_OPS_ADAM8BIT_RULE_H
#define LOWBIT_OPS_ADAM8BIT_RULE_H

#include "lowbit/adam8bit_step.h"

#include "../kernels/cpu/adam8bit/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// From valid arguments. In the default floating-point environment: call it in a task.
void lowbit_adam8bit_rule_init(const lowbit_adam8bit_step_args *args,
                               struct lowbit_adam8bit_rule *rule);

#ifdef __cplusplus
}
#endif

#endif
