# SPDX-License-Identifier: MIT
"""The comparison as a table and as a picture."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from comparison import Measure
from matplotlib.axes import Axes
from rich import box
from rich.table import Table

COLUMNS = 4
GREY, GREEN, ORANGE, INK = "#b8bec6", "#1f8a70", "#c4621b", "#22272e"


def table(title: str, float_name: str, measures: list[Measure]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("")
    table.add_column(float_name, justify="right")
    table.add_column("int8", justify="right", style="bold")
    table.add_column("", justify="right")
    for measure in measures:
        table.add_row(measure.name, measure.unit, *measure.texts(), measure.ratio())
    return table


def picture(path: Path, title: str, float_name: str, measures: list[Measure]) -> None:
    """One panel per measure, each with its own scale from zero, every bar labelled."""
    rows = -(-len(measures) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(3 * COLUMNS, 2.9 * rows), layout="constrained", squeeze=False
    )
    figure.suptitle(title, fontsize=14, color=INK)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.12, hspace=0.06, wspace=0.06)
    for axis in axes.flat[len(measures) :]:
        axis.set_visible(False)
    for axis, measure in zip(axes.flat, measures, strict=False):
        bars = axis.bar(
            (float_name, "int8"),
            (measure.float_value, measure.int8_value),
            color=(GREY, GREEN),
            width=0.62,
        )
        axis.bar_label(bars, measure.texts(), padding=3, fontsize=11, color=INK)
        axis.set_ylim(0, 1.2 * max(measure.float_value, measure.int8_value))
        entitle(axis, measure.name, measure.unit)
        axis.text(
            1,
            1.04,
            measure.ratio(),
            transform=axis.transAxes,
            fontsize=10.5,
            color=ORANGE if measure.is_worse() else GREEN,
            ha="right",
            fontweight="bold",
        )
        without_scale(axis)
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
