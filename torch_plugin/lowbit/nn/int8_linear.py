# SPDX-License-Identifier: MIT
"""The linear layer with int8 weights."""

import functools
import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from lowbit.nn.lowbit_linear import LowbitLinear
from lowbit.ops._check import SCALES, sum_rows
from lowbit.ops.int8_linear import MAX_K

# A weight is quantized this many rows at a time, so that a strided one (Conv1D's) never gets a
# second float copy as large as itself.
_ROWS_AT_ONCE = 256

# The trainable layers of each master: optimizers know parameters, not modules.
_LAYERS = WeakTensorKeyDictionary()
_MARK = "_lowbit_int8_master"  # an attribute of every master


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
        trainable: keep a float32 master of the weight, which is trained; not with offset.
        device, dtype: where the parameters live, and the dtype of the bias.

    Parameters, all frozen (requires_grad False; bias may be thawed) but those of a trainable layer
    that are marked so:
        weight: int8 [N, K], in [-127, 127]
        absmax: absmax_dtype [N]
        offset: absmax_dtype [N], or None
        master: float32 [N, K], trained, or None
        bias: dtype [N], or None; trained where the layer is

    A new layer is all zeros; `from_float` and `load_state_dict` fill it. A state dict is checked
    before anything is copied: dtypes, shapes, no -128, no negative or non-finite scale.

    `.to(dtype)`, `.half()`, `.bfloat16()` and their like change the dtype of the bias alone: codes
    and scales keep their bits, and move only between devices. Under autocast x is cast to
    autocast's dtype, as by torch.nn.Linear, and so is the result.

    Training: integers have no gradient, so a trainable layer multiplies int8 weights that derive
    from master, weight, absmax = int8_quantize(master), and passes the gradient of W straight
    through to master: grad_master = grad_y^T x in float32, as if it had been multiplied itself.
    After the step of any torch.optim.Optimizer that holds master, weight and absmax are rewritten
    (by a hook common to all optimizers, registered with the first trainable layer); loading,
    copying and unpickling do so too, and so does a forward that finds master changed in place in
    another way. `.data` hides a change, and compiled code does not look: call `requantize_` then.
    (NaN in master, which lowbit.optim never puts there, becomes the code 0.)
    A state dict holds codes and master; master keeps its bits under `.to(dtype)` as the codes do.
    `freeze_` makes an ordinary layer of it. FSDP and torch.func.functional_call, which put another
    tensor in master's place, are an error in forward.
    """

    offset: nn.Parameter | None
    master: nn.Parameter | None

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
        trainable: bool = False,
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
        if trainable and offset:
            raise ValueError(
                "Int8Linear: trainable is True and offset too, expected no offset: "
                "int8_requantize_ has no zero-point form"
            )
        self.threshold = float(threshold)
        rows = (out_features,)
        self._register("weight", (out_features, in_features), torch.int8, device)
        self._register("absmax", rows, absmax_dtype, device)
        self._register("offset", rows if offset else None, absmax_dtype, device)
        self._register(
            "master", (out_features, in_features) if trainable else None, torch.float32, device
        )
        self._register("bias", rows if bias else None, dtype, device)
        if trainable:
            self._train(bias=True)

    @classmethod
    def from_float(cls, linear: nn.Module, **options: Any) -> "Int8Linear":
        """As LowbitLinear.from_float. A trainable layer's master shares the memory of a float32
        weight, and its bias is trained if the original's was."""
        layer = super().from_float(linear, **options)
        if layer.trainable:
            layer._train(bias=linear.bias is not None and linear.bias.requires_grad)
        return layer

    @property
    def trainable(self) -> bool:
        return self.master is not None

    def options(self) -> dict[str, Any]:
        options = {
            "threshold": self.threshold,
            "offset": self.offset is not None,
            "compute_dtype": self.compute_dtype,
            "absmax_dtype": self.absmax.dtype,
        }
        return options | {"trainable": True} if self.trainable else options

    def why_not_quantizable(self, weight: Tensor) -> str | None:
        return super().why_not_quantizable(weight) or self._why_too_large(weight)

    def _why_too_large(self, weight: Tensor) -> str | None:
        largest = max(bound.abs().item() for bound in weight.aminmax())
        if largest > torch.finfo(self.absmax.dtype).max:
            return f"holds {largest:g}, beyond the range of {self.absmax.dtype} scales"
        return None

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
        if self.trainable:
            stored["master"] = weight.detach().to(torch.float32).contiguous()
        return stored

    def set_quantized(self, **stored: Tensor) -> None:
        super().set_quantized(**stored)
        if self.trainable:
            self._train()

    @torch.no_grad()
    def requantize_(self) -> None:
        """Derives weight and absmax from master anew, in place. RuntimeError: the layer is not
        trainable, or a value of master is beyond the range of float16 scales."""
        if not self.trainable:
            raise RuntimeError("Int8Linear.requantize_: the layer is not trainable, has no master")
        torch.ops.lowbit.int8_requantize_(self.weight, self.absmax, self.master)
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version((self.weight, self.absmax))
        self._codes_are_current()

    def freeze_(self) -> "Int8Linear":
        """Drops master, and freezes the bias: an ordinary layer, with the codes it has."""
        self.master = None
        if self.bias is not None:
            self.bias.requires_grad_(False)
        return self

    def _train(self, bias: bool = False) -> None:
        self.master.requires_grad_()
        if bias and self.bias is not None:
            self.bias.requires_grad_()
        self._codes_are_current()

    def _codes_are_current(self) -> None:
        _watch_optimizers()
        setattr(self.master, _MARK, True)
        _LAYERS.setdefault(self.master, weakref.WeakSet()).add(self)
        self._master_version = _version(self.master)

    def _is_stale(self) -> bool:
        return self._master_version != _version(self.master)

    def _check_codes(self) -> None:
        if self not in _LAYERS.get(self.master, ()):
            raise RuntimeError(
                "Int8Linear: master is not the parameter that the int8 weight was derived from; "
                "FSDP and functional_call are not supported with trainable layers; "
                "after setting a new master call requantize_()"
            )
        if self._is_stale():
            self.requantize_()

    def _apply(self, fn: Any, recurse: bool = True) -> "Int8Linear":
        super()._apply(fn, recurse)
        if self.trainable:
            self._codes_are_current()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_parameters"].setdefault("master", None)  # saved by an earlier version
        if self.trainable:
            self.requantize_()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.trainable:
            self.requantize_()

    def _multiply(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        if self.trainable:
            if not torch.compiler.is_compiling():
                self._check_codes()
            return _StraightThrough.apply(
                x, self.master, self.weight, self.absmax, self.bias, self.threshold, out_dtype
            )
        return torch.ops.lowbit.int8_linear(
            x, self.weight, self.absmax, self.offset, self.bias, self.threshold, out_dtype
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W as float [N, K]; dtype None means float32."""
        return torch.ops.lowbit.int8_dequantize(self.weight, self.absmax, self.offset, dtype)

    def _why_not_stored(self, name: str, value: Tensor) -> str | None:
        if name == "weight" and value.amin() == -128:
            return "holds -128, expected codes in [-127, 127]"
        problem = super()._why_not_stored(name, value)
        if problem is None and name == "master":
            problem = self._why_too_large(value)
        return problem


@functools.cache
def _watch_optimizers() -> None:
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    # torch.compile traces this for every optimizer, and has to leave the graph only for masters.
    for group in optimizer.param_groups:
        for p in group["params"]:
            if hasattr(p, _MARK):
                _requantize_stepped(optimizer)
                return


@torch._disable_dynamo
def _requantize_stepped(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            for layer in tuple(_LAYERS.get(p, ())):
                # Fused optimizers leave the version as it is.
                if layer.master is p and (p.grad is not None or layer._is_stale()):
                    layer.requantize_()


def _version(master: Tensor) -> int:
    return 0 if master.is_inference() else master._version  # those have none


class _StraightThrough(torch.autograd.Function):
    """int8_linear whose gradient for W goes to the master of the int8 weight."""

    @staticmethod
    def forward(
        x: Tensor,
        master: Tensor,
        weight: Tensor,
        absmax: Tensor,
        bias: Tensor | None,
        threshold: float,
        out_dtype: torch.dtype,
    ) -> Tensor:
        return torch.ops.lowbit.int8_linear(x, weight, absmax, None, bias, threshold, out_dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, weight, absmax, bias, *_ = inputs
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, absmax)
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, absmax = ctx.saved_tensors
        grad_x = grad_master = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.lowbit.int8_linear_grad_input(grad_output, weight, absmax)
            grad_x = grad_x.to(ctx.x_dtype)
        if ctx.needs_input_grad[1]:
            grad_master = _outer(grad_output, x)
        if ctx.needs_input_grad[4]:
            grad_bias = sum_rows(grad_output, ctx.bias_dtype)
        return grad_x, grad_master, None, None, grad_bias, None, None


def _outer(grad_output: Tensor, x: Tensor) -> Tensor:
    """grad_output^T x, summed over all rows, in float32 also where autocast is on."""
    grad_output, x = (t.reshape(-1, t.shape[-1]).float() for t in (grad_output, x))
    kind = x.device.type
    if kind == "meta":
        return grad_output.t() @ x
    with torch.autocast(kind, enabled=False):
        return grad_output.t() @ x
