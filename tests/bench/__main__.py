# SPDX-License-Identifier: MIT
"""Runs the sections that the command line asks for; see arguments.py."""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

# libgomp reads this when torch loads it. Unpinned threads share a core now and then, and a call
# takes several times as long.
os.environ.setdefault("OMP_PROC_BIND", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
logging.disable(logging.WARNING)  # bitsandbytes and torchao report optional parts they lack

import layers  # noqa: E402
import machine  # noqa: E402
import models  # noqa: E402
import optimizers  # noqa: E402
import torch  # noqa: E402
from arguments import parse  # noqa: E402
from race import Bench  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: E402
from rich.table import Table  # noqa: E402

TABLE_WIDTH = 160  # at least: a figure that is cut off is of no use


@dataclass(frozen=True)
class Scale:
    """How much a run measures. Shapes are (N, K)."""

    shapes: tuple[tuple[int, int], ...]
    rows: tuple[int, ...]
    many_rows: int
    sweep_n: int
    sweep_depths: tuple[int, ...]
    sweep_rows: tuple[int, ...]
    batches: tuple[int, ...]
    llama: dict[str, int]
    lora: tuple[int, int]  # batch, tokens
    loads: int
    adam_sizes: tuple[int, ...]
    seconds: float
    cold_bytes: int


# fmt: off
SWEEP_ROWS = (
    1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128,
    129, 192, 255, 256, 257, 320, 383, 384, 385, 448, 511, 512, 513, 600,
)
# fmt: on

FULL = Scale(
    shapes=((4096, 4096), (11008, 4096), (4096, 11008)),
    rows=(1, 4, 8, 32, 64, 512),
    many_rows=512,
    sweep_n=1024,
    sweep_depths=(384, 4096, 4097, 11008),
    sweep_rows=SWEEP_ROWS,
    batches=(1, 32),
    llama={
        "num_hidden_layers": 8,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 32000,
    },
    lora=(2, 256),
    loads=3,
    adam_sizes=(2**22, 2**26),
    seconds=0.2,
    cold_bytes=max(256 * 2**20, 2 * machine.last_level_cache()),
)
QUICK = Scale(
    shapes=((256, 512),),
    rows=(1, 8, 64),
    many_rows=64,
    sweep_n=64,
    sweep_depths=(384, 385),
    sweep_rows=(1, 2, 33),
    batches=(1,),
    llama={
        "num_hidden_layers": 1,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "vocab_size": 512,
    },
    lora=(2, 8),
    loads=1,
    adam_sizes=(2**20,),
    seconds=0.005,
    cold_bytes=2**20,
)

TOKENS = 64


def main() -> None:
    arguments = parse(sys.argv[1:])
    scale = QUICK if arguments.quick else FULL
    bits = arguments.bits
    shapes = arguments.shapes or scale.shapes
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    # It draws only when told to: a thread that draws would take time from those that are measured.
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        transient=True,
        disable=not console.is_terminal,
    )
    progress.add_task("")
    bench = Bench(console, progress, arguments.threads, scale.seconds, scale.cold_bytes)
    run: dict[str, Callable[[], None]] = {
        "linear": partial(layers.linear, bench, bits, shapes, arguments.rows or scale.rows),
        "quantize": partial(layers.quantize, bench, bits, shapes),
        "grad": partial(layers.grad, bench, bits, shapes, scale.many_rows),
        "sweep": partial(
            layers.sweep, bench, bits, scale.sweep_n, scale.sweep_depths, scale.sweep_rows
        ),
        "outliers": partial(layers.outliers, bench, scale.many_rows, *shapes[0]),
        "adam": partial(optimizers.adam, bench, scale.adam_sizes),
        "minilm": partial(models.minilm, bench, scale.batches, TOKENS),
        "llama": partial(models.llama, bench, bits, scale.llama, scale.many_rows),
        "lora": partial(models.lora, bench, bits, scale.llama, *scale.lora),
        "load": partial(models.load, bench, bits, scale.llama, scale.loads),
    }
    described = machine.describe()
    console.print(_description(described))
    if arguments.quick:
        console.print("--quick: everything fits the caches and is timed briefly: no figure counts")
    torch.manual_seed(0)
    with progress, torch.inference_mode():
        for section in arguments.sections:
            # where a section does not go through the thread counts itself
            torch.set_num_threads(max(bench.threads))
            run[section]()
    if arguments.json:
        everything = {
            "machine": described,
            "threads": bench.threads,
            "quick": arguments.quick,
            "cold_bytes": bench.cold_bytes,
            "ceilings": bench.ceilings,
            "results": bench.results,
        }
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")


def _description(described: dict[str, str]) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, value in described.items():
        grid.add_row(name, value)
    return grid


if __name__ == "__main__":
    main()
