# SPDX-License-Identifier: MIT
"""lowbit::blockwise_quantize."""

import torch
from torch import Tensor

from lowbit.ops import _check


@torch.library.register_fake("lowbit::blockwise_quantize")
def _(x: Tensor, codebook: Tensor, blocksize: int = 256) -> tuple[Tensor, Tensor]:
    op = "blockwise_quantize"
    _check.check_dtype(op, "x", x.dtype, _check.FLOATS)
    _check.check_codebook(op, codebook, 256, x.device)
    _check.check_blocksize(op, blocksize)
    blocks = _check.ceil_div(x.numel(), blocksize)
    return x.new_empty(x.shape, dtype=torch.uint8), x.new_empty(blocks, dtype=torch.float32)


_check.refuse_gradient(
    "blockwise_quantize", "rounding is constant almost everywhere; quantize a detached tensor"
)
