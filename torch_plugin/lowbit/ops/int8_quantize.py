# SPDX-License-Identifier: MIT
"""lowbit::int8_quantize, lowbit::int8_requantize_ and lowbit::int8_quantize_offset."""

import torch
from torch import Tensor

from lowbit.ops import _check

_WHY = "rounding is constant almost everywhere; quantize a detached tensor"


@torch.library.register_fake("lowbit::int8_quantize")
def _(
    x: Tensor, threshold: float = 0.0, absmax_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    op = "int8_quantize"
    _check.check_has_rows(op, "x", x)
    _check.check_dtype(op, "x", x.dtype, _check.FLOATS)
    _check.check_threshold(op, threshold)
    return _codes(op, x, x.shape[:-1], absmax_dtype)


@torch.library.register_fake("lowbit::int8_quantize_offset")
def _(weight: Tensor, absmax_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
    op = "int8_quantize_offset"
    _check.check_has_rows(op, "weight", weight)
    _check.check_dtype(op, "weight", weight.dtype, _check.FLOATS)
    q, absmax = _codes(op, weight, weight.shape[:-1], absmax_dtype)
    return q, absmax, torch.empty_like(absmax)


@torch.library.register_fake("lowbit::int8_requantize_")
def _(q: Tensor, absmax: Tensor, master: Tensor) -> None:
    op = "int8_requantize_"
    _check.check_matrix(op, "q", q)
    _check.check_scales(op, absmax, None, q.shape[:1], q.device)
    _check.check_dtype(op, "master", master.dtype, _check.FLOATS)
    _check.check_shape(op, "master", master, q.shape)
    _check.check_device(op, "master", master, q.device)


def _codes(
    op: str, x: Tensor, rows: torch.Size, absmax_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor]:
    absmax_dtype = absmax_dtype or torch.float32
    _check.check_dtype(op, "absmax_dtype", absmax_dtype, _check.SCALES)
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(rows, dtype=absmax_dtype)


_check.refuse_gradient("int8_quantize", _WHY)
_check.refuse_gradient("int8_quantize_offset", _WHY)
