# SPDX-License-Identifier: MIT
"""Loading a model twice, as it is and in int8, and measuring the two side by side."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lowbit.integrations.transformers import LowbitConfig
from lowbit.nn import Int8Linear
from rich.progress import track
from torch import nn

# What an advantage is called, and its opposite.
OPPOSITE = {"smaller": "larger", "faster": "slower"}


@dataclass(frozen=True)
class Measure:
    """One line of the table and one panel of the picture."""

    name: str
    unit: str
    float_value: float
    int8_value: float
    digits: int
    advantage: str | None = None  # a key of OPPOSITE; None where no ratio makes sense
    more_is_better: bool = False

    def texts(self) -> tuple[str, str]:
        return f"{self.float_value:,.{self.digits}f}", f"{self.int8_value:,.{self.digits}f}"

    def is_worse(self) -> bool:
        return (self.int8_value < self.float_value) == self.more_is_better

    def ratio(self) -> str:
        if self.advantage is None:
            return ""
        low, high = sorted((self.float_value, self.int8_value))
        word = OPPOSITE[self.advantage] if self.is_worse() else self.advantage
        return f"{high / low:.2f}x {word}"


@dataclass
class Pair:
    """A model in its own dtype and its int8 form."""

    float_model: nn.Module
    int8_model: nn.Module
    load_seconds: tuple[float, float]

    @property
    def float_name(self) -> str:
        return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[
            self.float_model.dtype
        ]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.float_model, self.int8_model))


def load(auto: Any, model: str, dtype: str, threshold: float) -> Pair:
    """Loads both forms twice: the first time also finds the file and the Python modules."""
    options = ({}, {"quantization_config": LowbitConfig(bits=8, threshold=threshold)})
    for _ in range(2):
        models, seconds = [], []
        for option in options:
            start = time.perf_counter()
            models.append(auto.from_pretrained(model, dtype=dtype, **option).eval())
            seconds.append(time.perf_counter() - start)
    return Pair(*models, tuple(seconds))


def memory_and_loading(pair: Pair) -> list[Measure]:
    names = [name for name, m in pair.int8_model.named_modules() if isinstance(m, Int8Linear)]
    linear = [sum(size_in_bytes(model.get_submodule(name)) for name in names) for model in pair]
    whole = [size_in_bytes(model) for model in pair]
    return [
        Measure("Linear layers", "MiB", *(size / 2**20 for size in linear), 1, "smaller"),
        Measure("Whole model", "MiB", *(size / 2**20 for size in whole), 1, "smaller"),
        Measure("Loading", "s, quantizing too", *pair.load_seconds, 2, "faster"),
    ]


def size_in_bytes(module: nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters()) + sum(b.nbytes for b in module.buffers())


def median_seconds(
    what: str, calls: tuple[Callable[[], Any], Callable[[], Any]], rounds: int
) -> tuple[float, float]:
    """Medians of calls that alternate, so that a busy moment of the machine meets both."""
    for call in calls:
        call()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in track(range(rounds), f"Timing {what}", transient=True):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1])
