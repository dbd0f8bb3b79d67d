# SPDX-License-Identifier: MIT
"""The comparison as a table and as a picture."""

from pathlib import Path

import report
from comparison import Measure
from report import GREEN, GREY, INK, ORANGE, entitle, without_scale
from rich import box
from rich.table import Table

COLUMNS = 4


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
    figure = report.figure(title, 3 * COLUMNS, 2.9 * rows)
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
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
    report.save(figure, path)
