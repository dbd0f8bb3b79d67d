# SPDX-License-Identifier: MIT
"""lowbit::lut4_dequantize."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.ops import _check


@torch.library.register_fake("lowbit::lut4_dequantize")
def _(
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    shape: Sequence[int | torch.SymInt],
    dtype: torch.dtype | None = None,
    blocksize: int = 64,
    nested_absmax: Tensor | None = None,
    nested_codebook: Tensor | None = None,
    nested_offset: Tensor | None = None,
) -> Tensor:
    op = "lut4_dequantize"
    dtype = dtype or torch.float32
    for size in shape:
        torch._check(
            size >= 0,
            lambda: f"lowbit::{op}: shape is {list(shape)}, expected no negative size",
        )
    nested = (nested_absmax, nested_codebook, nested_offset)
    _check.check_lut4_weight(
        op, packed, absmax, codebook, blocksize, nested, math.prod(shape), packed.device
    )
    _check.check_dtype(op, "dtype", dtype, _check.FLOATS)
    return packed.new_empty(shape, dtype=dtype)


_check.refuse_gradient("lut4_dequantize", "scales are frozen; detach absmax and nested_absmax")
