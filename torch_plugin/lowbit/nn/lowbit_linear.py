# SPDX-License-Identifier: MIT
"""What the linear layers with low-bit weights have in common."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.nn.lowbit_module import LowbitModule, why_not_finite
from lowbit.ops._check import FLOATS


class LowbitLinear(LowbitModule, nn.Linear):
    """A linear layer whose weight is stored as codes and scales; the base of lowbit's layers.

    Every parameter but the bias belongs to the stored weight: it is frozen, keeps its bits under
    `.to(dtype)`, `.half()` and their like, which change the bias alone, and moves only between
    devices. A new layer is all zeros; `from_float` and `load_state_dict` fill it. A state dict is
    checked before anything is copied.

    A subclass registers its parameters by `_register`, multiplies in `_multiply`, and says what
    its stored form may hold.
    """

    absmax: nn.Parameter

    def __init__(
        self, in_features: int, out_features: int, compute_dtype: torch.dtype | None
    ) -> None:
        super(nn.Linear, self).__init__()  # nn.Linear's own would allocate a float weight
        if compute_dtype is not None and compute_dtype not in FLOATS:
            raise ValueError(
                f"{type(self).__name__}: compute_dtype is {compute_dtype}, "
                f"expected None or one of {', '.join(map(str, FLOATS))}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.compute_dtype = compute_dtype

    def _register(
        self,
        name: str,
        shape: Sequence[int] | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        """A frozen parameter of zeros, or None where the layer has no such part (shape None)."""
        zeros = None if shape is None else torch.zeros(shape, dtype=dtype, device=device)
        self.register_parameter(
            name, None if zeros is None else nn.Parameter(zeros, requires_grad=False)
        )

    @classmethod
    def from_float(cls, linear: nn.Module, **options: Any) -> "LowbitLinear":
        """Quantizes a torch.nn.Linear or a transformers Conv1D (whose weight is [K, N]).

        options are the constructor's, without bias, device and dtype. The bias is shared with the
        original, not copied. TypeError: another kind of module. ValueError: an option is wrong, or
        the weight cannot be quantized, for example because it holds NaN.
        """
        weight = float_weight(linear)
        if weight is None:
            raise TypeError(
                f"{cls.__name__}.from_float: linear is a {type(linear).__qualname__}, expected a "
                "plain torch.nn.Linear or transformers Conv1D"
            )
        layer = cls(weight.shape[1], weight.shape[0], bias=False, device="meta", **options)
        problem = layer.why_not_quantizable(weight)
        if problem:
            raise ValueError(f"{cls.__name__}.from_float: weight {problem}")
        layer.set_quantized(**layer.quantize_weight(weight))
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return layer.train(linear.training)

    def options(self) -> dict[str, Any]:
        """The constructor's keyword arguments, without bias, device and dtype."""
        raise NotImplementedError

    def why_not_quantizable(self, weight: Tensor) -> str | None:
        """The rule that a float weight [N, K] breaks, to follow its name; None if it breaks
        none."""
        expected = [self.out_features, self.in_features]
        if list(weight.shape) != expected:
            return f"has shape {list(weight.shape)}, expected {expected}"
        if weight.dtype not in FLOATS:
            return f"has dtype {weight.dtype}, expected one of {', '.join(map(str, FLOATS))}"
        if weight.is_meta:
            return "is on the meta device, expected a weight with data"
        return why_not_finite(weight)

    def quantize_weight(self, weight: Tensor) -> dict[str, Tensor]:
        """The stored parts, by name, of a float weight [N, K] of any strides, under this layer's
        options. The layer itself does not change."""
        raise NotImplementedError

    def set_quantized(self, **stored: Tensor) -> None:
        """Takes over what `quantize_weight` returned: every stored part, by its name."""
        expected = self.stored()
        if stored.keys() != expected:
            raise ValueError(
                f"{type(self).__name__}.set_quantized: given {', '.join(sorted(stored))}, "
                f"expected {', '.join(sorted(expected))}"
            )
        for name, value in stored.items():
            problem = self._why_not_of_form(name, value)
            if problem:
                raise ValueError(f"{type(self).__name__}.set_quantized: {name} {problem}")
        for name, value in stored.items():
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    def stored(self) -> set[str]:
        return {name for name, p in self._parameters.items() if p is not None} - {"bias"}

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return self._multiply(
            x if self.compute_dtype is None else x.to(self.compute_dtype), x.dtype
        )

    def _multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        raise NotImplementedError

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W as float [N, K]; dtype None means float32."""
        raise NotImplementedError

    @property
    def W_q(self) -> Tensor:
        """PEFT's name for a weight whose float form is dequantize(): DoRA would otherwise take the
        norms of the codes."""
        return self.weight

    def extra_repr(self) -> str:
        options = (f"{name}={value}" for name, value in self.options().items())
        return ", ".join([super().extra_repr(), *options])

    def reset_parameters(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__} has no random initialisation: "
            "fill it by from_float or load_state_dict"
        )


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
