# SPDX-License-Identifier: MIT
"""Sections on single layers and operators."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import cycle, pairwise
from typing import Any

import lowbit
import machine
import torch
from contestants import (
    BASIC,
    BF16,
    FP32,
    PEERS,
    THRESHOLD,
    TOLERANCES,
    WEIGHTS,
    ColdLayers,
    sample_rows,
)
from race import Bench, Entry, Timing, ms, ratio, relative_error
from rich.table import Table
from torch import Tensor, nn

Shape = tuple[int, int]  # N, K
Calls = dict[str, Callable[[], tuple[Tensor, ...]]]
EIGHT_BITS = torch.arange(-127, 129) / 128  # a codebook
NF4 = lowbit.codebooks.get("nf4")
DYNAMIC_MAP = lowbit.codebooks.dynamic_map()


def linear(
    bench: Bench, widths: Sequence[int], shapes: Sequence[Shape], rows: Sequence[int]
) -> None:
    _measure_ceilings(bench)
    for n, k in shapes:
        for bits in widths:
            layers = ColdLayers(bench, n, k, (*BASIC[bits], *PEERS[bits]))
            for ceiling in bench.ceilings:
                _linear_table(bench, bits, layers, ceiling, rows)


def _measure_ceilings(bench: Bench) -> None:
    for threads in bench.threads:
        torch.set_num_threads(threads)
        found = machine.ceilings(2 * bench.cold_bytes, bench.seconds)
        bench.ceilings.append(found)
        bench.console.print(
            f"threads: {threads}. {machine.READ_LABEL}: {found['read'] / 1e9:.1f} GB/s. "
            f"{machine.INT8_LABEL}: {found['int8_products'] / 1e9:.0f} G multiply-adds/s. "
            f"{machine.FLOAT_LABEL}: {found['float_products'] / 1e9:.0f}.",
            soft_wrap=True,
        )


def _linear_table(
    bench: Bench, bits: int, layers: ColdLayers, ceiling: dict[str, Any], rows: Sequence[int]
) -> None:
    n, k = layers.float.weight.shape
    torch.set_num_threads(ceiling["threads"])
    title = f"linear, {WEIGHTS[bits]}, N={n} K={k}, threads: {ceiling['threads']}"
    table = Table(title=f"{title}: ms, median (best)", title_justify="left")
    contestants = (*BASIC[bits], *PEERS[bits])
    ratios = ("vs bf16", "vs fp32", "vs bnb", "vs ao", "of floor")
    for name in ("M", *(c.name for c in contestants), *ratios):
        table.add_column(name, justify="right", no_wrap=True)
    parameters = layers.next("lowbit bf16").named_parameters()
    weight_bytes = sum(p.nbytes for name, p in parameters if name != "bias")
    products = ceiling["int8_products" if bits == 8 else "float_products"]
    for m in rows:
        x = sample_rows(m, k)
        case = {"bits": bits, "m": m, "n": n, "k": k}
        timings = bench.race("linear", case, layers.entries(x), layers.error(x))
        floor = max(weight_bytes / ceiling["read"], m * n * k / products)
        bench.results.append(
            {"section": "floor", **case, "threads": ceiling["threads"], "seconds": floor}
        )
        ours = timings["lowbit bf16"]
        table.add_row(
            str(m),
            *(ms(timings[c.name]) if c.name in timings else "missing" for c in contestants),
            *_float_ratios(timings),
            *(ratio(timings.get(peer.name), ours) for peer in PEERS[bits]),
            f"{floor / ours.median:.0%}",
        )
    bench.console.print(table)


def sweep(
    bench: Bench, widths: Sequence[int], n: int, depths: Sequence[int], rows: Sequence[int]
) -> None:
    """Is any number of rows slower than a float layer, or than the next larger number?"""
    for bits in widths:
        title = f"sweep over M, {WEIGHTS[bits]}, N={n}: lowbit ms with bf16 x, ratios"
        table = Table(title=title, title_justify="left")
        table.add_column("M", justify="right")
        cells: dict[int, list[str]] = {m: [] for m in rows}
        summaries = []
        for k in depths:
            layers = ColdLayers(bench, n, k, BASIC[bits])
            timings = {}
            for m in rows:
                x = sample_rows(m, k)
                case = {"bits": bits, "m": m, "n": n, "k": k}
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
    """int8 with outliers that do not share their columns."""
    table = Table(
        title=f"outliers, int8, M={m} N={n} K={k}: ms, median (best)", title_justify="left"
    )
    for name in ("outliers", *(c.name for c in BASIC[8]), "vs bf16", "vs fp32"):
        table.add_column(name, justify="right", no_wrap=True)
    layers = ColdLayers(bench, n, k, BASIC[8])
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
        times = (ms(timings[c.name]) for c in BASIC[8])
        table.add_row(name, *times, *_float_ratios(timings))
    bench.console.print(table)


def quantize(bench: Bench, widths: Sequence[int], shapes: Sequence[Shape]) -> None:
    """Quantizing a weight, as a fraction of the bytes per second of a copy. The operators allocate
    their results; the copy does not."""
    for bits in widths:
        table = Table(title=f"quantize a weight to {bits} bits", title_justify="left")
        for name in ("N x K", "dtype", "call", "ms, median (best)", "GB/s", "of copy_", "of clone"):
            table.add_column(name, justify="right", no_wrap=True)
        for n, k in shapes:
            for dtype in (FP32, BF16):
                case = {"bits": bits, "n": n, "k": k, "dtype": str(dtype).removeprefix("torch.")}
                for cells in _quantize_rows(bench, case, torch.randn(n, k).to(dtype)):
                    table.add_row(f"{n} x {k}", case["dtype"], *cells)
        bench.console.print(table)


def _quantize_rows(bench: Bench, case: dict, weight: Tensor) -> list[tuple[str, ...]]:
    ops = torch.ops.lowbit
    cold = _rotate(bench, weight)
    target = torch.empty_like(weight)
    copies: Calls = {  # clone copies into new memory, as the operators write theirs
        "copy_": lambda: (target.copy_(next(cold)),),
        "clone": lambda: (next(cold).clone(),),
    }
    calls = {8: _quantizers_8, 4: _quantizers_4}[case["bits"]](cold)
    expected = weight.double()

    def error(result: tuple[Tensor, ...]) -> float:
        if len(result) == 1:
            back = result[0]
        elif case["bits"] == 4:
            back = ops.lut4_dequantize(*result, NF4, weight.shape)
        elif result[0].dtype == torch.uint8:
            back = ops.blockwise_dequantize(*result, EIGHT_BITS)
        else:
            back = ops.int8_dequantize(*result)
        return relative_error(back, expected)

    tolerance = TOLERANCES[case["bits"]]
    entries = [Entry(name, call, 0.0) for name, call in copies.items()]
    entries += [
        Entry(name, call, tolerance, not name.startswith("lowbit")) for name, call in calls.items()
    ]
    moved = {e.name: weight.nbytes + sum(t.nbytes for t in e.call()) for e in entries}
    timings = bench.race("quantize", case, entries, error)
    rates = {name: moved[name] / t.median for name, t in timings.items() if t}
    return [
        (
            name,
            ms(t),
            *(
                (f"{rates[name] / 1e9:.1f}", *(f"{rates[name] / rates[c]:.0%}" for c in copies))
                if t
                else ()
            ),
        )
        for name, t in timings.items()
    ]


def _quantizers_8(cold: "cycle[Tensor]") -> Calls:
    ops = torch.ops.lowbit
    calls: Calls = {
        "lowbit int8_quantize": lambda: ops.int8_quantize(next(cold)),
        "lowbit int8_quantize_offset": lambda: ops.int8_quantize_offset(next(cold)),
        "lowbit blockwise_quantize": lambda: ops.blockwise_quantize(next(cold), EIGHT_BITS),
    }
    if find_spec("bitsandbytes"):
        from bitsandbytes.functional import quantize_blockwise

        def peer() -> tuple[Tensor, Tensor]:
            q, state = quantize_blockwise(next(cold), EIGHT_BITS, blocksize=256)
            return q, state.absmax

        calls["bitsandbytes quantize_blockwise"] = peer
    return calls


def _quantizers_4(cold: "cycle[Tensor]") -> Calls:
    calls: Calls = {"lowbit lut4_quantize": lambda: torch.ops.lowbit.lut4_quantize(next(cold), NF4)}
    if find_spec("bitsandbytes"):
        from bitsandbytes.functional import quantize_4bit

        def peer() -> tuple[Tensor, Tensor]:
            packed, state = quantize_4bit(next(cold), blocksize=64, quant_type="nf4")
            return packed, state.absmax

        calls["bitsandbytes quantize_4bit"] = peer
    return calls


def grad(bench: Bench, widths: Sequence[int], shapes: Sequence[Shape], m: int) -> None:
    """The gradient for x beside torch.matmul of the same gradient and a float weight."""
    for bits in widths:
        title = f"gradient for x, {WEIGHTS[bits]}, M={m}: ms, median (best)"
        table = Table(title=title, title_justify="left")
        for name in ("N x K", *(c.name for c in BASIC[bits]), "vs bf16", "vs fp32"):
            table.add_column(name, justify="right", no_wrap=True)
        for n, k in shapes:
            layers = ColdLayers(bench, n, k, BASIC[bits])
            grad_output = torch.randn(m, n).to(BF16).to(FP32)
            expected = grad_output.double() @ layers.float.weight[:, ::16].double()
            timings = bench.race(
                "grad",
                {"bits": bits, "m": m, "n": n, "k": k},
                layers.entries(grad_output, _grad_input),
                partial(_every_16th_error, expected),
            )
            times = (ms(timings[c.name]) for c in BASIC[bits])
            table.add_row(f"{n} x {k}", *times, *_float_ratios(timings))
        bench.console.print(table)


def _grad_input(layer: nn.Module, grad_output: Tensor) -> Tensor:
    if isinstance(layer, lowbit.nn.Int8Linear):
        return torch.ops.lowbit.int8_linear_grad_input(grad_output, layer.weight, layer.absmax)
    if isinstance(layer, lowbit.nn.LUT4Linear):
        return torch.ops.lowbit.lut4_linear_grad_input(
            grad_output,
            layer.weight,
            layer.absmax,
            NF4,
            layer.in_features,
            layer.blocksize,
            layer.nested_absmax,
            DYNAMIC_MAP,
            layer.nested_offset,
        )
    return grad_output @ layer.weight


def _every_16th_error(expected: Tensor, y: Tensor) -> float:
    return relative_error(y[..., ::16], expected)


def _rotate(bench: Bench, tensor: Tensor) -> "cycle[Tensor]":
    """Copies without end, none still cached when its turn comes again."""
    copies = -(-bench.cold_bytes // tensor.nbytes) + 1
    return cycle([tensor.clone() for _ in range(copies)])
