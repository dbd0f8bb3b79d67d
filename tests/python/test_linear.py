# SPDX-License-Identifier: MIT
"""lowbit.nn.Int8Linear."""

import copy
import io
import math
import pickle

import pytest
import reference
import torch
from lowbit.nn import Int8Linear
from reference import same_bits
from torch import Tensor, nn


def layer_and_float(**options: object) -> tuple[Int8Linear, nn.Linear]:
    linear = nn.Linear(48, 20, bias=options.pop("bias", True))
    return Int8Linear.from_float(linear, **options), linear


def bits(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def unchanged(layer: nn.Module, before: dict[str, Tensor]) -> bool:
    after = layer.state_dict()
    return after.keys() == before.keys() and all(same_bits(after[n], before[n]) for n in before)


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    linear = nn.Linear(8, 4)
    linear.weight.data[2, 3] = value
    with pytest.raises(ValueError, match="weight holds NaN or infinity"):
        Int8Linear.from_float(linear)


def test_what_from_float_does_not_take() -> None:
    with pytest.raises(TypeError, match="Embedding"):
        Int8Linear.from_float(nn.Embedding(3, 4))
    with pytest.raises(TypeError, match="Int8Linear"):
        Int8Linear.from_float(Int8Linear(3, 4))
    with pytest.raises(ValueError, match="float64"):
        Int8Linear.from_float(nn.Linear(3, 4).double())
    with pytest.raises(ValueError, match="meta"):
        Int8Linear.from_float(nn.Linear(3, 4, device="meta"))
    big = nn.Linear(3, 4)
    big.weight.data[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"100000.*float16"):
        Int8Linear.from_float(big, absmax_dtype=torch.float16)


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


def test_a_new_layer_is_zero() -> None:
    layer = Int8Linear(5, 3)
    assert torch.equal(layer(torch.randn(2, 5)), torch.zeros(2, 3))
    with pytest.raises(NotImplementedError, match="from_float"):
        layer.reset_parameters()


# Dtypes


@pytest.mark.parametrize(
    "cast",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.type(torch.float32),
        lambda m: m.double().float(),
    ],
)
@pytest.mark.parametrize("absmax_dtype", [torch.float32, torch.float16])
def test_casts_change_the_bias_alone(cast: object, absmax_dtype: torch.dtype) -> None:
    layer, _ = layer_and_float(offset=True, absmax_dtype=absmax_dtype)
    before = bits(layer)
    model = nn.Sequential(layer, nn.Linear(20, 2))
    cast(model)
    for name in ("weight", "absmax", "offset"):
        assert same_bits(getattr(layer, name), before[name])
        assert not getattr(layer, name).requires_grad
    assert layer.bias.dtype == model[1].weight.dtype
    assert same_bits(layer.bias, before["bias"].to(layer.bias.dtype))


def test_moves_between_devices() -> None:
    layer, _ = layer_and_float()
    before = bits(layer)
    meta = copy.deepcopy(layer).to("meta", torch.bfloat16)
    assert {n: (p.device.type, p.dtype) for n, p in meta.named_parameters()} == {
        "weight": ("meta", torch.int8),
        "absmax": ("meta", torch.float32),
        "bias": ("meta", torch.bfloat16),
    }
    meta.to_empty(device="cpu").float().load_state_dict(before)
    assert unchanged(meta, before)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_x_as_for_a_float_layer(dtype: torch.dtype) -> None:
    layer, linear = layer_and_float(offset=True)
    before = bits(layer)
    x = torch.randn(3, 48)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype == linear(x).dtype == dtype
    assert same_bits(y, layer(x.to(dtype)))
    assert unchanged(layer, before)
    with torch.autocast("cpu", enabled=False):
        assert layer(x).dtype == torch.float32


def test_autocast_keeps_gradients() -> None:
    layer, _ = layer_and_float()
    x = torch.randn(3, 48, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0], layer.dequantize().sum(0), atol=0.02, rtol=0.02)


# State dicts


@pytest.mark.parametrize("options", [{}, {"offset": True}, {"absmax_dtype": torch.float16}])
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(options: dict[str, object], assign: bool) -> None:
    layer, _ = layer_and_float(**options)
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other = Int8Linear(48, 20, device="meta" if assign else None, **options)
    other.load_state_dict(torch.load(saved), strict=True, assign=assign)
    assert unchanged(other, bits(layer))
    assert not any(p.requires_grad for p in other.parameters())
    x = torch.randn(4, 48)
    assert same_bits(other(x), layer(x))


def spoiled(key: str, spoil: object) -> dict[str, Tensor]:
    layer, _ = layer_and_float(offset=True)
    state = bits(layer)
    state[key] = spoil(state[key])
    return state


def put(index: tuple[int, ...], value: float) -> object:
    return lambda t: t.index_put(
        [torch.tensor(i) for i in index], torch.tensor(value, dtype=t.dtype)
    )


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("key", "spoil", "message"),
    [
        ("weight", lambda t: t.float(), "weight has dtype torch.float32, expected torch.int8"),
        ("weight", lambda t: t.to(torch.uint8), "weight has dtype torch.uint8"),
        ("weight", lambda t: t[:, :47], r"weight has shape \[20, 47\], expected \[20, 48\]"),
        ("weight", put((3, 4), -128), "weight holds -128"),
        ("absmax", put((3,), -0.5), "absmax holds -0.5, expected no negative"),
        ("absmax", put((3,), math.nan), "absmax holds NaN or infinity"),
        ("absmax", put((3,), math.inf), "absmax holds NaN or infinity"),
        ("absmax", lambda t: t.half(), "absmax has dtype torch.float16, expected torch.float32"),
        ("absmax", lambda t: t[:, None], r"absmax has shape \[20, 1\]"),
        ("offset", put((0,), math.nan), "offset holds NaN"),
        ("bias", lambda t: t[:3], r"bias has shape \[3\]"),
    ],
)
def test_a_bad_state_dict_is_refused_and_changes_nothing(
    key: str, spoil: object, message: str, assign: bool
) -> None:
    layer, _ = layer_and_float(offset=True)
    before = bits(layer)
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(spoiled(key, spoil), assign=assign)
    assert unchanged(layer, before)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", ["weight", "absmax", "offset"])
def test_a_truncated_state_dict_is_refused_and_changes_nothing(key: str, strict: bool) -> None:
    layer, _ = layer_and_float(offset=True)
    state = spoiled(key, lambda t: t)
    del state[key]
    before = bits(layer)
    with pytest.raises(RuntimeError, match=key):
        layer.load_state_dict(state, strict=strict)
    assert unchanged(layer, before)


def test_a_float_or_mismatched_state_dict_is_refused() -> None:
    layer, linear = layer_and_float()
    before = bits(layer)
    with pytest.raises(RuntimeError, match="absmax"):
        layer.load_state_dict(linear.state_dict())
    with pytest.raises(RuntimeError, match="absmax"):
        layer.load_state_dict(linear.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="offset"):
        layer.load_state_dict(spoiled("offset", lambda t: t))
    assert unchanged(layer, before)
    layer.load_state_dict({"bias": torch.ones(20)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(20))


# What a module has to survive


def test_deepcopy_and_pickle() -> None:
    layer, _ = layer_and_float(offset=True, threshold=3.0, compute_dtype=torch.bfloat16)
    x = torch.randn(3, 48)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert unchanged(other, bits(layer))
        assert same_bits(other(x), layer(x))
        assert not any(p.requires_grad for p in other.parameters())
        assert repr(other) == repr(layer)
        assert other.weight.data_ptr() != layer.weight.data_ptr()


def test_functional_call() -> None:
    layer, _ = layer_and_float()
    other, _ = layer_and_float()
    x = torch.randn(3, 48)
    y = torch.func.functional_call(layer, dict(other.named_parameters()), (x,))
    assert same_bits(y, other(x))
    assert not same_bits(y, layer(x))


def test_inference_mode_and_no_grad() -> None:
    layer, _ = layer_and_float()
    x = torch.randn(3, 48)
    expected = layer(x)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert same_bits(layer(x), expected)


def test_gradients_reach_x_and_a_thawed_bias() -> None:
    layer, linear = layer_and_float()
    layer.bias.requires_grad_()
    x = torch.randn(3, 48, requires_grad=True)
    layer(x).square().sum().backward()
    expected_x, expected_bias = torch.autograd.grad(linear(x).square().sum(), (x, linear.bias))
    torch.testing.assert_close(x.grad, expected_x, atol=0.05, rtol=0.05)
    torch.testing.assert_close(layer.bias.grad, expected_bias, atol=0.05, rtol=0.05)
    assert layer.weight.grad is None
    assert layer.absmax.grad is None


def test_float64_activations_are_refused() -> None:
    layer, _ = layer_and_float()
    with pytest.raises(RuntimeError, match=r"int8_linear: x has dtype (float64|Double)"):
        layer(torch.randn(2, 48, dtype=torch.float64))


def test_repr_says_what_matters() -> None:
    text = repr(Int8Linear(48, 20, threshold=2.5, offset=True))
    for piece in ("in_features=48", "out_features=20", "bias=True", "threshold=2.5", "offset=True"):
        assert piece in text
