# SPDX-License-Identifier: MIT
"""lowbit on a GPU beside cuBLAS in bf16, in one run: python bench.py OUTDIR

Every case is captured in a CUDA graph that goes through enough copies of its weight that none is in
the second-level cache when its turn comes again; times are medians over replays, in microseconds.
"of floor" is the time that the device allows, the larger one of moving the bytes once at the
measured copy bandwidth and of the operations at the nominal peak, over the measured time. Writes
bench.json and bench.txt.
"""

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

SHAPES = ((4096, 4096), (14336, 4096), (8192, 28672))  # N, K
ROWS = (1, 4, 8, 16, 32, 64, 128, 512, 2048, 4096)
COLD = 128 << 20  # bytes that no cache holds
INT8_PEAK, BF16_PEAK = 1979e12, 990e12  # operations per second of an H100 or H200, dense
REPLAYS = 20


def graph_time(calls: list[Callable[[], Any]]) -> float:
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
            torch.cuda._sleep(200_000)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        microseconds = statistics.median(times)
        if microseconds >= 1000 or repeats >= 64:
            return microseconds / (repeats * len(calls))
        repeats = min(64, int(repeats * 1500 / microseconds) + 1)


def copy_bandwidth() -> float:
    """Bytes per second, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (graph_time([lambda: target.copy_(source)] * 4) * 1e-6)


def copies(bytes_each: int) -> int:
    return min(64, COLD // bytes_each + 2)


def activations(m: int, k: int) -> Tensor:
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    x[:, :: k // 8] *= 40  # eight columns of outliers
    return x


def linears(results: list[dict[str, Any]], bandwidth: float) -> None:
    for n, k in SHAPES:
        count = copies(n * k // 2)
        floats = [
            torch.randn(n, k, device="cuda", dtype=torch.bfloat16) * k**-0.5
            for _ in range(copies(2 * n * k))
        ]
        layers = {}
        for name, layer in (("int8", Int8Linear), ("nf4", LUT4Linear)):
            options = {"threshold": 6.0} if name == "int8" else {}
            made = []
            for i in range(count):
                linear = nn.Linear(k, n, bias=False, device="meta")
                linear.weight = nn.Parameter(floats[i % len(floats)], requires_grad=False)
                made.append(layer.from_float(linear, **options))
            layers[name] = made
        for m in ROWS:
            x = activations(m, k)
            grad = torch.randn(m, n, device="cuda", dtype=torch.bfloat16)
            with torch.no_grad():
                forward = graph_time([partial(nn.functional.linear, x, w) for w in floats])
                backward = graph_time([partial(torch.matmul, grad, w) for w in floats])
                for name, made in layers.items():
                    row = {"operator": f"{name} linear", "n": n, "k": k, "m": m}
                    row["bf16"] = forward
                    row["time"] = graph_time([partial(w, x) for w in made])
                    weight = n * k * (1 if name == "int8" else 0.516)
                    seconds = (weight + 2 * m * (n + k)) / bandwidth
                    peak = INT8_PEAK if name == "int8" else BF16_PEAK
                    row["floor"] = max(seconds, 2 * m * n * k / peak) * 1e6
                    results.append(row)
                    row = {"operator": f"{name} grad_input", "n": n, "k": k, "m": m}
                    row["bf16"] = backward
                    row["time"] = graph_time([partial(_grad, w, grad) for w in made])
                    results.append(row)
        del floats, layers
        torch.cuda.empty_cache()


def _grad(layer: nn.Module, grad: Tensor) -> Tensor:
    if isinstance(layer, Int8Linear):
        return torch.ops.lowbit.int8_linear_grad_input(grad, layer.weight, layer.absmax)
    table, *nested = layer._tables()
    return torch.ops.lowbit.lut4_linear_grad_input(
        grad, layer.weight, layer.absmax, table, layer.in_features, layer.blocksize, *nested
    )


def elementwise(results: list[dict[str, Any]], bandwidth: float) -> None:
    n, k = 8192, 28672
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    ops = torch.ops.lowbit
    table = lowbit.codebooks.shared("nf4", weight.device)
    dynamic = lowbit.codebooks.shared(lowbit.codebooks.DYNAMIC, weight.device)
    q, absmax = ops.int8_quantize(weight)
    packed, scales = ops.lut4_quantize(weight, table)
    codes, block_scales = ops.blockwise_quantize(weight, dynamic)
    bf16 = torch.bfloat16
    for name, byte_count, call in (
        ("int8_quantize", 3, lambda: ops.int8_quantize(weight)),
        ("int8_dequantize", 3, lambda: ops.int8_dequantize(q, absmax, None, bf16)),
        ("lut4_quantize", 2.56, lambda: ops.lut4_quantize(weight, table)),
        (
            "lut4_dequantize",
            2.56,
            lambda: ops.lut4_dequantize(packed, scales, table, (n, k), bf16),
        ),
        ("blockwise_quantize", 3.02, lambda: ops.blockwise_quantize(weight, dynamic)),
        (
            "blockwise_dequantize",
            3.02,
            lambda: ops.blockwise_dequantize(codes, block_scales, dynamic, bf16),
        ),
    ):
        floor = byte_count * n * k / bandwidth * 1e6
        results.append(
            {"operator": name, "n": n, "k": k, "time": graph_time([call] * 2), "floor": floor}
        )


def adam(results: list[dict[str, Any]], bandwidth: float) -> None:
    key = torch._C._dispatch_key_for_device("cuda")
    if not torch._C._dispatch_has_kernel_for_dispatch_key("lowbit::adam8bit_step_", key):
        return
    for count, size in ((1, 1 << 28), (300, (1 << 28) // 300)):
        params = [nn.Parameter(torch.randn(size, device="cuda")) for _ in range(count)]
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer = lowbit.optim.AdamW8bit(params, capturable=True)
        optimizer.step()
        floor = 16.06 * count * size / bandwidth * 1e6
        time = graph_time([optimizer.step] * 2)
        results.append(
            {"operator": "adam8bit_step_", "tensors": count, "time": time, "floor": floor}
        )


def table_of(results: list[dict[str, Any]]) -> str:
    lines = [
        f"{'operator':22}{'N':>7}{'K':>7}{'M':>6}"
        f"{'us':>10}{'bf16 us':>10}{'ratio':>7}{'of floor':>10}"
    ]
    for row in results:
        ratio = f"{row['bf16'] / row['time']:.2f}" if "bf16" in row else ""
        floor = f"{row['floor'] / row['time']:.0%}" if "floor" in row else ""
        m = row.get("m", row.get("tensors", ""))
        other = f"{row['bf16']:.1f}" if "bf16" in row else ""
        lines.append(
            f"{row['operator']:22}{row.get('n', ''):>7}{row.get('k', ''):>7}{m:>6}"
            f"{row['time']:>10.1f}{other:>10}{ratio:>7}{floor:>10}"
        )
    return "\n".join(lines)


def main() -> None:
    out = Path(sys.argv[1])
    torch.manual_seed(0)
    bandwidth = copy_bandwidth()
    results: list[dict[str, Any]] = []
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "lowbit": lowbit.__version__,
        "copy GB/s": round(bandwidth / 1e9),
    }
    failures = []
    for section in (linears, elementwise, adam):
        try:
            section(results, bandwidth)
        except Exception as error:  # what was measured so far is still worth having
            failures.append(f"{section.__name__}: {type(error).__name__}: {error}")
    (out / "bench.json").write_text(json.dumps({"about": about, "results": results}, indent=1))
    text = f"{about}\n{table_of(results)}\n"
    (out / "bench.txt").write_text(text)
    print(text, *failures, sep="\n")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
