# SPDX-License-Identifier: MIT
"""lowbit.optim: Adam8bit and AdamW8bit, beside torch's own with float64 state."""

import copy
import io
import math
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from lowbit import codebooks
from lowbit.optim import Adam8bit, AdamW8bit, adam8bit
from reference import same_bits
from samples import FLOATS
from torch import Tensor, nn

OURS = (Adam8bit, AdamW8bit)
EXACT = {Adam8bit: torch.optim.Adam, AdamW8bit: torch.optim.AdamW}
# One batch of each kind: 8 bits, with a last block that is not whole, a single block, 32 bits.
SHAPES = [(64, 80), (4099,), (3, 5, 17)]
both = pytest.mark.parametrize("kind", OURS)


def new(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [
        nn.Parameter((torch.randn(s, generator=generator) * 0.1).to(dtype))
        for s in (shapes or SHAPES)
    ]


def give_gradients(params: Iterable[Tensor], seed: int) -> None:
    """The same values for the same seed and shape, whatever the dtype and place in the list."""
    for p in params:
        generator = torch.Generator().manual_seed(seed * 1000 + p.numel())
        p.grad = (torch.randn(p.shape, generator=generator) * 0.01).to(p.dtype)


def run(optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for seed in steps:
        give_gradients(params, seed)
        optimizer.step()


def moment(optimizer: Adam8bit, p: Tensor, name: str) -> Tensor:
    """exp_avg or exp_avg_sq as float."""
    state = optimizer.state[p]
    if f"{name}_absmax" not in state:
        return state[name]
    table = codebooks.dynamic_map(signed=name == "exp_avg")
    blocksize = optimizer.param_groups[0]["blocksize"]
    return torch.ops.lowbit.blockwise_dequantize(
        state[name], state[f"{name}_absmax"], table, None, blocksize
    )


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    """Everything that a failed call must not change."""
    params = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return params, copy.deepcopy(optimizer.state_dict())


def same(a: Any, b: Any) -> bool:
    """The same structure with the same bits."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and same_bits(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def same_run(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    return same(snapshot(a), snapshot(b))


# Against exact Adam


@both
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_step_is_that_of_exact_adam(
    kind: type[Adam8bit], dtype: torch.dtype, weight_decay: float, maximize: bool
) -> None:
    """The bounds are those of bitsandbytes' own tests; as there, the exact optimizer goes on from
    the rounded state after each step."""
    (p,) = new((128, 257), dtype=dtype)
    exact = nn.Parameter(p.detach().double())
    options = {"lr": 1e-3, "weight_decay": weight_decay, "maximize": maximize}
    ours, theirs = kind([p], **options), EXACT[kind]([exact], **options)
    mean, relative = (6e-5, 6e-4) if dtype == torch.float32 else (1.7e-4, 1.6e-3)
    for seed in range(25):
        give_gradients([p], seed)
        exact.grad = p.grad.double()
        ours.step()
        theirs.step()
        error = (p - exact).detach().abs()
        assert error.mean() < mean
        assert (error / (exact.detach().abs() + 1e-9)).mean() < relative
        for name in ("exp_avg", "exp_avg_sq"):
            rounded = moment(ours, p, name).double()
            assert ((rounded - theirs.state[exact][name]).abs() > 3e-3).sum() == 0
            theirs.state[exact][name].copy_(rounded)
        exact.data.copy_(p)


@both
def test_the_moments_keep_their_size(kind: type[Adam8bit]) -> None:
    """Without new starts: after many steps, the state is near that of exact Adam."""
    (p,) = new((64, 128))
    exact = nn.Parameter(p.detach().double())
    ours, theirs = kind([p], lr=1e-4), EXACT[kind]([exact], lr=1e-4)
    for seed in range(300):
        give_gradients([p], seed)
        p.grad += 0.005
        exact.grad = p.grad.double()
        ours.step()
        theirs.step()
    for name, tolerance in (("exp_avg", 0.02), ("exp_avg_sq", 0.05)):
        a, b = moment(ours, p, name).double(), theirs.state[exact][name]
        assert torch.dist(a, b) < tolerance * b.norm()
    moved = (exact - new((64, 128))[0]).norm()
    assert torch.dist(p.double(), exact) < 0.02 * moved


def test_thousands_of_steps_arrive_where_exact_adam_does() -> None:
    """A noisy quadratic, whose gradients shrink by a thousand on the way."""
    target = torch.linspace(-1, 1, 2048)
    ends = []
    for kind, options in ((AdamW8bit, {"min_8bit_size": 0}), (torch.optim.AdamW, {})):
        p = nn.Parameter(torch.zeros(2048))
        optimizer = kind([p], lr=3e-3, weight_decay=0.0, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4000, eta_min=3e-6)
        generator = torch.Generator().manual_seed(0)
        for _ in range(4000):
            p.grad = (p.detach() - target) + 0.1 * torch.randn(2048, generator=generator)
            optimizer.step()
            schedule.step()
        ends.append((p - target).detach().abs())
    assert ends[0].mean() < 1.05 * ends[1].mean()
    assert ends[0].max() < 0.05


@both
@pytest.mark.parametrize("master_weights", [False, True])
def test_elements_without_a_gradient_do_not_move(
    kind: type[Adam8bit], master_weights: bool
) -> None:
    (p,) = new((40, 256), dtype=torch.bfloat16)
    before = p.detach().clone()
    still = torch.arange(256) % 3 == 0
    optimizer = kind([p], lr=1e-2, weight_decay=0.0, master_weights=master_weights)
    for seed in range(500):
        give_gradients([p], seed)
        p.grad[:, still] = 0
        optimizer.step()
    assert same_bits(p.detach()[:, still], before[:, still])
    assert (p[:, ~still] != before[:, ~still]).float().mean() > 0.99
    assert (moment(optimizer, p, "exp_avg")[:, still] == 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_gradient_that_is_not_finite_leaves_its_element(value: float) -> None:
    (p,), (q,) = new((64, 80)), new((64, 80))
    ours = [AdamW8bit([x], weight_decay=0.0) for x in (p, q)]
    give_gradients([p, q], 0)
    p.grad[3, 5], q.grad[3, 5] = value, 0
    for optimizer in ours:
        optimizer.step()
    assert same_run(*ours)
    before = p.detach().clone()
    give_gradients([p], 1)
    p.grad[3, 5] = value
    ours[0].step()
    assert p[3, 5] == before[3, 5]
    assert p.isfinite().all()
    assert (p != before).sum() == p.numel() - 1


# Lists of parameters


def test_order_grouping_and_threads_do_not_matter() -> None:
    shapes = [(64, 80), (4099,), (70, 70), (2, 4096), (5000,), (3, 5, 17)]

    def end(grouped: Callable[[list[nn.Parameter]], list[Any]]) -> list[Tensor]:
        params = new(*shapes)
        for part in grouped(params):
            optimizer = AdamW8bit(part)
            run(optimizer, range(3))
        return [p.detach() for p in params]

    expected = end(lambda params: [params])
    for grouped in (
        lambda params: [params[::-1]],
        lambda params: [[p] for p in params],
        lambda params: [[{"params": params[::2]}, {"params": params[1::2]}]],
        lambda params: [params[2:], params[:2]],
    ):
        assert same(end(grouped), expected)
    torch.set_num_threads(3)
    assert same(end(lambda params: [params]), expected)


def test_dtypes_mix_in_one_list() -> None:
    params = [new((64, 80), dtype=dtype)[0] for dtype in FLOATS]
    alone = copy.deepcopy(params)
    together = AdamW8bit(params)
    run(together, range(3))
    for p, q in zip(params, alone, strict=True):
        run(AdamW8bit([q]), range(3))
        assert same_bits(p, q)


def test_a_gradient_may_have_another_dtype() -> None:
    (p,), (q,) = new((64, 80)), new((64, 80))
    give_gradients([p], 0)
    grad = p.grad.bfloat16()
    ours = [AdamW8bit([x]) for x in (p, q)]
    p.grad = grad.float()
    q.grad_dtype = None
    q.grad = grad
    for optimizer in ours:
        optimizer.step()
    assert same_run(*ours)


def test_parameters_that_are_stepped_at_different_times() -> None:
    """Each has its own count of steps, as if it had an optimizer of its own."""
    shapes = [(64, 80), (4099,), (3, 5), (7,)]
    params, alone = new(*shapes), new(*shapes)
    ours, theirs = AdamW8bit(params), [AdamW8bit([p]) for p in alone]
    active = [(0, 1, 2, 3), (0, 2), (1, 3), (0, 1, 2, 3), (3,), (0, 1, 2)]
    for seed, indices in enumerate(active):
        give_gradients(params, seed)
        give_gradients(alone, seed)
        for i in range(4):
            if i not in indices:
                params[i].grad = None
        ours.step()
        for i in indices:
            theirs[i].step()
    assert same([p.detach() for p in params], [p.detach() for p in alone])
    assert [ours.state[p]["step"].item() for p in params] == [4, 4, 4, 4]
    assert all(ours.state[p]["step"].dtype == torch.float32 for p in params)


def test_parameters_without_gradients_have_no_state() -> None:
    params = new()
    optimizer = AdamW8bit(params)
    optimizer.step()
    assert not optimizer.state
    give_gradients(params[:1], 0)
    optimizer.step()
    assert list(optimizer.state) == params[:1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_that_are_not_contiguous(dtype: torch.dtype) -> None:
    (p,) = new((64, 80), dtype=dtype)
    q = nn.Parameter(p.detach().t().contiguous().t())
    (image,) = new((8, 16, 7, 9), dtype=dtype)
    last = nn.Parameter(image.detach().to(memory_format=torch.channels_last))
    plain, strided = (AdamW8bit(ps, master_weights=True) for ps in ([p, image], [q, last]))
    for seed in range(3):
        for x, y in ((p, q), (image, last)):
            give_gradients([x], seed)
            y.grad = x.grad.transpose(0, 1).contiguous().transpose(0, 1)
        plain.step()
        strided.step()
        assert not q.is_contiguous()
    assert same_run(plain, strided)


def test_many_empty_and_tiny_parameters() -> None:
    params = new((0,), (1,), (4096,), (0, 3))
    optimizer = AdamW8bit(params, min_8bit_size=0)
    run(optimizer, range(2))
    assert all(optimizer.state[p]["exp_avg"].dtype == torch.uint8 for p in params)


# 32-bit state and master weights


@both
@pytest.mark.parametrize("options", [{}, {"maximize": True, "weight_decay": 0.1, "lr": 1e-2}])
def test_32_bits_are_torchs_own(kind: type[Adam8bit], options: dict[str, Any]) -> None:
    params, theirs = new(), new()
    ours = kind([{"params": params[:2], "bits": 32}, {"params": params[2:]}], **options)
    reference = EXACT[kind](theirs, fused=True, **options)
    run(ours, range(4))
    run(reference, range(4))
    assert same([p.detach() for p in params], [p.detach() for p in theirs])
    for p, q in zip(params, theirs, strict=True):
        assert same(ours.state[p], {name: reference.state[q][name] for name in ours.state[p]})


def test_the_size_decides_between_8_and_32_bits() -> None:
    params = new((4095,), (4096,))
    optimizer = AdamW8bit(params)
    run(optimizer, [0])
    assert [optimizer.state[p]["exp_avg"].dtype for p in params] == [torch.float32, torch.uint8]
    assert [len(optimizer.state[p]) for p in params] == [3, 5]


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_master_weights_are_a_float32_run(kind: type[Adam8bit], dtype: torch.dtype) -> None:
    params = new(dtype=dtype)
    full = [nn.Parameter(p.detach().float()) for p in params]
    narrow = kind(params, lr=1e-4, master_weights=True)
    wide = kind(full, lr=1e-4, master_weights=True)
    for seed in range(20):
        give_gradients(params, seed)
        for p, q in zip(params, full, strict=True):
            q.grad = p.grad.float()
        narrow.step()
        wide.step()
    for p, q in zip(params, full, strict=True):
        assert same_bits(narrow.state[p]["master"], q.detach())
        assert same_bits(p.detach(), q.detach().to(dtype))
        assert "master" not in wide.state[q]


def test_without_master_weights_small_steps_are_lost() -> None:
    """What they are for."""
    ends = []
    for master_weights in (False, True):
        p = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = AdamW8bit([p], lr=1e-3, weight_decay=0.0, master_weights=master_weights)
        for _ in range(100):
            p.grad = torch.ones_like(p)
            optimizer.step()
        ends.append(p.float().mean().item())
    assert ends[0] == 1.0
    assert ends[1] == pytest.approx(0.9, abs=0.004)


def test_memory() -> None:
    """2.03 bytes of state per parameter, and nothing else."""
    params = new((1024, 300), (70000,))
    optimizer = AdamW8bit(params)
    run(optimizer, range(2))
    tensors = [t for state in optimizer.state.values() for t in state.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    count = sum(p.numel() for p in params)
    assert sum(storages.values()) / count == pytest.approx(2 + 2 * 4 / 256, abs=1e-3)
    held = {id(value) for value in vars(optimizer).values() if isinstance(value, Tensor)}
    assert not held
    assert not optimizer._batches


# What torch's optimizers do


@both
def test_groups_override_every_option(kind: type[Adam8bit]) -> None:
    params, alone = new(), new()
    options = {
        "lr": 1e-2,
        "betas": (0.8, 0.99),
        "eps": 1e-6,
        "weight_decay": 0.2,
        "maximize": True,
        "blocksize": 64,
        "min_8bit_size": 0,
    }
    run(kind([{"params": params[:1], **options}, {"params": params[1:]}]), range(3))
    run(kind(alone[:1], **options), range(3))
    run(kind(alone[1:]), range(3))
    assert same([p.detach() for p in params], [p.detach() for p in alone])


def test_decay_is_decoupled_only_in_adamw() -> None:
    ends = []
    for kind in OURS:
        (p,) = new((64, 80))
        p.grad = torch.zeros_like(p)
        before = p.detach().clone()
        kind([p], lr=0.1, weight_decay=0.5).step()
        ends.append((before, p.detach()))
    torch.testing.assert_close(ends[1][1], ends[1][0] * 0.95)
    before, after = ends[0]
    large = before.abs() > 1e-3  # beside eps
    torch.testing.assert_close(
        after[large], (before - 0.1 * before.sign())[large], atol=1e-5, rtol=0
    )


def test_closures_hooks_and_zero_grad() -> None:
    (p,) = new((64, 80))
    optimizer = AdamW8bit([p])
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(p.detach().clone()))

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert len(seen) == 3
    assert same_bits(seen[-1], p.detach())


def test_a_tensor_as_learning_rate_and_schedulers() -> None:
    ends = []
    for lr in (1e-2, torch.tensor(1e-2), torch.tensor(1e-2, dtype=torch.float64)):
        params = new()
        optimizer = AdamW8bit(params, lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for seed in range(4):
            run(optimizer, [seed])
            schedule.step()
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-2 / 16)
        ends.append([p.detach() for p in params])
    assert same(ends[0], ends[2])
    for a, b in zip(ends[0], ends[1], strict=True):
        torch.testing.assert_close(a, b)


def test_the_step_is_seen_by_autograd() -> None:
    """As after torch's own: a backward through the old value is an error."""
    (p,) = new((64, 80))
    optimizer = AdamW8bit([p])
    loss = p.square().sum()
    give_gradients([p], 0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# GradScaler


def test_a_gradient_scaler_changes_no_bits_and_skips_steps_with_infinities() -> None:
    params, plain = new(), new()
    ours, reference = AdamW8bit(params), AdamW8bit(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    scaler.scale(torch.zeros(()))  # makes its tensors
    for seed in range(5):
        give_gradients(plain, seed)
        reference.step()
        give_gradients(params, seed)
        for p in params:
            p.grad *= scaler.get_scale()
        before = [p.grad.clone() for p in params]
        scaler.step(ours)
        assert same([p.grad for p in params], before)
        scaler.update()
    assert same_run(ours, reference)
    before, scale = snapshot(ours), scaler.get_scale()
    params[2].grad[0, 1, 2] = math.inf
    scaler.step(ours)
    scaler.update()
    assert same(snapshot(ours), before)
    assert scaler.get_scale() == scale / 2
    assert not hasattr(ours, "found_inf")
    give_gradients(params, 6)
    scaler.unscale_(ours)
    torch.nn.utils.clip_grad_norm_(params, 1e-3)
    clipped = [p.grad.clone() for p in params]
    for p, grad in zip(plain, clipped, strict=True):
        p.grad = grad
    scaler.step(ours)
    reference.step()
    assert same_run(ours, reference)


def test_an_infinity_at_the_very_first_step() -> None:
    params = new()
    optimizer = AdamW8bit(params)
    give_gradients(params, 0)
    before = [p.detach().clone() for p in params]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(3.0)
    optimizer.step()
    assert same([p.detach() for p in params], before)
    assert all(state["step"] == 0 for state in optimizer.state.values())
    assert all((moment(optimizer, p, "exp_avg") == 0).all() for p in params)


# torch.compile


@pytest.mark.parametrize("options", [{}, {"lr": torch.tensor(1e-3), "master_weights": True}])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step(backend: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    optimizers = [
        AdamW8bit([*new(), *new((64, 80), (5,), dtype=torch.bfloat16)], **options) for _ in range(2)
    ]
    step = torch.compile(lambda: optimizers[1].step(), fullgraph=True, backend=backend)
    for seed in range(3):
        for optimizer in optimizers:
            give_gradients([p for g in optimizer.param_groups for p in g["params"]], seed)
        optimizers[0].step()
        step()
    a, b = map(snapshot, optimizers)
    a[1]["param_groups"][0]["capturable"] = b[1]["param_groups"][0]["capturable"]  # torch's doing
    assert same(a, b)


def test_a_compiled_step_with_a_scheduler_and_other_gradients_each_time() -> None:
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        params = new()
        optimizer = AdamW8bit(params)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

        def step(optimizer: Adam8bit = optimizer) -> None:
            optimizer.step()

        step = torch.compile(step, backend="aot_eager") if compiled else step
        for seed in range(4):
            give_gradients(params, seed)
            if seed == 2:
                params[0].grad = None
            step()
            schedule.step()
        ends.append([[p.detach() for p in params], [optimizer.state[p] for p in params]])
    assert same(*ends)


@pytest.mark.parametrize("decoupled", [False, True])
def test_opcheck_of_the_32_bit_step(decoupled: bool) -> None:
    tensors = [[p.detach() for p in new()] for _ in range(4)]
    tensors[3] = [t.abs() for t in tensors[3]]
    numbers = (torch.ones(()), torch.tensor(1e-3), 0.9, 0.999, 1e-8, 0.1, decoupled, False)
    torch.library.opcheck(torch.ops.lowbit_optim.fused_adam_, (*tensors, *numbers))
    torch.library.opcheck(torch.ops.lowbit_optim.fused_adam_, (*tensors, *numbers, torch.ones(())))


# State dicts, copies


MIXED = [
    {},
    {"master_weights": True, "blocksize": 64, "weight_decay": 0.1},
    {"lr": torch.tensor(1e-3), "min_8bit_size": 0, "maximize": True},
]


def mixed(kind: type[Adam8bit], options: dict[str, Any]) -> Adam8bit:
    params = [*new(), *new((64, 80), (9,), dtype=torch.bfloat16)]
    return kind(
        [{"params": params[:3]}, {"params": params[3:], "lr": 1e-2, "eps": 1e-6}], **options
    )


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file)  # with weights_only


@both
@pytest.mark.parametrize("options", MIXED)
def test_resuming_gives_the_bits_of_an_uninterrupted_run(
    kind: type[Adam8bit], options: dict[str, Any]
) -> None:
    straight, first, second = (mixed(kind, options) for _ in range(3))
    run(straight, range(7))
    run(first, range(3))
    saved = through_a_file({"state": snapshot(first)[0], "optimizer": first.state_dict()})
    run(second, range(20, 22))  # all of it is replaced
    for p, value in zip(
        (p for g in second.param_groups for p in g["params"]), saved["state"], strict=True
    ):
        p.data.copy_(value)
    second.load_state_dict(saved["optimizer"])
    assert same_run(second, first)
    for p, q in zip(first.state, second.state, strict=True):
        dtypes = [{n: t.dtype for n, t in o.state[x].items()} for o, x in ((first, p), (second, q))]
        assert dtypes[0] == dtypes[1]
    run(second, range(3, 7))
    assert same_run(second, straight)
    assert second.state_dict()["param_groups"][0]["format"] == "lowbit.adam8bit.1"


def test_loading_copies() -> None:
    first, second = mixed(AdamW8bit, {}), mixed(AdamW8bit, {})
    run(first, range(2))
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict())
    run(second, range(2, 4))
    assert same(first.state_dict(), before)


def test_loading_state_of_some_parameters_or_none() -> None:
    first, second = AdamW8bit(new()), AdamW8bit(new())
    second.load_state_dict(first.state_dict())
    run(second, [0])
    run(first, [0])
    assert same_run(first, second)
    params = new()
    third, fourth = AdamW8bit(params), AdamW8bit(new())
    give_gradients(params[1:2], 0)
    third.step()
    fourth.load_state_dict(third.state_dict())
    assert list(fourth.state) == fourth.param_groups[0]["params"][1:2]
    run(fourth, [0])
    assert len(fourth.state) == 3


def test_steps_stay_apart_or_together_after_loading() -> None:
    params = new()
    first = AdamW8bit(params)
    give_gradients(params[:1], 0)
    first.step()
    run(first, range(3))
    second = AdamW8bit(new())
    second.load_state_dict(first.state_dict())
    steps = [state["step"] for state in second.state.values()]
    assert [step.item() for step in steps] == [4, 3, 3]
    straight, loaded = copy.deepcopy(first), second
    for p, q in zip(loaded.param_groups[0]["params"], params, strict=True):
        p.data.copy_(q)
    run(straight, range(3, 6))
    run(loaded, range(3, 6))
    assert same_run(straight, loaded)


@both
def test_deepcopy_and_pickle(kind: type[Adam8bit]) -> None:
    optimizer = mixed(kind, {"master_weights": True})
    run(optimizer, range(2))
    for clone in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert type(clone) is kind
        assert same_run(clone, optimizer)
        again = copy.deepcopy(optimizer)
        run(again, range(2, 4))
        run(clone, range(2, 4))
        assert same_run(clone, again)


def test_hooks_on_state_dicts_run() -> None:
    optimizer = AdamW8bit(new())
    run(optimizer, range(2))
    seen = []

    def halve(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [g | {"lr": g["lr"] / 2} for g in state_dict["param_groups"]]
        return state_dict | {"param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(seen.append)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 5e-4
    assert seen == [optimizer]


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["state"][0].pop(name)


def _with(index: int, **values: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], None]:
    def change(saved: dict[str, Any]) -> None:
        entry = saved["state"][index]
        saved["state"][index] = entry | {name: f(entry.get(name)) for name, f in values.items()}

    return change


def _option(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda saved: saved["param_groups"][0].update(values)


SPOILT = {
    "lacks exp_avg_sq": _without("exp_avg_sq"),
    "lacks step": _without("step"),
    "lacks exp_avg_sq_absmax": _without("exp_avg_sq_absmax"),
    r"exp_avg of torch.uint8 and shape \[80, 64\], expected torch.uint8 and \[64, 80\]": _with(
        0, exp_avg=torch.t
    ),
    "exp_avg of torch.float32 and": _with(0, exp_avg=Tensor.float),
    "exp_avg_absmax of torch.bfloat16": _with(0, exp_avg_absmax=Tensor.bfloat16),
    r"exp_avg_absmax of torch.float32 and shape \[19\], expected torch.float32 and \[20\] "
    r"\(blocksize 256\)": _with(0, exp_avg_absmax=lambda t: t[:19]),
    "exp_avg_absmax that holds NaN": _with(0, exp_avg_absmax=lambda t: t * math.nan),
    "exp_avg_sq_absmax that holds -1": _with(0, exp_avg_sq_absmax=lambda t: t * 0 - 1),
    "unknown entries foo": _with(0, foo=lambda _: 1),
    "exp_avg_sq of type list": _with(0, exp_avg_sq=lambda _: [1, 2]),
    "step 3, expected": _with(0, step=lambda _: 3),
    "has a master": _with(0, master=lambda _: torch.zeros(64, 80)),
    r"parameter 2 of shape \[3, 5, 17\] has exp_avg of torch.uint8": _with(2, exp_avg=Tensor.byte),
    r"\[40\] \(blocksize 128\)": _option(blocksize=128),
    "blocksize is 100": _option(blocksize=100),
    "betas is": _option(betas=(0.9, 1.0)),
    "the format is lowbit.adam8bit.9, expected": _option(format="lowbit.adam8bit.9"),
    "a group lacks eps": lambda saved: saved["param_groups"][0].pop("eps"),
    r"groups have \[2\] parameters, expected \[3\]": _option(params=[0, 1]),
    "state of 7, which no group names": lambda saved: saved["state"].update({7: {}}),
    "the entries are state": lambda saved: saved.pop("param_groups"),
}


@pytest.mark.parametrize("message", SPOILT)
def test_a_wrong_state_dict_is_refused(message: str) -> None:
    first, second = AdamW8bit(new()), AdamW8bit(new(), lr=1e-2)
    run(first, range(2))
    run(second, range(1))
    saved = copy.deepcopy(first.state_dict())
    SPOILT[message](saved)
    before = snapshot(second)
    with pytest.raises(ValueError, match=f"AdamW8bit.*{message}"):
        second.load_state_dict(saved)
    assert same(snapshot(second), before)


def test_the_state_of_another_model_is_refused() -> None:
    first, second = AdamW8bit(new((64, 80), (70, 70))), AdamW8bit(new((70, 70), (64, 80)))
    run(first, range(2))
    with pytest.raises(ValueError, match=r"parameter 0 of shape \[70, 70\] has exp_avg of"):
        second.load_state_dict(first.state_dict())
    assert not second.state
    sgd = torch.optim.SGD(new((70, 70), (64, 80)), momentum=0.9)
    run(sgd, range(2))
    with pytest.raises(ValueError, match="entries momentum_buffer, expected those of lowbit's"):
        second.load_state_dict(sgd.state_dict())


# State dicts of others


@both
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_state_is_quantized(kind: type[Adam8bit], amsgrad: bool, dtype: torch.dtype) -> None:
    params = new(dtype=dtype)
    theirs = EXACT[kind](params, lr=3e-3, weight_decay=0.2, amsgrad=amsgrad)
    run(theirs, range(5))
    ours = kind(copy.deepcopy(params), master_weights=True)
    if amsgrad:
        with pytest.raises(ValueError, match="amsgrad"):
            ours.load_state_dict(theirs.state_dict())
        assert not ours.state
        return
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    group = ours.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["bits"]) == (3e-3, 0.2, 8)
    for p, q in zip(ours.state, params, strict=True):
        assert ours.state[p]["step"] == 5
        for name in ("exp_avg", "exp_avg_sq"):
            exact = theirs.state[q][name].float()
            assert torch.dist(moment(ours, p, name), exact) < 0.02 * exact.norm()
        assert ("master" in ours.state[p]) == (dtype != torch.float32)
    run(ours, range(5, 8))
    run(theirs, range(5, 8))
    for p, q in zip(ours.state, params, strict=True):
        tolerance = 2e-4 if dtype == torch.float32 else 2e-3
        assert (p.float() - q.float()).abs().mean() < tolerance


@both
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_changes_over_from_bitsandbytes(
    kind: type[Adam8bit], dtype: torch.dtype, flat: bool
) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    params = new(dtype=dtype)
    decay = 0.05 if kind is AdamW8bit else 0.0  # their decay is decoupled in either
    theirs = getattr(bnb.optim, kind.__name__)(
        params, lr=1e-3, weight_decay=decay, betas=(0.8, 0.99)
    )
    run(theirs, range(5))
    saved = through_a_file(theirs.state_dict())
    if flat:  # as before it hid its tensors from FSDP
        for entry in saved["state"].values():
            entry |= entry.pop("__bnb_optimizer_quant_state__")
    ours = kind(copy.deepcopy(params), blocksize=64)
    ours.load_state_dict(saved)
    group = ours.param_groups[0]
    assert (group["blocksize"], group["betas"], group["weight_decay"]) == (256, (0.8, 0.99), decay)
    assert "alpha" not in group
    for p, q in zip(ours.state, params, strict=True):
        mine, other = ours.state[p], theirs.state[q]
        assert mine["step"] == other["step"] == 5
        for name, number in (("exp_avg", 1), ("exp_avg_sq", 2)):
            assert same_bits(mine[name], other[f"state{number}"])
            if mine[name].dtype == torch.uint8:
                assert same_bits(mine[f"{name}_absmax"], other[f"absmax{number}"])
    assert [state["exp_avg"].dtype for state in ours.state.values()] == [
        torch.uint8,
        torch.uint8,
        torch.float32,
    ]
    before = [p.detach().clone() for p in params]
    run(ours, range(5, 15))
    run(theirs, range(5, 15))
    for p, q, start in zip(ours.state, params, before, strict=True):
        moved = (q - start).detach().float().abs().mean()
        assert moved > 1e-3
        assert (p.float() - q.float()).abs().mean() < 0.1 * moved


def test_a_decay_of_the_other_kind_is_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    for theirs, kind, found in (
        (bnb.optim.Adam8bit(new(), weight_decay=0.1), Adam8bit, "decoupled"),
        (torch.optim.AdamW(new()), Adam8bit, "decoupled"),
        (torch.optim.Adam(new(), weight_decay=0.1), AdamW8bit, "part of the gradient"),
    ):
        run(theirs, [0])
        ours = kind(new())
        with pytest.raises(ValueError, match=f"weight_decay is {found} where the state was saved"):
            ours.load_state_dict(theirs.state_dict())
        assert not ours.state
        theirs.param_groups[0]["weight_decay"] = 0.0
        ours.load_state_dict(theirs.state_dict())


def test_state_dicts_without_state() -> None:
    theirs = torch.optim.Adam(new(), lr=3e-3, weight_decay=0.1)
    ours = Adam8bit([{"params": new(), "name": "mine"}], blocksize=64)
    ours.load_state_dict(theirs.state_dict())
    group = ours.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["blocksize"]) == (3e-3, 0.1, 64)
    assert group["name"] == "mine"
    ours.load_state_dict(Adam8bit(new()).state_dict())


def test_bitsandbytes_with_another_map_or_form_is_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    theirs = bnb.optim.AdamW8bit(new())
    run(theirs, range(2))
    ours = AdamW8bit(new())
    hidden = "__bnb_optimizer_quant_state__"
    for change, message in (
        (lambda entry: entry[hidden].update(qmap2=entry[hidden]["qmap1"]), "qmap2 that is not"),
        (lambda entry: entry[hidden].pop("absmax2"), "lacks exp_avg_sq_absmax"),
        (lambda entry: entry.update(unorm_vec=torch.zeros(1)), "unknown entries unorm_vec"),
    ):
        saved = copy.deepcopy(theirs.state_dict())
        change(saved["state"][0])
        with pytest.raises(ValueError, match=f"parameter 0 .*{message}"):
            ours.load_state_dict(saved)
        assert not ours.state


# What is refused


WRONG = {
    "lr is -1.0": {"lr": -1.0},
    "lr is nan": {"lr": math.nan},
    "lr is a str": {"lr": "1e-3"},
    r"lr has shape \[2\]": {"lr": torch.zeros(2)},
    r"betas is \(1.0, 0.9\)": {"betas": (1.0, 0.9)},
    r"betas is \(0.9,\)": {"betas": (0.9,)},
    "betas is .*tensor": {"betas": (torch.tensor(0.9), torch.tensor(0.9))},
    "eps is -1": {"eps": -1},
    "weight_decay is -0.1": {"weight_decay": -0.1},
    "blocksize is 100, expected a power of two from 32 to 4096": {"blocksize": 100},
    "blocksize is 16": {"blocksize": 16},
    "min_8bit_size is -1": {"min_8bit_size": -1},
    "master_weights is 1": {"master_weights": 1},
    "capturable is 'yes'": {"capturable": "yes"},
}


@both
def test_defaults_are_those_of_torch(kind: type[Adam8bit]) -> None:
    ours, exact = kind(new()).defaults, EXACT[kind](new()).defaults
    for option in ("lr", "betas", "eps", "weight_decay", "maximize", "capturable"):
        assert ours[option] == exact[option]


@both
@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments(kind: type[Adam8bit], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{kind.__name__}: {message}"):
        kind(new(), **WRONG[message])
    optimizer = kind(new())
    with pytest.raises((TypeError, ValueError), match=f"{kind.__name__}: {message}"):
        optimizer.add_param_group({"params": new(), **WRONG[message]})
    assert len(optimizer.param_groups) == 1


def test_wrong_groups() -> None:
    params = new()
    for group, message in (
        ({"params": params, "bits": 4}, "bits is 4, expected 8 or 32"),
        ({"params": params, "amsgrad": True}, "amsgrad is True, expected none"),
        ({"params": [params[0], params[0]]}, "holds a parameter twice"),
    ):
        with pytest.raises(ValueError, match=f"AdamW8bit: .*{message}"):
            AdamW8bit([group])
    assert AdamW8bit([{"params": params, "name": "mine"}]).param_groups[0]["name"] == "mine"


def _sparse(p: Tensor) -> None:
    p.grad = torch.zeros_like(p.detach()).to_sparse()


def _cast(dtype: torch.dtype) -> Callable[[Tensor], None]:
    def change(p: Tensor) -> None:
        p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p.data)

    return change


UNSTEPPABLE = {
    "has a sparse gradient, expected a dense one": _sparse,
    "has dtype torch.float64, expected one of": _cast(torch.float64),
    "has dtype torch.complex64, expected one of": _cast(torch.complex64),
}


@pytest.mark.parametrize("message", UNSTEPPABLE)
@pytest.mark.parametrize("stepped", [0, 2])
def test_a_step_that_fails_changes_nothing(stepped: int, message: str) -> None:
    params = dict(zip(("a", "b", "c"), new(), strict=True))
    optimizer = AdamW8bit(params.items())
    run(optimizer, range(stepped))
    give_gradients(params.values(), 5)
    UNSTEPPABLE[message](params["c"])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=rf"AdamW8bit: parameter 2 \(c\) .*{message}"):
        optimizer.step()
    assert same(snapshot(optimizer), before)


def test_a_device_without_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adam8bit._has_operator("cpu")
    assert not adam8bit._has_operator("mps")
    monkeypatch.setattr(adam8bit, "_has_operator", lambda device: False)
    optimizer = AdamW8bit(new())
    with pytest.raises(RuntimeError, match=r"parameter 0 .* is on cpu, for which"):
        run(optimizer, [0])
    assert not optimizer.state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("exp_avg_sq"), "lacks exp_avg_sq"),
        (lambda state: state.update(exp_avg=state["exp_avg"][1:]), r"has exp_avg of .*\[63, 80\]"),
        (lambda state: state.update(step=3), "has step 3"),
        (lambda state: state.update(exp_avg_absmax=torch.zeros(3)), "has exp_avg_absmax of"),
        (lambda state: state.update(master=torch.zeros(3)), "has master of"),
    ],
)
def test_state_that_was_tampered_with(change: Callable[[Any], None], message: str) -> None:
    params = new()
    optimizer = AdamW8bit(params)
    run(optimizer, range(2))
    change(optimizer.state[params[0]])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=f"parameter 0 .*its state {message}"):
        run(optimizer, [2])
    assert same(snapshot(optimizer), before)


# Training


def test_a_model_trains_as_with_float32_state() -> None:
    """A two-layer network on a smooth function, from the same start."""
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(2))
    y = torch.sin(x @ torch.randn(16, 4, generator=torch.Generator().manual_seed(3)))
    curves = []
    for kind, options in ((AdamW8bit, {"min_8bit_size": 0}), (torch.optim.AdamW, {})):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 512), nn.Tanh(), nn.Linear(512, 4))
        optimizer = kind(model.parameters(), lr=3e-3, **options)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
        curve = []
        for _ in range(300):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            curve.append(loss.item())
        curves.append(curve)
    ours, exact = curves
    assert exact[-1] < 0.01 * exact[0]
    for a, b in zip(ours[20::20], exact[20::20], strict=True):
        assert 0.6 * b < a < 1.1 * b
