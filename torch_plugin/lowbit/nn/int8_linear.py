# SPDX-License-Identifier: MIT
"""The linear layer with int8 weights."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.nn.lowbit_linear import LowbitLinear
from lowbit.ops._check import SCALES
from lowbit.ops.int8_linear import MAX_K

# A weight is quantized this many rows at a time, so that a strided one (Conv1D's) never gets a
# second float copy as large as itself.
_ROWS_AT_ONCE = 256


class Int8Linear(LowbitLinear):
    """y = x W^T + bias with W[n, k] = weight[n, k] * absmax[n] / 127 (+ offset[n]).

    The activations are quantized row by row to int8 as well; their outliers, |x| >= threshold, are
    multiplied in float32 instead (LLM.int8, arXiv:2208.07339, decomposed element by element). The
    result is the same bits for any batch, thread count and processor.

    Args:
        in_features, out_features, bias: as in torch.nn.Linear. in_features is at most 133,144.
        threshold: where outliers begin, in units of x; 6.0 is LLM.int8's. 0 quantizes everything
            but NaN and infinities.
        offset: keep an offset per row (the zero-point form), for weights that are not centred.
        compute_dtype: x is cast to it first; None means x's dtype. The result has x's dtype.
        absmax_dtype: float32 or float16, of absmax and offset.
        device, dtype: where the parameters live, and the dtype of the bias.

    Parameters, all frozen (requires_grad False; bias may be thawed):
        weight: int8 [N, K], in [-127, 127]
        absmax: absmax_dtype [N]
        offset: absmax_dtype [N], or None
        bias: dtype [N], or None

    A new layer is all zeros; `from_float` and `load_state_dict` fill it. A state dict is checked
    before anything is copied: dtypes, shapes, no -128, no negative or non-finite scale.

    `.to(dtype)`, `.half()`, `.bfloat16()` and their like change the dtype of the bias alone: codes
    and scales keep their bits, and move only between devices. Under autocast x is cast to
    autocast's dtype, as by torch.nn.Linear, and so is the result.
    """

    offset: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        threshold: float = 6.0,
        offset: bool = False,
        compute_dtype: torch.dtype | None = None,
        absmax_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, compute_dtype)
        if not (threshold >= 0 and math.isfinite(threshold)):
            raise ValueError(
                f"Int8Linear: threshold is {threshold}, "
                "expected a finite number that is not negative"
            )
        if absmax_dtype not in SCALES:
            raise ValueError(
                f"Int8Linear: absmax_dtype is {absmax_dtype}, "
                f"expected one of {', '.join(map(str, SCALES))}"
            )
        if not 0 < in_features <= MAX_K or out_features <= 0:
            raise ValueError(
                f"Int8Linear: in_features is {in_features} and out_features {out_features}, "
                f"expected in_features in 1..{MAX_K} and out_features of at least 1"
            )
        self.threshold = float(threshold)
        rows = (out_features,)
        self._register("weight", (out_features, in_features), torch.int8, device)
        self._register("absmax", rows, absmax_dtype, device)
        self._register("offset", rows if offset else None, absmax_dtype, device)
        self._register("bias", rows if bias else None, dtype, device)

    def options(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "offset": self.offset is not None,
            "compute_dtype": self.compute_dtype,
            "absmax_dtype": self.absmax.dtype,
        }

    def why_not_quantizable(self, weight: Tensor) -> str | None:
        problem = super().why_not_quantizable(weight)
        if problem is None:
            largest = max(bound.abs().item() for bound in weight.aminmax())
            if largest > torch.finfo(self.absmax.dtype).max:
                problem = f"holds {largest:g}, beyond the range of {self.absmax.dtype} scales"
        return problem

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        parts = ("weight", "absmax") if self.offset is None else ("weight", "absmax", "offset")
        stored = {
            name: torch.empty(
                self._parameters[name].shape,
                dtype=self._parameters[name].dtype,
                device=weight.device,
            )
            for name in parts
        }
        for begin in range(0, len(weight), _ROWS_AT_ONCE):
            rows = slice(begin, begin + _ROWS_AT_ONCE)
            if self.offset is None:
                quantized = torch.ops.lowbit.int8_quantize(weight[rows], 0.0, self.absmax.dtype)
            else:
                quantized = torch.ops.lowbit.int8_quantize_offset(weight[rows], self.absmax.dtype)
            for name, part in zip(parts, quantized, strict=True):
                stored[name][rows] = part
        return stored

    def _multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        return torch.ops.lowbit.int8_linear(
            x, self.weight, self.absmax, self.offset, self.bias, self.threshold, out_dtype
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W as float [N, K]; dtype None means float32."""
        return torch.ops.lowbit.int8_dequantize(self.weight, self.absmax, self.offset, dtype)

    def _why_not_stored(self, name: str, value: Tensor) -> str | None:
        if name == "weight" and value.amin() == -128:
            return "holds -128, expected codes in [-127, 127]"
        return super()._why_not_stored(name, value)
