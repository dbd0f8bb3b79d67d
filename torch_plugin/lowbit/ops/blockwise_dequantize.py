# SPDX-License-Identifier: MIT
"""lowbit::blockwise_dequantize."""

import torch
from torch import Tensor

from lowbit.ops import _check


@torch.library.register_fake("lowbit::blockwise_dequantize")
def _(
    q: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    dtype: torch.dtype | None = None,
    blocksize: int = 256,
) -> Tensor:
    op = "blockwise_dequantize"
    dtype = dtype or torch.float32
    _check.check_dtype(op, "q", q.dtype, (torch.uint8,))
    _check.check_blocksize(op, blocksize)
    _check.check_dtype(op, "absmax", absmax.dtype, (torch.float32,))
    _check.check_shape(op, "absmax", absmax, (_check.ceil_div(q.numel(), blocksize),))
    _check.check_contiguous(op, "absmax", absmax)
    _check.check_device(op, "absmax", absmax, q.device)
    _check.check_codebook(op, codebook, 256, q.device)
    _check.check_dtype(op, "dtype", dtype, _check.FLOATS)
    return q.new_empty(q.shape, dtype=dtype)


_check.refuse_gradient(
    "blockwise_dequantize", "scales and codebook are frozen; detach absmax and codebook"
)
