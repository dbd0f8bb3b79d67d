# SPDX-License-Identifier: MIT
"""torch.compile and torch.export."""

import io

import lowbit
import pytest
import torch
from lowbit.nn import Int8Linear
from reference import same_bits
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

ROWS = (2, 3, 17, 64, 500)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def model(offset: bool = False) -> nn.Module:
    net = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16), nn.LayerNorm(16))
    lowbit.quantize_(net, threshold=6.0, offset=offset)
    return net.eval()


def with_outliers(*shape: int) -> Tensor:
    x = torch.randn(shape)
    x[..., 3] = 25
    return x


def check_rows(net: nn.Module, backend: str, **options: object) -> None:
    """fullgraph: a graph break is an error. No frame is compiled again after the second size."""
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(net, backend=counter, fullgraph=True, **options)
    frames = []
    with torch.no_grad():
        for m in ROWS:
            x = with_outliers(m, 32)
            torch.testing.assert_close(compiled(x), net(x), atol=0, rtol=0)
            frames.append(counter.frame_count)
    assert set(frames[1:]) == {frames[1]}
    if options:
        assert frames[0] == frames[1]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", [{}, {"dynamic": True}], ids=["automatic", "dynamic"])
@pytest.mark.parametrize("offset", [False, True])
def test_no_recompile_from_2_to_500_rows(
    backend: str, options: dict[str, object], offset: bool
) -> None:
    check_rows(Int8Linear.from_float(nn.Linear(32, 48), offset=offset), backend, **options)


def test_a_whole_model_compiles() -> None:
    check_rows(model(), "aot_eager", dynamic=True)


def test_the_backward_compiles() -> None:
    layer = Int8Linear.from_float(nn.Linear(32, 48))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in ROWS:
        x, y = (with_outliers(m, 32) for _ in range(2))
        y.copy_(x)
        compiled(x.requires_grad_()).square().sum().backward()
        layer(y.requires_grad_()).square().sum().backward()
        assert same_bits(x.grad, y.grad)


def test_autocast_inside_a_compiled_region() -> None:
    layer = Int8Linear.from_float(nn.Linear(32, 48))

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    x = with_outliers(4, 32)
    assert same_bits(run(x), layer(x.bfloat16()))


@pytest.mark.parametrize("offset", [False, True])
def test_export_and_back(offset: bool) -> None:
    net = model(offset)
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(net, (with_outliers(4, 32),), dynamic_shapes=({0: rows},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("lowbit.int8_linear.default") == 2
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    for m in (1, 5, 300):
        x = with_outliers(m, 32)
        assert same_bits(loaded(x), net(x))
