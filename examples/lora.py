# SPDX-License-Identifier: MIT
"""LoRA: a small trainable update beside every linear layer of a model that stays frozen."""

import statistics
from dataclasses import dataclass

import torch
import training
from comparison import size_in_bytes
from language_model import Texts
from peft import LoraConfig, get_peft_model
from torch import nn
from training import Curve, Training


@dataclass(frozen=True)
class Run:
    """What was learnt, and the bytes that training keeps, activations aside."""

    curve: Curve
    base_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    seconds_per_step: float

    @property
    def bytes(self) -> int:
        return self.base_bytes + self.adapter_bytes + self.gradient_bytes + self.optimizer_bytes


def fine_tune(base: nn.Module, texts: Texts, *, rank: int, title: str, **options: float) -> Run:
    """Trains adapters on every linear layer of base but the output head, from the same random start
    at every call. RuntimeError: a bit of the base has changed."""
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    base_bytes = size_in_bytes(base)
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = get_peft_model(base, config)
    adapters = Training(model, texts, **options)
    training.run({title: adapters})
    after = model.unload().state_dict()
    if changed := [name for name in before if not torch.equal(before[name], after[name])]:
        raise RuntimeError(f"the base is frozen, but training has changed {', '.join(changed)}")
    return Run(
        adapters.curve,
        base_bytes,
        adapters.trained_bytes,
        adapters.gradient_bytes,
        adapters.optimizer_bytes,
        statistics.median(adapters.curve.seconds),
    )
