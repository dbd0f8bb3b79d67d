# SPDX-License-Identifier: MIT
"""The linear layer with int8 weights."""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.ops._check import FLOATS, SCALES
from lowbit.ops.int8_linear import MAX_K

# A weight is quantized this many rows at a time, so that a strided one (Conv1D's) never gets a
# second float copy as large as itself.
_ROWS_AT_ONCE = 256


class Int8Linear(nn.Linear):
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

    absmax: nn.Parameter
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
        super(nn.Linear, self).__init__()  # nn.Linear's own would allocate a float weight
        _check_options(threshold, compute_dtype, absmax_dtype)
        if not 0 < in_features <= MAX_K or out_features <= 0:
            raise ValueError(
                f"Int8Linear: in_features is {in_features} and out_features {out_features}, "
                f"expected in_features in 1..{MAX_K} and out_features of at least 1"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.threshold = float(threshold)
        self.compute_dtype = compute_dtype

        def zeros(*shape: int, dtype: torch.dtype | None) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape, device=device, dtype=dtype), requires_grad=False)

        self.weight = zeros(out_features, in_features, dtype=torch.int8)
        self.absmax = zeros(out_features, dtype=absmax_dtype)
        self.register_parameter(
            "offset", zeros(out_features, dtype=absmax_dtype) if offset else None
        )
        self.register_parameter("bias", zeros(out_features, dtype=dtype) if bias else None)

    @classmethod
    def from_float(
        cls,
        linear: nn.Module,
        *,
        threshold: float = 6.0,
        offset: bool = False,
        compute_dtype: torch.dtype | None = None,
        absmax_dtype: torch.dtype = torch.float32,
    ) -> "Int8Linear":
        """Quantizes a torch.nn.Linear or a transformers Conv1D (whose weight is [K, N]).

        The bias is shared with the original, not copied. TypeError: another kind of module.
        ValueError: the weight cannot be quantized, for example because it holds NaN.
        """
        weight = float_weight(linear)
        if weight is None:
            raise TypeError(
                f"Int8Linear.from_float: linear is a {type(linear).__qualname__}, expected a plain "
                "torch.nn.Linear or transformers Conv1D"
            )
        problem = why_not_quantizable(weight, absmax_dtype)
        if problem:
            raise ValueError(f"Int8Linear.from_float: weight {problem}")
        layer = cls(
            weight.shape[1],
            weight.shape[0],
            bias=False,
            threshold=threshold,
            offset=offset,
            compute_dtype=compute_dtype,
            absmax_dtype=absmax_dtype,
            device="meta",
        )
        layer.set_quantized(*quantize_weight(weight, offset, absmax_dtype))
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return layer.train(linear.training)

    def set_quantized(self, weight: Tensor, absmax: Tensor, offset: Tensor | None) -> None:
        """Takes over what `quantize_weight` returned."""
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.absmax = nn.Parameter(absmax, requires_grad=False)
        self.offset = None if offset is None else nn.Parameter(offset, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return torch.ops.lowbit.int8_linear(
            x if self.compute_dtype is None else x.to(self.compute_dtype),
            self.weight,
            self.absmax,
            self.offset,
            self.bias,
            self.threshold,
            x.dtype,
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W as float [N, K]; dtype None means float32."""
        return torch.ops.lowbit.int8_dequantize(self.weight, self.absmax, self.offset, dtype)

    @property
    def W_q(self) -> Tensor:
        """PEFT's name for a weight whose float form is dequantize(): DoRA would otherwise take the
        norms of the codes."""
        return self.weight

    def extra_repr(self) -> str:
        return (
            f"{super().extra_repr()}, threshold={self.threshold:g}, "
            f"offset={self.offset is not None}, compute_dtype={self.compute_dtype}, "
            f"absmax_dtype={self.absmax.dtype}"
        )

    def reset_parameters(self) -> None:
        raise NotImplementedError(
            "Int8Linear has no random initialisation: fill it by from_float or load_state_dict"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        stored = {id(p) for p in (self.weight, self.absmax, self.offset) if p is not None}

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if id(tensor) in stored and moved.dtype != tensor.dtype:
                return tensor.to(moved.device)
            return moved

        return super()._apply(keep_dtype, recurse)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Checks everything first: torch copies what fits and reports the rest afterwards."""
        mine = {name for name, p in self._parameters.items() if p is not None}
        given = {name for name in self._parameters if prefix + name in state_dict}
        entries = {name: state_dict[prefix + name] for name in given}
        if given not in (set(), {"bias"}, mine):
            error_msgs.append(
                f"the entries under {prefix!r} are {', '.join(sorted(given))}, "
                f"expected {', '.join(sorted(mine))}"
            )
            return
        problems = [
            f"{prefix}{name} {problem}"
            for name, value in entries.items()
            if (problem := self._why_not_loadable(name, value))
        ]
        if problems:
            error_msgs.extend(problems)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _why_not_loadable(self, name: str, value: Tensor) -> str | None:
        own = self._parameters[name]
        if value.shape != own.shape:
            return f"has shape {list(value.shape)}, expected {list(own.shape)}"
        if name == "bias":
            return None
        if value.dtype != own.dtype:
            return f"has dtype {value.dtype}, expected {own.dtype}"
        return why_not_stored(name, value)


def float_weight(module: nn.Module) -> Tensor | None:
    """The weight [N, K] of a plain linear layer, a view; None if module is anything else.

    Subclasses are something else: what they add would be lost. Conv1D is known only if its module
    has been imported, as it has when there is one to look at.
    """
    if type(module) is nn.Linear:
        return module.weight.detach()
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    if conv1d is not None and type(module) is conv1d:
        return module.weight.detach().t()
    return None


def why_not_quantizable(weight: Tensor, absmax_dtype: torch.dtype) -> str | None:
    """The rule that a float weight [N, K] breaks, to follow its name; None if it breaks none."""
    if weight.dtype not in FLOATS:
        return f"has dtype {weight.dtype}, expected one of {', '.join(map(str, FLOATS))}"
    if weight.is_meta:
        return "is on the meta device, expected a weight with data"
    if weight.numel() == 0 or weight.shape[1] > MAX_K:
        return f"has shape {list(weight.shape)}, expected [N, K] with K in 1..{MAX_K}"
    lowest, highest = (bound.item() for bound in weight.aminmax())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return "holds NaN or infinity, expected finite values"
    largest = max(-lowest, highest)
    if largest > torch.finfo(absmax_dtype).max:
        return f"holds {largest:g}, beyond the range of {absmax_dtype} scales"
    return None


def why_not_stored(name: str, value: Tensor) -> str | None:
    """The rule that a stored weight, absmax or offset breaks, to follow its name; None if none."""
    if value.is_meta or value.numel() == 0:
        return None
    if name == "weight":
        return "holds -128, expected codes in [-127, 127]" if value.amin() == -128 else None
    lowest, highest = (bound.item() for bound in value.aminmax())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        return "holds NaN or infinity, expected finite values"
    if name == "absmax" and lowest < 0:
        return f"holds {lowest:g}, expected no negative value"
    return None


def quantize_weight(
    weight: Tensor, offset: bool, absmax_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes [N, K], absmax [N] and offset [N] (or None) of a float weight [N, K] of any strides."""
    rows, columns = weight.shape
    q = torch.empty(rows, columns, dtype=torch.int8, device=weight.device)
    scales = [
        torch.empty(rows, dtype=absmax_dtype, device=weight.device) for _ in range(1 + offset)
    ]
    for begin in range(0, rows, _ROWS_AT_ONCE):
        block = weight[begin : begin + _ROWS_AT_ONCE]
        if offset:
            parts = torch.ops.lowbit.int8_quantize_offset(block, absmax_dtype)
        else:
            parts = torch.ops.lowbit.int8_quantize(block, 0.0, absmax_dtype)
        for whole, part in zip((q, *scales), parts, strict=True):
            whole[begin : begin + _ROWS_AT_ONCE] = part
    return q, scales[0], scales[1] if offset else None


def _check_options(
    threshold: float, compute_dtype: torch.dtype | None, absmax_dtype: torch.dtype
) -> None:
    if not (threshold >= 0 and math.isfinite(threshold)):
        raise ValueError(
            f"Int8Linear: threshold is {threshold}, expected a finite number that is not negative"
        )
    if compute_dtype is not None and compute_dtype not in FLOATS:
        raise ValueError(
            f"Int8Linear: compute_dtype is {compute_dtype}, "
            f"expected None or one of {', '.join(map(str, FLOATS))}"
        )
    if absmax_dtype not in SCALES:
        raise ValueError(
            f"Int8Linear: absmax_dtype is {absmax_dtype}, "
            f"expected one of {', '.join(map(str, SCALES))}"
        )
