# SPDX-License-Identifier: MIT
"""lowbit::lut4_linear and its gradient, lowbit::lut4_linear_grad_input."""

from typing import Any

import torch
from torch import Tensor

from lowbit.ops import _check


@torch.library.register_fake("lowbit::lut4_linear")
def _(
    x: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    bias: Tensor | None = None,
    blocksize: int = 64,
    nested_absmax: Tensor | None = None,
    nested_codebook: Tensor | None = None,
    nested_offset: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    op = "lut4_linear"
    out_dtype = out_dtype or x.dtype
    _check.check_has_rows(op, "x", x)
    _check.check_dtype(op, "x", x.dtype, _check.FLOATS)
    k = x.shape[-1]
    torch._check(
        k > 0,
        lambda: f"lowbit::{op}: x has K = {k} columns, expected at least one",
    )
    n = 2 * packed.numel() // k
    nested = (nested_absmax, nested_codebook, nested_offset)
    _check.check_lut4_weight(op, packed, absmax, codebook, blocksize, nested, n * k, x.device)
    if bias is not None:
        _check.check_dtype(op, "bias", bias.dtype, _check.FLOATS)
        _check.check_shape(op, "bias", bias, (n,))
        _check.check_contiguous(op, "bias", bias)
        _check.check_device(op, "bias", bias, x.device)
    _check.check_dtype(op, "out_dtype", out_dtype, _check.FLOATS)
    return x.new_empty((*x.shape[:-1], n), dtype=out_dtype)


@torch.library.register_fake("lowbit::lut4_linear_grad_input")
def _(
    grad_output: Tensor,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    in_features: int | torch.SymInt,
    blocksize: int = 64,
    nested_absmax: Tensor | None = None,
    nested_codebook: Tensor | None = None,
    nested_offset: Tensor | None = None,
) -> Tensor:
    op = "lut4_linear_grad_input"
    _check.check_has_rows(op, "grad_output", grad_output)
    _check.check_dtype(op, "grad_output", grad_output.dtype, _check.FLOATS)
    torch._check(
        in_features > 0,
        lambda: f"lowbit::{op}: in_features is {in_features}, expected at least one",
    )
    count = grad_output.shape[-1] * in_features
    nested = (nested_absmax, nested_codebook, nested_offset)
    _check.check_lut4_weight(
        op, packed, absmax, codebook, blocksize, nested, count, grad_output.device
    )
    return grad_output.new_empty((*grad_output.shape[:-1], in_features))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, absmax, codebook, bias, blocksize, *nested, _ = inputs
    ctx.save_for_backward(packed, absmax, codebook, *nested)
    ctx.in_features = x.shape[-1]
    ctx.blocksize = blocksize
    ctx.x_dtype = x.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """grad_x = grad_output W, grad_bias = the sum of grad_output over its rows."""
    grad_x = grad_bias = None
    if ctx.needs_input_grad[0]:
        packed, absmax, codebook, *nested = ctx.saved_tensors
        grad_x = torch.ops.lowbit.lut4_linear_grad_input(
            grad_output, packed, absmax, codebook, ctx.in_features, ctx.blocksize, *nested
        ).to(ctx.x_dtype)
    if ctx.bias_dtype is not None and ctx.needs_input_grad[4]:
        grad_bias = _check.sum_rows(grad_output, ctx.bias_dtype)
    return grad_x, None, None, None, grad_bias, None, None, None, None, None


torch.library.register_autograd("lowbit::lut4_linear", _backward, setup_context=_setup_context)
_check.refuse_gradient("lut4_linear_grad_input", "second derivatives are not supported")
