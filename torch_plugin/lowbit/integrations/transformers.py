# SPDX-License-Identifier: MIT
"""lowbit for Hugging Face transformers 5.

    AutoModel.from_pretrained(name, quantization_config=LowbitConfig(bits=8))

quantizes each weight as it is loaded. save_pretrained writes the quantized model, from_pretrained
reads it back to the same bits, and model.dequantize() makes it a float one again.
"""

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
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit.nn import Int8Linear
from lowbit.nn.lowbit_linear import float_weight
from lowbit.quantize import expert_weights

_METHOD = "lowbit"
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
_SINGLE_FILE = "model.safetensors"


@register_quantization_config(_METHOD)
class LowbitConfig(QuantizationConfigMixin):
    """How a transformers model is quantized; it is saved in the checkpoint's config.json.

    Args:
        bits: 8.
        threshold, offset: see lowbit.nn.Int8Linear.
        absmax_dtype: "float32" or "float16" (or the torch dtype), of the scales.
        compute_dtype: "float32", "float16", "bfloat16", or None for the dtype of the activations.
        skip_modules: names of further modules to leave float: a full name ("model.layers.0.mlp"),
            its end ("up_proj") or a regular expression. The output head, tied weights and modules
            that the model keeps in float32 are left float in any case.
    """

    def __init__(
        self,
        bits: int = 8,
        threshold: float = 6.0,
        offset: bool = False,
        absmax_dtype: torch.dtype | str = "float32",
        compute_dtype: torch.dtype | str | None = None,
        skip_modules: list[str] | None = None,
        quant_method: str = _METHOD,
    ) -> None:
        if bits != 8:
            raise ValueError(f"LowbitConfig: bits is {bits}, expected 8")
        if quant_method != _METHOD:
            raise ValueError(f"LowbitConfig: quant_method is {quant_method}, expected {_METHOD}")
        if isinstance(skip_modules, str):
            raise TypeError(
                f"LowbitConfig: skip_modules is the string {skip_modules!r}, expected a list"
            )
        self.quant_method = quant_method
        self.bits = bits
        self.threshold = threshold
        self.offset = offset
        self.absmax_dtype = _dtype_name(absmax_dtype)
        self.compute_dtype = None if compute_dtype is None else _dtype_name(compute_dtype)
        self.skip_modules = list(skip_modules) if skip_modules else None
        Int8Linear(1, 1, device="meta", **self.layer_options())  # checks the options

    def layer_options(self) -> dict[str, Any]:
        return {
            "threshold": self.threshold,
            "offset": self.offset,
            "absmax_dtype": _DTYPES[self.absmax_dtype],
            "compute_dtype": _DTYPES.get(self.compute_dtype),
        }


def _dtype_name(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"LowbitConfig: dtype is {dtype}, expected one of {', '.join(_DTYPES)}")
    return name


class _Quantize(ConversionOps):
    """One float weight, as it comes from the file, to codes and scales."""

    def __init__(self, quantizer: "LowbitQuantizer") -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], model: nn.Module, **kwargs: Any
    ) -> dict[str, nn.Parameter]:
        ((name, weight),) = input_dict.items()
        weight = weight[0] if isinstance(weight, list) else weight
        layer, _ = get_module_from_name(model, name)
        return self.quantizer.quantize(layer, name.removesuffix(".weight"), weight)


class _Resave(ConversionOps):
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


@register_quantizer(_METHOD)
class LowbitQuantizer(HfQuantizer):
    """Replaces linear layers on the meta device and quantizes their weights while they load."""

    quantization_config: LowbitConfig
    quantized_element_size = 1
    is_trainable = True  # adapters on the frozen layers
    is_compileable = True

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._conv1d: set[str] = set()  # replaced layers that were Conv1D
        self._layers: list[str] = []
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
        for name, module in list(model.named_modules()):
            weight = float_weight(module)
            if weight is None or not self._converts(model, name, skip):
                continue
            layer = Int8Linear(
                weight.shape[1],
                weight.shape[0],
                module.bias is not None,
                device="meta",
                dtype=weight.dtype,
                **self.quantization_config.layer_options(),
            )
            # Marked as initialised, or _init_weights would draw random codes. What the checkpoint
            # lacks comes back without the mark.
            layer._is_hf_initialized = True
            for parameter in layer.parameters():
                parameter._is_hf_initialized = True
            if isinstance(module, Conv1D):
                self._conv1d.add(name)
            self._layers.append(name)
            model.set_submodule(name, layer)
        self._warn_about_experts(model)
        # The last moment before accelerate's hooks replace the parameters, marks and all.
        model._initialize_missing_keys = functools.partial(self._initialize_missing_keys, model)
        return model

    def _names_to_skip(self, model: nn.Module) -> list[str]:
        """The base class names the head by its last parameter: "classifier.bias" would skip
        nothing. A model without a head has no layer to spare there."""
        given = self.quantization_config.skip_modules or []
        if not self.pre_quantized:
            names = [name for name, _ in model.named_modules()]
            unknown = [
                pattern
                for pattern in given
                if all(self._converts(model, name, [pattern]) for name in names)
            ]
            if unknown:
                raise ValueError(
                    f"LowbitConfig: skip_modules names {', '.join(unknown)}, "
                    f"but {type(model).__name__} has no such module"
                )
        skip = self.get_modules_to_not_convert(
            model, given, model._keep_in_fp32_modules, add_default_skips=True
        )
        if model.base_model is not model:
            skip = [name.removesuffix(".bias") for name in skip]
        return skip

    def _converts(self, model: nn.Module, name: str, skip: list[str]) -> bool:
        """Names match with and without the base model's prefix: a checkpoint of a model with a head
        also loads into its base model, and the other way round."""
        prefix = f"{model.base_model_prefix}."
        spellings = {name, prefix + name, name.removeprefix(prefix)}
        return all(should_convert_module(spelling, skip) for spelling in spellings)

    def _warn_about_experts(self, model: nn.Module) -> None:
        experts = [name for name, module in model.named_modules() if expert_weights(module)]
        if experts:
            warnings.warn(
                f"lowbit leaves the fused expert weights of {len(experts)} modules float "
                f"({experts[0]}, ...): only linear layers are quantized",
                stacklevel=2,
            )

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: nn.Module
    ) -> list[Any]:
        conversions = super().update_weight_conversions(weight_conversions, model)
        if self.pre_quantized:
            return conversions
        leaves = sorted({f"{name.rpartition('.')[2]}.weight" for name in self._layers})
        return conversions + [WeightConverter([leaf], leaf, [_Resave()]) for leaf in leaves]

    # While loading

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        module, name = get_module_from_name(model, param_name)
        return not self.pre_quantized and isinstance(module, Int8Linear) and name == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        return _Quantize(self)

    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """A float weight where codes are expected is an error to find later, not one to cast."""
        dtype = super().get_new_dtype(converter, param, dtype)
        return None if dtype == torch.int8 else dtype

    def quantize(self, layer: Int8Linear, name: str, weight: Tensor) -> dict[str, nn.Parameter]:
        """The stored parameters of a layer by their full names, from its float weight.

        transformers replaces an error raised here by one that says nothing: it is kept for later.
        """
        if name in self._conv1d:
            weight = weight.t()
        problem = layer.why_not_quantizable(weight)
        if problem and list(weight.shape) != [layer.out_features, layer.in_features]:
            problem += (
                "; a layer whose size differs from the checkpoint's has to be in skip_modules"
            )
        if problem:
            self._problem = self._problem or f"{name}.weight {problem}"
        if self._problem:
            return {}
        return {
            f"{name}.{leaf}": nn.Parameter(value, requires_grad=False)
            for leaf, value in layer.quantize_weight(weight).items()
        }

    # After loading

    def _initialize_missing_keys(self, model: nn.Module, is_quantized: bool) -> None:
        del model._initialize_missing_keys  # this function, back to the class's own
        if self._problem:
            raise ValueError(f"lowbit: the checkpoint's {self._problem}")
        model._initialize_missing_keys(is_quantized)
        for name in self._layers:
            self._fill_missing(model, model.get_submodule(name), name)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if not any(isinstance(op, _Resave) for op in getattr(conversion, "operations", ()))
        ]
        for name in self._layers:
            layer = model.get_submodule(name)
            layer.requires_grad_(False)  # what is read from a file comes back trainable
            self._check_stored(layer, name)
        _trim_heap()
        return model

    def _fill_missing(self, model: nn.Module, layer: Int8Linear, name: str) -> None:
        """A layer that the checkpoint lacks gets the random weights that its float form would."""
        parameters = dict(layer.named_parameters())
        missing = [
            leaf for leaf, p in parameters.items() if not getattr(p, "_is_hf_initialized", False)
        ]
        if not missing:
            return
        if len(missing) < len(parameters):
            raise ValueError(
                f"lowbit: the checkpoint lacks {', '.join(missing)} of {name}, "
                f"expected all of {', '.join(parameters)}"
            )
        linear = nn.Linear(
            layer.in_features,
            layer.out_features,
            layer.bias is not None,
            device=layer.weight.device,
            dtype=model.dtype,
        )
        model._initialize_weights(linear)
        options = self.quantization_config.layer_options()
        model.set_submodule(name, Int8Linear.from_float(linear, **options).train(layer.training))

    def _check_stored(self, layer: Int8Linear, name: str) -> None:
        expected = Int8Linear(
            layer.in_features,
            layer.out_features,
            device="meta",
            **self.quantization_config.layer_options(),
        )
        for leaf in ("weight", "absmax", "offset"):
            value = _loaded(layer, leaf)
            problem = None if value is None else expected.why_not_loadable(leaf, value)
            if problem:
                raise ValueError(f"lowbit: the checkpoint's {name}.{leaf} {problem}")

    # Back to float

    def dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        model = super().dequantize(model, dtype)
        for module in model.modules():
            if getattr(getattr(module, "config", None), "_is_quantized", False):
                module.config._is_quantized = False
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | str | None = None) -> nn.Module:
        dtype = _DTYPES[_dtype_name(dtype)]
        offloaded = [name for name in self._layers if model.get_submodule(name).weight.is_meta]
        if offloaded:
            raise ValueError(
                f"lowbit: {offloaded[0]} and {len(offloaded) - 1} more layers are offloaded; "
                "load the model without offloading to dequantize it"
            )
        for name in self._layers:
            layer = model.get_submodule(name)
            shape = (layer.in_features, layer.out_features)
            with torch.device("meta"):
                if name in self._conv1d:
                    module: nn.Module = Conv1D(layer.out_features, layer.in_features)
                else:
                    module = nn.Linear(*shape, bias=layer.bias is not None)
            weight = layer.dequantize(dtype)
            module.weight = nn.Parameter(
                weight.t().contiguous() if name in self._conv1d else weight
            )
            if layer.bias is not None:
                module.bias = nn.Parameter(layer.bias.detach().to(dtype))
            model.set_submodule(name, module.train(layer.training))
        return model


def _loaded(layer: Int8Linear, leaf: str) -> Tensor | None:
    """A parameter, from where accelerate keeps it if it is offloaded."""
    value = getattr(layer, leaf)
    hook = getattr(layer, "_hf_hook", None)
    for part in getattr(hook, "hooks", (hook,)):
        offloaded = getattr(part, "weights_map", None)
        if value is not None and value.is_meta and offloaded is not None:
            return offloaded[leaf]
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
