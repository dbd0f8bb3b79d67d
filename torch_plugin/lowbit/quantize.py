# SPDX-License-Identifier: MIT
"""Quantizing the linear layers and experts of a model in place."""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear
from lowbit.nn.experts import (
    fused_weights,
    matrices,
    quantize_experts,
    why_not_experts,
)
from lowbit.nn.lowbit_linear import float_weight
from lowbit.nn.lowbit_module import LowbitModule


@dataclass(frozen=True)
class Report:
    """What quantize_ did. Names are those of model.named_modules(); sizes count every parameter and
    buffer of the model once, in bytes."""

    replaced: tuple[str, ...]
    skipped: dict[str, str]  # name: why
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        total = (
            f"{len(self.replaced)} layers quantized, {len(self.skipped)} left as they were, "
            f"{self.bytes_before / 2**20:.1f} MiB -> {self.bytes_after / 2**20:.1f} MiB"
        )
        return "\n".join(
            [total, *(f"  left: {name} ({why})" for name, why in self.skipped.items())]
        )


_LAYERS: dict[int, type[LowbitLinear]] = {8: Int8Linear, 4: LUT4Linear}


def quantize_(
    model: nn.Module,
    bits: int = 8,
    *,
    skip: Iterable[str] = (),
    include: Iterable[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Report:
    """Replaces the linear layers of model by low-bit ones, in place, and reports.

    Fused experts, transformers' modules with weights [E, ., .], are quantized expert by expert. One
    layer is replaced after the other, so memory peaks at the model plus one layer. Left as they
    are: the output head, layers whose weight is tied to another module, those in `skip`, subclasses
    of torch.nn.Linear, layers with hooks, and weights that no kernel takes. All weights are checked
    before the first is replaced: on an error the model is unchanged.

    Args:
        model: any module that contains torch.nn.Linear, transformers Conv1D or fused experts.
        bits: 8 (lowbit.nn.Int8Linear) or 4 (lowbit.nn.LUT4Linear).
        skip: names of modules to leave alone, with everything inside them.
        include: names of layers to replace although they are the output head or tied; a tied one
            then has a weight of its own.
        progress: called after each layer with its name, how many are done, and how many there are.
        options: of the layer. 8 bits: threshold, offset, compute_dtype, absmax_dtype, trainable. 4
            bits: codebook, blocksize, double_quant, compute_dtype.

    Raises:
        TypeError: an option that the layer does not have.
        ValueError: bits, an option or a name is wrong, model is quantized already or is itself a
            linear layer, or a weight holds NaN, infinity or too large a value.
    """
    if bits not in _LAYERS:
        raise ValueError(f"quantize_: bits is {bits}, expected 8 or 4")
    kind = _LAYERS[bits]
    unknown = sorted(set(options) - _options(kind))
    if unknown:
        raise TypeError(
            f"quantize_: {', '.join(unknown)} given, but a {kind.__name__} ({bits} bits) has no "
            "such option"
        )
    template = kind(2, 2, device="meta", **options)  # checks the options
    options = template.options()
    _check_model(model)
    included = _check_names(model, "include", include)
    candidates, skipped = _choose(model, _check_names(model, "skip", skip), included)
    stay = [name for name in included if name not in candidates]
    if stay:
        why = skipped.get(stay[0], f"a {type(model.get_submodule(stay[0])).__qualname__}")
        raise ValueError(
            f"quantize_: include names {stay[0]} ({why}), expected a plain linear layer"
        )
    new_layer = functools.partial(kind, device="meta", **options)
    for name, module in candidates.items():
        problem = next(filter(None, _problems(module, new_layer)), None)
        if problem:
            raise ValueError(
                f"quantize_: the weight of {name} {problem}; name it in skip to leave it alone"
            )
    before = _bytes(model)
    names = tuple(candidates)
    for done, name in enumerate(names, 1):
        module = candidates.pop(name)
        if float_weight(module) is None:
            quantize_experts(module, new_layer)
        else:
            model.set_submodule(name, kind.from_float(module, **options))
        del module
        if progress:
            progress(name, done, len(names))
    return Report(names, skipped, before, _bytes(model))


def _options(kind: type[LowbitLinear]) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"device", "dtype"}


def _problems(module: nn.Module, new_layer: Callable[..., LowbitLinear]) -> Iterator[str | None]:
    """Why a linear layer, or one expert after the other, cannot be quantized; None where it can."""
    weight = float_weight(module)
    if weight is None:
        if new_layer(2, 2).options().get("trainable"):
            yield "belongs to fused experts, which are not trainable"
        weights = (w for name in fused_weights(module) for w in matrices(module, name))
    else:
        weights = iter([weight])
    for weight in weights:
        try:
            layer = new_layer(weight.shape[1], weight.shape[0], bias=False)
        except ValueError as error:  # of the size: the options are known to be good
            yield f"has shape {list(weight.shape)}: {error}"
        else:
            yield layer.why_not_quantizable(weight)


def _check_model(model: nn.Module) -> None:
    if isinstance(model, nn.Linear) or float_weight(model) is not None:
        raise ValueError(
            "quantize_: model is itself a linear layer and cannot be replaced in place; "
            "use lowbit.nn.Int8Linear.from_float or LUT4Linear.from_float"
        )
    method = getattr(model, "quantization_method", None)
    method = getattr(method, "value", method)
    for name, module in model.named_modules():
        if isinstance(module, LowbitModule):
            method = f"lowbit ({name} is a {type(module).__name__})"
            break
    if method:
        raise ValueError(f"quantize_: model is already quantized by {method}, expected a float one")


def _check_names(model: nn.Module, argument: str, given: Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        raise TypeError(f"quantize_: {argument} is the string {given!r}, expected a list of names")
    names = tuple(given)
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(
            f"quantize_: {argument} names {', '.join(unknown)}, "
            "expected names of modules as model.named_modules() gives them"
        )
    return names


def _choose(
    model: nn.Module, skip: tuple[str, ...], include: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers to replace, by name, and why the others stay, by name."""
    uses = Counter(
        id(parameter)
        for _, module in model.named_modules(remove_duplicate=False)
        for parameter in module.parameters(recurse=False)
    )
    heads = {
        id(head)
        for module in model.modules()
        if (get := getattr(module, "get_output_embeddings", None)) and (head := get()) is not None
    }
    chosen: dict[str, nn.Module] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        plain = float_weight(module) is not None
        fused = [] if plain else fused_weights(module)
        weights = [getattr(module, part) for part in (fused or ["weight"] * plain)]
        if isinstance(module, nn.Linear) and not plain:
            skipped[name] = f"{type(module).__qualname__} is a subclass of torch.nn.Linear"
        elif not weights:
            continue
        elif any(name == parent or name.startswith(f"{parent}.") for parent in skip):
            skipped[name] = "named in skip"
        elif fused and (problem := why_not_experts(module)):
            skipped[name] = f"{', '.join(fused)}: {problem}"
        elif any(uses[id(weight)] > 1 for weight in weights) and name not in include:
            skipped[name] = "its weight is tied to another module"
        elif (id(module) in heads or name.rpartition(".")[2] == "lm_head") and name not in include:
            skipped[name] = "output head"
        elif module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            skipped[name] = "has hooks, which a new layer would lose"
        elif any(weight.dtype == torch.float64 for weight in weights):
            skipped[name] = "its weight is float64"
        else:
            chosen[name] = module
    return chosen, skipped


def _bytes(model: nn.Module) -> int:
    def tensors() -> Iterator[Tensor]:
        yield from model.parameters()
        yield from model.buffers()

    return sum(tensor.nbytes for tensor in tensors())
