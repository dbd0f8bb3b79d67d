# SPDX-License-Identifier: MIT
"""lowbit::lut4_quantize."""

import torch
from torch import Tensor

from lowbit.ops import _check


@torch.library.register_fake("lowbit::lut4_quantize")
def _(weight: Tensor, codebook: Tensor, blocksize: int = 64) -> tuple[Tensor, Tensor]:
    op = "lut4_quantize"
    _check.check_dtype(op, "weight", weight.dtype, _check.FLOATS)
    _check.check_blocksize(op, blocksize)
    _check.check_codebook(op, codebook, 16, weight.device)
    if weight.dim() == 2 and weight.shape[1] % blocksize == 0:
        n, k = weight.shape
        packed, absmax = (n, k // 2), (n, k // blocksize)
    else:
        count = weight.numel()
        packed, absmax = (_check.ceil_div(count, 2),), (_check.ceil_div(count, blocksize),)
    return (
        weight.new_empty(packed, dtype=torch.uint8),
        weight.new_empty(absmax, dtype=torch.float32),
    )


_check.refuse_gradient(
    "lut4_quantize", "rounding is constant almost everywhere; quantize a detached tensor"
)
