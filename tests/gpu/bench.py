# SPDX-License-Identifier: MIT
"""lowbit on a GPU beside torch: cuBLAS in bf16, fused Adam. python bench.py OUTDIR [DEVICE]

Every case is captured in a CUDA graph that goes through enough copies of its weight that none is in
the second-level cache when its turn comes again; times are medians over replays, in microseconds.

    floor      the time that the device allows: the larger one of moving the bytes once at the copy
               bandwidth, measured here, and of the operations at the peak
    to reach   what the project asks for on an H200

Writes bench.json and bench.txt, anew after every case; DEVICE describes the GPU there.
"""

import datetime
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lowbit
import torch
from lowbit.nn import Int8Linear, LUT4Linear
from torch import Tensor, nn

DEVICE = "cuda"
SHAPES = ((4096, 4096), (14336, 4096), (8192, 28672))  # N, K
ROWS = (1, 4, 8, 16, 32, 64, 128, 512, 2048, 4096)
OUTLIERS = ((4096, 4096), (1, 16, 128, 2048))  # a shape, and rows
WEIGHT = (8192, 28672)  # to quantize
PARAMETERS, TENSORS = 1 << 26, 300  # of Adam, in one tensor or in many
COPIED = 1 << 30  # bytes, to know the copy bandwidth
COLD = 128 << 20  # bytes that no second-level cache holds (an H200's has 50 MB)
INT8_PEAK, BF16_PEAK = 1979e12, 790e12  # per second: nominal, dense; and what cuBLAS reaches
REPLAYS = 20

Row = dict[str, Any]
Calls = list[Callable[[], Any]]
ops = torch.ops.lowbit
bf16 = torch.bfloat16


def graph_time(calls: Calls) -> float:
    """Microseconds for one of these calls. They fill a graph of at least a millisecond, and its
    launch is queued while the device is still busy, so as to be no part of the time."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    repeats = 1
    while True:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeats):
                for call in calls:
                    call()
        times = []
        for _ in range(REPLAYS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(2_000_000)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        del graph
        torch.cuda.empty_cache()  # every graph has memory of its own
        microseconds = statistics.median(times)
        if microseconds >= 1000 or repeats >= 64:
            return microseconds / (repeats * len(calls))
        repeats = min(64, int(repeats * 1500 / microseconds) + 1)


class Bench:
    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self.out = out
        self.about = about
        self.results: list[Row] = []
        source = torch.empty(COPIED, dtype=torch.uint8, device=DEVICE)
        target = torch.empty_like(source)
        self.bandwidth = 2 * COPIED / (graph_time([lambda: target.copy_(source)] * 4) * 1e-6)
        self.about["copy GB/s"] = round(self.bandwidth / 1e9)

    def floor(self, bytes_moved: float, operations: float = 0, peak: float = 1) -> float:
        return max(bytes_moved / self.bandwidth, operations / peak) * 1e6

    def add(self, row: Row, calls: Calls) -> float | None:
        """Measures a row. One that fails is part of the results, too."""
        try:
            row["time"] = graph_time(calls)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        self.results.append(row)
        text = json.dumps({"about": self.about, "results": self.results}, indent=1)
        (self.out / "bench.json").write_text(text + "\n")
        (self.out / "bench.txt").write_text(f"{self.about}\n{table_of(self.results)}\n")
        return row.get("time")


def copies(bytes_each: int) -> int:
    return min(64, COLD // bytes_each + 2)


def floats(n: int, k: int, dtype: torch.dtype = bf16) -> Tensor:
    return torch.randn(n, k, device=DEVICE, dtype=dtype)


def activations(m: int, k: int) -> Tensor:
    x = floats(m, k).clamp_(-5, 5)
    x[:, :: k // 8] = 40  # eight columns of outliers
    return x


def layers(kind: type, weights: list[Tensor], **options: Any) -> list[nn.Module]:
    """So many that they do not fit into the cache together."""
    n, k = weights[0].shape
    made = []
    for i in range(copies(n * k if kind is Int8Linear else n * k // 2)):
        linear = nn.Linear(k, n, bias=False, device="meta")
        linear.weight = nn.Parameter(weights[i % len(weights)], requires_grad=False)
        made.append(kind.from_float(linear, **options))
    return made


def reach_int8(row: Row) -> float:
    if row["m"] <= 16:
        return min(row["torch"], 1.25 * row["floor"] + 2.5)
    return row["torch"] / (1.1 if row["m"] >= 2048 else 1)


def reach_lut4(row: Row) -> float:
    if row["m"] <= 16:
        return min(row["torch"] / 3, 1.25 * row["floor"] + 2)
    return row["torch"] / (1 if row["m"] <= 128 else 0.9)


def linears(bench: Bench) -> None:
    for n, k in SHAPES:
        weights = [floats(n, k) * k**-0.5 for _ in range(copies(2 * n * k))]
        kinds = (
            ("int8", layers(Int8Linear, weights, threshold=6.0), 1, INT8_PEAK, reach_int8),
            ("nf4", layers(LUT4Linear, weights), 0.516, BF16_PEAK, reach_lut4),
        )
        for m in ROWS:
            x, grad = activations(m, k), floats(m, n)
            forward = graph_time([partial(nn.functional.linear, x, w) for w in weights])
            backward = graph_time([partial(torch.matmul, grad, w) for w in weights])
            for name, made, weight_bytes, peak, reach in kinds:
                moved, operations = weight_bytes * n * k + 2 * m * (n + k), 2 * m * n * k
                for operator, time, calls, most in (
                    ("linear", forward, [partial(w, x) for w in made], peak),
                    (
                        "grad_input",
                        backward,
                        [partial(grad_input, w, grad) for w in made],
                        BF16_PEAK,
                    ),
                ):
                    row = {"operator": f"{name} {operator}", "n": n, "k": k, "m": m}
                    row |= {"torch": time, "floor": bench.floor(moved, operations, most)}
                    if operator == "linear":
                        row["reach"] = reach(row)
                    bench.add(row, calls)


def grad_input(layer: nn.Module, grad: Tensor) -> Tensor:
    if isinstance(layer, Int8Linear):
        return ops.int8_linear_grad_input(grad, layer.weight, layer.absmax)
    table, *nested = layer._tables()
    return ops.lut4_linear_grad_input(
        grad, layer.weight, layer.absmax, table, layer.in_features, layer.blocksize, *nested
    )


def outliers(bench: Bench) -> None:
    (n, k), rows = OUTLIERS
    made = layers(Int8Linear, [floats(n, k)], threshold=6.0)
    for m in rows:
        plain = floats(m, k).clamp_(-5, 5)
        shared, scattered = plain.clone(), plain.clone()
        shared[:, :: k // 8] = 40
        scattered.scatter_(1, torch.rand(m, k, device=DEVICE).topk(8).indices, 40)
        base = None
        for name, x, most in (
            ("no outliers", plain, 1),
            ("8 shared columns", shared, 1.05),
            ("8 anywhere per row", scattered, 1.25),
        ):
            row = {"operator": f"int8, {name}", "n": n, "k": k, "m": m}
            if base:
                row["reach"] = most * base
            time = bench.add(row, [partial(layer, x) for layer in made])
            base = base or time


def elementwise(bench: Bench) -> None:
    n, k = WEIGHT
    weight = floats(n, k)
    table = lowbit.codebooks.shared("nf4", weight.device)
    dynamic = lowbit.codebooks.shared(lowbit.codebooks.DYNAMIC, weight.device)
    int8 = ops.int8_quantize(weight)
    lut4 = (*ops.lut4_quantize(weight, table), table)
    blockwise = (*ops.blockwise_quantize(weight, dynamic), dynamic)
    for name, bytes_each, call in (
        ("int8_quantize", 3, lambda: ops.int8_quantize(weight)),
        ("int8_dequantize", 3, lambda: ops.int8_dequantize(*int8, None, bf16)),
        ("lut4_quantize", 2.5625, lambda: ops.lut4_quantize(weight, table)),
        ("lut4_dequantize", 2.5625, lambda: ops.lut4_dequantize(*lut4, (n, k), bf16)),
        ("blockwise_quantize", 3.016, lambda: ops.blockwise_quantize(weight, dynamic)),
        ("blockwise_dequantize", 3.016, lambda: ops.blockwise_dequantize(*blockwise, bf16)),
    ):
        floor = bench.floor(bytes_each * n * k)
        row = {"operator": name, "n": n, "k": k, "floor": floor, "reach": floor / 0.8}
        bench.add(row, [call] * 2)


def adam(bench: Bench) -> None:
    one = None
    for count, dtype, grad_dtype in (
        (1, torch.float32, torch.float32),
        (TENSORS, torch.float32, torch.float32),
        (1, torch.float32, bf16),
        (1, bf16, bf16),
    ):
        size = PARAMETERS // count
        params = [nn.Parameter(floats(1, size, dtype).view(-1)) for _ in range(count)]
        grads = [floats(1, size, grad_dtype).view(-1) for _ in params]
        bytes_each = 2 * dtype.itemsize + grad_dtype.itemsize + 4 + 16 / 256
        step = partial(step_of, lowbit.optim.AdamW8bit(params, capturable=True), grads)
        name = f"adam8bit {str(dtype)[6:]}, grad {str(grad_dtype)[6:]}"
        floor = bench.floor(bytes_each * count * size)
        row = {"operator": name, "tensors": count, "floor": floor, "reach": floor / 0.85}
        if count > 1 and one:
            row["reach"] = 1.3 * one
        if dtype == grad_dtype:
            fused = torch.optim.AdamW(params, capturable=True, fused=True)
            row["torch"] = graph_time([partial(step_of, fused, grads)] * 2)
        time = bench.add(row, [step] * 2)
        one = one or time


def step_of(optimizer: torch.optim.Optimizer, grads: list[Tensor]) -> None:
    for p, grad in zip(optimizer.param_groups[0]["params"], grads, strict=True):
        if p.dtype == grad.dtype:
            p.grad = grad
        else:
            p.grad_dtype, p.grad = grad.dtype, grad
    optimizer.step()


def table_of(results: list[Row]) -> str:
    lines = [
        f"{'operator':34}{'N':>7}{'K':>7}{'M':>6}{'us':>10}{'torch us':>10}{'ratio':>7}"
        f"{'floor us':>10}{'of floor':>9}{'to reach':>10}"
    ]
    for row in results:
        m = row.get("m", row.get("tensors", ""))
        line = f"{row['operator']:34}{row.get('n', ''):>7}{row.get('k', ''):>7}{m:>6}"
        if "error" in row:
            lines.append(f"{line}  {row['error']}")
            continue
        time = row["time"]
        torch_time, floor, reach = (row.get(name) for name in ("torch", "floor", "reach"))
        line += f"{time:>10.1f}"
        line += f"{torch_time:>10.1f}{torch_time / time:>7.2f}" if torch_time else " " * 17
        line += f"{floor:>10.1f}{floor / time:>9.0%}" if floor else " " * 19
        if reach:
            line += f"{reach:>10.1f}{'' if time <= reach else '  missed'}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def main(out: Path, device: str) -> int:
    """How many cases failed."""
    torch.manual_seed(0)
    versions = {"lowbit": lowbit.__version__, "torch": torch.__version__}
    versions |= {"cuda": torch.version.cuda, "date": datetime.date.today().isoformat()}
    bench = Bench(out, {"device": device} | versions)
    failures = 0
    for section in (adam, elementwise, outliers, linears):
        try:
            with torch.no_grad():
                section(bench)
        except Exception as error:  # what was measured so far is still worth having
            failures += 1
            print(f"{section.__name__}: {type(error).__name__}: {error}")
    print((out / "bench.txt").read_text())
    missed = sum(row.get("time", 0) > row.get("reach", torch.inf) for row in bench.results)
    failures += sum("error" in row for row in bench.results)
    print(f"{len(bench.results)} cases, {failures} failed, {missed} missed what they are to reach")
    return failures


if __name__ == "__main__":
    out, *device = sys.argv[1:]
    sys.exit(main(Path(out), *device or [torch.cuda.get_device_name()]) != 0)
