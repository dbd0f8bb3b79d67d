# SPDX-License-Identifier: MIT
"""Argument checks that the fake kernels share, and the refusal to differentiate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SCALES = (torch.float32, torch.float16)


def check_dtype(op: str, name: str, dtype: torch.dtype, accepted: Sequence[torch.dtype]) -> None:
    torch._check(
        dtype in accepted,
        lambda: (
            f"lowbit::{op}: {name} has dtype {_word(dtype)}, "
            f"expected {' or '.join(map(_word, accepted))}"
        ),
    )


def check_shape(op: str, name: str, tensor: Tensor, expected: Sequence[int | torch.SymInt]) -> None:
    torch._check(
        tensor.dim() == len(expected),
        lambda: f"lowbit::{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)}",
    )
    for size, wanted in zip(tensor.shape, expected, strict=True):
        torch._check(
            size == wanted,
            lambda: (
                f"lowbit::{op}: {name} has shape {list(tensor.shape)}, expected {list(expected)}"
            ),
        )


def check_has_rows(op: str, name: str, tensor: Tensor) -> None:
    torch._check(
        tensor.dim() >= 1,
        lambda: f"lowbit::{op}: {name} has no dimensions, expected at least one",
    )


def check_matrix(op: str, name: str, tensor: Tensor) -> None:
    """An int8 matrix that the kernels read in place."""
    check_dtype(op, name, tensor.dtype, (torch.int8,))
    torch._check(
        tensor.dim() == 2,
        lambda: f"lowbit::{op}: {name} has shape {list(tensor.shape)}, expected two dimensions",
    )
    check_contiguous(op, name, tensor)


def check_contiguous(op: str, name: str, tensor: Tensor) -> None:
    torch._check(
        tensor.is_contiguous(),
        lambda: (
            f"lowbit::{op}: {name} has strides {list(tensor.stride())}, "
            "expected a contiguous tensor"
        ),
    )


def check_device(op: str, name: str, tensor: Tensor, device: torch.device) -> None:
    torch._check(
        tensor.device == device,
        lambda: f"lowbit::{op}: {name} is on {tensor.device}, expected {device}",
    )


def check_threshold(op: str, threshold: float) -> None:
    torch._check(
        0 <= threshold < math.inf,
        lambda: (
            f"lowbit::{op}: threshold is {threshold}, expected a finite number that is not negative"
        ),
    )


def check_max_k(op: str, name: str, k: int | torch.SymInt, largest: int) -> None:
    torch._check(
        k <= largest,
        lambda: f"lowbit::{op}: {name} has K = {k} columns, expected at most {largest}",
    )


def check_scales(
    op: str,
    absmax: Tensor,
    offset: Tensor | None,
    shape: Sequence[int | torch.SymInt],
    device: torch.device,
) -> None:
    """absmax and, unless None, offset: contiguous scales of one dtype, one for each row."""
    for name, scale, accepted in (
        ("absmax", absmax, SCALES),
        ("offset", offset, (absmax.dtype,)),
    ):
        if scale is not None:
            check_dtype(op, name, scale.dtype, accepted)
            check_shape(op, name, scale, shape)
            check_contiguous(op, name, scale)
            check_device(op, name, scale, device)


def check_codebook(op: str, codebook: Tensor, size: int, device: torch.device) -> None:
    """What of a codebook can be told without its values."""
    check_dtype(op, "codebook", codebook.dtype, (torch.float32,))
    check_shape(op, "codebook", codebook, (size,))
    check_contiguous(op, "codebook", codebook)
    check_device(op, "codebook", codebook, device)


def check_blocksize(op: str, blocksize: int) -> None:
    torch._check(
        32 <= blocksize <= 4096 and blocksize & (blocksize - 1) == 0,
        lambda: f"lowbit::{op}: blocksize is {blocksize}, expected a power of two from 32 to 4096",
    )


def refuse_gradient(op: str, why: str) -> None:
    """Without a formula, autograd would let a wrong zero through with no more than a warning."""

    def backward(ctx: object, *grads: Tensor | None) -> None:
        raise NotImplementedError(f"lowbit::{op} has no gradient: {why}")

    torch.library.register_autograd(f"lowbit::{op}", backward)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
