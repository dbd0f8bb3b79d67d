# SPDX-License-Identifier: MIT
"""Trainable lowbit.nn.Int8Linear: int8 weights that derive from a float32 master."""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import lowbit
import pytest
import reference
import torch
from lowbit.nn import Int8Linear
from lowbit.optim import AdamW8bit
from reference import same_bits
from samples import bits, check_load_refused, unchanged
from torch import Tensor, nn

K, N = 64, 80


def layer(**options: object) -> Int8Linear:
    torch.manual_seed(0)
    return Int8Linear.from_float(nn.Linear(K, N), trainable=True, **options)


def current(module: nn.Module) -> bool:
    """The codes of every trainable layer are those of its master."""
    layers = [m for m in module.modules() if isinstance(m, Int8Linear) and m.trainable]
    for m in layers:
        q, absmax = reference.quantize(m.master, absmax_dtype=m.absmax.dtype)
        if not (same_bits(m.weight, q) and same_bits(m.absmax, absmax)):
            return False
    return len(layers) > 0


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        module(torch.randn(9, K)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# The layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("absmax_dtype", [torch.float32, torch.float16])
def test_from_float(dtype: torch.dtype, absmax_dtype: torch.dtype) -> None:
    linear = nn.Linear(K, N, dtype=dtype)
    linear.bias.requires_grad_(dtype == torch.float32)
    a = Int8Linear.from_float(linear, trainable=True, absmax_dtype=absmax_dtype)
    frozen = Int8Linear.from_float(linear, absmax_dtype=absmax_dtype)
    assert a.trainable
    assert not frozen.trainable
    assert frozen.master is None
    assert {n: (p.dtype, p.requires_grad) for n, p in a.named_parameters()} == {
        "weight": (torch.int8, False),
        "absmax": (absmax_dtype, False),
        "master": (torch.float32, True),
        "bias": (dtype, dtype == torch.float32),
    }
    assert same_bits(a.master.detach(), linear.weight.detach().float())
    assert (a.master.data_ptr() == linear.weight.data_ptr()) == (dtype == torch.float32)
    assert current(a)
    x = torch.randn(5, K)
    assert same_bits(a(x).detach(), frozen(x))
    assert a.options() == frozen.options() | {"trainable": True}
    assert "trainable=True" in repr(a)
    assert "trainable" not in repr(frozen)


def test_from_conv1d() -> None:
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D(N, K)
    a = Int8Linear.from_float(conv1d, trainable=True)
    assert same_bits(a.master.detach(), conv1d.weight.detach().t().contiguous())
    assert current(a)


def test_an_offset_is_refused() -> None:
    message = "Int8Linear: trainable is True and offset too, expected no offset"
    with pytest.raises(ValueError, match=message):
        Int8Linear(K, N, trainable=True, offset=True)
    with pytest.raises(ValueError, match=message):
        layer(offset=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(K,), (5, K), (2, 3, K), (0, K)])
def test_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """As of a frozen layer, and grad_y^T x for the master."""
    a = layer()
    frozen = Int8Linear.from_float(nn.Linear(K, N))
    frozen.set_quantized(weight=a.weight.detach().clone(), absmax=a.absmax.detach().clone())
    frozen.bias = nn.Parameter(a.bias.detach().clone())
    x = (3 * torch.randn(shape)).to(dtype)  # with some outliers
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(i) for module, i in zip((a, frozen), inputs, strict=True)]
    assert same_bits(*(y.detach() for y in outputs))
    grad = torch.randn(outputs[0].shape).to(dtype)
    for y in outputs:
        y.backward(grad)
    assert same_bits(inputs[0].grad, inputs[1].grad)
    assert same_bits(a.bias.grad, frozen.bias.grad)
    assert a.master.grad.dtype == torch.float32
    exact = grad.reshape(-1, N).double().t() @ x.reshape(-1, K).double()
    torch.testing.assert_close(a.master.grad.double(), exact, atol=1e-5, rtol=1e-5)
    assert a.weight.grad is None


def test_gradients_that_nobody_needs_are_left_out() -> None:
    a = layer()
    a.master.requires_grad_(False)
    a(torch.randn(3, K, requires_grad=True)).sum().backward()
    assert a.master.grad is None
    assert a.bias.grad is not None
    with torch.no_grad():
        assert not layer()(torch.randn(3, K)).requires_grad


def test_autocast() -> None:
    a = layer()
    x = torch.randn(5, K)
    with torch.autocast("cpu", torch.bfloat16):
        y = a(x)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
    exact = x.bfloat16().double().sum(0).expand(N, K)
    torch.testing.assert_close(a.master.grad.double(), exact, atol=1e-5, rtol=1e-5)


def test_compiled() -> None:
    torch._dynamo.reset()
    a, b = layer(), layer()
    compiled = torch.compile(b, fullgraph=True, backend="aot_eager")
    for module in (a, compiled):
        torch.manual_seed(1)
        module(torch.randn(5, K)).square().sum().backward()
    assert same_bits(a.master.grad, b.master.grad)


def test_casts_leave_codes_and_master() -> None:
    a = layer()
    before = bits(a)
    for cast in (lambda m: m.bfloat16(), lambda m: m.half(), lambda m: m.to(torch.float32)):
        cast(a)
        for name in ("weight", "absmax", "master"):
            assert same_bits(getattr(a, name), before[name])
        a(torch.randn(2, K))
    assert a.master.requires_grad


# What keeps the codes current


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "AdamW8bit": lambda params: AdamW8bit(params, lr=1e-2),
    "AdamW8bit, 32 bits": lambda params: AdamW8bit([{"params": params, "bits": 32}], lr=1e-2),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "fused AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
    "foreach SGD": lambda params: torch.optim.SGD(params, lr=1.0, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_rewrites_the_codes(name: str) -> None:
    model = nn.Sequential(layer(), nn.Linear(N, 4))
    optimizer = OPTIMIZERS[name](trained(model))
    for _ in range(3):
        before = bits(model[0])
        train(model, optimizer)
        assert (model[0].weight != before["weight"]).sum() > 100
        assert current(model)


def test_a_compiled_step_rewrites_the_codes_too() -> None:
    torch._dynamo.reset()
    model = layer()
    optimizer = AdamW8bit(trained(model), lr=1e-2)
    step = torch.compile(lambda: optimizer.step(), backend="aot_eager")
    for _ in range(3):
        before = bits(model)
        model(torch.randn(9, K)).square().mean().backward()
        step()
        assert (model.weight != before["weight"]).sum() > 100
        assert current(model)


def test_compiled_steps_of_other_models_stay_whole() -> None:
    torch._dynamo.reset()
    there_is_one = layer()
    model = nn.Linear(K, N)
    optimizer = AdamW8bit(model.parameters())
    train(model, optimizer)
    model(torch.randn(2, K)).sum().backward()
    torch.compile(lambda: optimizer.step(), fullgraph=True, backend="aot_eager")()
    assert current(there_is_one)


def test_a_skipped_step_changes_nothing() -> None:
    model = layer()
    optimizer = AdamW8bit(trained(model), lr=1e-2)
    train(model, optimizer)
    before = bits(model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.full((2, K), 1e30)).square().sum()).backward()
    scaler.step(optimizer)
    assert unchanged(model, before)


def test_a_master_that_was_changed_otherwise_is_noticed() -> None:
    a = layer()
    x = torch.randn(3, K)
    y = a(x).detach()
    with torch.no_grad():
        a.master.mul_(2)
        a.bias.mul_(2)
    torch.testing.assert_close(a(x).detach(), 2 * y)
    assert current(a)
    a.master = nn.Parameter(torch.randn(N, K))
    with pytest.raises(RuntimeError, match="master is not the parameter that the int8 weight"):
        a(x)
    a.requantize_()
    assert current(a)
    a(x)
    with pytest.raises(RuntimeError, match=r"requantize_: .*not trainable"):
        Int8Linear(K, N).requantize_()
    other = layer()
    with pytest.raises(RuntimeError, match="functional_call are not supported"):
        torch.func.functional_call(a, dict(other.named_parameters()), (x,))


def test_a_backward_through_the_old_codes_is_an_error() -> None:
    model = layer()
    optimizer = AdamW8bit(trained(model), lr=1e-2)
    x = torch.randn(3, K, requires_grad=True)
    loss = model(x).sum()
    train(model, optimizer)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_master_shared_by_two_layers() -> None:
    a = layer()
    b = Int8Linear(K, N, trainable=True)
    b.master = a.master
    b.requantize_()
    model = nn.ModuleList([a, b])
    optimizer = AdamW8bit(trained(model), lr=1e-2)
    (a(torch.randn(3, K)).sum() + b(torch.randn(3, K)).sum()).backward()
    optimizer.step()
    assert current(model)
    assert same_bits(a.weight, b.weight)


def test_layers_and_masters_are_not_kept_alive() -> None:
    from lowbit.nn import int8_linear

    before = len(int8_linear._LAYERS)
    a = layer()
    assert len(int8_linear._LAYERS) == before + 1
    del a
    assert len(int8_linear._LAYERS) == before


# Copies, state dicts


def through_torch_save(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save]
)
def test_copies_train_by_themselves(clone: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(layer())
    train(model, AdamW8bit(trained(model), lr=1e-2))
    before = bits(model)
    other = clone(model)
    assert unchanged(other, before)
    assert [p.requires_grad for p in other.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    train(other, AdamW8bit(trained(other), lr=1e-2))
    assert current(other)
    assert not unchanged(other, before)
    assert unchanged(model, before)
    train(model, AdamW8bit(trained(model), lr=1e-2))
    assert current(model)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(assign: bool) -> None:
    a = layer(absmax_dtype=torch.float16)
    train(a, AdamW8bit(trained(a), lr=1e-2))
    b = Int8Linear(K, N, device="meta" if assign else None, **a.options())
    b.load_state_dict(bits(a), assign=assign)
    assert unchanged(b, bits(a))
    assert b.master.requires_grad
    train(b, AdamW8bit(trained(b), lr=1e-2))
    assert current(b)


def test_the_master_decides_what_the_codes_are() -> None:
    a, b = layer(), Int8Linear(K, N, trainable=True)
    b.load_state_dict(bits(a) | {"weight": torch.zeros(N, K, dtype=torch.int8)})
    assert unchanged(b, bits(a))


def test_wrong_state_dicts_are_refused() -> None:
    a = layer()
    check_load_refused(a, {"master": None}, "the entries under '' are absmax, bias, weight")
    check_load_refused(a, {"weight": None}, "the entries under '' are absmax, bias, master")
    check_load_refused(a, {"master": Tensor.half}, "master has dtype torch.float16, expected")
    check_load_refused(a, {"master": lambda t: t[1:]}, r"master has shape \[79, 64\]")
    check_load_refused(a, {"master": lambda t: t / 0}, "master holds NaN or infinity")
    check_load_refused(
        layer(absmax_dtype=torch.float16), {"master": lambda t: t * 1e6}, "master holds .*float16"
    )
    frozen = Int8Linear(K, N)
    with pytest.raises(RuntimeError, match="are absmax, bias, master, weight, expected absmax"):
        frozen.load_state_dict(a.state_dict())
    with pytest.raises(RuntimeError, match="expected absmax, bias, master, weight"):
        a.load_state_dict(frozen.state_dict())


def test_a_layer_from_the_meta_device() -> None:
    a = layer()
    b = Int8Linear(K, N, trainable=True, device="meta").to_empty(device="cpu")
    b.load_state_dict(a.state_dict())
    x = torch.randn(3, K)
    assert same_bits(a(x).detach(), b(x).detach())


def test_freeze() -> None:
    a = layer()
    train(a, AdamW8bit(trained(a), lr=1e-2))
    x = torch.randn(3, K)
    expected = a(x).detach()
    assert a.freeze_() is a
    assert not a.trainable
    assert not trained(a)
    assert same_bits(a(x), expected)
    b = Int8Linear(K, N)
    b.load_state_dict(a.state_dict())
    assert same_bits(b(x), expected)
    assert "trainable" not in a.options()


# Models


def test_quantize_a_model_to_be_trained() -> None:
    model = nn.Sequential(nn.Linear(K, N), nn.ReLU(), nn.Linear(N, 4), nn.LayerNorm(4))
    report = lowbit.quantize_(model, trainable=True)
    assert report.replaced == ("0", "2")
    assert current(model)
    assert len(trained(model)) == 6
    with pytest.raises(ValueError, match="trainable is True and offset too"):
        lowbit.quantize_(nn.Sequential(nn.Linear(8, 8)), trainable=True, offset=True)
    with pytest.raises(TypeError, match=r"trainable given, but a LUT4Linear \(4 bits\) has no"):
        lowbit.quantize_(nn.Sequential(nn.Linear(8, 8)), 4, trainable=True)


def test_experts_cannot_be_trained(checkpoints: dict[str, str]) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["mixtral"])
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"experts .*trainable.*; name it in skip"):
        lowbit.quantize_(model, trainable=True)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_full_fine_tuning_falls_like_the_float_model(checkpoints: dict[str, str]) -> None:
    """A small Llama that learns a text by heart, its master weights in int8 for every product."""
    transformers = pytest.importorskip("transformers")
    from tiny_models import learn

    text = (Path(__file__).parents[2] / "LICENSE").read_bytes()[:1024]
    ids = torch.tensor(list(text)).view(4, 256)
    curves = []
    for quantized in (False, True):
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
        if quantized:
            lowbit.quantize_(model, trainable=True)
        curves.append(learn(model, AdamW8bit(trained(model), lr=3e-3), ids, steps=60))
    exact, ours = curves
    assert exact[-1] < 0.6 * exact[0]
    for a, b in zip(ours[::10], exact[::10], strict=True):
        assert a == pytest.approx(b, rel=0.1)
    assert current(model)
