# SPDX-License-Identifier: MIT
"""What the operators' Python side shares: argument checks, a bias's gradient, the refusal to
differentiate."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SCALES = (torch.float32, torch.float16)
BLOCKSIZES = tuple(2**i for i in range(5, 13))
NESTED_BLOCKSIZE = 256  # scales that share a nested_absmax


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


def check_blocksize(op: str, blocksize: int) -> None:
    torch._check(
        is_blocksize(blocksize),
        lambda: (
            f"lowbit::{op}: blocksize is {blocksize}, "
            f"expected a power of two from {BLOCKSIZES[0]} to {BLOCKSIZES[-1]}"
        ),
    )


def is_blocksize(value: object) -> bool:
    return isinstance(value, int) and value in BLOCKSIZES


def check_codebook(
    op: str, codebook: Tensor, size: int, device: torch.device, name: str = "codebook"
) -> None:
    """What of a codebook can be told without its values."""
    check_dtype(op, name, codebook.dtype, (torch.float32,))
    check_shape(op, name, codebook, (size,))
    check_contiguous(op, name, codebook)
    check_device(op, name, codebook, device)


def check_flat(
    op: str,
    name: str,
    tensor: Tensor,
    dtypes: Sequence[torch.dtype],
    count: int | torch.SymInt,
    device: torch.device,
) -> None:
    """A contiguous tensor of so many elements, read flat: its shape does not matter."""
    check_dtype(op, name, tensor.dtype, dtypes)
    torch._check(
        tensor.numel() == count,
        lambda: (
            f"lowbit::{op}: {name} has {tensor.numel()} elements (shape {list(tensor.shape)}), "
            f"expected {count}"
        ),
    )
    check_contiguous(op, name, tensor)
    check_device(op, name, tensor, device)


def check_lut4_weight(
    op: str,
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    blocksize: int,
    nested: tuple[Tensor | None, Tensor | None, Tensor | None],
    count: int | torch.SymInt,
    device: torch.device,
) -> None:
    """The stored form of count 4-bit elements; nested is (nested_absmax, nested_codebook,
    nested_offset), all there when absmax holds uint8 codes, else None."""
    check_blocksize(op, blocksize)
    check_flat(op, "packed", packed, (torch.uint8,), ceil_div(count, 2), device)
    check_codebook(op, codebook, 16, device)
    blocks = ceil_div(count, blocksize)
    check_flat(op, "absmax", absmax, (torch.float32, torch.uint8), blocks, device)
    doubly = absmax.dtype == torch.uint8
    names = ("nested_absmax", "nested_codebook", "nested_offset")
    wrong = [name for name, part in zip(names, nested, strict=True) if (part is None) == doubly]
    torch._check(
        not wrong,
        lambda: (
            f"lowbit::{op}: {wrong[0]} is {'missing' if doubly else 'given'}, expected "
            f"{'a tensor' if doubly else 'none'} with absmax of dtype {_word(absmax.dtype)}"
        ),
    )
    if doubly:
        nested_absmax, nested_codebook, nested_offset = nested
        groups = ceil_div(blocks, NESTED_BLOCKSIZE)
        check_flat(op, "nested_absmax", nested_absmax, (torch.float32,), groups, device)
        check_codebook(op, nested_codebook, 256, device, "nested_codebook")
        check_flat(op, "nested_offset", nested_offset, (torch.float32,), 1, device)


def ceil_div(a: int | torch.SymInt, b: int) -> int | torch.SymInt:
    return (a + b - 1) // b


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


def sum_rows(grad_output: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of a bias."""
    return grad_output.unsqueeze(0).flatten(0, -2).sum(0, dtype=torch.float32).to(dtype)


def refuse_gradient(op: str, why: str) -> None:
    """Without a formula, autograd would let a wrong zero through with no more than a warning."""

    def backward(ctx: object, *grads: Tensor | None) -> None:
        raise NotImplementedError(f"lowbit::{op} has no gradient: {why}")

    torch.library.register_autograd(f"lowbit::{op}", backward)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
