# SPDX-License-Identifier: MIT
"""What bitsandbytes' configuration means to lowbit, and who serves it."""

from typing import Any

import torch
from transformers.quantizers import auto
from transformers.utils.quantization_config import BitsAndBytesConfig

from lowbit.integrations.bitsandbytes import format as form
from lowbit.integrations.transformers import LowbitConfig
from lowbit.ops._check import FLOATS

READING = "lowbit_bitsandbytes"


def to_lowbit(config: BitsAndBytesConfig, fresh: bool) -> LowbitConfig:
    """The same for lowbit. fresh: weights are to be quantized, rather than read."""

    def refuse(option: str, why: str) -> ValueError:
        value = getattr(config, option)
        return ValueError(f"lowbit cannot honour BitsAndBytesConfig({option}={value!r}): {why}")

    if config.load_in_8bit:
        if config.llm_int8_has_fp16_weight:
            raise refuse("llm_int8_has_fp16_weight", "it keeps no 16-bit weights beside the codes")
        return LowbitConfig(
            bits=8,
            threshold=config.llm_int8_threshold,
            skip_modules=config.llm_int8_skip_modules,
        )
    if not config.load_in_4bit:
        raise refuse("load_in_4bit", "neither load_in_8bit nor load_in_4bit is asked for")
    if config.bnb_4bit_quant_type not in form.CODEBOOKS:
        raise refuse("bnb_4bit_quant_type", f"expected one of {', '.join(form.CODEBOOKS)}")
    if config.bnb_4bit_compute_dtype not in FLOATS:
        raise refuse("bnb_4bit_compute_dtype", f"expected one of {', '.join(map(str, FLOATS))}")
    if fresh and config.bnb_4bit_quant_storage != torch.uint8:
        raise refuse("bnb_4bit_quant_storage", "it stores packed codes as torch.uint8")
    return LowbitConfig(
        bits=4,
        codebook=config.bnb_4bit_quant_type,
        blocksize=64,
        double_quant=config.bnb_4bit_use_double_quant,
        compute_dtype=config.bnb_4bit_compute_dtype,
        skip_modules=config.llm_int8_skip_modules,
    )


class ReadByLowbit(BitsAndBytesConfig):
    """A checkpoint's configuration, with the LowbitConfig that was passed to from_pretrained."""

    lowbit: LowbitConfig

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "lowbit"}


def _merge_quantization_configs(
    quantization_config: Any, quantization_config_from_args: Any
) -> Any:
    """transformers takes a configuration of another class than the checkpoint's for a mistake;
    here it says who is to read a checkpoint of bitsandbytes'."""
    given = quantization_config
    if not isinstance(given, dict):
        given = given.to_dict() if isinstance(given, BitsAndBytesConfig) else {}
    loads = given.get("load_in_8bit") or given.get("load_in_4bit")
    if not isinstance(quantization_config_from_args, LowbitConfig) or not loads:
        return _original_merge(quantization_config, quantization_config_from_args)
    config = ReadByLowbit(**given)
    config.quant_method = READING
    config.lowbit = quantization_config_from_args
    return config


_original_merge = auto.AutoHfQuantizer.merge_quantization_configs
auto.AutoHfQuantizer.merge_quantization_configs = staticmethod(_merge_quantization_configs)


def take_over(config: LowbitConfig, given: LowbitConfig) -> None:
    """How to compute, from the LowbitConfig given; what it says of the stored form has to be the
    default or true."""
    if given.bits != config.bits:
        raise ValueError(
            f"LowbitConfig: bits is {given.bits}, but the checkpoint has {config.bits}-bit layers"
        )
    default = LowbitConfig(bits=config.bits)
    for option, value in vars(given).items():
        if option in ("threshold", "compute_dtype"):
            setattr(config, option, value)
        elif value not in (getattr(default, option), getattr(config, option)):
            raise ValueError(
                f"LowbitConfig: {option} is {value}, but the checkpoint is quantized, with "
                f"{getattr(config, option)}"
            )
