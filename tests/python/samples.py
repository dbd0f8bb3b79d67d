# SPDX-License-Identifier: MIT
"""Inputs and checks that the tests of all operators and layers share."""

import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import same_bits
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def layouts(dtype: torch.dtype, k: int) -> list[Tensor]:
    """Leading shapes and strides of x [..., k]."""
    return [
        torch.randn(k).to(dtype),
        torch.randn(3, k).to(dtype),
        torch.randn(0, k).to(dtype),
        torch.randn(2, 3, k).to(dtype),
        torch.randn(2, 0, k).to(dtype),
        torch.randn(k, 5).to(dtype).t(),
        torch.randn(4, 2 * k).to(dtype)[:, ::2],
        torch.randn(4, k + 3).to(dtype)[:, 1 : k + 1],
        torch.randn(3, 2, k).to(dtype).transpose(0, 1),
        torch.randn(1, k).to(dtype).expand(6, k),
    ]


def opcheck(dtype: torch.dtype, op: Any, *arguments: Any, **options: Any) -> None:
    """torch.library.opcheck. Tracing with dynamic shapes, which takes nearly all of its time, does
    not depend on the dtype: it is left to float32."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    if dtype == torch.float32:
        tests += ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(op.default, arguments, options, test_utils=tests)


def check_refused(op: str, arguments: tuple[Any, ...], pieces: list[str], fake: bool) -> None:
    """The call raises, its message names the operator and every piece (a regular expression), and
    no argument has changed."""
    call = getattr(torch.ops.lowbit, op)
    before = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    with pytest.raises(RuntimeError) as error:
        if fake:
            with FakeTensorMode() as mode:
                call(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
        else:
            call(*arguments)
    message = str(error.value).splitlines()[0]
    for piece in (op, *pieces):
        assert re.search(rf"(?<![a-z])({piece})", message), message
    for a, b in zip(arguments, before, strict=True):
        assert not isinstance(a, Tensor) or same_bits(a, b)


_WIDTH = 4096
_MEASURE = f"""
import torch, lowbit
from pathlib import Path

op = torch.ops.lowbit
n = k = {_WIDTH}

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def measure(m, call):
    call()
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    call()
    print(m, peak() - before)
"""


def check_scratch(script: str, calls: int) -> None:
    """script makes weights [n, k] and calls measure(m, call) as often. Of each operator that the
    result and a few times the activations are all that it takes, not a float copy of the weight,
    which would be 32 or 64 MiB."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    code = _MEASURE + textwrap.dedent(script)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert len(grown) == calls
    for m, size in grown:
        assert size <= 3 * m * _WIDTH * 4 + 16 * 2**20, grown


def bits(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def unchanged(layer: nn.Module, before: dict[str, Tensor]) -> bool:
    after = layer.state_dict()
    return after.keys() == before.keys() and all(same_bits(after[n], before[n]) for n in before)


def put(index: tuple[int, ...], value: float) -> Callable[[Tensor], Tensor]:
    return lambda t: t.index_put(
        [torch.tensor(i) for i in index], torch.tensor(value, dtype=t.dtype)
    )


def first(value: float) -> Callable[[Tensor], Tensor]:
    """Changes the first element."""
    return lambda t: t.flatten().index_fill(0, torch.tensor(0), value).view(t.shape)


def check_load_refused(
    layer: nn.Module, spoil: dict[str, Callable[[Tensor], Tensor] | None], message: str
) -> None:
    """The layer's own state dict, with some entries spoiled or (None) left out, does not load, and
    changes nothing."""
    before = bits(layer)
    state = bits(layer)
    for name, change in spoil.items():
        value = state.pop(name)
        if change is not None:
            state[name] = change(value)
    for options in ({}, {"strict": False}, {"assign": True}):
        with pytest.raises(RuntimeError, match=message):
            layer.load_state_dict(state, **options)
        assert unchanged(layer, before)
