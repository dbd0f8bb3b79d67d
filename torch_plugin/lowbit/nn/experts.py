# SPDX-License-Identifier: MIT
"""Mixture-of-experts modules with low-bit weights, expert by expert.

transformers keeps the experts of a layer in one module with three-dimensional parameters:
gate_up_proj [E, 2I, H] (up_proj [E, I, H] without a gate) and down_proj [E, H, I], or all of them
transposed. Here every expert's matrix [N, K] is stored as a linear layer would store it, and the
experts are stacked: the codes keep the parameter's name, beside them come gate_up_proj_absmax and
whatever else the layer stores.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.nn.lowbit_linear import LowbitLinear, LowbitModule

_PROJECTIONS = {True: ("gate_up_proj", "down_proj"), False: ("up_proj", "down_proj")}  # has_gate
# What a class of experts says of itself through transformers' use_experts_implementation.
_CONVENTIONS = ("num_experts", "has_gate", "has_bias", "has_post_expert_norm", "is_transposed")


class QuantizedExperts(LowbitModule):
    """The base that `convert_experts` gives to a module of experts, before the module's own class.

    That class stays: its activation, gate, norm and biases are used as they are, and gradients flow
    to the biases, to hidden_states and to top_k_weights. Every product has the bits that the
    expert's matrix would give as a layer of its own.

    Parameters, all frozen: for each projection (gate_up_proj or up_proj, and down_proj) what its
    layer stores, stacked [E, ...]: gate_up_proj for the codes, gate_up_proj_absmax and so on. They
    keep their bits under `.to(dtype)`, and a state dict is checked before anything is copied, as in
    LowbitLinear.
    """

    lowbit_layers: dict[str, LowbitLinear]  # of each projection, one on the meta device

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """y[t] = sum over i of top_k_weights[t, i] * expert(top_k_index[t, i])(hidden_states[t]).

        hidden_states [T, H], top_k_index [T, k] in 0..E-1, top_k_weights [T, k].
        """
        if len(hidden_states) == 0:
            return torch.zeros_like(hidden_states)
        tokens, k = top_k_index.shape
        experts, order = top_k_index.flatten().sort(stable=True)
        y = self._run(hidden_states[order // k], experts)
        y = y * top_k_weights.flatten()[order, None]
        return y[order.argsort()].view(tokens, k, -1).sum(1).to(hidden_states.dtype)

    @torch.compiler.disable  # the loop would be compiled again for every new routing
    def _run(self, x: Tensor, experts: Tensor) -> Tensor:
        """The rows of x, sorted by expert, each through its own."""
        parts = x.split(experts.bincount(minlength=self.num_experts).tolist())
        return torch.cat([self._expert(i, part) for i, part in enumerate(parts) if len(part)])

    def _expert(self, i: int, x: Tensor) -> Tensor:
        first, second = self.lowbit_layers
        x = self.layer(first, i).forward(x)
        x = self._apply_gate(x) if self.has_gate else self.act_fn(x)
        x = self.layer(second, i).forward(x)
        return self.post_expert_norm(x) if self.has_post_expert_norm else x

    def layer(self, projection: str, i: int) -> LowbitLinear:
        """An expert's matrix as a layer of its own, which shares its memory with the stack."""
        kind = self.lowbit_layers[projection]
        parameters = {part: value[i] for part, value in self._stacks(projection).items()}
        parameters["bias"] = getattr(self, f"{projection}_bias")[i] if self.has_bias else None
        layer = object.__new__(type(kind))  # copy.copy, without its ten microseconds
        layer.__dict__ = kind.__dict__ | {"_parameters": kind._parameters | parameters}
        return layer

    def stack(self, projection: str, weights: Sequence[Any]) -> dict[str, Tensor]:
        """What to store, by the parameter's name, of a projection's float weights [E, N, K].

        weights: a tensor, or for each expert its [N, K] as a list of parts to put one below the
        other. ValueError: the number of experts or a weight is wrong.
        """
        if len(weights) != self.num_experts:
            raise ValueError(f"has {len(weights)} experts, expected {self.num_experts}")
        layer = self.lowbit_layers[projection]
        stacks: dict[str, Tensor] = {}
        for i, weight in enumerate(weights):
            weight = weight if isinstance(weight, Tensor) else torch.cat(tuple(weight))
            problem = layer.why_not_quantizable(weight)
            if problem:
                raise ValueError(f"{problem} (expert {i})")
            for part, value in layer.quantize_weight(weight).items():
                stack = stacks.setdefault(
                    _name(projection, part), value.new_empty(self.num_experts, *value.shape)
                )
                stack[i] = value
        return stacks

    def dequantize(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The float weights [E, N, K] by projection; dtype None means float32."""
        return {
            projection: torch.stack(
                [self.layer(projection, i).dequantize(dtype) for i in range(self.num_experts)]
            )
            for projection in self.lowbit_layers
        }

    def _stacks(self, projection: str) -> dict[str, Tensor]:
        """What is stored of a projection, [E, ...], by the name that it has in a layer."""
        parameters = self._parameters
        return {
            part: parameters[_name(projection, part)]
            for part, blank in self.lowbit_layers[projection]._parameters.items()
            if blank is not None
        }

    def stored(self) -> set[str]:
        return set(self._parts())

    def _parts(self) -> dict[str, tuple[str, str]]:
        """Projection and part of each stored parameter."""
        return {
            _name(projection, part): (projection, part)
            for projection, layer in self.lowbit_layers.items()
            for part in layer.stored()
        }

    def _why_not_stored(self, name: str, value: Tensor) -> str | None:
        projection, part = self._parts()[name]
        return self.lowbit_layers[projection]._why_not_stored(part, value)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """For pickle, which would not find by its name a class that is made when it is needed."""
        return _restore, (_original(type(self)),), self.__getstate__()


def fused_weights(module: nn.Module) -> list[str]:
    """Names of the module's own fused expert weights: floating [E, ., .] with several E, as mixture
    of experts models keep them outside of any linear layer. torch's modules have none."""
    if type(module).__module__.startswith("torch.nn."):
        return []
    return [
        name
        for name, p in module.named_parameters(recurse=False)
        if p.dim() == 3
        and p.is_floating_point()
        and (min(p.shape) > 1 or hasattr(module, "num_experts"))
    ]


def why_not_experts(module: nn.Module) -> str | None:
    """Why `convert_experts` cannot take a module with fused weights; None if it can."""
    kind = type(module).__qualname__
    if not all(hasattr(module, name) for name in _CONVENTIONS):
        return f"{kind} does not follow transformers' interface of experts"
    shapes = {name: list(getattr(module, name).shape) for name in fused_weights(module)}
    first, second = _PROJECTIONS[module.has_gate]
    if set(shapes) == {first, second}:
        (_, n, _), (_, _, k) = (matrices(module, name).shape for name in (first, second))
        sizes = {shape[0] for shape in shapes.values()}
        if sizes == {module.num_experts} and n == (2 * k if module.has_gate else k):
            return None
    return (
        f"{kind} has {', '.join(f'{name} {shape}' for name, shape in shapes.items())}, expected "
        f"{first} and {second} of {module.num_experts} experts with matching sizes"
    )


def convert_experts(
    module: nn.Module, new_layer: Callable[..., LowbitLinear]
) -> "QuantizedExperts":
    """Turns a module of experts into one with low-bit weights, in place, on the meta device.

    new_layer(in_features, out_features, bias=False) makes the layer, on the meta device, as which
    an expert's matrix is stored. `stack` makes what then belongs in the parameters.
    """
    layers = {}
    for projection in _PROJECTIONS[module.has_gate]:
        experts, n, k = matrices(module, projection).shape
        layers[projection] = layer = new_layer(k, n, bias=False)
        for part, value in layer.named_parameters():
            blank = torch.empty(experts, *value.shape, dtype=value.dtype, device="meta")
            module.register_parameter(
                _name(projection, part), nn.Parameter(blank, requires_grad=False)
            )
    module.__class__ = _quantized(type(module))
    module.lowbit_layers = layers
    return module


def quantize_experts(
    module: nn.Module, new_layer: Callable[..., LowbitLinear]
) -> "QuantizedExperts":
    """`convert_experts`, and fills the parameters from the module's float weights."""
    weights = {name: matrices(module, name) for name in _PROJECTIONS[module.has_gate]}
    convert_experts(module, new_layer)
    while weights:
        for name, value in module.stack(*weights.popitem()).items():
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return module


def restore_experts(module: QuantizedExperts, weights: dict[str, Tensor]) -> nn.Module:
    """The reverse, in place, with these float weights [E, N, K] by projection."""
    for name in module.stored():
        del module._parameters[name]
    del module.lowbit_layers
    module.__class__ = _original(type(module))
    for projection, weight in weights.items():
        weight = weight.mT.contiguous() if module.is_transposed else weight
        module.register_parameter(projection, nn.Parameter(weight))
    return module


def matrices(module: nn.Module, projection: str) -> Tensor:
    """The float weights [E, N, K] of a projection, a view."""
    weight = getattr(module, projection).detach()
    return weight.mT if module.is_transposed else weight


def _name(projection: str, part: str) -> str:
    return projection if part == "weight" else f"{projection}_{part}"


@functools.cache
def _quantized(kind: type[nn.Module]) -> type[QuantizedExperts]:
    names = {"__module__": kind.__module__, "__doc__": QuantizedExperts.__doc__}
    return type(f"Quantized{kind.__name__}", (QuantizedExperts, kind), names)


def _original(kind: type[QuantizedExperts]) -> type[nn.Module]:
    return kind.__bases__[1]


def _restore(kind: type[nn.Module]) -> QuantizedExperts:
    return _quantized(kind).__new__(_quantized(kind))
