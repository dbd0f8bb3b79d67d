# SPDX-License-Identifier: MIT
"""lowbit::adam8bit_step_ and lowbit::int8_requantize_. Their bits are checked in tests/c."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from conftest import cap_isa, isa_levels
from lowbit import codebooks
from samples import FLOATS, opcheck
from torch import Tensor

ops = torch.ops.lowbit
SIGNED, UNSIGNED = codebooks.dynamic_map(True), codebooks.dynamic_map(False)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@dataclass
class Step:
    """A call, its lists grown by add()."""

    blocksize: int = 256
    lr: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    decoupled: bool = True
    maximize: bool = False
    step: int = 1
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    exp_avg: list[Tensor] = field(default_factory=list)
    exp_avg_absmax: list[Tensor] = field(default_factory=list)
    exp_avg_sq: list[Tensor] = field(default_factory=list)
    exp_avg_sq_absmax: list[Tensor] = field(default_factory=list)
    masters: list[Tensor] = field(default_factory=list)

    def add(self, param: Tensor, grad: Tensor, master: bool = False) -> "Step":
        """With zero state."""
        blocks = math.ceil(param.numel() / self.blocksize)
        self.params.append(param)
        self.grads.append(grad)
        self.exp_avg.append(torch.full(param.shape, 127, dtype=torch.uint8))
        self.exp_avg_absmax.append(torch.zeros(blocks))
        self.exp_avg_sq.append(torch.zeros(param.shape, dtype=torch.uint8))
        self.exp_avg_sq_absmax.append(torch.zeros(blocks))
        self.masters.append(param.float() if master else torch.empty(0))
        return self

    @property
    def lists(self) -> tuple[list[Tensor], ...]:
        return (
            *(self.params, self.grads, self.exp_avg, self.exp_avg_absmax),
            *(self.exp_avg_sq, self.exp_avg_sq_absmax, self.masters),
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (
            *self.lists,
            *(SIGNED, UNSIGNED, torch.tensor(self.step), torch.tensor(self.lr)),
            *(*self.betas, self.eps, self.weight_decay, self.decoupled, self.maximize),
            *(self.blocksize, self.grad_scale, self.found_inf),
        )

    def run(self) -> "Step":
        ops.adam8bit_step_(*self.arguments)
        return self

    def copy(self) -> "Step":
        names = ("params", "grads", "exp_avg", "exp_avg_absmax", "exp_avg_sq")
        names += ("exp_avg_sq_absmax", "masters")
        return replace(
            self,
            **{n: [t.clone() for t in ts] for n, ts in zip(names, self.lists, strict=True)},
        )

    def moments(self, i: int) -> tuple[Tensor, Tensor]:
        return tuple(
            ops.blockwise_dequantize(codes[i], absmax[i], book, None, self.blocksize).double()
            for codes, absmax, book in (
                (self.exp_avg, self.exp_avg_absmax, SIGNED),
                (self.exp_avg_sq, self.exp_avg_sq_absmax, UNSIGNED),
            )
        )


def same(a: Step, b: Step) -> bool:
    return all(
        torch.equal(x.view(torch.uint8), y.view(torch.uint8))
        for xs, ys in zip(a.lists, b.lists, strict=True)
        for x, y in zip(xs, ys, strict=True)
    )


def mixed_list(seed: int = 0, **settings: Any) -> Step:
    """Every dtype of parameter and gradient, with masters and without; sizes around blocks."""
    torch.manual_seed(seed)
    step = Step(**settings)
    sizes = [(1,), (7, 9), (256,), (257,), (33, 65), (0,), (1000,), (2, 3, 5), (31,)]
    for (dtype, grad_dtype), size in zip(product(FLOATS, FLOATS), sizes, strict=True):
        for master in (False, True):
            step.add(
                torch.randn(size).to(dtype), (torch.randn(size) / 8).to(grad_dtype), master=master
            )
    return step


def exact(step: Step, i: int) -> Tensor:
    """The new parameter in float64, from the state as it is stored."""
    m, v = step.moments(i)
    beta1, beta2 = step.betas
    has_master = step.masters[i].numel() > 0
    p = (step.masters[i].view_as(step.params[i]) if has_master else step.params[i]).double()
    g = step.grads[i].double() / (1.0 if step.grad_scale is None else step.grad_scale.double())
    g = -g if step.maximize else g
    g = g if step.decoupled else g + step.weight_decay * p
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g.square()
    c1, c2 = 1 - beta1**step.step, 1 - beta2**step.step
    floor = math.sqrt((1 - beta2) * (1 - beta1**2 / beta2)) / (1 - beta1)
    d = torch.maximum(v.sqrt(), m.abs() * floor) / math.sqrt(c2) + step.eps
    p = p * (1 - step.lr * step.weight_decay) if step.decoupled else p
    return p - step.lr / c1 * m / d


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_step_is_that_of_adam(decoupled: bool, scaled: bool) -> None:
    """Within the rounding of fp32, and of the parameter's dtype."""
    step = mixed_list(weight_decay=0.1, decoupled=decoupled, maximize=scaled)
    if scaled:
        step.grad_scale = torch.tensor(0.25)
    for step.step in (1, 2, 3, 50):
        step.grads = [torch.randn_like(g.float()).to(g.dtype) for g in step.grads]
        expected = [exact(step, i) for i in range(len(step.params))]
        step.run()
        for param, master, wanted in zip(step.params, step.masters, expected, strict=True):
            bound = 4e-7 * wanted.abs() + 1e-6 * step.lr * 8
            if master.numel():
                assert ((master.view_as(param).double() - wanted).abs() <= bound).all()
                assert torch.equal(master.view_as(param).to(param.dtype), param)
            rounding = torch.finfo(param.dtype).eps / 2 * wanted.abs() + 1e-7
            assert ((param.double() - wanted).abs() <= bound + rounding).all()


@pytest.mark.parametrize("seed", range(3))
def test_state_in_8_bits_follows_exact_adam(seed: int) -> None:
    """2,000 steps down a noisy quadratic, beside torch's AdamW in float64."""
    torch.manual_seed(seed)
    n = 4096
    target, curvature = torch.randn(n), 10.0 ** torch.empty(n).uniform_(-0.5, 0.5)
    start = torch.randn(n)
    theirs = torch.nn.Parameter(start.double())
    optimizer = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.01)
    step = Step(lr=1e-2, weight_decay=0.01).add(start.clone(), torch.empty(n))
    ours = step.params[0]

    def loss(p: Tensor) -> float:
        return float((curvature * (p - target).square()).mean())

    for step.step in range(1, 2001):
        noise = torch.randn(n)
        theirs.grad = (curvature * (theirs - target + noise)).double()
        step.grads[0].copy_(curvature * (ours - target + noise))
        optimizer.step()
        step.run()
        if step.step in (10, 100, 1000, 2000):
            moved = (theirs - start).abs().mean()
            assert (ours - theirs).abs().mean() <= 0.03 * moved, step.step
    assert loss(ours) - loss(theirs) <= 0.002 * loss(start)


def test_without_a_gradient_nothing_moves() -> None:
    step = Step().add(torch.randn(3000), torch.zeros(3000), master=True)
    before = step.copy()
    for step.step in range(1, 300):
        step.run()
    assert same(step, before)
    step.grads[0][::7] = torch.randn(429)
    for step.step in range(300, 600):
        step.run()
    moved = step.params[0] != before.params[0]
    assert moved[::7].all()
    assert moved.sum() == 429


def test_the_same_bits_for_any_isa_threads_order_and_grouping(any_isa: None) -> None:
    def steps(run: Callable[[Step], object]) -> Step:
        step = mixed_list(3, weight_decay=0.1)
        step.add(torch.randn(100_000), torch.randn(100_000))
        for step.step in (1, 2, 3):
            run(step)
        return step

    def backwards(step: Step) -> None:
        lists = [list(reversed(tensors)) for tensors in step.lists]
        ops.adam8bit_step_(*lists, *step.arguments[7:])

    def one_by_one(step: Step) -> None:
        for tensors in zip(*step.lists, strict=True):
            ops.adam8bit_step_(*([t] for t in tensors), *step.arguments[7:])

    cap_isa(isa_levels()[0])
    expected = steps(Step.run)
    for level in isa_levels():
        cap_isa(level)
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for run in (Step.run, backwards, one_by_one):
                assert same(steps(run), expected), (level, threads, run)
    torch.set_flush_denormal(True)
    assert same(steps(Step.run), expected)


@pytest.mark.parametrize("blocksize", [32, 64, 4096])
def test_blocks(blocksize: int) -> None:
    step = Step(blocksize=blocksize)
    step.add(torch.randn(10_001), torch.randn(10_001)).run()
    m = step.grads[0] * torch.tensor(1 - 0.9)
    v = step.grads[0].square() * torch.tensor(1 - 0.999)
    for moment, book, codes, absmax in (
        (m, SIGNED, step.exp_avg[0], step.exp_avg_absmax[0]),
        (v, UNSIGNED, step.exp_avg_sq[0], step.exp_avg_sq_absmax[0]),
    ):
        wanted, wanted_absmax = ops.blockwise_quantize(moment, book, blocksize)
        assert torch.equal(codes, wanted)
        assert torch.equal(absmax, wanted_absmax)


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_gradient_that_is_not_finite_stays_in_its_element(dtype: torch.dtype) -> None:
    def run(bad: Sequence[float]) -> Step:
        step = Step(weight_decay=0.1)
        torch.manual_seed(1)
        step.add(torch.randn(600), torch.randn(600).to(dtype), master=True).run()
        step.step = 2
        before = step.copy()
        step.grads[0][10] = 0
        step.grads[0][500] = 0
        step.grads[0][[10, 500]] = torch.tensor(bad).to(dtype)
        step.run()
        if not all(map(math.isfinite, bad)):
            assert torch.equal(step.params[0][[10, 500]], before.params[0][[10, 500]])
            assert torch.equal(step.masters[0][[10, 500]], before.masters[0][[10, 500]])
        return step

    clean, dirty = run((0.0, 0.0)), run((math.nan, -math.inf))
    others = torch.ones(600, dtype=torch.bool)
    others[[10, 500]] = False
    assert torch.equal(clean.params[0][others], dirty.params[0][others])
    assert torch.equal(clean.masters[0][others], dirty.masters[0][others])


def test_found_inf_changes_nothing() -> None:
    step = mixed_list(found_inf=torch.tensor(1.0))
    before = step.copy()
    assert same(step.run(), before)
    step.found_inf = torch.tensor([0.0])
    assert not same(step.run(), before)


def test_step_and_lr_of_any_dtype() -> None:
    expected = Step(lr=0.125).add(torch.ones(300), torch.ones(300)).run()
    for count, lr in product(
        (torch.int64, torch.float32, torch.float64), (torch.float32, torch.float64)
    ):
        step = Step().add(torch.ones(300), torch.ones(300))
        arguments = list(step.arguments)
        arguments[9:11] = torch.ones(1, dtype=count), torch.tensor(0.125, dtype=lr)
        ops.adam8bit_step_(*arguments)
        assert same(step, expected)


# opcheck, compile


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("grad_dtype", FLOATS)
@pytest.mark.parametrize("shape", [(300,), (5, 7), (0, 4), ()])
def test_opcheck(dtype: torch.dtype, grad_dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    step = Step(blocksize=32, grad_scale=torch.ones(1), found_inf=torch.zeros(()))
    for master in (False, True):
        step.add(torch.randn(shape).to(dtype), torch.randn(shape).to(grad_dtype), master)
    opcheck(dtype, ops.adam8bit_step_, *step.arguments)
    step.masters = []
    step.grad_scale = step.found_inf = None
    opcheck(dtype, ops.adam8bit_step_, *step.arguments)


def test_opcheck_of_an_empty_list() -> None:
    torch.library.opcheck(ops.adam8bit_step_.default, Step().arguments)


def test_compiles_whole() -> None:
    def train(step: Step, count: Tensor, lr: Tensor) -> None:
        grads = [g * 2 for g in step.grads]
        count += 1
        rest = step.arguments[11:]
        ops.adam8bit_step_(step.params, grads, *step.lists[2:], SIGNED, UNSIGNED, count, lr, *rest)

    plain, compiled = mixed_list(7), mixed_list(7)
    compiled_train = torch.compile(train, fullgraph=True, backend="aot_eager")
    counts = [torch.zeros(()), torch.zeros(())]
    lr = torch.tensor(1e-2)
    for _ in range(3):
        train(plain, counts[0], lr)
        compiled_train(compiled, counts[1], lr)
    assert same(plain, compiled)


# Errors


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("position", "bad", "words"),
    [
        (0, lambda t: [t[0], t[1].double()], r"params\[1\].*float64"),
        (0, lambda t: [t[0], torch.randn(600)[::2]], r"params\[1\].*contiguous"),
        (0, lambda t: [t[0], torch.randn(20, 15)], r"grads\[1\].*300.*20, 15"),
        (1, lambda t: t[:1], r"grads .*1.* expected .*2"),
        (1, lambda t: [t[0], t[1][:299]], r"grads\[1\] has shape \[299\], expected \[300\]"),
        (1, lambda t: [t[0], torch.randn(600)[::2]], r"grads\[1\].*contiguous"),
        (1, lambda t: [t[0], t[1].long()], r"grads.*int64"),
        (2, lambda t: [t[0], t[1].char()], r"exp_avg\[1\].*int8.*uint8"),
        (2, lambda t: [t[0], t[1][:5]], r"exp_avg\[1\].* 5 .*300"),
        (3, lambda t: [t[0], t[1][:1]], r"exp_avg_absmax\[1\].* 1 .*2"),
        (3, lambda t: [t[0], t[1].half()], r"exp_avg_absmax\[1\].*float16.*float32"),
        (4, lambda t: t * 2, r"exp_avg_sq .*4.* expected .*2"),
        (5, lambda t: [t[0], t[1].double()], r"exp_avg_sq_absmax.*float64"),
        (6, lambda t: [t[0], torch.zeros(299)], r"masters\[1\].* 299 .*300"),
        (6, lambda t: [t[0], torch.zeros(300).half()], r"masters\[1\].*float16.*float32"),
        (7, lambda t: t[:255], r"codebook1.*255.*256"),
        (8, lambda t: t.half(), r"codebook2.*float16.*float32"),
        (9, lambda t: torch.ones(2), r"step.*2"),
        (9, lambda t: torch.ones((), dtype=torch.int32), r"step.*int32.*int64"),
        (10, lambda t: torch.ones(2, 1), r"lr.*2, 1"),
        (10, lambda t: t.half(), r"lr.*float16"),
        (17, lambda t: 100, "blocksize is 100, expected a power of two from 32 to 4096"),
        (18, lambda t: torch.ones(2), r"grad_scale.*2"),
        (19, lambda t: torch.ones((), dtype=torch.float64), r"found_inf.*float64.*float32"),
    ],
)
def test_a_wrong_argument_is_refused(
    position: int, bad: Callable[[Any], Any], words: str, fake: bool
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    step = Step().add(torch.randn(300), torch.randn(300))
    step.add(torch.randn(300), torch.randn(300))
    before = step.copy()
    arguments = list(step.arguments)
    arguments[position] = bad(arguments[position])
    if fake:
        mode = FakeTensorMode()
        arguments = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, arguments)
    with pytest.raises(RuntimeError, match=rf"lowbit::adam8bit_step_: ({words})"):
        ops.adam8bit_step_(*arguments)
    assert same(step, before)


@pytest.mark.parametrize(
    ("name", "bad", "words"),
    [
        ("step", 0, "step is 0, expected a whole number"),
        ("lr", -1.0, "lr is -1, expected a finite number that is not negative"),
        ("lr", math.nan, "lr is nan"),
        ("betas", (1.0, 0.999), "beta1 is 1, expected a number from 0 to less than 1"),
        ("betas", (0.9, -0.1), "beta2 is -0.1"),
        ("eps", -1e-8, "eps is -1e-08"),
        ("weight_decay", math.inf, "weight_decay is inf"),
        ("grad_scale", torch.zeros(()), "grad_scale is 0, expected a finite number above 0"),
    ],
)
def test_a_wrong_number_is_refused(name: str, bad: Any, words: str) -> None:
    step = Step().add(torch.randn(300), torch.randn(300))
    before = step.copy()
    setattr(step, name, bad)
    with pytest.raises(RuntimeError, match=f"lowbit::adam8bit_step_: {words}"):
        step.run()
    assert same(step, before)


def test_both_refuse_to_work_where_autograd_records() -> None:
    step = Step().add(torch.nn.Parameter(torch.randn(300)), torch.randn(300))
    before = step.copy()
    q, absmax = ops.int8_quantize(torch.randn(4, 8))
    with torch.enable_grad():
        with pytest.raises(RuntimeError, match=r"adam8bit_step_: .* torch\.no_grad\(\)"):
            step.run()
        with pytest.raises(RuntimeError, match=r"int8_requantize_: .* torch\.no_grad\(\)"):
            ops.int8_requantize_(q, absmax, torch.randn(4, 8))
    assert same(step, before)
    with torch.inference_mode():
        mixed_list().run()


# int8_requantize_


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("absmax_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(64, 96), (1, 1), (5, 33), (0, 4), (4, 0)])
def test_requantize(dtype: torch.dtype, absmax_dtype: torch.dtype, shape: tuple[int, int]) -> None:
    master = torch.randn(shape).to(dtype)
    q, absmax = ops.int8_quantize(torch.randn(shape), 0.0, absmax_dtype)
    opcheck(dtype, ops.int8_requantize_, q, absmax, master)
    places = q.data_ptr(), absmax.data_ptr()
    ops.int8_requantize_(q, absmax, master)
    assert (q.data_ptr(), absmax.data_ptr()) == places
    wanted, wanted_absmax = ops.int8_quantize(master, 0.0, absmax_dtype)
    assert torch.equal(q, wanted)
    assert torch.equal(absmax, wanted_absmax)
    strided = torch.randn(shape[1], shape[0]).t()
    ops.int8_requantize_(q, absmax, strided)
    assert torch.equal(q, ops.int8_quantize(strided, 0.0, absmax_dtype)[0])


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("position", "bad", "words"),
    [
        (0, lambda t: t.int(), "q .*int32"),
        (0, lambda t: t[0], "q .*2 dim|q .*two dim"),
        (0, lambda t: t.t(), "q .*contiguous|q .*strides"),
        (1, lambda t: t[:3], r"absmax has shape \[3\], expected \[4\]"),
        (1, lambda t: t.bfloat16(), "absmax .*(bfloat16|BFloat16)"),
        (2, lambda t: t[:, :7], r"master has shape \[4, 7\], expected \[4, 8\]"),
        (2, lambda t: t.double(), "master .*float64"),
    ],
)
def test_requantize_refuses(
    position: int, bad: Callable[[Tensor], Tensor], words: str, fake: bool
) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    master = torch.randn(4, 8)
    arguments = [*ops.int8_quantize(torch.randn(4, 8)), master]
    before = [t.clone() for t in arguments]
    given = list(arguments)
    given[position] = bad(given[position])
    if fake:
        mode = FakeTensorMode()
        given = [mode.from_tensor(t) for t in given]
    with pytest.raises(RuntimeError, match=rf"lowbit::int8_requantize_: ({words})"):
        ops.int8_requantize_(*given)
    assert all(map(torch.equal, arguments, before))


def test_requantize_beyond_float16_changes_nothing() -> None:
    q, absmax = ops.int8_quantize(torch.randn(4, 8), 0.0, torch.float16)
    before = q.clone(), absmax.clone()
    master = torch.randn(4, 8)
    master[3, 3] = 70000
    with pytest.raises(RuntimeError, match=r"int8_requantize_: absmax .* 65504"):
        ops.int8_requantize_(q, absmax, master)
    assert torch.equal(q, before[0])
    assert torch.equal(absmax, before[1])
