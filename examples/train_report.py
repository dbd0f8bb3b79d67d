# SPDX-License-Identifier: MIT
"""What examples/train found, as a table and as a picture."""

from dataclasses import dataclass
from pathlib import Path

import report
from matplotlib.axes import Axes
from report import GREEN, GREY, INK, ORANGE, entitle, legend, means, mib, without_scale
from rich.table import Table
from training import Curve

SMOOTHED = 20  # training steps in one point of a curve

# Of the runs in turn: ever finer lines, so that they show one in the other where they agree.
STYLES = (
    {"color": GREY, "linewidth": 8},
    {"color": GREY, "linewidth": 1.2, "linestyle": "--"},
    {"color": GREEN, "linewidth": 4.5},
    {"color": ORANGE, "linewidth": 1.2, "linestyle": "--"},
    {"color": ORANGE, "linewidth": 2.4},
    {"color": INK, "linewidth": 1},
)


@dataclass(frozen=True)
class Run:
    """What was learnt, the bytes that training keeps, activations aside, and medians of times."""

    curve: Curve
    parameters: int
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    optimizer_seconds: float
    step_seconds: float

    @property
    def held_out(self) -> float:
        return list(self.curve.held_out.values())[-1]


def table(runs: dict[str, Run]) -> Table:
    return report.table(
        "Held-out loss in nats per token, memory, and the times of a step",
        (
            "",
            "loss",
            "weights\nMiB",
            "grads\nMiB",
            "optim\nMiB",
            "bytes/\nparam",
            "optim\nms",
            "step\nms",
        ),
        [
            (
                name,
                f"{run.held_out:.4f}",
                mib(run.weight_bytes),
                mib(run.gradient_bytes),
                mib(run.optimizer_bytes),
                f"{run.optimizer_bytes / run.parameters:.2f}",
                f"{1000 * run.optimizer_seconds:.2f}",
                f"{1000 * run.step_seconds:.0f}",
            )
            for name, run in runs.items()
        ],
    )


def picture(path: Path, title: str, runs: dict[str, Run]) -> None:
    figure = report.figure(title, 14, 10)
    grid = figure.add_gridspec(2, 2)
    _losses(figure.add_subplot(grid[0, 0]), runs)
    _differences(figure.add_subplot(grid[0, 1]), runs)
    names = ["\n".join(name.replace(",", "").split(" ", 2)) for name in runs]
    report.memory(
        figure.add_subplot(grid[1, 0]),
        names,
        {
            "weights": [run.weight_bytes for run in runs.values()],
            "gradients": [run.gradient_bytes for run in runs.values()],
            "optimizer": [run.optimizer_bytes for run in runs.values()],
        },
    )
    _times(figure.add_subplot(grid[1, 1]), names, runs)
    report.save(figure, path)


def _losses(axis: Axes, runs: dict[str, Run]) -> None:
    unit = f"nats per token; lines: training, means of {SMOOTHED} batches; dots: held-out text"
    entitle(axis, "Loss", unit)
    for (name, run), style in zip(runs.items(), STYLES, strict=True):
        axis.plot(*means(run.curve.training, SMOOTHED), label=name, **style)
        dots = {"color": style["color"], "markersize": 4 + style["linewidth"]}
        axis.plot(*zip(*run.curve.held_out.items(), strict=True), "o", **dots)
    axis.set_xlabel("training step", color=INK, fontsize=10.5)
    legend(axis)


def _differences(axis: Axes, runs: dict[str, Run]) -> None:
    first, *_ = runs
    entitle(
        axis,
        f"Training loss above that of {first}",
        f"nats per token, on the same {SMOOTHED} batches",
    )
    for (name, run), style in zip(runs.items(), STYLES, strict=True):
        pairs = zip(run.curve.training, runs[first].curve.training, strict=True)
        axis.plot(*means([loss - least for loss, least in pairs], SMOOTHED), label=name, **style)
    axis.set_xlabel("training step", color=INK, fontsize=10.5)


def _times(axis: Axes, names: list[str], runs: dict[str, Run]) -> None:
    entitle(axis, "Time of the optimizer", "ms per step, median")
    times = [1000 * run.optimizer_seconds for run in runs.values()]
    bars = axis.bar(names, times, 0.55, color=[style["color"] for style in STYLES])
    axis.bar_label(bars, [f"{time:.2f}" for time in times], padding=3, fontsize=11, color=INK)
    without_scale(axis)
