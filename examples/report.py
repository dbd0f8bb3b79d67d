# SPDX-License-Identifier: MIT
"""What the reports of the examples have in common: tables, panels, a file of figures."""

import json
from pathlib import Path
from typing import Any

import lowbit
import matplotlib
import torch

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

MIB = 2**20
GREY, GREEN, ORANGE, INK = "#b8bec6", "#1f8a70", "#c4621b", "#22272e"


def table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """The first column names the rows, and alone gives way where a terminal is narrow."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    return table


def mib(size: int) -> str:
    return f"{size / MIB:.2f}"


def figure(title: str, width: float, height: float) -> Figure:
    figure = plt.figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=14, color=INK)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, hspace=0.06, wspace=0.06)
    return figure


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def entitle(axis: Axes, name: str, unit: str) -> None:
    """A panel's name, the unit of its values below, and a frame that stays in the background."""
    axis.set_title(f"{name}\n", fontsize=12, color=INK, loc="left", fontweight="bold", pad=8)
    axis.text(0, 1.04, unit, transform=axis.transAxes, fontsize=9.5, color="#6a737d")
    axis.tick_params(length=0, colors=INK, labelsize=10.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["bottom", "left"]].set_color(GREY)


def without_scale(axis: Axes) -> None:
    """For bars that carry their values."""
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)


def legend(axis: Axes, **options: Any) -> None:
    axis.legend(frameon=False, fontsize=10.5, labelcolor=INK, **options)


def means(values: list[float], count: int) -> tuple[list[float], list[float]]:
    """The mean of every `count` values of a noisy curve, at the middle of their steps."""
    parts = [values[i : i + count] for i in range(0, len(values), count)]
    middles = [i * count + len(part) / 2 for i, part in enumerate(parts)]
    return middles, [sum(part) / len(part) for part in parts]


def memory(axis: Axes, names: list[str], parts: dict[str, list[int]]) -> None:
    """A bar for each name, with its total above: the bytes of each part, one upon the other."""
    entitle(axis, "Memory of training", "MiB, activations aside")
    bottom = [0.0] * len(names)
    for (label, sizes), color in zip(parts.items(), (GREY, GREEN, ORANGE, INK), strict=False):
        heights = [size / MIB for size in sizes]
        axis.bar(names, heights, 0.55, bottom=bottom, color=color, label=label)
        bottom = [b + height for b, height in zip(bottom, heights, strict=True)]
    for i, total in enumerate(bottom):
        label = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
        axis.annotate(f"{total:.1f}", (i, total), color=INK, fontsize=11, **label)
    axis.margins(y=0.12)
    legend(axis)


def write(console: Console, picture: Path, **figures: Any) -> None:
    """Writes figures as JSON beside the picture, and says where both are."""
    about = {
        "torch": torch.__version__,
        "lowbit": lowbit.__version__,
        "threads": torch.get_num_threads(),
    }
    results = picture.with_suffix(".json")
    results.write_text(json.dumps(about | figures, indent=1))
    console.print(f"Picture: {picture}", soft_wrap=True)
    console.print(f"Figures: {results}", soft_wrap=True)
