# SPDX-License-Identifier: MIT
"""What lowbit.nn.LUT4Linear has of its own; test_linear.py has what all layers share."""

import math
import subprocess
import sys

import lowbit
import pytest
import reference
import torch
from lowbit import codebooks
from lowbit.nn import LUT4Linear
from reference import same_bits
from samples import FLOATS, bits, check_load_refused, put, unchanged
from torch import Tensor, nn

DYNAMIC = codebooks.dynamic_map()
MINE = [math.sin(i) for i in range(16)]


def layer_and_float(
    k: int = 128, n: int = 20, bias: bool = True, dtype: torch.dtype = torch.float32, **options
) -> tuple[LUT4Linear, nn.Linear]:
    linear = nn.Linear(k, n, bias=bias, dtype=dtype)
    return LUT4Linear.from_float(linear, **options), linear


# The last shape has 600 blocks of 32: three nested groups.
SHAPES = [(128, 20), (64, 1), (96, 3), (33, 7), (1, 6), (2, 1), (300, 64)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("codebook", ["nf4", "fp4", "af4", "bof4", "int4", MINE])
@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_from_float(
    k: int, n: int, blocksize: int, codebook: str | list[float], dtype: torch.dtype
) -> None:
    layer, linear = layer_and_float(
        k, n, dtype=dtype, codebook=codebook, blocksize=blocksize, double_quant=False
    )
    table = codebooks.get(codebook)
    packed, absmax = reference.lut4_quantize(linear.weight, table, blocksize)
    assert same_bits(layer.weight.flatten(), packed)
    assert same_bits(layer.absmax.flatten(), absmax)
    whole = k % blocksize == 0
    assert layer.weight.shape == ((n, k // 2) if whole else packed.shape)
    assert layer.absmax.shape == ((n, k // blocksize) if whole else absmax.shape)
    expected = reference.lut4_dequantize(packed, absmax, table, (n, k), dtype, blocksize)
    assert same_bits(layer.dequantize(dtype), expected)
    x = torch.randn(5, k).to(dtype)
    exact = x.double() @ layer.dequantize().double().T + linear.bias.double()
    torch.testing.assert_close(layer(x).double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("k", "n"), [*SHAPES, (512, 300)])
def test_double_quantization(k: int, n: int, dtype: torch.dtype) -> None:
    layer, linear = layer_and_float(k, n, dtype=dtype, blocksize=32)
    packed, absmax = reference.lut4_quantize(linear.weight, codebooks.get("nf4"), 32)
    assert same_bits(layer.weight.flatten(), packed)
    assert layer.nested_offset.shape == ()
    assert same_bits(layer.nested_offset, absmax.mean(dtype=torch.float64).float())
    assert layer.absmax.dtype == torch.uint8
    assert layer.nested_absmax.shape == (math.ceil(absmax.numel() / 256),)
    centred = absmax - layer.nested_offset
    for group, largest in zip(centred.split(256), layer.nested_absmax, strict=True):
        assert group.abs().max() == largest
    largest = layer.nested_absmax.repeat_interleave(256)[: absmax.numel()]
    scale = DYNAMIC[layer.absmax.flatten().int()] * largest + layer.nested_offset
    # the dynamic map is nowhere further than 0.0071 from a value in [-0.993, 1], and 0.0141 below
    assert ((scale - absmax).abs() <= 0.0071 * largest * 1.001 + 1e-7).all()
    expected = reference.lut4_dequantize(
        layer.weight,
        layer.absmax,
        codebooks.get("nf4"),
        (n, k),
        dtype,
        32,
        layer.nested_absmax,
        DYNAMIC,
        layer.nested_offset,
    )
    assert same_bits(layer.dequantize(dtype), expected)


def test_double_quantization_beside_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    layer, linear = layer_and_float(512, 300)
    theirs, state = functional.quantize_4bit(
        linear.weight.detach(), quant_type="nf4", compress_statistics=True
    )
    assert torch.equal(layer.weight.flatten(), theirs.flatten())
    torch.testing.assert_close(layer.nested_offset, state.offset, atol=0, rtol=1e-6)
    torch.testing.assert_close(layer.nested_absmax, state.state2.absmax, atol=1e-8, rtol=1e-5)
    ours, mine = layer.absmax.flatten().int(), functional.dequantize_4bit(theirs, state)
    # their 8-bit codes on the CPU are off by one here and there
    assert ((ours - state.absmax.int()).abs() <= 1).all()
    torch.testing.assert_close(layer.dequantize(), mine, atol=5e-4, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_layer(k: int, n: int, bias: bool, dtype: torch.dtype) -> None:
    """Codebooks are not counted: they are shared by all layers."""
    layer, _ = layer_and_float(k, n, bias, dtype)
    blocks = math.ceil(n * k / 64)
    expected = math.ceil(n * k / 2) + blocks + 4 * math.ceil(blocks / 256) + 4
    expected += n * dtype.itemsize if bias else 0
    assert sum(p.nbytes for p in layer.parameters()) == expected
    assert not list(layer.buffers())
    assert not any(isinstance(value, Tensor) for value in vars(layer).values())
    assert sum(value.nbytes for value in layer.state_dict().values()) == expected


def test_a_large_weight_takes_4_13_bits() -> None:
    layer = LUT4Linear(4096, 4096, bias=False, device="meta")
    assert sum(p.nbytes for p in layer.parameters()) * 8 / 4096**2 == pytest.approx(4.127, abs=1e-3)


@pytest.mark.parametrize("blocksize", [32, 64, 4096])
@pytest.mark.parametrize(("k", "n"), [(64, 600), (33, 5000), (100, 1030), (1, 600)])
def test_groups_of_rows_are_the_whole_weight(k: int, n: int, blocksize: int) -> None:
    """What quantize_weight puts together is what the operator returns at once."""
    layer = LUT4Linear(k, n, blocksize=blocksize, double_quant=False)
    weight = torch.randn(k, n).t()  # strided
    parts = layer.quantize_weight(weight)
    packed, absmax = torch.ops.lowbit.lut4_quantize(weight, codebooks.get("nf4"), blocksize)
    assert same_bits(parts["weight"], packed)
    assert same_bits(parts["absmax"], absmax)


PEAK = """
import torch, lowbit
from lowbit.nn import LUT4Linear
from pathlib import Path

def status(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

layer = LUT4Linear(8192, 4096, device="meta")
weight = torch.randn(8192, 4096).t()
LUT4Linear.from_float(torch.nn.Linear(64, 64))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
parts = layer.quantize_weight(weight)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_second_copy_of_a_strided_weight() -> None:
    """The weight is 128 MiB, its codes are 16 and its scales 2.5."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 80 * 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"codebook": "nf5"}, "LUT4Linear: codebook is 'nf5', expected one of nf4"),
        ({"codebook": range(15)}, r"LUT4Linear: codebook is \[0, .*expected 16 numbers"),
        ({"codebook": [math.nan] * 16}, r"LUT4Linear: codebook is .*nan"),
        ({"blocksize": 16}, "blocksize is 16, expected a power of two from 32 to 4096"),
        ({"blocksize": 8192}, "blocksize is 8192"),
        ({"blocksize": 96}, "blocksize is 96"),
        ({"blocksize": 64.0}, r"blocksize is 64\.0"),
        ({"compute_dtype": torch.float64}, "compute_dtype is torch.float64"),
        ({"in_features": 0}, "in_features is 0"),
        ({"out_features": 0}, "out_features 0"),
        ({"in_features": 1, "out_features": 5}, "in_features is 1 and out_features 5"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LUT4Linear(**{"in_features": 4, "out_features": 4, **arguments})


def test_a_codebook_of_ones_own_survives() -> None:
    layer, _ = layer_and_float(codebook=MINE)
    assert layer.options()["codebook"] == tuple(torch.tensor(MINE).tolist())
    other = LUT4Linear(128, 20, **layer.options())
    other.load_state_dict(layer.state_dict())
    assert same_bits(other.dequantize(), layer.dequantize())
    assert not any("codebook" in name for name in layer.state_dict())


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize(
    ("key", "index", "value", "message"),
    [
        ("absmax", (3, 1), -0.5, "absmax holds -0.5, expected no negative"),
        ("absmax", (3, 1), math.nan, "absmax holds NaN or infinity"),
        ("nested_absmax", (0,), -1.0, "nested_absmax holds -1, expected no negative"),
        ("nested_absmax", (0,), math.inf, "nested_absmax holds NaN or infinity"),
        ("nested_offset", (), math.nan, "nested_offset holds NaN or infinity"),
    ],
)
def test_what_is_no_stored_weight(
    key: str, index: tuple[int, ...], value: float, message: str, double_quant: bool
) -> None:
    if (key == "absmax") == double_quant:
        return  # uint8 codes hold anything; without double quantization there are no nested parts
    layer, _ = layer_and_float(double_quant=double_quant)
    change = put(index, value) if index else lambda t: torch.full_like(t, value)
    check_load_refused(layer, {key: change}, message)


@pytest.mark.parametrize("key", ["weight", "absmax", "nested_absmax", "nested_offset"])
def test_nested_parts_come_together(key: str) -> None:
    layer, _ = layer_and_float()
    check_load_refused(layer, {key: None}, "the entries under '' are .*, expected absmax, bias, ")


def test_a_layer_without_double_quantization_refuses_nested_parts() -> None:
    layer, linear = layer_and_float(double_quant=False)
    before = bits(layer)
    nested = LUT4Linear.from_float(linear).state_dict()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="nested_absmax"):
            layer.load_state_dict(nested, strict=strict)
    assert unchanged(layer, before)


def test_codebooks_are_one_per_process() -> None:
    """After a deepcopy, a move and another layer there is still one tensor of NF4 on the CPU."""
    layer, _ = layer_and_float()
    device = torch.device("cpu")
    table = codebooks.shared("nf4", device)
    model = nn.Sequential(layer, LUT4Linear(20, 8)).to(torch.bfloat16).to("meta")
    model.to_empty(device="cpu")
    model(torch.randn(3, 128, dtype=torch.bfloat16))
    assert codebooks.shared("nf4", device) is table
    assert layer._tables()[0] is table


def test_a_layer_made_in_inference_mode_trains_adapters() -> None:
    values = [i / 23 for i in range(16)]
    with torch.inference_mode():
        layer, _ = layer_and_float(codebook=values)
        layer(torch.randn(2, 128))
        state = bits(layer)
    trained = LUT4Linear(128, 20, codebook=values)
    trained.load_state_dict(state)
    x = torch.randn(2, 128, requires_grad=True)
    trained(x).sum().backward()
    torch.testing.assert_close(x.grad[0], trained.dequantize().sum(0))


def test_built_on_the_meta_device_and_filled_later() -> None:
    values = [i / 29 for i in range(16)]
    layer, _ = layer_and_float(codebook=values)
    with torch.device("meta"):
        meta = LUT4Linear(128, 20, codebook=values)
        assert meta(torch.randn(2, 128)).shape == (2, 20)
    meta.load_state_dict(layer.state_dict(), assign=True)
    x = torch.randn(2, 128)
    assert same_bits(meta(x), layer(x))


def test_a_model_of_many_layers() -> None:
    """Every layer's bytes count once and its codebook never."""
    model = nn.Sequential(*(nn.Linear(256, 256, bias=False) for _ in range(4)))
    report = lowbit.quantize_(model, bits=4)
    blocks = 256 * 256 // 64
    assert report.bytes_after == 4 * (256 * 128 + blocks + 4 * (blocks // 256) + 4)
