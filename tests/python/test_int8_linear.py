# SPDX-License-Identifier: MIT
"""What lowbit.nn.Int8Linear has of its own; test_linear.py has what all layers share."""

import math

import pytest
import reference
import torch
from lowbit.nn import Int8Linear
from reference import same_bits
from samples import check_load_refused, put
from torch import nn


def layer_and_float(**options: object) -> tuple[Int8Linear, nn.Linear]:
    linear = nn.Linear(48, 20, bias=options.pop("bias", True))
    return Int8Linear.from_float(linear, **options), linear


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("absmax_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_from_float(offset: bool, absmax_dtype: torch.dtype, bias: bool) -> None:
    layer, linear = layer_and_float(offset=offset, absmax_dtype=absmax_dtype, bias=bias)
    specification = reference.quantize_offset if offset else reference.quantize
    q, absmax, *rest = specification(linear.weight, absmax_dtype=absmax_dtype)
    assert same_bits(layer.weight, q)
    assert same_bits(layer.absmax, absmax)
    assert (layer.offset is not None) == offset
    if offset:
        assert same_bits(layer.offset, rest[0])
    assert isinstance(layer, nn.Linear)
    assert layer.threshold == 6.0  # LLM.int8's default
    assert all(isinstance(p, nn.Parameter) and not p.requires_grad for p in layer.parameters())
    size = sum(p.nbytes for p in layer.parameters())
    scales = 20 * absmax_dtype.itemsize * (1 + offset)
    assert size == 20 * 48 + scales + (80 if bias else 0)
    assert layer.bias is None or layer.bias.data_ptr() == linear.bias.data_ptr()

    x = torch.randn(7, 48)
    x[:, 5] = 30
    expected = reference.linear(x, q, absmax, rest[0] if offset else None, linear.bias, 6.0)
    assert same_bits(layer(x), expected)
    torch.testing.assert_close(layer(x), linear(x), atol=0.1, rtol=0.02)
    torch.testing.assert_close(layer.dequantize(), linear.weight.detach(), atol=2e-3, rtol=0)
    assert layer.dequantize(torch.bfloat16).dtype == torch.bfloat16


def test_from_conv1d() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(300, 48)
    nn.init.normal_(conv1d.bias)
    layer = Int8Linear.from_float(conv1d)
    assert (layer.in_features, layer.out_features) == (48, 300)
    q, absmax = reference.quantize(conv1d.weight.detach().t())
    assert same_bits(layer.weight, q)
    assert same_bits(layer.absmax, absmax)
    x = torch.randn(2, 3, 48)
    torch.testing.assert_close(layer(x), conv1d(x), atol=0.02, rtol=0.02)


def test_the_offset_form_is_closer_for_a_weight_off_centre() -> None:
    linear = nn.Linear(64, 32, bias=False)
    linear.weight.data += 0.3
    errors = [
        (Int8Linear.from_float(linear, offset=offset).dequantize() - linear.weight).abs().mean()
        for offset in (False, True)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1.0}, "threshold is -1"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"threshold": math.inf}, "threshold is inf"),
        ({"compute_dtype": torch.float64}, "compute_dtype is torch.float64"),
        ({"absmax_dtype": torch.bfloat16}, "absmax_dtype is torch.bfloat16"),
        ({"in_features": 133145}, "in_features is 133145"),
        ({"out_features": 0}, "out_features 0"),
    ],
)
def test_bad_options_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Int8Linear(**{"in_features": 4, "out_features": 4, **arguments})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_compute_dtype(dtype: torch.dtype, compute_dtype: torch.dtype | None) -> None:
    layer, _ = layer_and_float(compute_dtype=compute_dtype)
    x = torch.randn(3, 48).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    cast = x.to(compute_dtype or dtype)
    stored = (layer.weight, layer.absmax, None, layer.bias)
    assert same_bits(y, reference.linear(cast, *stored, 6.0, dtype))


def test_a_weight_beyond_the_range_of_its_scales_is_refused() -> None:
    big = nn.Linear(3, 4)
    big.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"100000.*float16"):
        Int8Linear.from_float(big, absmax_dtype=torch.float16)


@pytest.mark.parametrize(
    ("key", "index", "value", "message"),
    [
        ("weight", (3, 4), -128, "weight holds -128"),
        ("absmax", (3,), -0.5, "absmax holds -0.5, expected no negative"),
        ("absmax", (3,), math.nan, "absmax holds NaN or infinity"),
        ("absmax", (3,), math.inf, "absmax holds NaN or infinity"),
        ("offset", (0,), math.nan, "offset holds NaN"),
    ],
)
def test_what_is_no_stored_weight(
    key: str, index: tuple[int, ...], value: float, message: str
) -> None:
    layer, _ = layer_and_float(offset=True)
    check_load_refused(layer, {key: put(index, value)}, message)


def test_repr_says_what_matters() -> None:
    text = repr(Int8Linear(48, 20, threshold=2.5, offset=True))
    for piece in ("in_features=48", "out_features=20", "bias=True", "threshold=2.5", "offset=True"):
        assert piece in text
