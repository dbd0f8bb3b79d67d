# SPDX-License-Identifier: MIT
"""lowbit.codebooks: the values, and that they are what their papers say they are."""

import math

import pytest
import torch
from lowbit import codebooks
from reference import same_bits
from torch import Tensor

ops = torch.ops.lowbit
NORMAL = torch.distributions.Normal(0.0, 1.0)
BLOCK = 64


@pytest.mark.parametrize("name", codebooks.BY_NAME)
def test_named_codebooks(name: str) -> None:
    table = codebooks.get(name)
    assert table.dtype == torch.float32
    assert table.shape == (16,)
    assert table.max() == 1.0
    assert {-1.0, 0.0} <= set(table.tolist())
    values = codebooks.BY_NAME[name]
    assert same_bits(codebooks.get(values), table)
    assert same_bits(codebooks.get(list(values)), table)
    assert same_bits(codebooks.get(torch.tensor(values, dtype=torch.float64)), table)


def test_any_sixteen_finite_values() -> None:
    values = [3.0, -0.0, 1e-40, *range(13)]
    assert same_bits(codebooks.get(values), torch.tensor(values))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nf5", "codebook is 'nf5', expected one of nf4, fp4, af4, bof4, int4, or 16 values"),
        (range(15), r"codebook is \[0, 1, .*\], expected 16 numbers"),
        (torch.zeros(4, 4), r"codebook is \[\[0.0, .*\], expected 16 numbers"),
        (["a"] * 16, r"codebook is \['a', .*\], expected 16 numbers"),
        ([*range(15), math.nan], r"codebook is .*nan.*, expected finite values"),
        ([*range(15), 1e39], r"codebook is .*1e\+39.*, expected finite values"),
    ],
)
def test_what_is_no_codebook(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codebooks.get(given)


def test_tables_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for name in ("nf4", "fp4"):
        assert same_bits(codebooks.get(name), functional.get_4bit_type(name, device="cpu"))
    for signed in (True, False):
        assert same_bits(codebooks.dynamic_map(signed), functional.create_dynamic_map(signed))


def test_the_dynamic_map() -> None:
    for signed in (True, False):
        table = codebooks.dynamic_map(signed)
        assert table.shape == (256,)
        assert (table.diff() > 0).all()
        assert {0.0, 1.0} <= set(table.tolist())
    assert table[0] == 0
    table = codebooks.dynamic_map()
    assert same_bits(table[:127].neg().flip(0), table[128:255])
    assert table[255] == 1


def test_nf4_holds_quantiles_of_the_normal_distribution() -> None:
    def quantiles(count: int) -> Tensor:
        levels = torch.linspace(0.5, 0.9677083, count, dtype=torch.float64)
        return NORMAL.icdf(levels)[1:]

    positive, negative = quantiles(9), -quantiles(8).flip(0)
    expected = torch.cat([negative / -negative[0], torch.zeros(1), positive / positive[-1]])
    torch.testing.assert_close(codebooks.get("nf4").double(), expected, atol=2e-7, rtol=0)


def normalized_density(power: int) -> tuple[Tensor, Tensor]:
    """A grid x over [-1, 1] and the density there of normal values that are divided by the absmax
    of their block and are not that absmax themselves, each weighted by absmax^power."""
    x = torch.linspace(-1, 1, 8001, dtype=torch.float64)
    m = torch.linspace(0.01, 8, 1600, dtype=torch.float64)
    inside = 2 * NORMAL.cdf(m) - 1
    of_absmax = BLOCK * inside ** (BLOCK - 1) * 2 * NORMAL.log_prob(m).exp()
    weights = m**power * of_absmax * m / inside
    return x, NORMAL.log_prob(m * x[:, None]).exp() @ weights


def integral(x: Tensor, f: Tensor, at: Tensor) -> Tensor:
    """Of f from -1 to each place."""
    step = x[1] - x[0]
    total = torch.cat([f.new_zeros(1), torch.cumsum((f[1:] + f[:-1]) / 2 * step, 0)])
    place = ((at - x[0]) / step).floor().long().clamp(max=len(x) - 2)
    t = (at - x[place]) / step
    return total[place] + step * (f[place] * t + (f[place + 1] - f[place]) * t * t / 2)


def test_bof4_values_are_the_centroids_of_their_bins() -> None:
    """The condition for the least squared error of the weights: each value but the fixed -1, 0 and
    1 is the mean of what is rounded to it, weighted by the squared absmax."""
    table = codebooks.get("bof4").double()
    x, density = normalized_density(power=2)
    middle = (table[1:] + table[:-1]) / 2
    mass, moment = integral(x, density, middle).diff(), integral(x, density * x, middle).diff()
    free = torch.tensor([i for i in range(1, 15) if i != 7])
    torch.testing.assert_close((moment / mass)[free - 1], table[free], atol=1e-6, rtol=0)


def test_af4_values_are_the_medians_of_their_bins() -> None:
    """The condition for the least absolute error of the normalized weights, on each half of the
    line by itself: the bins next to 0 end at 0."""
    table = codebooks.get("af4").double()
    x, density = normalized_density(power=0)
    for half in (table[:7], table[8:]):
        middle = (half[1:] + half[:-1]) / 2
        zero = torch.zeros(1, dtype=torch.float64)
        edges = torch.cat([middle, zero] if half[0] < 0 else [zero, middle])
        values = half[1:] if half[0] < 0 else half[:-1]
        at_edges, at_values = integral(x, density, edges), integral(x, density, values)
        error = (at_values - (at_edges[1:] + at_edges[:-1]) / 2) / density[len(x) // 2]
        assert error.abs().max() < 1e-6


# The floats with one sign, two exponent and one mantissa bit of the OCP formats. bitsandbytes' FP4
# has 1/192 where these have 1/12.
E2M1 = [sign * value / 6 for sign in (1, -1) for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)]

# Mean squared error of a standard normal weight in blocks of 64, times 1,000.
ERRORS = [
    ("int4", 11.60),
    (E2M1, 11.17),
    ("nf4", 8.45),
    ("bof4", 8.00),
    ("af4", 9.15),
    ("fp4", 14.86),
]


@pytest.mark.parametrize(("codebook", "expected"), ERRORS)
def test_weight_errors(codebook: str | list[float], expected: float) -> None:
    weight = torch.randn(1024, 4096)
    table = codebooks.get(codebook)
    packed, absmax = ops.lut4_quantize(weight, table, BLOCK)
    error = ops.lut4_dequantize(packed, absmax, table, weight.shape, None, BLOCK) - weight
    assert error.square().mean() * 1000 == pytest.approx(expected, abs=0.03)


def test_shared_tables_are_shared() -> None:
    device = torch.device("cpu")
    one = codebooks.shared("nf4", device)
    assert codebooks.shared("nf4", device) is one
    mine = tuple(float(i) for i in range(16))
    assert codebooks.shared(mine, device) is codebooks.shared(codebooks.key(range(16)), device)
    plus, minus = codebooks.key([0.0] * 16), codebooks.key([-0.0] * 16)
    assert not same_bits(codebooks.shared(plus, device), codebooks.shared(minus, device))
    assert codebooks.shared("nf4", torch.device("meta")).is_meta


def test_a_table_built_in_inference_mode_serves_training() -> None:
    values = tuple(i / 17 for i in range(16))
    with torch.inference_mode():
        codebooks.shared(values, torch.device("cpu"))
    assert not codebooks.shared(values, torch.device("cpu")).is_inference()


def test_a_table_of_a_tracer_is_not_kept() -> None:
    values = tuple(i / 19 for i in range(16))
    with torch._subclasses.FakeTensorMode():
        codebooks.shared(values, torch.device("cpu"))
    assert type(codebooks.shared(values, torch.device("cpu"))) is Tensor


def test_no_table_is_copied_into_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="nf4 is not on cuda:7 yet when a CUDA graph"):
        codebooks.shared("nf4", torch.device("cuda", 7))
    assert codebooks.shared("nf4", torch.device("cpu")).is_cpu
