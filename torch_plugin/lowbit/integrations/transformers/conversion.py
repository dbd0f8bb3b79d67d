# SPDX-License-Identifier: MIT
"""What happens to weights between file and model: transformers' conversion operations."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    WeightConverter,
)
from transformers.quantizers.quantizers_utils import get_module_from_name

from lowbit.nn.experts import QuantizedExperts


class Quantize(ConversionOps):
    """Float weights, as they come from the file, to codes and scales.

    quantize(model, name, weight) returns parameters by their full names. weight is the Tensor, or
    for each of the experts that `Apart` left apart its matrices.
    """

    def __init__(self, quantize: Callable[[nn.Module, str, Any], dict[str, nn.Parameter]]) -> None:
        self.quantize = quantize

    def convert(
        self, input_dict: dict[str, Any], model: nn.Module, **kwargs: Any
    ) -> dict[str, nn.Parameter]:
        parameters = {}
        for name in list(input_dict):
            weight = input_dict.pop(name)  # a float weight lives no longer than needed
            weight = weight[0] if isinstance(weight, list) else weight
            parameters |= self.quantize(model, name, weight)
        return parameters


class Resave(ConversionOps):
    """Changes nothing. transformers writes a disk-offloaded weight anew only if a converter was
    applied to it; without one it would read the original float weight back at every call."""

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str, **kwargs: Any
    ) -> dict[str, Any]:
        (value,) = input_dict.values()
        return {full_layer_name: value}

    @property
    def reverse_op(self) -> ConversionOps:
        return self


class Apart(ConversionOps):
    """In place of operations that merge the experts' matrices from the file into one tensor: leaves
    them apart, to be quantized one by one. Merging takes twice the memory of the float layer."""

    def __init__(self, operations: list[ConversionOps]) -> None:
        self.operations = operations

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        full_layer_name: str,
        model: nn.Module,
        **kwargs: Any,
    ) -> dict[str, Any]:
        module, _ = get_module_from_name(model, full_layer_name)
        if isinstance(module, QuantizedExperts):
            parts = [input_dict.pop(pattern) for pattern in source_patterns]
            return {target_patterns[0]: tuple(zip(*parts, strict=True))}
        for operation in self.operations:  # the layers left float
            input_dict = operation.convert(
                input_dict,
                source_patterns=source_patterns,
                target_patterns=target_patterns,
                full_layer_name=full_layer_name,
                model=model,
                **kwargs,
            )
        return input_dict


def keep_apart(converter: WeightConverter) -> WeightConverter:
    """The converter with `Apart`, if all that it does is to merge the matrices of experts."""
    operations = converter.operations
    merges = [(type(op), getattr(op, "dim", None)) for op in operations]
    if merges not in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
        return converter
    return converter.copy(
        converter._original_source_patterns,
        converter._original_target_patterns,
        operations=[Apart(operations)],
    )


def writes(conversion: Any, names: Iterable[str]) -> bool:
    """Whether a conversion makes one of these parameters, or is undone on one of them at saving."""
    if not isinstance(conversion, WeightConverter):
        return False
    targets = conversion._original_target_patterns
    matchers = [conversion.copy(target, target, operations=[Resave()]) for target in targets]
    return any(matcher.rename_source_key(name)[1] for matcher in matchers for name in names)
