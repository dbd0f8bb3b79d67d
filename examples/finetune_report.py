# SPDX-License-Identifier: MIT
"""What examples/finetune found, as tables and as a picture."""

from pathlib import Path

import report
from forms import Form
from language_model import Score
from lora import Run
from matplotlib.axes import Axes
from report import GREEN, GREY, INK, ORANGE, entitle, legend, means, mib, table, without_scale
from rich.table import Table

SMOOTHED = 15  # training steps in one point of the curve


def sizes(forms: dict[str, Form]) -> Table:
    return table(
        "Linear layers in each form",
        ("", "bits per weight", "MiB", "model, MiB", "weight error, %"),
        [
            (
                name,
                f"{form.bits_per_weight:.2f}",
                mib(form.linear_bytes),
                mib(form.model_bytes),
                f"{100 * form.weight_error:.2f}",
            )
            for name, form in forms.items()
        ],
    )


def perplexities(trained: dict[str, Score], with_outliers: dict[str, Score]) -> Table:
    return table(
        "Perplexity of held-out sources, and KL divergence from fp32 in 1/1000 nat",
        ("", "as trained", "KL", "with outliers", "KL"),
        [
            (
                name,
                *(
                    text
                    for score in (trained[name], with_outliers[name])
                    for text in (f"{score.perplexity:.2f}", f"{1000 * score.divergence:.2f}")
                ),
            )
            for name in trained
        ],
    )


def fine_tuning(runs: dict[str, Run]) -> Table:
    def row(name: str, texts: list[str]) -> tuple[str, ...]:
        return (name, *texts)

    each = list(runs.values())
    steps = each[0].curve.held_out
    return table(
        "LoRA: held-out loss, and memory",
        ("", *runs),
        [
            *(
                row(f"after {step} steps", [f"{r.curve.held_out[step]:.3f}" for r in each])
                for step in steps
            ),
            row("base, MiB", [mib(r.base_bytes) for r in each]),
            row("adapters, MiB", [mib(r.adapter_bytes) for r in each]),
            row("their gradients, MiB", [mib(r.gradient_bytes) for r in each]),
            row("optimizer, MiB", [mib(r.optimizer_bytes) for r in each]),
            row("all of these, MiB", [mib(r.bytes) for r in each]),
            row("seconds per step", [f"{r.seconds_per_step:.3f}" for r in each]),
        ],
    )


def picture(
    path: Path,
    title: str,
    trained: dict[str, Score],
    with_outliers: dict[str, Score],
    runs: dict[str, Run],
) -> None:
    figure = report.figure(title, 13, 8.4)
    grid = figure.add_gridspec(2, 3)
    _perplexities(figure.add_subplot(grid[0, :]), trained, with_outliers)
    _curves(figure.add_subplot(grid[1, :2]), runs)
    each = runs.values()
    report.memory(
        figure.add_subplot(grid[1, 2]),
        list(runs),
        {
            "base": [run.base_bytes for run in each],
            "adapters": [run.adapter_bytes for run in each],
            "gradients": [run.gradient_bytes for run in each],
            "optimizer": [run.optimizer_bytes for run in each],
        },
    )
    report.save(figure, path)


def _perplexities(axis: Axes, trained: dict[str, Score], with_outliers: dict[str, Score]) -> None:
    """As distances from fp32's: of the values themselves, only the last digits would differ."""
    entitle(axis, "Perplexity lost", "% above fp32's, on held-out sources")
    for shift, scores, color, label in (
        (-0.2, trained, GREY, "as trained"),
        (0.2, with_outliers, ORANGE, "with outlier features"),
    ):
        first, *rest = (score.perplexity for score in scores.values())
        lost = [round(100 * (value / first - 1), 2) + 0.0 for value in rest]  # no -0.00
        bars = axis.bar([i + shift for i in range(len(rest))], lost, 0.4, color=color, label=label)
        axis.bar_label(bars, [f"{value:.2f}" for value in lost], padding=3, fontsize=9.5, color=INK)
    names = [name.replace(", ", "\n") for name in list(trained)[1:]]
    axis.set_xticks(range(len(names)), names)
    without_scale(axis)
    axis.spines["bottom"].set_visible(False)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.margins(y=0.12)
    legend(axis, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def _curves(axis: Axes, runs: dict[str, Run]) -> None:
    """The first run in wide lines, which the second does not hide where they agree."""
    entitle(
        axis, "LoRA on another text", "loss in nats per token; training: the mean of 15 batches"
    )
    for (name, run), color, width in zip(runs.items(), (GREY, GREEN), (6, 1.8), strict=True):
        axis.plot(
            *means(run.curve.training, SMOOTHED),
            color=color,
            linewidth=width / 2,
            label=f"{name}, training",
        )
        held_out = zip(*run.curve.held_out.items(), strict=True)
        axis.plot(*held_out, "o-", color=color, linewidth=width, label=f"{name}, held out")
    axis.set_xlabel("training step", color=INK, fontsize=10.5)
    legend(axis)
