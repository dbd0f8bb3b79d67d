# SPDX-License-Identifier: MIT
"""The section on optimizers: a step of AdamW, with state in 8 bits and in 32."""

import importlib.util
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lowbit
import torch
from race import Bench, Entry, Timing, ms, ratio, relative_error
from rich.table import Table
from torch import Tensor, nn

LR, BETAS, EPS, DECAY = 1e-3, (0.9, 0.999), 1e-8, 0.01
BLOCKSIZE = 256
SMALL_TENSORS = 300  # that share the parameters in one case
MILLION = 2**20  # parameters that times are given for
SIGNED, UNSIGNED = lowbit.codebooks.dynamic_map(True), lowbit.codebooks.dynamic_map(False)
STATE_BYTES = 2 * (1 + 4 / BLOCKSIZE)
FP32_BYTES = 4 + 4 + 4 + 2 * STATE_BYTES  # that a step moves: p twice, g, all of the state twice
ADD_BYTES = 12  # and p.add_(g)

CHECKED = 4096  # elements whose first step is compared

# Returns the first parameter, what it was at first, and what it must be after one call.
Step = Callable[[], tuple[Tensor, Tensor, Tensor]]
Make = Callable[[Sequence[int], torch.dtype], Step]


def adam(bench: Bench, sizes: Sequence[int]) -> None:
    """A step on so many parameters in one tensor, and on the least of these in many tensors."""
    names = ("lowbit", "bf16+master", "bitsandbytes", "torch fused", "torch foreach")
    table = Table(
        title="AdamW: ms per 2^20 parameters, median (best); how many times that in "
        f"{SMALL_TENSORS} tensors",
        title_justify="left",
    )
    for name in ("size", "threads", *names, "vs bnb", "vs fused", "of floor"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("lowbit", "fused"):
        table.add_column(f"{SMALL_TENSORS}, {name}", justify="right", no_wrap=True)
    with torch.inference_mode(False), torch.no_grad():
        for n in sizes:
            for threads in bench.threads:
                torch.set_num_threads(threads)
                times = _race(bench, n)
                ours = times["lowbit"]
                table.add_row(
                    f"2^{math.log2(n):g}",
                    str(threads),
                    *(
                        _per_million(times[name], n) if name in times else "missing"
                        for name in names
                    ),
                    ratio(times.get("bitsandbytes"), ours),
                    ratio(times["torch fused"], ours),
                    f"{times['add_'].median * FP32_BYTES / ADD_BYTES / ours.median:.0%}",
                    *(
                        ratio(times[f"{name}, many tensors"], times[name])
                        if f"{name}, many tensors" in times
                        else ""
                        for name in ("lowbit", "torch fused")
                    ),
                )
    bench.console.print(table)


def _race(bench: Bench, n: int) -> dict[str, Timing | None]:
    """The contestants with fp32 on one tensor; on many tensors too where calls are short."""
    # The state's rounding shows from the second step on.
    contestants: dict[str, tuple[Make, Sequence[int], torch.dtype, float]] = {
        "lowbit": (_lowbit, [n], torch.float32, 0.1),
        "bf16+master": (_lowbit, [n], torch.bfloat16, 0.1),
        "torch fused": (partial(_torch, fused=True), [n], torch.float32, 1e-3),
        "torch foreach": (partial(_torch, foreach=True), [n], torch.float32, 1e-3),
    }
    if importlib.util.find_spec("bitsandbytes"):
        contestants["bitsandbytes"] = (_bitsandbytes, [n], torch.float32, 0.3)
    if n < 2**26:
        small = [n // SMALL_TENSORS] * SMALL_TENSORS
        for name in ("lowbit", "torch fused"):
            make, _, dtype, tolerance = contestants[name]
            contestants[f"{name}, many tensors"] = (make, small, dtype, tolerance)
    entries = [
        Entry(name, _cold(bench, make, shape, dtype), tolerance, name == "bitsandbytes")
        for name, (make, shape, dtype, tolerance) in contestants.items()
    ]
    entries.append(Entry("add_", _cold(bench, _add, [n], torch.float32), 1e-3))
    return bench.race("adam", {"n": n}, entries, _error)


def _cold(bench: Bench, make: Make, sizes: Sequence[int], dtype: torch.dtype) -> Step:
    """Steps of copies in turn, so many that none is cached when its turn comes again."""
    copies = math.ceil(bench.cold_bytes / (sum(sizes) * ADD_BYTES)) + 1
    steps = itertools.cycle([make(sizes, dtype) for _ in range(copies)])
    return lambda: next(steps)()


def _error(result: tuple[Tensor, Tensor, Tensor]) -> float:
    """Of what the first timed call moved."""
    after, start, wanted = (t.flatten()[:CHECKED].double() for t in result)
    return relative_error(after - start, wanted - start)


def _sample(sizes: Sequence[int], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters, and gradients of a wide range; the same every time."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(2, sum(sizes), generator=generator)
    whole[1] *= whole[0].roll(1).abs() * 1e-3
    params, grads = ([part.clone() for part in row.to(dtype).split(list(sizes))] for row in whole)
    return params, grads


def _stepped(parameter: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What a parameter is now, and after a step whose gradient was the same in all steps."""
    start, g = (t.detach().flatten()[:CHECKED].double() for t in (parameter, grad))
    return start, start * (1 - LR * DECAY) - LR * g / (g.abs() + EPS)


def _lowbit(sizes: Sequence[int], dtype: torch.dtype) -> Step:
    params, grads = _sample(sizes, dtype)
    masters = [p.float() for p in params] if dtype != torch.float32 else []
    blocks = [math.ceil(n / BLOCKSIZE) for n in sizes]
    state = (
        [torch.full((n,), 127, dtype=torch.uint8) for n in sizes],
        [torch.zeros(b) for b in blocks],
        [torch.zeros(n, dtype=torch.uint8) for n in sizes],
        [torch.zeros(b) for b in blocks],
    )
    count, lr = torch.tensor(0.0), torch.tensor(LR)
    tensors = (params, grads, *state, masters, SIGNED, UNSIGNED, count, lr)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        count.add_(1)
        torch.ops.lowbit.adam8bit_step_(*tensors, *BETAS, EPS, DECAY, True, False, BLOCKSIZE)
        return (masters or params)[0], *check

    check: tuple[Tensor, ...] = ()
    step()
    check = _stepped((masters or params)[0], grads[0])
    return step


def _torch(sizes: Sequence[int], dtype: torch.dtype, **kind: bool) -> Step:
    return _optimizer(partial(torch.optim.AdamW, **kind), sizes, dtype)


def _bitsandbytes(sizes: Sequence[int], dtype: torch.dtype) -> Step:
    from bitsandbytes.optim import AdamW8bit

    return _optimizer(AdamW8bit, sizes, dtype)


def _optimizer(kind: Callable[..., Any], sizes: Sequence[int], dtype: torch.dtype) -> Step:
    params, grads = _sample(sizes, dtype)
    parameters = [nn.Parameter(p) for p in params]
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    optimizer = kind(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY)

    def step() -> tuple[Tensor, Tensor, Tensor]:
        optimizer.step()
        return parameters[0], *check

    optimizer.step()  # which also makes the state
    check = _stepped(parameters[0], grads[0])
    return step


def _add(sizes: Sequence[int], dtype: torch.dtype) -> Step:
    """The rate of memory: reads two tensors and writes one."""
    params, grads = _sample(sizes, dtype)
    start = params[0][:CHECKED].double()
    wanted = start + grads[0][:CHECKED]
    return lambda: (params[0].add_(grads[0]), start, wanted)


def _per_million(timing: Timing | None, n: int) -> str:
    if timing is None:
        return ms(None)
    scale = MILLION / n
    return f"{timing.median * scale * 1e3:.2f} ({timing.best * scale * 1e3:.2f})"
