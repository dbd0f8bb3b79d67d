# SPDX-License-Identifier: MIT
"""Shapes and gradients of torch.ops.lowbit.*, for torch.compile, torch.export and autograd.

Each operator's code is in the compiled library, its meaning in ops/include/lowbit/<operator>.h.
Here stand its fake kernel, which repeats every check that needs no data, and its gradient.
"""

from lowbit.ops import (
    adam8bit_step,
    blockwise_dequantize,
    blockwise_quantize,
    int8_dequantize,
    int8_linear,
    int8_matmul,
    int8_quantize,
    lut4_dequantize,
    lut4_linear,
    lut4_quantize,
)

__all__ = [
    "adam8bit_step",
    "blockwise_dequantize",
    "blockwise_quantize",
    "int8_dequantize",
    "int8_linear",
    "int8_matmul",
    "int8_quantize",
    "lut4_dequantize",
    "lut4_linear",
    "lut4_quantize",
]
