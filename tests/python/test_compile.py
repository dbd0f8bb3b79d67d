# SPDX-License-Identifier: MIT
"""torch.compile and torch.export."""

import io

import lowbit
import pytest
import torch
from lowbit import codebooks
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear
from reference import same_bits
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

ROWS = (2, 3, 17, 64, 500)
LAYERS = {
    "int8": (Int8Linear, {}),
    "int8 with offset": (Int8Linear, {"offset": True}),
    "nf4": (LUT4Linear, {"blocksize": 32}),
    "nf4 with float scales": (LUT4Linear, {"double_quant": False}),
}
each = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def model(kind: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16), nn.LayerNorm(16))
    layer, options = LAYERS[kind]
    lowbit.quantize_(net, 8 if layer is Int8Linear else 4, **options)
    return net.eval()


def one_layer(kind: str) -> LowbitLinear:
    layer, options = LAYERS[kind]
    return layer.from_float(nn.Linear(32, 48), **options)


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
@each
def test_no_recompile_from_2_to_500_rows(
    backend: str, options: dict[str, object], kind: str
) -> None:
    check_rows(one_layer(kind), backend, **options)


@each
def test_a_whole_model_compiles(kind: str) -> None:
    check_rows(model(kind), "aot_eager", dynamic=True)


@each
def test_the_backward_compiles(kind: str) -> None:
    layer = one_layer(kind)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for m in ROWS:
        x, y = (with_outliers(m, 32) for _ in range(2))
        y.copy_(x)
        compiled(x.requires_grad_()).square().sum().backward()
        layer(y.requires_grad_()).square().sum().backward()
        assert same_bits(x.grad, y.grad)


@each
def test_autocast_inside_a_compiled_region(kind: str) -> None:
    layer = one_layer(kind)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)

    x = with_outliers(4, 32)
    assert same_bits(run(x), layer(x.bfloat16()))


@each
def test_export_and_back(kind: str) -> None:
    net = model(kind)
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(net, (with_outliers(4, 32),), dynamic_shapes=({0: rows},))
    targets = [str(node.target) for node in program.graph.nodes]
    operator = "int8_linear" if kind.startswith("int8") else "lut4_linear"
    assert targets.count(f"lowbit.{operator}.default") == 2
    saved = io.BytesIO()
    torch.export.save(program, saved)
    saved.seek(0)
    loaded = torch.export.load(saved).module()
    for m in (1, 5, 300):
        x = with_outliers(m, 32)
        assert same_bits(loaded(x), net(x))


def test_layers_of_other_codebooks_do_not_recompile() -> None:
    """The shared tables are looked up while tracing; those of a later layer are no news."""
    counter = CompileCounterWithBackend("aot_eager")
    layer = LUT4Linear.from_float(nn.Linear(32, 48), codebook="bof4")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    x = torch.randn(4, 32)
    expected = compiled(x)
    other = LUT4Linear.from_float(nn.Linear(32, 48), codebook=[i / 31 for i in range(16)])
    assert same_bits(other(x), torch.compile(other, backend=counter, fullgraph=True)(x))
    frames = counter.frame_count
    assert same_bits(compiled(x), expected)
    assert counter.frame_count == frames


def test_compiled_before_it_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a layer of a loaded checkpoint may be: nothing that its first call makes compiles anew."""
    monkeypatch.setattr(codebooks, "_SHARED", {})
    layer = LUT4Linear(32, 48, codebook="af4", blocksize=32)
    layer.set_quantized(**one_layer("nf4").quantize_weight(torch.randn(48, 32)))
    check_rows(layer, "aot_eager", dynamic=True)
    codebooks._SHARED.clear()  # as on another device
    torch._dynamo.reset()
    x = torch.randn(4, 32)
    assert same_bits(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))
    assert all(type(table) is Tensor for table in codebooks._SHARED.values())
