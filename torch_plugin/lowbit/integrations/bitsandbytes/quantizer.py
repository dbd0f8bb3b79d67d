# SPDX-License-Identifier: MIT
"""Reading what bitsandbytes has quantized, and quantizing as it was told to."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    ConversionOps,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name
from transformers.utils.quantization_config import BitsAndBytesConfig

from lowbit.integrations.bitsandbytes import format as form
from lowbit.integrations.bitsandbytes.config import READING, ReadByLowbit, take_over, to_lowbit
from lowbit.integrations.transformers import LowbitConfig, LowbitQuantizer
from lowbit.nn import Int8Linear, LowbitLinear
from lowbit.nn.experts import fused_weights
from lowbit.nn.lowbit_linear import float_weight

_METHODS = ("bitsandbytes_8bit", "bitsandbytes_4bit")


class _Read(ConversionOps):
    """One layer's entries, as they come from the file, to parameters; and any other weight, as it
    is."""

    def __init__(self, quantizer: "BitsAndBytesQuantizer") -> None:
        self.quantizer = quantizer

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Read":
        return self  # transformers copies the converter for each weight, quantizer and all

    def convert(
        self, input_dict: dict[str, Any], model: nn.Module, full_layer_name: str, **kwargs: Any
    ) -> dict[str, Any]:
        entries = {
            key: value[0] if isinstance(value, list) else value for key, value in input_dict.items()
        }
        layer, _ = get_module_from_name(model, full_layer_name)
        plain = entries.keys() == {"weight"} and entries["weight"].is_floating_point()
        if plain and not isinstance(layer, LowbitLinear):
            return {full_layer_name: entries["weight"]}
        return self.quantizer.read(layer, full_layer_name.rpartition(".")[0], entries)


@auto.register_quantizer(READING)
class BitsAndBytesQuantizer(LowbitQuantizer):
    """Quantizes as a BitsAndBytesConfig says, and reads what bitsandbytes has quantized."""

    def __init__(self, quantization_config: BitsAndBytesConfig, **kwargs: Any) -> None:
        self._asked = quantization_config
        fresh = not kwargs.get("pre_quantized", True)
        super().__init__(to_lowbit(quantization_config, fresh), **kwargs)
        self.quantizes_experts = fresh  # bitsandbytes leaves them float

    # Before loading

    def _process_model_before_weight_loading(
        self,
        model: nn.Module,
        checkpoint_files: list[str] | None = None,
        device_map: Any = None,
        **kwargs: Any,
    ) -> nn.Module:
        if self.pre_quantized:
            layers = self._follow(model, checkpoint_files)
        else:
            self._choose(model, device_map)
        model = super()._process_model_before_weight_loading(
            model, checkpoint_files=checkpoint_files, device_map=device_map, **kwargs
        )
        if self.pre_quantized and layers != set(self._modules):
            (name, *_) = layers ^ set(self._modules)
            raise ValueError(
                f"lowbit: {name} is quantized in the checkpoint, but its weight is tied to another "
                "module or kept in float32 in the model"
            )
        return model

    def _choose(self, model: nn.Module, device_map: Any) -> None:
        """Adapts skip_modules to the model. Names that it does not have are common in scripts that
        load one model after another."""
        config = self.quantization_config
        names = [name for name, _ in model.named_modules()]
        skip = [
            pattern
            for pattern in config.skip_modules or []
            if not all(self._converts(model, name, [pattern]) for name in names)
        ]
        if self._asked.llm_int8_enable_fp32_cpu_offload and isinstance(device_map, dict):
            skip += [name for name, place in device_map.items() if str(place) in ("cpu", "disk")]
        config.skip_modules = skip or None

    def _follow(self, model: nn.Module, files: list[str] | None) -> set[str]:
        """Makes the configuration say what the files hold, and returns the layers that are
        quantized there, by the model's names."""
        try:
            layers, options = _scan(files or [])
        except ValueError as error:
            raise ValueError(f"lowbit: the checkpoint's {error}") from None
        bits = 8 if options is None else 4
        if bits != self.quantization_config.bits:
            raise ValueError(
                f"lowbit: config.json says that the checkpoint has "
                f"{self.quantization_config.bits}-bit layers, but it has {bits}-bit ones"
            )
        if options is not None:
            stored = options._asdict()
            del stored["dtype"]
            self.quantization_config = LowbitConfig(
                bits=4, compute_dtype=self.quantization_config.compute_dtype, **stored
            )
        config = self.quantization_config
        config.skip_modules = config.include_modules = None
        quantized = _names_in_model(model, layers)
        linear = {n for n, module in model.named_modules() if float_weight(module) is not None}
        skip = self._names_to_skip(model)
        default = {name for name in linear if self._converts(model, name, skip)}
        experts = [name for name, module in model.named_modules() if fused_weights(module)]
        skip = self._patterns(model, default - quantized, linear) + experts
        config.skip_modules = skip or None
        config.include_modules = self._patterns(model, quantized - default, linear) or None
        if isinstance(self._asked, ReadByLowbit):
            take_over(config, self._asked.lowbit)
        return quantized

    def _patterns(self, model: nn.Module, names: set[str], linear: set[str]) -> list[str]:
        """Patterns that match these of the model's linear layers and no others."""
        plain = sorted(names)
        if all(self._converts(model, other, plain) for other in linear - names):
            return plain
        return [f"{re.escape(name)}$" for name in plain]

    # While loading

    @property
    def serialized_names(self) -> dict[str, list[str]]:
        if not self.pre_quantized:
            return {}
        keys = form.KEYS_8BIT if self.quantization_config.bits == 8 else form.KEYS_4BIT
        return {"weight": list(keys)}

    def get_load_operations(self) -> dict[str, type[ConversionOps]]:
        return {"deserialize": _Read}

    def read(
        self, layer: nn.Module, name: str, entries: dict[str, Tensor]
    ) -> dict[str, nn.Parameter]:
        """The stored parameters of a layer by their full names, from its entries in the file."""
        if self._problem:
            return {}
        try:
            if not isinstance(layer, LowbitLinear):
                given = ", ".join(f"{key} ({entries[key].dtype})" for key in sorted(entries))
                raise ValueError(f"{name} has the entries {given}, expected a float weight alone")
            shape = (layer.out_features, layer.in_features)
            if isinstance(layer, Int8Linear):
                stored = form.read_int8(name, entries, shape)._asdict()
            else:
                stored = form.read_lut4(name, entries, shape)._asdict()
                del stored["options"]
        except ValueError as error:
            self._problem = str(error)
            return {}
        return {
            f"{name}.{part}": nn.Parameter(
                value.contiguous().view(getattr(layer, part).shape), requires_grad=False
            )
            for part, value in stored.items()
            if value is not None
        }

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions
            if not any(isinstance(op, _Read) for op in getattr(conversion, "operations", ()))
        ]
        return super()._process_model_after_weight_loading(model, **kwargs)


def _scan(files: Iterable[str]) -> tuple[list[str], form.Lut4Options | None]:
    """The quantized layers in a checkpoint's files, and the options that they share if they have
    4 bits. ValueError, to follow "the checkpoint's": not all are of one kind, or a layer has an
    entry that the format does not have."""
    keys: list[str] = []
    options: dict[str, form.Lut4Options | None] = {}
    for file in files:
        with _opened(file) as entries:
            keys += entries.keys()
            for key in entries.keys():  # noqa: SIM118, it is no dict
                layer, found, codebook = key.partition("." + form.STATE)
                if found:
                    state = {form.STATE + codebook: entries.get_tensor(key)}
                    options[layer] = form.read_options(layer, state)[0]
                elif key.endswith(".SCB"):
                    options[key.removesuffix(".SCB")] = None
    if not options:
        raise ValueError("files hold no layer that bitsandbytes has quantized")
    first, shared = next(iter(options.items()))
    for layer, own in options.items():
        if (own and own._replace(dtype="")) != (shared and shared._replace(dtype="")):
            raise ValueError(
                f"layers differ, {_describe(first, shared)} and {_describe(layer, own)}: "
                "lowbit has one form for all layers of a model"
            )
    known = {*(form.KEYS_8BIT if shared is None else form.KEYS_4BIT), "bias"}
    for key in keys:
        for layer, entry in _splits(key):
            if layer in options and entry not in known:
                raise ValueError(f"{key} is an unknown entry of a quantized layer")
    return list(options), shared


def _describe(layer: str, options: form.Lut4Options | None) -> str:
    if options is None:
        return f"{layer} with 8 bits"
    nested = "with" if options.double_quant else "without"
    return (
        f"{layer} with {options.codebook}, blocksize {options.blocksize}, "
        f"{nested} double quantization"
    )


def _splits(key: str) -> Iterator[tuple[str, str]]:
    for i, character in enumerate(key):
        if character == ".":
            yield key[:i], key[i + 1 :]


class _TorchFile:
    """What is read of a safetensors file, of one that torch.save wrote."""

    def __init__(self, file: str) -> None:
        self._entries = torch.load(file, map_location="cpu", weights_only=True, mmap=True)

    def keys(self) -> Iterable[str]:
        return self._entries.keys()

    def get_tensor(self, key: str) -> Tensor:
        return self._entries[key]


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    if not file.endswith(".safetensors"):
        yield _TorchFile(file)
        return
    try:
        with safe_open(file, framework="pt") as entries:
            yield entries
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}") from None


def _names_in_model(model: nn.Module, layers: Iterable[str]) -> set[str]:
    """The model's names of layers in a checkpoint; those that it does not have are left out."""
    conversions = get_model_conversion_mapping(model)
    renamings = [c for c in conversions if isinstance(c, WeightRenaming)]
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    state = model.state_dict()
    names = set()
    for layer in layers:
        key = f"{layer}.weight"
        for patterns in ((renamings, converters), ([], [])):
            name, _ = rename_source_key(key, *patterns, model.base_model_prefix, state)
            if name in state:
                break
        else:
            continue
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or float_weight(model.get_submodule(path)) is None:
            raise ValueError(
                f"lowbit: the checkpoint's {layer} is quantized, but {name} is not the weight of a "
                f"linear layer in {type(model).__name__}"
            )
        names.add(path)
    if not names:
        raise ValueError(
            f"lowbit: {type(model).__name__} has none of the checkpoint's quantized layers"
        )
    return names


def enable() -> None:
    """From now on, from_pretrained serves a BitsAndBytesConfig, and a checkpoint that bitsandbytes
    wrote, with lowbit; bitsandbytes need not be installed.

    An option that lowbit cannot honour is a ValueError that names it. Otherwise the model is as
    LowbitConfig makes it: save_pretrained writes lowbit's own form, the output head stays float
    whatever llm_int8_skip_modules says, and fused experts are quantized. Layers on the CPU and the
    disk are quantized too, unless llm_int8_enable_fp32_cpu_offload leaves the modules float that a
    device_map places there. model.is_loaded_in_8bit and is_loaded_in_4bit are not set: accelerate
    and transformers take them for a promise that the layers are bitsandbytes'. For want of them
    peft.prepare_model_for_kbit_training leaves gradient checkpointing off; where it is wanted, call
    model.gradient_checkpointing_enable().
    """
    for method in _METHODS:
        if auto.AUTO_QUANTIZER_MAPPING[method] is not BitsAndBytesQuantizer:
            _replaced[method] = auto.AUTO_QUANTIZER_MAPPING[method]
            auto.AUTO_QUANTIZER_MAPPING[method] = BitsAndBytesQuantizer


def disable() -> None:
    """Undoes enable(). Models loaded in between stay as they are."""
    for method, before in _replaced.items():
        auto.AUTO_QUANTIZER_MAPPING[method] = before
    _replaced.clear()


_replaced: dict[str, type[HfQuantizer]] = {}
