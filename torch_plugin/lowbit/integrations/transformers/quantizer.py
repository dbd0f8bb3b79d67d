# SPDX-License-Identifier: MIT
"""The hooks of from_pretrained and save_pretrained."""

import ctypes
import functools
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module

from lowbit.integrations.transformers.config import METHOD, LowbitConfig, to_dtype
from lowbit.integrations.transformers.conversion import Quantize, Resave, keep_apart, writes
from lowbit.nn import LowbitLinear
from lowbit.nn.experts import (
    QuantizedExperts,
    convert_experts,
    fused_weights,
    quantize_experts,
    restore_experts,
    why_not_experts,
)
from lowbit.nn.lowbit_linear import float_weight
from lowbit.nn.lowbit_module import LowbitModule

_SINGLE_FILE = "model.safetensors"


@register_quantizer(METHOD)
class LowbitQuantizer(HfQuantizer):
    """Replaces linear layers and fused experts on the meta device and quantizes their weights while
    they load."""

    quantization_config: LowbitConfig
    quantizes_experts = True
    is_trainable = True  # adapters on the frozen layers
    is_compileable = True

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._conv1d: set[str] = set()  # replaced layers that were Conv1D
        self._modules: list[str] = []  # what was replaced: linear layers and experts
        self._stored: dict[str, Tensor] = {}  # by full name, on the meta device, as it has to be
        self._problem: str | None = None  # of the first weight that could not be quantized

    def is_serializable(self) -> bool:
        return True

    # Before loading

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        if self.pre_quantized:
            _refuse_two_checkpoints(checkpoint_files)
        skip = self._names_to_skip(model)
        unfit: dict[str, str] = {}
        for name, module in list(model.named_modules()):
            if not all(
                self._converts(model, each, skip) for each in _with_projections(name, module)
            ):
                continue
            try:
                if float_weight(module) is not None:
                    self._replace_linear(model, name, module)
                elif fused_weights(module) and self.quantizes_experts:
                    problem = why_not_experts(module)
                    if problem:
                        unfit[name] = problem
                    else:
                        self._convert_experts(name, module)
            except ValueError as error:  # of a layer that does not take the size
                raise ValueError(
                    f"lowbit: {name}: {error}; name it in skip_modules to leave it float"
                ) from None
        if unfit:
            name, problem = next(iter(unfit.items()))
            warnings.warn(
                f"lowbit leaves the fused weights of {len(unfit)} modules float "
                f"({name}: {problem})",
                stacklevel=2,
            )
        # The last moment before accelerate's hooks replace the parameters, marks and all.
        model._initialize_missing_keys = functools.partial(self._initialize_missing_keys, model)
        return model

    def _replace_linear(self, model: nn.Module, name: str, module: nn.Module) -> None:
        weight = float_weight(module)
        layer = self.quantization_config.new_layer(
            weight.shape[1], weight.shape[0], bias=module.bias is not None, dtype=weight.dtype
        )
        if isinstance(module, Conv1D):
            self._conv1d.add(name)
        model.set_submodule(name, layer)
        self._take(name, layer, {"weight": module.weight})

    def _convert_experts(self, name: str, module: nn.Module) -> None:
        floats = {projection: getattr(module, projection) for projection in fused_weights(module)}
        convert_experts(module, self.quantization_config.new_layer)
        self._take(name, module, floats)

    def _take(self, name: str, module: LowbitModule, floats: dict[str, nn.Parameter]) -> None:
        for part in module.stored():
            self._stored[f"{name}.{part}"] = getattr(module, part)
        # Marked as initialised, or _init_weights would draw random codes. What the checkpoint lacks
        # comes back without the mark.
        module._is_hf_initialized = True
        for parameter in (*module.parameters(recurse=False), *floats.values()):
            parameter._is_hf_initialized = True
        if not self.pre_quantized:
            # What transformers does to float weights on their way depends on the shapes that it
            # finds here; `quantize` puts the codes' own back.
            module._parameters.update(floats)
        self._modules.append(name)

    def _names_to_skip(self, model: nn.Module) -> list[str]:
        """The base class names the head by its last parameter: "classifier.bias" would skip
        nothing. A model without a head has no layer to spare there."""
        config = self.quantization_config
        include, given = config.include_modules or [], config.skip_modules or []
        if not self.pre_quantized:
            for argument, patterns in (("skip_modules", given), ("include_modules", include)):
                self._refuse_unknown(model, argument, patterns)
        skip = self.get_modules_to_not_convert(model, [], [], add_default_skips=True)
        if model.base_model is not model:
            skip = [name.removesuffix(".bias") for name in skip]
        tied = {name.removesuffix(".weight") for name in _tied(model)}
        included = [name for name in skip if not self._converts(model, name, include)]
        if include and not tied.isdisjoint(included) and not self.pre_quantized:
            raise ValueError(
                f"LowbitConfig: include_modules names {', '.join(sorted(tied & set(included)))}, "
                "whose weight is tied to another module: quantized, it would be on its own"
            )
        skip = [name for name in skip if name not in included or name in tied]
        return skip + given + list(model._keep_in_fp32_modules or [])

    def _refuse_unknown(self, model: nn.Module, argument: str, patterns: list[str]) -> None:
        names = [
            name
            for module_name, module in model.named_modules()
            for name in _with_projections(module_name, module)
        ]
        unknown = [
            pattern
            for pattern in patterns
            if all(self._converts(model, name, [pattern]) for name in names)
        ]
        if unknown:
            raise ValueError(
                f"LowbitConfig: {argument} names {', '.join(unknown)}, "
                f"but {type(model).__name__} has no such module"
            )

    def _converts(self, model: nn.Module, name: str, skip: list[str]) -> bool:
        """Names match with and without the base model's prefix: a checkpoint of a model with a head
        also loads into its base model, and the other way round."""
        prefix = f"{model.base_model_prefix}."
        spellings = {name, prefix + name, name.removeprefix(prefix)}
        return all(should_convert_module(spelling, skip) for spelling in spellings)

    def param_element_size(self, model: nn.Module, param_name: str, param: Tensor) -> float:
        """For planning a device map: what will be stored, not the float weight in its place."""
        stored = self._stored.get(param_name, param)
        return stored.nbytes / max(param.numel(), 1)

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: nn.Module
    ) -> list[Any]:
        conversions = super().update_weight_conversions(weight_conversions, model)
        if self.pre_quantized:
            # A foreign format has its own operations, and the names that transformers knows.
            native = not self.get_load_operations()
            return self._without_ours(conversions) if native else conversions
        codes = [name for name in self._stored if self._is_codes(model, name)]
        conversions = [keep_apart(c) if writes(c, codes) else c for c in conversions]
        known = {pattern for conversion in conversions for pattern in conversion.source_patterns}
        leaves = {".".join(name.split(".")[-2:]) for name in codes}
        return conversions + [
            WeightConverter([leaf], leaf, [Resave()]) for leaf in sorted(leaves - known)
        ]

    def _without_ours(self, conversions: list[Any]) -> list[Any]:
        """What transformers does to some models' float weights between file and model, it must not
        do to codes and scales: they have the same names and shapes in both."""
        return [conversion for conversion in conversions if not writes(conversion, self._stored)]

    # While loading

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        return not self.pre_quantized and self._is_codes(model, param_name)

    def _is_codes(self, model: nn.Module, param_name: str) -> bool:
        module, name = get_module_from_name(model, param_name)
        if isinstance(module, QuantizedExperts):
            return name in module.lowbit_layers
        return isinstance(module, LowbitLinear) and name == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        return Quantize(self.quantize)

    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """A float weight where codes are expected is an error to find later, not one to cast."""
        dtype = super().get_new_dtype(converter, param, dtype)
        return None if dtype in (torch.int8, torch.uint8) else dtype

    def quantize(self, model: nn.Module, name: str, weight: Any) -> dict[str, nn.Parameter]:
        """The stored parameters by their full names, from the float weight of that name: a Tensor,
        or of experts for each the list of its matrices.

        transformers replaces an error raised here by one that says nothing: it is kept for later.
        """
        if self._problem:
            return {}
        if not self._is_codes(model, name):  # the file keeps it together with one that is
            return {name: weight}
        module, leaf = get_module_from_name(model, name)
        path = name.removesuffix(f".{leaf}")
        problem = None
        if isinstance(module, QuantizedExperts):
            whole = isinstance(weight, Tensor)
            try:
                stored = module.stack(leaf, weight.mT if whole and module.is_transposed else weight)
            except ValueError as error:
                problem = str(error)
        else:
            layer = self.quantization_config.new_layer(module.in_features, module.out_features)
            weight = weight.t() if path in self._conv1d else weight
            problem = layer.why_not_quantizable(weight)
            if problem and list(weight.shape) != [layer.out_features, layer.in_features]:
                problem += (
                    "; a layer whose size differs from the checkpoint's has to be in skip_modules"
                )
            stored = {} if problem else layer.quantize_weight(weight)
        if problem:
            self._problem = f"{name} {problem}"
            return {}
        module._parameters[leaf] = self._stored[name]  # which stays there if the codes go to disk
        return {
            f"{path}.{part}": nn.Parameter(value, requires_grad=False)
            for part, value in stored.items()
        }

    # After loading

    def _initialize_missing_keys(self, model: nn.Module, is_quantized: bool) -> None:
        del model._initialize_missing_keys  # this function, back to the class's own
        if self._problem:
            raise ValueError(f"lowbit: the checkpoint's {self._problem}")
        model._initialize_missing_keys(is_quantized)
        for name in self._modules:
            self._fill_missing(model, model.get_submodule(name), name)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model._weight_conversions = self._without_ours(model._weight_conversions)
        for name in self._modules:
            module = model.get_submodule(name)
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)  # what is read from a file comes back trainable
            for part in module.stored():
                full = f"{name}.{part}"
                problem = module.why_not_loadable(part, _loaded(module, part), self._stored[full])
                if problem:
                    raise ValueError(f"lowbit: the checkpoint's {full} {problem}")
        _trim_heap()
        return model

    def _fill_missing(self, model: nn.Module, module: LowbitModule, name: str) -> None:
        """What the checkpoint lacks gets the random weights that its float form would."""
        parameters = dict(module.named_parameters(recurse=False))
        missing = [
            part for part, p in parameters.items() if not getattr(p, "_is_hf_initialized", False)
        ]
        if not missing:
            return
        if len(missing) < len(parameters):
            raise ValueError(
                f"lowbit: the checkpoint lacks {', '.join(missing)} of {name}, "
                f"expected all of {', '.join(parameters)}"
            )
        if isinstance(module, QuantizedExperts):
            blank = {
                projection: torch.empty(
                    module.num_experts,
                    layer.out_features,
                    layer.in_features,
                    device=parameters[projection].device,
                    dtype=model.dtype,
                )
                for projection, layer in module.lowbit_layers.items()
            }
            restore_experts(module, blank)
            module._is_hf_initialized = False
            model._initialize_weights(module)
            quantize_experts(module, self.quantization_config.new_layer)
            return
        linear = nn.Linear(
            module.in_features,
            module.out_features,
            module.bias is not None,
            device=module.weight.device,
            dtype=model.dtype,
        )
        model._initialize_weights(linear)
        options = self.quantization_config.new_layer(2, 2).options()
        layer = type(module).from_float(linear, **options)
        model.set_submodule(name, layer.train(module.training))

    # Back to float

    def dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        model = super().dequantize(model, dtype)
        for module in model.modules():
            if getattr(getattr(module, "config", None), "_is_quantized", False):
                module.config._is_quantized = False
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        dtype = to_dtype(dtype)
        offloaded = [
            name
            for name in self._modules
            if any(p.is_meta for p in model.get_submodule(name).parameters(recurse=False))
        ]
        if offloaded:
            raise ValueError(
                f"lowbit: {offloaded[0]} and {len(offloaded) - 1} more modules are offloaded; "
                "load the model without offloading to dequantize it"
            )
        for name in self._modules:
            module = model.get_submodule(name)
            if isinstance(module, QuantizedExperts):
                restore_experts(module, module.dequantize(dtype)).to(dtype)
            else:
                model.set_submodule(name, self._float_layer(name, module, dtype))
        return model

    def _float_layer(self, name: str, layer: LowbitLinear, dtype: torch.dtype) -> nn.Module:
        weight = layer.dequantize(dtype)
        with torch.device("meta"):
            if name in self._conv1d:
                module: nn.Module = Conv1D(layer.out_features, layer.in_features)
                weight = weight.t().contiguous()
            else:
                module = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
        module.weight = nn.Parameter(weight)
        if layer.bias is not None:
            module.bias = nn.Parameter(layer.bias.detach().to(dtype))
        return module.train(layer.training)


def _with_projections(name: str, module: nn.Module) -> list[str]:
    """The names by which skip_modules may mean a module."""
    return [name, *(f"{name}.{projection}" for projection in fused_weights(module))]


def _tied(model: nn.Module) -> set[str]:
    keys = getattr(model, "all_tied_weights_keys", {})
    return set(keys) | set(keys.values())


def _loaded(module: LowbitModule, part: str) -> Tensor:
    """A parameter, from where accelerate keeps it if it is offloaded."""
    value = getattr(module, part)
    hook = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        offloaded = getattr(each, "weights_map", None)
        if value.is_meta and offloaded is not None:
            return offloaded[part]
    return value


def _trim_heap() -> None:
    """Gives the holes that float weights left in the heap back to the system. glibc has to be
    asked, or a model loaded with a cast stays a quarter larger than it is."""
    malloc_trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    )
    if malloc_trim is not None:
        malloc_trim(0)


def _refuse_two_checkpoints(files: list[str] | None) -> None:
    """Saving in shards leaves an older single file behind, which transformers then prefers."""
    if files and len(files) == 1 and Path(files[0]).name == _SINGLE_FILE:
        index = Path(f"{files[0]}.index.json")
        if index.exists():
            raise ValueError(
                f"lowbit: {index.parent} holds both {_SINGLE_FILE} and {index.name}, one of them "
                "left from an earlier save; delete the stale one"
            )
