# SPDX-License-Identifier: MIT
"""Quantizing the linear layers of a model in place."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.nn.int8_linear import Int8Linear, float_weight, why_not_quantizable


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
            f"{len(self.replaced)} linear layers quantized, {len(self.skipped)} left as they were, "
            f"{self.bytes_before / 2**20:.1f} MiB -> {self.bytes_after / 2**20:.1f} MiB"
        )
        return "\n".join(
            [total, *(f"  left: {name} ({why})" for name, why in self.skipped.items())]
        )


def quantize_(
    model: nn.Module,
    bits: int = 8,
    *,
    threshold: float = 6.0,
    offset: bool = False,
    compute_dtype: torch.dtype | None = None,
    absmax_dtype: torch.dtype = torch.float32,
    skip: Iterable[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Replaces the linear layers of model by low-bit ones, in place, and reports.

    One layer is replaced after the other, so memory peaks at the model plus one layer. Left as they
    are: the output head, layers whose weight is tied to another module, those in `skip`, subclasses
    of torch.nn.Linear, layers with hooks, and weights that no kernel takes. All weights are checked
    before the first is replaced: on an error the model is unchanged.

    Args:
        model: any module that contains torch.nn.Linear or transformers Conv1D.
        bits: 8.
        threshold, offset, compute_dtype, absmax_dtype: see lowbit.nn.Int8Linear.
        skip: names of modules to leave alone, with everything inside them.
        progress: called after each layer with its name, how many are done, and how many there are.

    Raises:
        ValueError: bits, an option or a name in skip is wrong, model is quantized already or is
            itself a linear layer, or a weight holds NaN, infinity or too large a value.
    """
    if bits != 8:
        raise ValueError(f"quantize_: bits is {bits}, expected 8")
    options = {
        "threshold": threshold,
        "offset": offset,
        "compute_dtype": compute_dtype,
        "absmax_dtype": absmax_dtype,
    }
    Int8Linear(1, 1, device="meta", **options)  # checks the options
    _check_model(model)
    candidates, skipped = _choose(model, _check_names(model, skip))
    for name, module in candidates.items():
        problem = why_not_quantizable(float_weight(module), absmax_dtype)
        if problem:
            raise ValueError(
                f"quantize_: the weight of {name} {problem}; name it in skip to leave it alone"
            )
    before = _bytes(model)
    names = tuple(candidates)
    for done, name in enumerate(names, 1):
        model.set_submodule(name, Int8Linear.from_float(candidates.pop(name), **options))
        if progress:
            progress(name, done, len(names))
    return Report(names, skipped, before, _bytes(model))


def _check_model(model: nn.Module) -> None:
    if isinstance(model, nn.Linear) or float_weight(model) is not None:
        raise ValueError(
            "quantize_: model is itself a linear layer and cannot be replaced in place; "
            "use lowbit.nn.Int8Linear.from_float"
        )
    method = getattr(model, "quantization_method", None)
    method = getattr(method, "value", method)
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            method = f"lowbit ({name} is an Int8Linear)"
            break
    if method:
        raise ValueError(f"quantize_: model is already quantized by {method}, expected a float one")


def _check_names(model: nn.Module, skip: Iterable[str]) -> tuple[str, ...]:
    if isinstance(skip, str):
        raise TypeError(f"quantize_: skip is the string {skip!r}, expected a list of names")
    names = tuple(skip)
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(
            f"quantize_: skip names {', '.join(unknown)}, "
            "expected names of modules as model.named_modules() gives them"
        )
    return names


def _choose(model: nn.Module, skip: tuple[str, ...]) -> tuple[dict[str, nn.Module], dict[str, str]]:
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
        weight = float_weight(module)
        if weight is None:
            reason = _why_not_linear(module)
            if reason:
                skipped[name] = reason
        elif any(name == parent or name.startswith(f"{parent}.") for parent in skip):
            skipped[name] = "named in skip"
        elif uses[id(module.weight)] > 1:
            skipped[name] = "its weight is tied to another module"
        elif id(module) in heads or name.rpartition(".")[2] == "lm_head":
            skipped[name] = "output head"
        elif module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            skipped[name] = "has hooks, which a new layer would lose"
        elif weight.dtype == torch.float64:
            skipped[name] = "its weight is float64"
        else:
            chosen[name] = module
    return chosen, skipped


def _why_not_linear(module: nn.Module) -> str | None:
    """Why a module with matrices for linear maps is none that quantize_ replaces; None if it has
    no such matrices."""
    if isinstance(module, nn.Linear):
        return f"{type(module).__qualname__} is a subclass of torch.nn.Linear"
    experts = expert_weights(module)
    if experts:
        return f"{', '.join(experts)}: fused expert weights stay float"
    return None


def expert_weights(module: nn.Module) -> list[str]:
    """Names of the module's own fused expert weights: floating [E, ., .] with several E, as mixture
    of experts models keep them outside of any linear layer. torch's modules have none."""
    if type(module).__module__.startswith("torch.nn."):
        return []
    return [
        name
        for name, p in module.named_parameters(recurse=False)
        if p.dim() == 3 and p.shape[0] > 1 and min(p.shape) > 1 and p.is_floating_point()
    ]


def _bytes(model: nn.Module) -> int:
    def tensors() -> Iterator[Tensor]:
        yield from model.parameters()
        yield from model.buffers()

    return sum(tensor.nbytes for tensor in tensors())
