# SPDX-License-Identifier: MIT
"""lowbit::int8_dequantize."""

import torch
from torch import Tensor

from lowbit.ops import _check


@torch.library.register_fake("lowbit::int8_dequantize")
def _(
    q: Tensor, absmax: Tensor, offset: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    op = "int8_dequantize"
    dtype = dtype or torch.float32
    _check.check_has_rows(op, "q", q)
    _check.check_dtype(op, "q", q.dtype, (torch.int8,))
    _check.check_scales(op, absmax, offset, q.shape[:-1], q.device)
    _check.check_dtype(op, "dtype", dtype, _check.FLOATS)
    return q.new_empty(q.shape, dtype=dtype)


_check.refuse_gradient("int8_dequantize", "scales are frozen; detach absmax and offset")
