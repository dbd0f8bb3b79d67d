# SPDX-License-Identifier: MIT
"""lowbit beside torch, bitsandbytes and torchao, in one run.

Weights are cold: every contestant goes through enough copies of its weight that none is cached when
its turn comes again. Contestants are called in turn; results are compared before they are timed.
Every table shows the measured median and, in brackets, the best time. A ratio "vs bf16" is the time
of torch's bf16 layer over that of lowbit with bf16 x, "vs fp32" the same in float32, "vs bnb" and
"vs ao" the peer's over lowbit's with bf16 x; above 1, lowbit is faster. "of floor" is the time that
the measured ceilings allow, the larger one of reading the weight and its scales once and of the
multiply-adds (of int8, or of float with 4-bit weights), over that of lowbit with bf16 x. nf4 is NF4
in blocks of 64 with double quantization. Nothing is compiled by torch.compile.

In the section adam "of floor" is the time that memory allows a step, whose traffic it has from the
time of p.add_(g), over that of lowbit.
"""

import argparse
import os
from pathlib import Path

SECTIONS = (
    *("linear", "quantize", "grad", "sweep", "outliers"),
    *("adam", "minilm", "llama", "lora", "load"),
)
BITS = (8, 4)
DEFAULT_THREADS = (1, 2) if (os.cpu_count() or 1) > 1 else (1,)


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python tests/bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small and short, to see that it runs")
    parser.add_argument("--sections", type=_sections, default=SECTIONS, help=",".join(SECTIONS))
    parser.add_argument(
        "--bits", type=_bits, default=BITS, help="of the weights: 8,4; outliers and minilm have 8"
    )
    parser.add_argument("--shapes", type=_shapes, help="NxK of the weights: 4096x4096,11008x4096")
    parser.add_argument("--rows", type=_counts, help="numbers of rows M in linear: 1,8,64")
    parser.add_argument("--threads", type=_counts, default=DEFAULT_THREADS, help="1,2")
    parser.add_argument("--json", type=Path, help="also write everything measured there, seconds")
    return parser.parse_args(given)


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(SECTIONS)}")
    return names


def _bits(text: str) -> tuple[int, ...]:
    widths = _counts(text)
    if not set(widths) <= set(BITS):
        raise argparse.ArgumentTypeError(f"{text} is not a list of 8 and 4 such as 8,4")
    return widths


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a list of positive numbers such as 1,2")
    return counts


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    shapes = tuple(_counts(shape.replace("x", ",")) for shape in text.split(","))
    if any(len(shape) != 2 or shape[1] < 8 for shape in shapes):
        raise argparse.ArgumentTypeError(
            f"{text} is not a list of NxK such as 4096x4096,11008x4096, with K of at least 8"
        )
    return shapes
