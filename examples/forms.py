# SPDX-License-Identifier: MIT
"""One model in each low-bit form: how large it is, and how far its weights have moved."""

import copy
from dataclasses import dataclass
from typing import Any

import lowbit
from comparison import size_in_bytes
from torch import nn
from transformers import LlamaForCausalLM

# What quantize_ is told, by the name in the table.
FORMS: dict[str, dict[str, Any] | None] = {
    "fp32": None,
    "int8": {"bits": 8, "threshold": 0.0},
    "int8, decomposed": {"bits": 8, "threshold": 6.0},
    "int8, decomposed, zero-point": {"bits": 8, "threshold": 6.0, "offset": True},
    "INT4": {"bits": 4, "codebook": "int4", "double_quant": False},
    "FP4": {"bits": 4, "codebook": "fp4", "double_quant": False},
    "NF4": {"bits": 4, "codebook": "nf4", "double_quant": False},
    "NF4, double quantization": {"bits": 4, "codebook": "nf4", "double_quant": True},
    "BOF4": {"bits": 4, "codebook": "bof4", "double_quant": False},
}


@dataclass(frozen=True)
class Form:
    model: LlamaForCausalLM
    linear_bytes: int
    model_bytes: int
    bits_per_weight: float
    weight_error: float  # of all linear layers together, root mean square by root mean square


def make(original: LlamaForCausalLM, options: dict[str, Any] | None) -> Form:
    model = copy.deepcopy(original)
    if options is not None:
        lowbit.quantize_(model, **options)
    error = power = weights = size = 0.0
    for before, after in zip(linear_layers(original), linear_layers(model), strict=True):
        weight = before.weight.detach()
        changed = after.weight if options is None else after.dequantize()
        error += (changed - weight).square().sum().item()
        power += weight.square().sum().item()
        weights += weight.numel()
        size += size_in_bytes(after)
    return Form(model, int(size), size_in_bytes(model), 8 * size / weights, (error / power) ** 0.5)


def linear_layers(model: LlamaForCausalLM) -> list[nn.Linear]:
    """All but the output head, which is tied to the embedding and stays float."""
    return [module for module in model.model.modules() if isinstance(module, nn.Linear)]
