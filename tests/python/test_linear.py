# SPDX-License-Identifier: MIT
"""What all layers with low-bit weights share: lowbit.nn.LowbitLinear through its subclasses."""

import copy
import io
import math
import pickle

import pytest
import torch
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear
from reference import same_bits
from samples import bits, check_load_refused, unchanged
from torch import Tensor, nn

K, N = 64, 20
LAYERS = {
    "int8": (Int8Linear, {}),
    "int8 with offset": (Int8Linear, {"offset": True}),
    "int8 with float16 scales": (Int8Linear, {"offset": True, "absmax_dtype": torch.float16}),
    "nf4": (LUT4Linear, {}),
    "nf4 with float scales": (LUT4Linear, {"double_quant": False}),
    "blocks across rows": (LUT4Linear, {"codebook": "int4", "blocksize": 128}),
}
# Of a weight of 1 / sqrt(64) times uniform values, in four bits.
TOLERANCE = {"atol": 0.3, "rtol": 0.05}


@pytest.fixture(params=LAYERS)
def kind(request: pytest.FixtureRequest) -> tuple[type[LowbitLinear], dict[str, object]]:
    return LAYERS[request.param]


@pytest.fixture
def linear() -> nn.Linear:
    return nn.Linear(K, N)


@pytest.fixture
def layer(kind: tuple[type[LowbitLinear], dict[str, object]], linear: nn.Linear) -> LowbitLinear:
    return kind[0].from_float(linear, **kind[1])


def stored(layer: LowbitLinear) -> list[str]:
    return [name for name, _ in layer.named_parameters() if name != "bias"]


# From a float layer


def test_from_float(layer: LowbitLinear, linear: nn.Linear) -> None:
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (K, N)
    assert all(isinstance(p, nn.Parameter) and not p.requires_grad for p in layer.parameters())
    assert layer.bias.data_ptr() == linear.bias.data_ptr()
    assert layer.W_q is layer.weight
    x = torch.randn(2, 7, K)
    torch.testing.assert_close(layer(x), linear(x), **TOLERANCE)
    assert layer.dequantize().dtype == torch.float32
    torch.testing.assert_close(layer.dequantize(), linear.weight.detach(), atol=0.03, rtol=0)
    assert same_bits(layer.dequantize(torch.bfloat16), layer.dequantize().bfloat16())


def test_from_float_without_bias_and_in_eval(kind: tuple[type[LowbitLinear], dict]) -> None:
    layer = kind[0].from_float(nn.Linear(K, N, bias=False).eval(), **kind[1])
    assert layer.bias is None
    assert not layer.training


def test_from_conv1d(kind: tuple[type[LowbitLinear], dict]) -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(300, K)
    linear = nn.Linear(K, 300)
    nn.init.normal_(conv1d.bias)
    linear.weight.data.copy_(conv1d.weight.data.t())
    linear.bias.data.copy_(conv1d.bias.data)
    layer = kind[0].from_float(conv1d, **kind[1])
    assert unchanged(layer, bits(kind[0].from_float(linear, **kind[1])))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_refused(
    kind: tuple[type[LowbitLinear], dict], linear: nn.Linear, value: float
) -> None:
    linear.weight.data[2, 3] = value
    with pytest.raises(ValueError, match="weight holds NaN or infinity"):
        kind[0].from_float(linear, **kind[1])


def test_what_from_float_does_not_take(layer: LowbitLinear) -> None:
    from_float = type(layer).from_float
    with pytest.raises(TypeError, match="Embedding"):
        from_float(nn.Embedding(3, 4))
    with pytest.raises(TypeError, match=type(layer).__name__):
        from_float(layer)
    with pytest.raises(ValueError, match="float64"):
        from_float(nn.Linear(3, 4).double())
    with pytest.raises(ValueError, match="meta"):
        from_float(nn.Linear(3, 4, device="meta"))
    with pytest.raises(TypeError, match="no_such_option"):
        from_float(nn.Linear(3, 4), no_such_option=1)
    with pytest.raises(ValueError, match=r"compute_dtype is torch.float64"):
        from_float(nn.Linear(3, 4), compute_dtype=torch.float64)


def test_quantize_weight_and_set_quantized(layer: LowbitLinear) -> None:
    other = torch.randn(N, K)
    before = bits(layer)
    parts = layer.quantize_weight(other)
    assert unchanged(layer, before)
    assert sorted(parts) == sorted(stored(layer))
    layer.set_quantized(**parts)
    assert not any(p.requires_grad for p in layer.parameters())
    torch.testing.assert_close(layer.dequantize(), other, atol=0.6, rtol=0)
    before = bits(layer)
    for change, message in (
        (lambda t: t[None], "absmax has shape"),
        (lambda t: t.to(torch.int32), "absmax has dtype torch.int32, expected"),
    ):
        with pytest.raises(ValueError, match=f"set_quantized: {message}"):
            layer.set_quantized(**{**parts, "absmax": change(parts["absmax"])})
        assert unchanged(layer, before)
    parts.pop("absmax")
    with pytest.raises(ValueError, match=r"set_quantized: given .*, expected absmax"):
        layer.set_quantized(**parts)
    with pytest.raises(ValueError, match="set_quantized: given"):
        layer.set_quantized(**layer.quantize_weight(other), scale=other)


def test_a_layer_is_rebuilt_from_its_options(layer: LowbitLinear) -> None:
    other = type(layer)(K, N, **layer.options())
    other.load_state_dict(layer.state_dict())
    assert repr(other) == repr(layer)
    x = torch.randn(3, K)
    assert same_bits(other(x), layer(x))


def test_a_new_layer_is_zero(kind: tuple[type[LowbitLinear], dict]) -> None:
    layer = kind[0](5, 3, **kind[1])
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
def test_casts_change_the_bias_alone(layer: LowbitLinear, cast: object) -> None:
    before = bits(layer)
    model = nn.Sequential(layer, nn.Linear(N, 2))
    cast(model)
    for name in stored(layer):
        assert same_bits(getattr(layer, name), before[name])
        assert not getattr(layer, name).requires_grad
    assert layer.bias.dtype == model[1].weight.dtype
    assert same_bits(layer.bias, before["bias"].to(layer.bias.dtype))
    assert layer(torch.randn(3, K).to(layer.bias.dtype)).dtype == layer.bias.dtype


def test_moves_between_devices(layer: LowbitLinear) -> None:
    before = bits(layer)
    meta = copy.deepcopy(layer).to("meta", torch.bfloat16)
    assert {n: (p.device.type, p.dtype) for n, p in meta.named_parameters()} == {
        **{name: ("meta", before[name].dtype) for name in stored(layer)},
        "bias": ("meta", torch.bfloat16),
    }
    meta.to_empty(device="cpu").float().load_state_dict(before)
    assert unchanged(meta, before)
    x = torch.randn(3, K)
    assert same_bits(meta(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("compute_dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_compute_dtype(
    layer: LowbitLinear, dtype: torch.dtype, compute_dtype: torch.dtype | None
) -> None:
    exact = layer.dequantize().double()
    layer.compute_dtype = compute_dtype
    x = torch.randn(3, K).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    layer.compute_dtype = None
    step = torch.finfo(dtype).eps + torch.finfo(compute_dtype or dtype).eps
    cast = x.to(compute_dtype or dtype)
    assert same_bits(y, layer(cast.float()).to(dtype)) or torch.allclose(
        y.double(), cast.double() @ exact.T + layer.bias, atol=0.02 + 8 * step, rtol=step
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_casts_x_as_for_a_float_layer(
    layer: LowbitLinear, linear: nn.Linear, dtype: torch.dtype
) -> None:
    before = bits(layer)
    x = torch.randn(3, K)
    with torch.autocast("cpu", dtype=dtype):
        y = layer(x)
        assert y.dtype == linear(x).dtype == dtype
    assert same_bits(y, layer(x.to(dtype)))
    assert unchanged(layer, before)
    with torch.autocast("cpu", enabled=False):
        assert layer(x).dtype == torch.float32


def test_autocast_keeps_gradients(layer: LowbitLinear) -> None:
    x = torch.randn(3, K, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad[0], layer.dequantize().sum(0), atol=0.02, rtol=0.02)


# State dicts


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(layer: LowbitLinear, assign: bool) -> None:
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other = type(layer)(K, N, device="meta" if assign else None, **layer.options())
    other.load_state_dict(torch.load(saved), strict=True, assign=assign)
    assert unchanged(other, bits(layer))
    assert not any(p.requires_grad for p in other.parameters())
    x = torch.randn(4, K)
    assert same_bits(other(x), layer(x))


def test_wrong_entries_are_refused(layer: LowbitLinear) -> None:
    for name in stored(layer):
        value = getattr(layer, name)
        message = rf"{name} has dtype torch.int32, expected {value.dtype}"
        check_load_refused(layer, {name: lambda t: t.to(torch.int32)}, message)
        message = rf"{name} has shape .*, expected \{list(value.shape)}"[:-1]
        check_load_refused(layer, {name: lambda t: t[None]}, message)
        message = rf"the entries under '' are .*, expected .*{name}"
        check_load_refused(layer, {name: None}, message)
    check_load_refused(layer, {"bias": lambda t: t[:3]}, r"bias has shape \[3\]")


def test_a_float_state_dict_is_refused(layer: LowbitLinear, linear: nn.Linear) -> None:
    before = bits(layer)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="absmax"):
            layer.load_state_dict(linear.state_dict(), strict=strict)
    assert unchanged(layer, before)
    layer.load_state_dict({"bias": torch.ones(N)}, strict=False)
    assert torch.equal(layer.bias, torch.ones(N))


@pytest.mark.parametrize("given", LAYERS)
@pytest.mark.parametrize("expected", LAYERS)
def test_the_state_dict_of_another_form_is_refused(
    given: str, expected: str, linear: nn.Linear
) -> None:
    layers = [LAYERS[name][0].from_float(linear, **LAYERS[name][1]) for name in (given, expected)]
    if given == expected:
        return
    before = bits(layers[1])
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"has (shape|dtype)|the entries under"):
            layers[1].load_state_dict(layers[0].state_dict(), strict=strict)
    assert unchanged(layers[1], before)


# What a module has to survive


def test_deepcopy_and_pickle(layer: LowbitLinear) -> None:
    layer.compute_dtype = torch.bfloat16
    x = torch.randn(3, K)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert unchanged(other, bits(layer))
        assert same_bits(other(x), layer(x))
        assert not any(p.requires_grad for p in other.parameters())
        assert repr(other) == repr(layer)
        assert other.weight.data_ptr() != layer.weight.data_ptr()


def test_functional_call(layer: LowbitLinear) -> None:
    other = type(layer).from_float(nn.Linear(K, N), **layer.options())
    x = torch.randn(3, K)
    y = torch.func.functional_call(layer, dict(other.named_parameters()), (x,))
    assert same_bits(y, other(x))
    assert not same_bits(y, layer(x))


def test_inference_mode_and_no_grad(layer: LowbitLinear) -> None:
    x = torch.randn(3, K)
    expected = layer(x)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            assert same_bits(layer(x), expected)


def test_gradients_reach_x_and_a_thawed_bias(layer: LowbitLinear) -> None:
    layer.bias.requires_grad_()
    x = torch.randn(3, K, requires_grad=True)
    grad = torch.randn(3, N)
    layer(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ layer.dequantize())
    torch.testing.assert_close(layer.bias.grad, grad.sum(0))
    assert all(getattr(layer, name).grad is None for name in stored(layer))


def test_float64_activations_are_refused(layer: LowbitLinear) -> None:
    with pytest.raises(RuntimeError, match=r"_linear: x has dtype (float64|Double)"):
        layer(torch.randn(2, K, dtype=torch.float64))


def test_repr_says_what_matters(layer: LowbitLinear) -> None:
    for name, value in layer.options().items():
        assert f"{name}={value}" in repr(layer)
    assert f"in_features={K}, out_features={N}, bias=True" in repr(layer)


def test_names_that_other_libraries_key_on_are_avoided(layer: LowbitLinear) -> None:
    assert type(layer).__name__ not in ("Linear4bit", "Linear8bitLt")
    assert not hasattr(layer, "SCB")
    assert not hasattr(layer, "state")
    assert type(layer.weight) is nn.Parameter
    assert isinstance(layer.weight, Tensor)
