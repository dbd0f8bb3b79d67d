# SPDX-License-Identifier: MIT
"""LoRA: a small trainable update beside every linear layer of a model that stays frozen."""

import statistics
from dataclasses import dataclass

import language_model
import torch
from comparison import size_in_bytes
from language_model import Curve
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn


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


def fine_tune(
    base: nn.Module, stream: Tensor, held_out: Tensor, *, rank: int, title: str, **training: float
) -> Run:
    """Trains adapters on every linear layer of base but the output head, from the same random start
    at every call. RuntimeError: a bit of the base has changed."""
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    base_bytes = size_in_bytes(base)
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    model = get_peft_model(base, config)
    curve, optimizer = language_model.train(model, stream, held_out, title=title, **training)
    adapters = [p for p in model.parameters() if p.requires_grad]
    after = model.unload().state_dict()
    if changed := [name for name in before if not torch.equal(before[name], after[name])]:
        raise RuntimeError(f"the base is frozen, but training has changed {', '.join(changed)}")
    return Run(
        curve,
        base_bytes,
        sum(p.nbytes for p in adapters),
        sum(p.grad.nbytes for p in adapters),
        sum(s.nbytes for state in optimizer.state.values() for s in state.values()),
        statistics.median(curve.seconds),
    )
