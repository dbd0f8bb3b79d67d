# SPDX-License-Identifier: MIT
"""Training a language model: its losses, times and memory, and stopping in the middle."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from language_model import Texts, mean_loss, next_token_loss, progress
from torch import Tensor, nn

WARM_UP = 0.05  # of the steps


@dataclass
class Curve:
    """Losses in nats per token: one of each training batch, and of held-out text by step."""

    training: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step
    optimizer_seconds: list[float] = field(default_factory=list)  # of the optimizer's part of it
    held_out: dict[int, float] = field(default_factory=dict)


class Training:
    """Trains what is not frozen in a model, on random windows of a text, which are the same
    in every training.

    Gradients are clipped to a norm of 1. The learning rate rises in a straight line, then falls by
    a cosine to a twentieth. The held-out loss is measured at `evaluations` + 1
    steps from the first to the last.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: Texts,
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        evaluations: int,
        weight_decay: float = 0.0,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        self.model = model
        self.texts = texts
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optimizer(
            self.parameters, lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: _warm_up(step, steps)
        )
        self.steps = steps
        self.done = 0
        self.curve = Curve()
        self._evaluated = {round(i * steps / evaluations) for i in range(evaluations + 1)}
        self._context = texts.held_out.shape[1]
        self._starts = torch.randint(
            len(texts.training) - self._context,
            (steps, batch),
            generator=torch.Generator().manual_seed(0),
        )

    def advance(self) -> float:
        """One step. Returns the loss of its batch."""
        if self.done == 0:
            self._evaluate()
        begin = time.perf_counter()
        starts, stream = self._starts[self.done], self.texts.training
        tokens = torch.stack([stream[start : start + self._context] for start in starts])
        loss = next_token_loss(self.model.train()(input_ids=tokens).logits, tokens)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        optimizer_begin = time.perf_counter()
        self.optimizer.step()
        end = time.perf_counter()
        self.schedule.step()
        self.curve.training.append(loss.item())
        self.curve.optimizer_seconds.append(end - optimizer_begin)
        self.curve.seconds.append(time.perf_counter() - begin)
        self.done += 1
        self._evaluate()
        return loss.item()

    def _evaluate(self) -> None:
        if self.done in self._evaluated:
            self.curve.held_out[self.done] = mean_loss(self.model, self.texts.held_out)

    def save(self, path: Path) -> None:
        """All that load() needs to go on elsewhere."""
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        torch.save({"done": self.done, **parts}, path)

    def load(self, path: Path) -> None:
        """Goes on from what another training has saved; the curve begins there."""
        saved = torch.load(path)
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.done = saved["done"]

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def tensors(self) -> dict[str, Tensor]:
        """What training changes, by name: the model's tensors, and the optimizer's state."""
        state = self.optimizer.state_dict()["state"]
        return self.model.state_dict() | {
            f"{name} of parameter {i}": tensor
            for i, entry in state.items()
            for name, tensor in entry.items()
        }

    @property
    def trained_bytes(self) -> int:
        return _bytes(self.parameters)

    @property
    def gradient_bytes(self) -> int:
        return _bytes(p.grad for p in self.parameters)

    @property
    def optimizer_bytes(self) -> int:
        return _bytes(t for state in self.optimizer.state.values() for t in state.values())


def run(trainings: dict[str, Training], until: int | None = None) -> None:
    """Trains until a step or the end. Several take turns, step by step, so that a busy moment of
    the machine meets all of them."""
    with progress() as bar:
        tasks = {
            name: bar.add_task(name, total=until or each.steps, completed=each.done)
            for name, each in trainings.items()
        }
        while not bar.finished:
            for name, each in trainings.items():
                loss = each.advance()
                bar.update(tasks[name], advance=1, description=f"{name}, loss {loss:.3f}")


def _warm_up(step: int, steps: int) -> float:
    """A straight line up, then a cosine down to a twentieth."""
    up = (step + 1) / (WARM_UP * steps)
    return min(up, 0.525 + 0.475 * math.cos(math.pi * step / steps))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all together, each of which counts once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())
