# SPDX-License-Identifier: MIT
"""lowbit::int8_linear and its gradient, lowbit::int8_linear_grad_input."""

from typing import Any

import torch
from torch import Tensor

from lowbit.ops import _check

MAX_K = 133144  # LOWBIT_INT8_LINEAR_MAX_K


@torch.library.register_fake("lowbit::int8_linear")
def _(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    op = "int8_linear"
    out_dtype = out_dtype or x.dtype
    _check.check_has_rows(op, "x", x)
    _check.check_dtype(op, "x", x.dtype, _check.FLOATS)
    _check_weight(op, weight, absmax, offset, x.device)
    _check.check_shape(op, "weight", weight, (weight.shape[0], x.shape[-1]))
    _check.check_max_k(op, "x", x.shape[-1], MAX_K)
    if bias is not None:
        _check.check_dtype(op, "bias", bias.dtype, _check.FLOATS)
        _check.check_shape(op, "bias", bias, (weight.shape[0],))
        _check.check_contiguous(op, "bias", bias)
        _check.check_device(op, "bias", bias, x.device)
    _check.check_threshold(op, threshold)
    _check.check_dtype(op, "out_dtype", out_dtype, _check.FLOATS)
    return x.new_empty((*x.shape[:-1], weight.shape[0]), dtype=out_dtype)


@torch.library.register_fake("lowbit::int8_linear_grad_input")
def _(grad_output: Tensor, weight: Tensor, absmax: Tensor, offset: Tensor | None = None) -> Tensor:
    op = "int8_linear_grad_input"
    _check.check_has_rows(op, "grad_output", grad_output)
    _check.check_dtype(op, "grad_output", grad_output.dtype, _check.FLOATS)
    _check_weight(op, weight, absmax, offset, grad_output.device)
    _check.check_shape(op, "weight", weight, (grad_output.shape[-1], weight.shape[1]))
    return grad_output.new_empty((*grad_output.shape[:-1], weight.shape[1]))


def _check_weight(
    op: str, weight: Tensor, absmax: Tensor, offset: Tensor | None, device: torch.device
) -> None:
    _check.check_matrix(op, "weight", weight)
    _check.check_device(op, "weight", weight, device)
    _check.check_scales(op, absmax, offset, weight.shape[:1], device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, absmax, offset, bias, *_ = inputs
    ctx.save_for_backward(weight, absmax, offset)
    ctx.x_dtype = x.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = grad_output W, grad_bias = the sum of grad_output over its rows."""
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.lowbit.int8_linear_grad_input(grad_output, *ctx.saved_tensors)
        grad_x = grad_x.to(ctx.x_dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        grad_bias = _check.sum_rows(grad_output, ctx.bias_dtype)
    return grad_x, None, None, None, grad_bias, None, None


torch.library.register_autograd("lowbit::int8_linear", _backward, setup_context=_setup_context)
_check.refuse_gradient("int8_linear_grad_input", "second derivatives are not supported")
