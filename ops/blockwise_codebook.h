// SPDX-License-Identifier: MIT
// Codebooks of 256 values, for the operators that encode with them.
#ifndef LOWBIT_OPS_BLOCKWISE_CODEBOOK_H
#define LOWBIT_OPS_BLOCKWISE_CODEBOOK_H

#include "lowbit/executor.h"
#include "lowbit/status.h"
#include "lowbit/tensor.h"

#include "../kernels/cpu/blockwise/ukernels.h"

#ifdef __cplusplus
extern "C" {
#endif

// The codebook is float32 [256], its values finite and ascending, which are only looked at on the
// CPU. op and name are for the message.
lowbit_status lowbit_check_codebook256(const char *op, const char *name,
                                       const lowbit_tensor *codebook,
                                       const lowbit_executor *executor);

// Fills encoder for such values. In the default floating-point environment: call it in a task.
void lowbit_blockwise_encoder_init(const float *codebook, struct lowbit_blockwise_encoder *encoder);

// Fills decoder for any 256 values.
void lowbit_blockwise_decoder_init(const float *codebook, struct lowbit_blockwise_decoder *decoder);

#ifdef __cplusplus
}
#endif

#endif
