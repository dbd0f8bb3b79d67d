# SPDX-License-Identifier: MIT
"""Sections on single layers and operators."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, pairwise

import machine
import torch
from contestants import BASIC, BF16, FP32, PEERS, THRESHOLD, ColdLayers, sample_rows
from race import Bench, Entry, Timing, ms, ratio, relative_error
from rich.table import Table
from torch import Tensor

Shape = tuple[int, int]  # N, K


def linear(bench: Bench, shapes: Sequence[Shape], rows: Sequence[int]) -> None:
    _measure_ceilings(bench)
    for n, k in shapes:
        layers = ColdLayers(bench, n, k, (*BASIC, *PEERS))
        for ceiling in bench.ceilings:
            torch.set_num_threads(ceiling["threads"])
            table = _linear_table(f"linear, N={n} K={k}, threads: {ceiling['threads']}")
            for m in rows:
                x = sample_rows(m, k)
                case = {"m": m, "n": n, "k": k}
                floor = max(n * k / ceiling["read"], m * n * k / ceiling["products"])
                timings = bench.race("linear", case, layers.entries(x), layers.error(x))
                bench.results.append(
                    {"section": "floor", **case, "threads": ceiling["threads"], "seconds": floor}
                )
                table.add_row(str(m), *_linear_cells(timings, floor))
            bench.console.print(table)


def _measure_ceilings(bench: Bench) -> None:
    for threads in bench.threads:
        torch.set_num_threads(threads)
        found = machine.ceilings(2 * bench.cold_bytes, bench.seconds)
        bench.ceilings.append(found)
        bench.console.print(
            f"threads: {threads}. {machine.READ_LABEL}: {found['read'] / 1e9:.1f} GB/s. "
            f"{machine.PRODUCT_LABEL}: {found['products'] / 1e9:.0f} G multiply-adds/s.",
            soft_wrap=True,
        )


def _linear_table(title: str) -> Table:
    table = Table(title=f"{title}: ms, median (best)", title_justify="left")
    names = [c.name for c in (*BASIC, *PEERS)]
    ratios = ("vs bf16", "vs fp32", "vs bnb", "vs ao", "of floor")
    for name in ("M", *names, *ratios):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _linear_cells(timings: dict[str, Timing | None], floor: float) -> list[str]:
    contestants = (*BASIC, *PEERS)
    cells = [ms(timings[c.name]) if c.installed else "missing" for c in contestants]
    ours = timings["lowbit bf16"]
    return [
        *cells,
        ratio(timings["torch bf16"], ours),
        ratio(timings["torch fp32"], timings["lowbit fp32"]),
        *(ratio(timings.get(peer.name), ours) for peer in PEERS),
        f"{floor / ours.median:.0%}",
    ]


def sweep(bench: Bench, n: int, depths: Sequence[int], rows: Sequence[int]) -> None:
    """Is any number of rows slower than a float layer, or than the next larger number?"""
    table = Table(title=f"sweep over M, N={n}: lowbit ms with bf16 x, ratios", title_justify="left")
    table.add_column("M", justify="right")
    cells: dict[int, list[str]] = {m: [] for m in rows}
    summaries = []
    for k in depths:
        layers = ColdLayers(bench, n, k)
        timings = {}
        for m in rows:
            x = sample_rows(m, k)
            case = {"m": m, "n": n, "k": k}
            timings[m] = t = bench.race("sweep", case, layers.entries(x), layers.error(x))
            cells[m] += [ms(t["lowbit bf16"]), *_float_ratios(t)]
        for name in (f"K={k}", "vs bf16", "vs fp32"):
            table.add_column(name, justify="right", no_wrap=True)
        summaries.append(f"K={k}: {_worst(timings)}")
    for m, row in cells.items():
        table.add_row(str(m), *row)
    bench.console.print(table)
    bench.console.print(*summaries, sep="\n", soft_wrap=True)


def _float_ratios(timings: dict[str, Timing | None]) -> tuple[str, str]:
    return (
        ratio(timings["torch bf16"], timings["lowbit bf16"]),
        ratio(timings["torch fp32"], timings["lowbit fp32"]),
    )


def _worst(timings: dict[int, dict[str, Timing]]) -> str:
    """The smallest ratios, by medians, and the steepest fall of time with one more row measured,
    by best times: a cliff shows in both, a disturbance only in the median."""

    def lowest(dtype: str) -> str:
        ratios = {
            m: t[f"torch {dtype}"].median / t[f"lowbit {dtype}"].median for m, t in timings.items()
        }
        m = min(ratios, key=ratios.__getitem__)
        return f"lowest vs {dtype} {ratios[m]:.2f}x at M={m}"

    falls = {
        (m, larger): timings[m][name].best / timings[larger][name].best
        for m, larger in pairwise(timings)
        for name in ("lowbit bf16", "lowbit fp32")
    }
    m, larger = max(falls, key=falls.__getitem__)
    cliff = f"largest t(M)/t(next M) {falls[m, larger]:.2f} at M={m}, next {larger}"
    return f"{lowest('bf16')}, {lowest('fp32')}, {cliff}"


def outliers(bench: Bench, m: int, n: int, k: int) -> None:
    """Outliers that do not share their columns."""
    table = Table(title=f"outliers, M={m} N={n} K={k}: ms, median (best)", title_justify="left")
    for name in ("outliers", *(c.name for c in BASIC), "vs bf16", "vs fp32"):
        table.add_column(name, justify="right", no_wrap=True)
    layers = ColdLayers(bench, n, k)
    large = torch.randn(m, k).sign() * (THRESHOLD + torch.rand(m, k) * 20)
    plain = torch.randn(m, k).clamp(-5, 5)
    eight = torch.rand(m, k).argsort(dim=1) < 8
    patterns = {
        "none": plain,
        "8 shared columns": sample_rows(m, k),
        "8 random per row": plain.where(~eight, large),
        "1% of all": plain.where(torch.rand(m, k) >= 0.01, large),
        "all": large,
    }
    for name, pattern in patterns.items():
        x = pattern.to(BF16).to(FP32)
        case = {"outliers": name, "m": m, "n": n, "k": k}
        timings = bench.race("outliers", case, layers.entries(x), layers.error(x))
        times = (ms(timings[c.name]) for c in BASIC)
        table.add_row(name, *times, *_float_ratios(timings))
    bench.console.print(table)


def quantize(bench: Bench, shapes: Sequence[Shape]) -> None:
    """Quantizing a weight, as a fraction of the bytes per second of a copy. The operators allocate
    their results; the copy does not."""
    table = Table(title="quantize a weight", title_justify="left")
    for name in ("N x K", "dtype", "call", "ms, median (best)", "GB/s", "of copy_", "of clone"):
        table.add_column(name, justify="right", no_wrap=True)
    for n, k in shapes:
        for dtype in (FP32, BF16):
            case = {"n": n, "k": k, "dtype": str(dtype).removeprefix("torch.")}
            for cells in _quantize_rows(bench, case, torch.randn(n, k).to(dtype)):
                table.add_row(f"{n} x {k}", case["dtype"], *cells)
    bench.console.print(table)


def _quantize_rows(bench: Bench, case: dict, weight: Tensor) -> list[tuple[str, ...]]:
    ops = torch.ops.lowbit
    cold = _rotate(bench, weight)
    target = torch.empty_like(weight)
    codebook = torch.arange(-127, 129) / 128
    entries = [  # clone copies into new memory, as the operators write theirs
        Entry("copy_", lambda: (target.copy_(next(cold)),), 0.0),
        Entry("clone", lambda: (next(cold).clone(),), 0.0),
        Entry("lowbit int8_quantize", lambda: ops.int8_quantize(next(cold)), 0.02),
        Entry("lowbit int8_quantize_offset", lambda: ops.int8_quantize_offset(next(cold)), 0.02),
        Entry(
            "lowbit blockwise_quantize", lambda: ops.blockwise_quantize(next(cold), codebook), 0.02
        ),
    ]
    if find_spec("bitsandbytes"):
        from bitsandbytes.functional import quantize_blockwise

        def peer() -> tuple[Tensor, Tensor]:
            q, state = quantize_blockwise(next(cold), codebook, blocksize=256)
            return q, state.absmax

        entries.append(Entry("bitsandbytes quantize_blockwise", peer, 0.02))
    expected = weight.double()

    def error(result: tuple[Tensor, ...]) -> float:
        if len(result) == 1:
            return relative_error(result[0], expected)
        if result[0].dtype == torch.uint8:
            return relative_error(ops.blockwise_dequantize(*result, codebook), expected)
        return relative_error(ops.int8_dequantize(*result), expected)

    timings = bench.race("quantize", case, entries, error)
    written = {"copy_": weight.nbytes, "clone": weight.nbytes}
    rates = {
        name: (weight.nbytes + written.get(name, weight.numel())) / t.median
        for name, t in timings.items()
    }
    return [
        (
            name,
            ms(t),
            f"{rates[name] / 1e9:.1f}",
            *(f"{rates[name] / rates[copy]:.0%}" for copy in written),
        )
        for name, t in timings.items()
    ]


def grad(bench: Bench, shapes: Sequence[Shape], m: int) -> None:
    """int8_linear_grad_input beside torch.matmul of the same gradient and a float weight."""
    title = f"int8_linear_grad_input, M={m}: ms, median (best)"
    table = Table(title=title, title_justify="left")
    for name in ("N x K", *(c.name for c in BASIC), "vs bf16", "vs fp32"):
        table.add_column(name, justify="right", no_wrap=True)
    for n, k in shapes:
        weight = (torch.randn(n, k) * 0.02).to(BF16)
        grad_output = torch.randn(m, n).to(BF16)
        q, absmax = torch.ops.lowbit.int8_quantize(weight)
        codes = _rotate(bench, q)
        entries = []
        for name, dtype, tolerance in (("bf16", BF16, 0.01), ("fp32", FP32, 1e-5)):
            entries += [
                Entry(
                    f"lowbit {name}",
                    partial(_grad_input, grad_output.to(dtype), codes, absmax),
                    0.02,
                ),
                Entry(
                    f"torch {name}",
                    partial(_matmul, grad_output.to(dtype), _rotate(bench, weight.to(dtype))),
                    tolerance,
                ),
            ]
        expected = grad_output.double() @ weight[:, ::16].double()
        error: Callable[[Tensor], float] = partial(_every_16th_error, expected)
        timings = bench.race("grad", {"m": m, "n": n, "k": k}, entries, error)
        times = (ms(timings[c.name]) for c in BASIC)
        table.add_row(f"{n} x {k}", *times, *_float_ratios(timings))
    bench.console.print(table)


def _grad_input(grad_output: Tensor, codes: "cycle[Tensor]", absmax: Tensor) -> Tensor:
    return torch.ops.lowbit.int8_linear_grad_input(grad_output, next(codes), absmax)


def _matmul(grad_output: Tensor, weights: "cycle[Tensor]") -> Tensor:
    return grad_output @ next(weights)


def _every_16th_error(expected: Tensor, y: Tensor) -> float:
    return relative_error(y[..., ::16], expected)


def _rotate(bench: Bench, tensor: Tensor) -> "cycle[Tensor]":
    """Copies without end, none still cached when its turn comes again."""
    copies = -(-bench.cold_bytes // tensor.nbytes) + 1
    return cycle([tensor.clone() for _ in range(copies)])
