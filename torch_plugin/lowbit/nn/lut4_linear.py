# SPDX-License-Identifier: MIT
"""The linear layer with 4-bit weights."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import codebooks
from lowbit.nn.lowbit_linear import LowbitLinear
from lowbit.ops._check import BLOCKSIZES, NESTED_BLOCKSIZE, ceil_div, is_blocksize

# A weight is quantized about this many rows at a time, so that a strided one (Conv1D's) never gets
# a second float copy as large as itself.
_ROWS_AT_ONCE = 256


class LUT4Linear(LowbitLinear):
    """y = x W^T + bias with W.flat[i] = codebook[code i] * scale[i / blocksize].

    A code is one of 16 values of a look-up table (NF4, FP4, ...); a scale is the largest magnitude
    of its block of consecutive weights. With double quantization (QLoRA, arXiv:2305.14314) the
    scales are 8-bit codes themselves: scale[b] = dynamic_map[absmax[b]] * nested_absmax[b / 256] +
    nested_offset. At the defaults a weight takes 4.13 bits. The activations stay float.

    Args:
        in_features, out_features, bias: as in torch.nn.Linear. in_features of 1 takes an even
            out_features only: the packed size could not tell an odd one.
        codebook: a name in lowbit.codebooks ("nf4", "fp4", "af4", "bof4", "int4"), or any 16 finite
            values. It is not part of the state dict.
        blocksize: how many weights share a scale, a power of two from 32 to 4096. Blocks run over
            the flattened weight, across rows where in_features is no multiple of them.
        double_quant: keep the scales as 8-bit codes.
        compute_dtype: x is cast to it first; None means x's dtype. The result has x's dtype.
        device, dtype: where the parameters live, and the dtype of the bias.

    Parameters, all frozen (requires_grad False; bias may be thawed), B = ceil(N K / blocksize):
        weight: uint8, two codes in a byte, the first in the high half; [N, K/2], or flat,
            ceil(N K / 2), where K is no multiple of blocksize
        absmax: uint8 with double_quant, else float32; [N, K/blocksize], or flat, B, as weight
        nested_absmax: float32 [ceil(B / 256)], or None
        nested_offset: float32 [], the mean of the scales, or None
        bias: dtype [N], or None

    A new layer is all zeros; `from_float` and `load_state_dict` fill it. A state dict is checked
    before anything is copied: dtypes, shapes, all parts together, no non-finite or negative scale.

    `.to(dtype)`, `.half()`, `.bfloat16()` and their like change the dtype of the bias alone: codes
    and scales keep their bits, and move only between devices. Under autocast x is cast to
    autocast's dtype, as by torch.nn.Linear, and so is the result.
    """

    nested_absmax: nn.Parameter | None
    nested_offset: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        codebook: str | Iterable[float] = "nf4",
        blocksize: int = 64,
        double_quant: bool = True,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, compute_dtype)
        if not is_blocksize(blocksize):
            raise ValueError(
                f"LUT4Linear: blocksize is {blocksize}, "
                f"expected a power of two from {BLOCKSIZES[0]} to {BLOCKSIZES[-1]}"
            )
        try:
            self.codebook = codebooks.key(codebook)
        except ValueError as error:
            raise ValueError(f"LUT4Linear: {error}") from None
        for table in (self.codebook, codebooks.DYNAMIC):  # else made while the first call compiles
            codebooks.shared(table, torch.device("cpu"))
        if in_features <= 0 or out_features <= 0 or (in_features == 1 and out_features % 2):
            raise ValueError(
                f"LUT4Linear: in_features is {in_features} and out_features {out_features}, "
                "expected at least 1 of both, and an even out_features if in_features is 1"
            )
        self.blocksize = blocksize
        count = in_features * out_features
        blocks = ceil_div(count, blocksize)
        whole = in_features % blocksize == 0
        self._register(
            "weight",
            (out_features, in_features // 2) if whole else (ceil_div(count, 2),),
            torch.uint8,
            device,
        )
        self._register(
            "absmax",
            (out_features, in_features // blocksize) if whole else (blocks,),
            torch.uint8 if double_quant else torch.float32,
            device,
        )
        groups = (ceil_div(blocks, NESTED_BLOCKSIZE),)
        self._register("nested_absmax", groups if double_quant else None, torch.float32, device)
        self._register("nested_offset", () if double_quant else None, torch.float32, device)
        self._register("bias", (out_features,) if bias else None, dtype, device)

    @property
    def double_quant(self) -> bool:
        return self.nested_absmax is not None

    def options(self) -> dict[str, Any]:
        return {
            "codebook": self.codebook,
            "blocksize": self.blocksize,
            "double_quant": self.double_quant,
            "compute_dtype": self.compute_dtype,
        }

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        table = codebooks.shared(self.codebook, weight.device)
        if weight.is_contiguous():
            packed, absmax = torch.ops.lowbit.lut4_quantize(weight, table, self.blocksize)
        else:
            packed, absmax = self._quantize_by_rows(weight, table)
        if not self.double_quant:
            return {"weight": packed, "absmax": absmax}
        return {"weight": packed, **nest(absmax)}

    def _quantize_by_rows(self, weight: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """As the operator, of which each call copies only some rows to make them contiguous."""
        # Groups of rows end where blocks do.
        step = max(_ROWS_AT_ONCE, self.blocksize // math.gcd(self.blocksize, self.in_features))
        packed = torch.empty(self.weight.shape, dtype=torch.uint8, device=weight.device)
        absmax = torch.empty(self.absmax.shape, device=weight.device)
        codes, scales = packed.view(-1), absmax.view(-1)
        for begin in range(0, self.out_features, step):
            parts = torch.ops.lowbit.lut4_quantize(
                weight[begin : begin + step], table, self.blocksize
            )
            first = begin * self.in_features
            for flat, part, size in zip((codes, scales), parts, (2, self.blocksize), strict=True):
                flat[first // size :][: part.numel()] = part.view(-1)
        return packed, absmax

    def _multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        table, *nested = self._tables()
        return torch.ops.lowbit.lut4_linear(
            x, self.weight, self.absmax, table, self.bias, self.blocksize, *nested, out_dtype
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W as float [N, K]; dtype None means float32."""
        table, *nested = self._tables()
        shape = (self.out_features, self.in_features)
        return torch.ops.lowbit.lut4_dequantize(
            self.weight, self.absmax, table, shape, dtype, self.blocksize, *nested
        )

    def _tables(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """codebook, nested_absmax, nested_codebook, nested_offset, as the operators take them."""
        device = self.weight.device
        table = codebooks.shared(self.codebook, device)
        if self.nested_absmax is None:
            return table, None, None, None
        return (
            table,
            self.nested_absmax,
            codebooks.shared(codebooks.DYNAMIC, device),
            self.nested_offset,
        )


def nest(absmax: Tensor) -> dict[str, Tensor]:
    """Double quantization: float32 scales as uint8 codes of the same shape, with their float32
    nested_absmax [ceil(B / 256)] and nested_offset [], the mean of the scales."""
    offset = absmax.mean(dtype=torch.float64).to(torch.float32)
    codes, nested_absmax = torch.ops.lowbit.blockwise_quantize(
        absmax - offset, codebooks.shared(codebooks.DYNAMIC, absmax.device), NESTED_BLOCKSIZE
    )
    return {"absmax": codes, "nested_absmax": nested_absmax, "nested_offset": offset}
