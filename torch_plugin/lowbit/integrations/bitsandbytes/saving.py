# SPDX-License-Identifier: MIT
"""Checkpoints for bitsandbytes."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils.quantization_config import BitsAndBytesConfig

from lowbit.integrations.bitsandbytes import format as form
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear
from lowbit.nn.lowbit_linear import float_weight
from lowbit.nn.lowbit_module import LowbitModule
from lowbit.ops._check import FLOATS


def save_pretrained(
    model: "transformers.PreTrainedModel", folder: str | os.PathLike[str], **options: Any
) -> None:
    """Saves a model with lowbit's layers as a checkpoint that bitsandbytes loads, by transformers.

    options: those of PreTrainedModel.save_pretrained. The model does not change.

    TypeError: model is no transformers model. ValueError: it has a form that bitsandbytes lacks:
    8-bit layers with an offset, another codebook than "nf4" and "fp4", layers of both widths,
    quantized experts; or no quantized layer, adapters, offloaded layers. Nothing is written then.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"save_pretrained: model is a {type(model).__name__}, not transformers'")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "save_pretrained: model has adapters, which transformers would save alone; merge or "
            "delete them"
        )
    entries, config = _entries(model), _config_for(model)
    with (
        _changed(model, "hf_quantizer", _Writer(config, entries)),
        _changed(model.config, "quantization_config", config),
    ):
        model.save_pretrained(folder, **options)


@contextmanager
def _changed(owner: Any, name: str, value: object) -> Iterator[None]:
    """The attribute has this value for a while."""
    had, before = hasattr(owner, name), getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if had:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def _entries(model: nn.Module) -> dict[str, Tensor]:
    """model.state_dict() in the names and shapes that bitsandbytes' layers have."""
    layers = _layers(model)
    entries = model.state_dict()
    for name, layer in layers.items():
        for part in layer.stored():
            del entries[f"{name}.{part}"]
        if isinstance(layer, Int8Linear):
            new = form.write_int8(layer.weight.detach(), layer.absmax.detach())
        else:
            new = _lut4_entries(layer, dtype=_float_dtype(model))
        entries |= {f"{name}.{key}": value for key, value in new.items()}
    return entries


def _lut4_entries(layer: LUT4Linear, dtype: str) -> dict[str, Tensor]:
    parts = {part: getattr(layer, part) for part in ("nested_absmax", "nested_offset")}
    values = form.Lut4Entries(
        weight=layer.weight.detach(),
        absmax=layer.absmax.detach(),
        **{part: None if value is None else value.detach() for part, value in parts.items()},
        options=form.Lut4Options(layer.codebook, layer.blocksize, layer.double_quant, dtype),
    )
    return form.write_lut4(values, (layer.out_features, layer.in_features))


def _float_dtype(model: nn.Module) -> str:
    """Of the float weights that there were, as far as the rest of the model tells."""
    dtypes = (
        parameter.dtype
        for module in model.modules()
        if not isinstance(module, LowbitModule)
        for parameter in module.parameters(recurse=False)
    )
    dtype = next((dtype for dtype in dtypes if dtype in FLOATS), torch.float32)
    return str(dtype).removeprefix("torch.")


def _layers(model: nn.Module) -> dict[str, LowbitLinear]:
    """The layers to write, all checked."""
    layers: dict[str, LowbitLinear] = {}
    for name, module in model.named_modules():
        if not isinstance(module, LowbitModule):
            continue
        problem = _why_not_written(module)
        if problem:
            raise ValueError(f"save_pretrained: {name} {problem}")
        layers[name] = module
    if not layers:
        raise ValueError("save_pretrained: model has no layer that lowbit has quantized")
    if len({type(layer) for layer in layers.values()}) > 1:
        raise ValueError("save_pretrained: model has 8-bit and 4-bit layers, expected one width")
    return layers


def _why_not_written(module: LowbitModule) -> str | None:
    if not isinstance(module, LowbitLinear):
        return f"is a {type(module).__name__}, which bitsandbytes leaves float"
    if any(part.is_meta for part in module.parameters()):
        return "is offloaded; load the model without offloading"
    if isinstance(module, Int8Linear) and module.offset is not None:
        return "has an offset, the zero-point form, which bitsandbytes lacks"
    if isinstance(module, LUT4Linear) and module.codebook not in form.CODEBOOKS:
        return (
            f"has the codebook {module.codebook}, but bitsandbytes has "
            f"{' and '.join(form.CODEBOOKS)} alone"
        )
    return None


def _config_for(model: "transformers.PreTrainedModel") -> BitsAndBytesConfig:
    layers = _layers(model)
    layer = next(iter(layers.values()))
    skip = _skip_modules(model, set(layers))
    if isinstance(layer, Int8Linear):
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=_shared(layers, "threshold"),
            llm_int8_skip_modules=skip,
        )
    compute_dtype = _shared(layers, "compute_dtype")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=layer.codebook,
        bnb_4bit_use_double_quant=layer.double_quant,
        bnb_4bit_compute_dtype=compute_dtype or _float_dtype(model),
        llm_int8_skip_modules=skip,
    )


def _shared(layers: dict[str, LowbitLinear], option: str) -> Any:
    values = {getattr(layer, option) for layer in layers.values()}
    if len(values) > 1:
        raise ValueError(
            f"save_pretrained: {option} is {' and '.join(map(str, values))} in different layers, "
            "but bitsandbytes has one for the model"
        )
    return values.pop()


def _skip_modules(model: nn.Module, quantized: set[str]) -> list[str]:
    """Patterns by which transformers leaves exactly the float linear layers alone."""
    plain = [name for name, module in model.named_modules() if float_weight(module) is not None]
    if all(should_convert_module(name, plain) for name in quantized):
        return plain
    return [f"{re.escape(name)}$" for name in plain]


class _Writer(HfQuantizer):
    """Makes save_pretrained write these entries."""

    is_trainable = False

    def __init__(self, config: BitsAndBytesConfig, entries: dict[str, Tensor]) -> None:
        super().__init__(config)
        self._entries = entries

    def is_serializable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict]:
        return self._entries, {}
