# SPDX-License-Identifier: MIT
"""The steps of examples/train, each of which prints what it found."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import lowbit
import pretraining
import report
import torch
import train_report
import training
from comparison import size_in_bytes
from language_model import Texts
from lowbit.optim import AdamW8bit
from rich.console import Console
from torch import nn
from train_report import Run
from training import Training
from transformers import logging


@dataclass(frozen=True)
class Settings(pretraining.Settings):
    steps: int = 500
    windows: int = 128
    evaluations: int = 5
    weight_decay: float = 0.1


QUICK = Settings(**pretraining.SMALL | {"steps": 60, "evaluations": 4})


def in_bfloat16(model: nn.Module) -> None:
    """Its parameters alone: the frequencies of the rotary embedding stay exact."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()


def in_int8(model: nn.Module) -> None:
    lowbit.quantize_(model, bits=8, trainable=True)


@dataclass(frozen=True)
class Recipe:
    optimizer: Callable[..., torch.optim.Optimizer]
    convert: Callable[[nn.Module], None] = lambda model: None  # of the float32 model, in place
    seed: int = 0


ADAMW = partial(torch.optim.AdamW, fused=True)

# The first is what the others are compared with; the second says how much chance there is in that.
RECIPES = {
    "fp32 AdamW": Recipe(ADAMW),
    "fp32 AdamW, other start": Recipe(ADAMW, seed=1),
    "fp32 AdamW8bit": Recipe(AdamW8bit),
    "bf16 AdamW8bit": Recipe(AdamW8bit, in_bfloat16),
    "bf16 AdamW8bit, masters": Recipe(partial(AdamW8bit, master_weights=True), in_bfloat16),
    "int8 AdamW8bit": Recipe(AdamW8bit, in_int8),
}
RESUMED = "fp32 AdamW8bit"

console = Console()


def run(settings: Settings, output: Path) -> None:
    logging.set_verbosity_error()
    with console.status("Reading and tokenizing"):
        _, texts = pretraining.read(settings)
    console.print(f"Python's standard library: {texts}")
    trainings = {name: begin(settings, recipe, texts) for name, recipe in RECIPES.items()}
    parameters = sum(p.numel() for p in next(iter(trainings.values())).parameters)
    console.print(
        f"A Llama of {parameters:,} parameters, trained {len(trainings)} times, "
        f"{settings.steps} steps of {settings.batch} x {settings.context} tokens"
    )
    checkpoint = output / "middle.pt"
    training.run(trainings, until=settings.steps // 2)
    trainings[RESUMED].save(checkpoint)
    training.run(trainings)
    runs = {name: measured(each) for name, each in trainings.items()}
    console.print(train_report.table(runs))
    tensors = resume(settings, texts, checkpoint, trainings[RESUMED])

    picture = output / "train.png"
    title = f"Training a Llama of {parameters / 1e6:.1f} M parameters by AdamW and by AdamW8bit"
    train_report.picture(picture, title, runs)
    report.write(
        console,
        picture,
        settings=asdict(settings),
        parameters=parameters,
        runs={name: asdict(each) for name, each in runs.items()},
        resumed={"run": RESUMED, "step": settings.steps // 2, "tensors_of_same_bits": tensors},
    )


def begin(settings: Settings, recipe: Recipe, texts: Texts, seed: int | None = None) -> Training:
    model = pretraining.build(settings, recipe.seed if seed is None else seed)
    recipe.convert(model)
    return pretraining.training(
        settings, model, texts, optimizer=recipe.optimizer, weight_decay=settings.weight_decay
    )


def measured(finished: Training) -> Run:
    curve = finished.curve
    return Run(
        curve,
        sum(p.numel() for p in finished.parameters),
        size_in_bytes(finished.model),
        finished.gradient_bytes,
        finished.optimizer_bytes,
        statistics.median(curve.optimizer_seconds),
        statistics.median(curve.seconds),
    )


def resume(settings: Settings, texts: Texts, checkpoint: Path, finished: Training) -> int:
    """Trains a second half again, by objects that have only the file in common with the first.

    Returns how many tensors, of model and optimizer, have the same bits at the end. RuntimeError:
    one has not.
    """
    resumed = begin(settings, RECIPES[RESUMED], texts, seed=2)
    resumed.load(checkpoint)
    step = resumed.done
    training.run({"Resumed": resumed})
    before, after = finished.tensors(), resumed.tensors()
    if before.keys() != after.keys():
        raise RuntimeError(
            f"resuming has changed the state: {sorted(before.keys() ^ after.keys())}"
        )
    if other := [name for name in before if not torch.equal(before[name], after[name])]:
        raise RuntimeError(f"resumed from step {step}, other bits have come of {', '.join(other)}")
    console.print(
        f"{RESUMED}, resumed from step {step} ({checkpoint.name}, "
        f"{report.mib(checkpoint.stat().st_size)} MiB): the same bits after step {resumed.done}, "
        f"in all {len(after)} tensors of model and optimizer",
        soft_wrap=True,
    )
    return len(after)
