# SPDX-License-Identifier: MIT
"""torch.ops.lowbit.*: the promise of bits, opcheck, gradients, errors, memory."""

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from conftest import cap_isa, isa_levels
from hypothesis import given
from hypothesis import strategies as st
from lowbit.ops import int8_linear, int8_matmul
from reference import same_bits
from samples import FLOATS, check_refused, check_scratch, layouts, opcheck
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.lowbit
SCALES = (torch.float32, torch.float16)
INCLUDE = Path(__file__).parents[2] / "ops/include/lowbit"


def stored(
    n: int, k: int, offset: bool = False, absmax_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor | None]:
    weight = torch.randn(n, k) / math.sqrt(max(k, 1))
    if offset:
        return ops.int8_quantize_offset(weight + 0.02, absmax_dtype)
    return *ops.int8_quantize(weight, 0.0, absmax_dtype), None


def planted(m: int, k: int, dtype: torch.dtype, kind: str) -> Tensor:
    """Activations of unit size with outliers: in shared columns, anywhere, everywhere."""
    x = torch.randn(m, k)
    if k and kind == "columns":
        x[:, torch.randperm(k)[: max(1, k // 64)]] *= 20
    elif kind == "random":
        x[torch.rand(m, k) < 0.05] *= 30
    elif kind == "all":
        x = x.sign() * 10 + x
    elif kind == "denormal":
        x *= 1e-41 if dtype != torch.float16 else 1e-7
    elif kind == "special" and k:
        for value in (math.nan, math.inf, -math.inf, 0.0, -0.0, 6.0, -6.0, 65504.0):
            x[torch.randint(m, (1,)) if m else slice(0), torch.randint(k, (1,))] = value
    return x.to(dtype)


# The promise of bits


@given(
    m=st.integers(0, 70),
    n=st.integers(1, 200),
    k=st.integers(1, 300),
    x_dtype=st.sampled_from(FLOATS),
    out_dtype=st.sampled_from((None, *FLOATS)),
    bias_dtype=st.sampled_from((None, *FLOATS)),
    absmax_dtype=st.sampled_from(SCALES),
    offset=st.booleans(),
    threshold=st.sampled_from((0.0, 6.0, 0.5)),
    kind=st.sampled_from(("none", "columns", "random", "all", "denormal", "special")),
    threads=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**31),
)
def check_linear_bits(
    m: int,
    n: int,
    k: int,
    x_dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
    absmax_dtype: torch.dtype,
    offset: bool,
    threshold: float,
    kind: str,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    weight = stored(n, k, offset, absmax_dtype)
    bias = None if bias_dtype is None else torch.randn(n).to(bias_dtype)
    x = planted(m, k, x_dtype, kind)
    y = ops.int8_linear(x, *weight, bias, threshold, out_dtype)
    assert same_bits(y, reference.linear(x, *weight, bias, threshold, out_dtype))


@pytest.mark.parametrize("level", isa_levels())
def test_linear_has_the_bits_of_the_specification(level: str, any_isa: None) -> None:
    cap_isa(level)
    check_linear_bits()


@pytest.mark.parametrize("level", isa_levels())
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 2000, 1999), (5, 67, 1025), (33, 130, 2000), (1030, 3, 5), (9, 1, 1)]
)
def test_linear_bits_at_larger_sizes(level: str, m: int, n: int, k: int, any_isa: None) -> None:
    cap_isa(level)
    weight = stored(n, k, offset=True)
    x = planted(m, k, torch.bfloat16, "columns")
    assert same_bits(
        ops.int8_linear(x, *weight, None, 6.0), reference.linear(x, *weight, None, 6.0)
    )


def check_grad_input(grad: Tensor, q: Tensor, absmax: Tensor, offset: Tensor | None) -> None:
    result = ops.int8_linear_grad_input(grad, q, absmax, offset)
    if grad.dtype != torch.bfloat16 or not {"avx512bf16", "amx"} & set(isa_levels()):
        assert same_bits(result, reference.grad_input(grad, q, absmax, offset))
        return
    # The header's exception: products of bf16 numbers. Rounding grad * s and the result to 8 bits
    # costs at most 2^-8 each, the fp32 sums far less.
    assert result.dtype == grad.dtype
    terms = [torch.from_numpy(reference.weights(q, absmax, None)).double()]
    if offset is not None:
        terms.append(offset.double()[:, None].expand(terms[0].shape))
    expected = sum(grad.double() @ term for term in terms)
    bound = (2.0**-7 + 2.0**-14) * sum(grad.double().abs() @ term.abs() for term in terms)
    assert ((result.double() - expected).abs() <= bound).all()


@given(
    m=st.integers(0, 20),
    n=st.integers(1, 600),
    k=st.integers(1, 80),
    dtype=st.sampled_from(FLOATS),
    absmax_dtype=st.sampled_from(SCALES),
    offset=st.booleans(),
    threads=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**31),
)
def check_grad_input_bits(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    absmax_dtype: torch.dtype,
    offset: bool,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    weight = stored(n, k, offset, absmax_dtype)
    check_grad_input(torch.randn(m, n).to(dtype), *weight)


@pytest.mark.parametrize("level", isa_levels())
def test_grad_input_has_the_bits_of_the_specification(level: str, any_isa: None) -> None:
    cap_isa(level)
    check_grad_input_bits()


@given(
    m=st.integers(0, 9),
    k=st.integers(1, 300),
    dtype=st.sampled_from(FLOATS),
    absmax_dtype=st.sampled_from(SCALES),
    threshold=st.sampled_from((0.0, 6.0, 0.5)),
    kind=st.sampled_from(("none", "random", "all", "denormal", "special")),
    seed=st.integers(0, 2**31),
)
def check_quantize_bits(
    m: int,
    k: int,
    dtype: torch.dtype,
    absmax_dtype: torch.dtype,
    threshold: float,
    kind: str,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = planted(m, k, dtype, kind)
    pairs = [
        (ops.int8_quantize(x, threshold, absmax_dtype), reference.quantize),
        (ops.int8_quantize_offset(x, absmax_dtype), reference.quantize_offset),
    ]
    for result, specification in pairs:
        extra = (threshold,) if specification is reference.quantize else ()
        expected = specification(x, *extra, absmax_dtype=absmax_dtype)
        assert all(same_bits(a, b) for a, b in zip(result, expected, strict=True))
        q, absmax, *offset = result
        for out in FLOATS:
            y = ops.int8_dequantize(q, absmax, *(offset or [None]), out)
            assert same_bits(y, reference.dequantize(q, absmax, *(offset or [None]), out))


@pytest.mark.parametrize("level", isa_levels())
def test_quantize_and_back_has_the_bits_of_the_specification(level: str, any_isa: None) -> None:
    cap_isa(level)
    check_quantize_bits()


def dynamic_map(signed: bool = True) -> Tensor:
    """The map of the 8-bit optimizers paper: decades of equal steps, 0 and 1."""
    values = [0.0, 1.0]
    for decade in range(7):
        steps = 2**decade if signed else 2 ** (decade + 1)
        middles = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps * 0.9 + 0.1
        values += (middles * 10.0 ** (decade - 6)).tolist()
    if signed:
        values += [-v for v in values[2:]]
    return torch.tensor(values).sort().values


def codebook_of(kind: str) -> Tensor:
    """256 values in ascending order."""
    values = {
        "dynamic": dynamic_map,
        "unsigned": lambda: dynamic_map(signed=False),
        "even": lambda: torch.linspace(-1, 1, 256),
        "random": lambda: torch.randn(256) / 2,
        "repeated": lambda: torch.randint(-3, 4, (256,)) / 3.0,
        "wide": lambda: torch.randn(256) * 10.0 ** torch.randint(-40, 38, (256,)),
    }[kind]()
    return values.sort().values


@given(
    n=st.integers(0, 3000),
    blocksize=st.sampled_from((32, 64, 128, 256, 512, 1024, 2048, 4096)),
    dtype=st.sampled_from(FLOATS),
    codebook=st.sampled_from(("dynamic", "unsigned", "even", "random", "repeated", "wide")),
    kind=st.sampled_from(("none", "random", "denormal", "special", "midpoints")),
    threads=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**31),
)
def check_blockwise_bits(
    n: int,
    blocksize: int,
    dtype: torch.dtype,
    codebook: str,
    kind: str,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    values = codebook_of(codebook)
    x = planted(1, n, dtype, kind)[0]
    if kind == "midpoints":
        x = values.unfold(0, 2, 1).mean(-1)[torch.randint(255, (n,))].to(dtype)
        x[::blocksize] = 1
    q, absmax = ops.blockwise_quantize(x, values, blocksize)
    expected = reference.blockwise_quantize(x, values, blocksize)
    assert same_bits(absmax, expected[1])
    assert same_bits(q, expected[0])
    for out in FLOATS:
        y = ops.blockwise_dequantize(q, absmax, values, out, blocksize)
        assert same_bits(y, reference.blockwise_dequantize(q, absmax, values, out, blocksize))


@pytest.mark.parametrize("level", isa_levels())
def test_blockwise_has_the_bits_of_the_specification(level: str, any_isa: None) -> None:
    cap_isa(level)
    check_blockwise_bits()


@pytest.mark.parametrize("level", isa_levels())
@pytest.mark.parametrize("kind", ["dynamic", "even", "wide"])
def test_blockwise_bits_at_larger_sizes(level: str, kind: str, any_isa: None) -> None:
    cap_isa(level)
    torch.set_num_threads(3)
    values, x = codebook_of(kind), torch.randn(300, 1001)
    q, absmax = ops.blockwise_quantize(x, values)
    expected = reference.blockwise_quantize(x, values, 256)
    assert same_bits(q, expected[0])
    assert same_bits(absmax, expected[1])
    y = ops.blockwise_dequantize(q, absmax, values)
    assert same_bits(y, reference.blockwise_dequantize(q, absmax, values, torch.float32, 256))


def test_blockwise_keeps_zeros_and_leaves_out_what_is_not_finite() -> None:
    values = dynamic_map()
    zero = int((values == 0).nonzero())
    x = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 1e-30, -2.0, 2.0])
    q, absmax = ops.blockwise_quantize(x, values)
    assert absmax.tolist() == [2.0]
    assert q.tolist() == [zero] * 6 + [0, 255]
    assert ops.blockwise_dequantize(q, absmax, values)[:6].tolist() == [0.0] * 6


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("blocksize", [64, 256, 4096])
def test_blockwise_beside_bitsandbytes(dtype: torch.dtype, signed: bool, blocksize: int) -> None:
    """The same scales, and the same values from the same codes. Its CPU quantizer looks codes up by
    the scaled value rounded to 16 bits, a step of 2**-15: a zero gets another code than 0's, and a
    value up to two steps further away than the nearest may be chosen."""
    functional = pytest.importorskip("bitsandbytes.functional")
    values = functional.create_dynamic_map(signed=signed)
    x = torch.randn(50, 1001).to(dtype)
    x = x if signed else x.abs()
    q, absmax = ops.blockwise_quantize(x, values, blocksize)
    peer_q, state = functional.quantize_blockwise(x, values, blocksize=blocksize)
    assert same_bits(absmax, state.absmax)
    y = ops.blockwise_dequantize(q, absmax, values, dtype, blocksize)
    assert same_bits(y, functional.dequantize_blockwise(q, state))
    scales = absmax.double().repeat_interleave(blocksize)[: x.numel()].view(x.shape)
    ours, peers = ((values[c.int()] - x.double() / scales).abs() for c in (q, peer_q))
    assert (ours <= peers + 1e-7).all()
    assert (peers <= ours + 2 * 2.0**-15).all()
    assert (q != peer_q).float().mean() < 0.01


@pytest.mark.parametrize("level", isa_levels())
@pytest.mark.parametrize(
    ("m", "n", "k"), [(0, 3, 4), (1, 1, 1), (3, 70, 65), (40, 33, 130), (2, 5, 131071)]
)
def test_matmul_is_exact(level: str, m: int, n: int, k: int, any_isa: None) -> None:
    cap_isa(level)
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    a[:1] = -128
    b[:1] = -128  # the largest sum there is
    expected = (a.double() @ b.double().T).to(torch.int32)  # below 2^53: exact
    assert torch.equal(ops.int8_matmul(a, b), expected)


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("m", [1, 7, 70])
def test_rows_do_not_depend_on_the_batch_threads_or_denormal_mode(m: int, offset: bool) -> None:
    weight = stored(300, 500, offset)
    x = planted(m, 500, torch.float32, "random")
    x[0] *= 1e-38
    expected = ops.int8_linear(x, *weight, None, 6.0)
    for threads, flush in itertools.product((1, 2, 3), (False, True)):
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flush)
        assert same_bits(ops.int8_linear(x, *weight, None, 6.0), expected)
    torch.set_flush_denormal(False)
    order = torch.randperm(m)
    assert same_bits(ops.int8_linear(x[order], *weight, None, 6.0), expected[order])
    for row in range(m):
        assert same_bits(ops.int8_linear(x[row], *weight, None, 6.0), expected[row])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("level", isa_levels())
def test_rows_of_a_gradient_do_not_depend_on_the_batch_or_threads(
    level: str, dtype: torch.dtype, any_isa: None
) -> None:
    cap_isa(level)
    weight = stored(300, 200, offset=True)
    grad = torch.randn(70, 300).to(dtype)
    expected = ops.int8_linear_grad_input(grad, *weight)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert same_bits(ops.int8_linear_grad_input(grad, *weight), expected)
    for row in range(0, 70, 9):
        assert same_bits(ops.int8_linear_grad_input(grad[row], *weight), expected[row])


def test_the_flush_denormal_mode_of_the_caller_is_left_alone() -> None:
    weight = stored(8, 8)
    torch.set_flush_denormal(True)
    ops.int8_linear(torch.randn(2, 8), *weight)
    assert torch.tensor([1e-40]).mul(0.5).item() == 0


@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_linear_is_close_to_float64(threshold: float, offset: bool) -> None:
    """Rounding x to codes moves each element by at most a / 254, so y by at most the sum of that
    times |w|; what fp32 adds is below K epsilon times the sum of |x w|."""
    weight = stored(64, 1000, offset)
    x = planted(50, 1000, torch.float32, "columns")
    w = reference.weights(*weight).astype("float64")
    w = torch.from_numpy(w)
    inlier = x.abs() < (threshold or math.inf)
    a = torch.where(inlier, x.abs(), 0).amax(-1, keepdim=True)
    bound = ((a / 254).double() * inlier) @ w.abs().T
    bound += 1000 * torch.finfo(torch.float32).eps * (x.abs().double() @ w.abs().T)
    error = ops.int8_linear(x, *weight, None, threshold).double() - x.double() @ w.T
    assert (error.abs() <= bound).all()


def test_a_row_with_nan_touches_no_other() -> None:
    weight = stored(16, 40)
    x = torch.randn(6, 40)
    clean = ops.int8_linear(x, *weight)
    x[2, 3] = math.nan
    x[4, 5] = math.inf
    y = ops.int8_linear(x, *weight)
    assert y[2].isnan().all()
    assert not y[4].isfinite().any()
    assert same_bits(y[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


# opcheck: schema, fake kernel, autograd, dynamic shapes


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offset", [False, True])
def test_opcheck_linear(dtype: torch.dtype, offset: bool) -> None:
    weight = stored(6, 10, offset, torch.float16 if offset else torch.float32)
    bias = torch.randn(6).to(dtype)
    for x in layouts(dtype, 10):
        opcheck(dtype, ops.int8_linear, x, *weight, bias, 6.0)
        expected = reference.linear(x.contiguous(), *weight, bias, 6.0)
        assert same_bits(ops.int8_linear(x, *weight, bias, 6.0), expected)
    for out_dtype in FLOATS:
        x = torch.randn(3, 10).to(dtype)
        opcheck(dtype, ops.int8_linear, x, *weight, None, 0.0, out_dtype=out_dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_linear_with_gradients(dtype: torch.dtype) -> None:
    weight = stored(6, 10)
    bias = torch.randn(6, requires_grad=True)
    for x in layouts(dtype, 10):
        x = x.detach().requires_grad_()
        torch.library.opcheck(ops.int8_linear.default, (x, *weight, bias, 6.0))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_grad_input(dtype: torch.dtype) -> None:
    for offset in (False, True):
        weight = stored(6, 10, offset)
        for grad in layouts(dtype, 6):
            opcheck(dtype, ops.int8_linear_grad_input, grad, *weight)
            check_grad_input(grad.contiguous(), *weight)
            whole = ops.int8_linear_grad_input(grad.contiguous(), *weight)
            assert same_bits(ops.int8_linear_grad_input(grad, *weight), whole)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_quantize_and_dequantize(dtype: torch.dtype) -> None:
    absmax_dtypes = itertools.cycle((None, *SCALES))
    for x, absmax_dtype in zip(layouts(dtype, 10), absmax_dtypes, strict=False):
        opcheck(dtype, ops.int8_quantize, x, 6.0, absmax_dtype)
        opcheck(dtype, ops.int8_quantize_offset, x, absmax_dtype)
        q, absmax, offset = ops.int8_quantize_offset(x, absmax_dtype)
        assert q.shape == x.shape
        assert absmax.shape == offset.shape == x.shape[:-1]
        assert absmax.dtype == offset.dtype == (absmax_dtype or torch.float32)
        opcheck(dtype, ops.int8_dequantize, q, absmax, offset, dtype)
    opcheck(dtype, ops.int8_dequantize, q, absmax)


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_blockwise(dtype: torch.dtype) -> None:
    values = dynamic_map()
    for x in (torch.tensor(-3.0, dtype=dtype), torch.empty(0, dtype=dtype), *layouts(dtype, 101)):
        opcheck(dtype, ops.blockwise_quantize, x, values, 32)
        q, absmax = ops.blockwise_quantize(x, values, 32)
        assert q.shape == x.shape
        assert absmax.shape == (-(-x.numel() // 32),)
        expected = reference.blockwise_quantize(x.contiguous(), values, 32)
        assert same_bits(q, expected[0])
        assert same_bits(absmax, expected[1])
        opcheck(dtype, ops.blockwise_dequantize, q, absmax, values, dtype, blocksize=32)
    q = torch.randint(256, (30, 40), dtype=torch.uint8).t()
    absmax = torch.rand(5)
    opcheck(dtype, ops.blockwise_dequantize, q, absmax, values)
    whole = ops.blockwise_dequantize(q.contiguous(), absmax, values)
    assert same_bits(ops.blockwise_dequantize(q, absmax, values), whole)


def test_blockwise_compiles_into_one_graph() -> None:
    values = dynamic_map()

    def round_trip(x: Tensor) -> Tensor:
        q, absmax = ops.blockwise_quantize(x * 2, values, 64)
        return ops.blockwise_dequantize(q, absmax, values, x.dtype, 64) / 2

    compiled = torch.compile(round_trip, fullgraph=True, dynamic=True)
    for shape in ((7, 33), (5, 1000), (1, 3)):
        x = torch.randn(shape)
        assert same_bits(compiled(x), round_trip(x))


def test_opcheck_matmul() -> None:
    b = torch.randint(-128, 128, (6, 10), dtype=torch.int8)
    for x in layouts(torch.float32, 10):
        a = (x * 50).to(torch.int8)
        torch.library.opcheck(ops.int8_matmul.default, (a, b))
        assert torch.equal(ops.int8_matmul(a, b), (a.double() @ b.double().T).to(torch.int32))


# Gradients


@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("bias_dtype", FLOATS)
def test_gradients_are_those_of_the_float_layer(
    x_dtype: torch.dtype, bias_dtype: torch.dtype
) -> None:
    q, absmax, _ = stored(12, 20)
    x = torch.randn(2, 3, 20, dtype=x_dtype, requires_grad=True)
    bias = torch.randn(12, dtype=bias_dtype, requires_grad=True)
    grad = torch.randn(2, 3, 12)
    y = ops.int8_linear(x, q, absmax, None, bias, 6.0, torch.float32)
    y.backward(grad)
    w = torch.from_numpy(reference.weights(q, absmax, None))
    assert x.grad.dtype == x_dtype
    assert bias.grad.dtype == bias_dtype
    assert same_bits(x.grad, reference.grad_input(grad, q, absmax).to(x_dtype))
    torch.testing.assert_close(x.grad, (grad @ w).to(x_dtype))
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)).to(bias_dtype))


def test_gradients_of_one_row_and_of_none() -> None:
    q, absmax, _ = stored(12, 20)
    for shape in ((20,), (0, 20)):
        x = torch.randn(shape, requires_grad=True)
        bias = torch.randn(12, requires_grad=True)
        ops.int8_linear(x, q, absmax, None, bias).sum().backward()
        assert x.grad.shape == shape
        assert torch.equal(bias.grad, torch.full((12,), float(len(shape) == 1)))


def test_what_has_no_gradient_says_so() -> None:
    q, absmax, _ = stored(4, 6)
    absmax.requires_grad_()
    with pytest.raises(NotImplementedError, match="int8_dequantize has no gradient"):
        ops.int8_dequantize(q, absmax).sum().backward()
    w = torch.randn(4, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="int8_quantize has no gradient"):
        ops.int8_quantize(w)[1].sum().backward()
    with pytest.raises(NotImplementedError, match="int8_quantize_offset has no gradient"):
        ops.int8_quantize_offset(w)[2].sum().backward()
    with pytest.raises(NotImplementedError, match="blockwise_quantize has no gradient"):
        ops.blockwise_quantize(w, dynamic_map())[1].sum().backward()
    q256, scales = ops.blockwise_quantize(w.detach(), dynamic_map())
    with pytest.raises(NotImplementedError, match="blockwise_dequantize has no gradient"):
        ops.blockwise_dequantize(q256, scales.requires_grad_(), dynamic_map()).sum().backward()
    x = torch.randn(2, 6, requires_grad=True)
    y = ops.int8_linear(x, q, absmax.detach())
    (grad,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


# Errors


def bad_calls() -> dict[str, tuple[str, tuple[Any, ...], list[str]]]:
    """name: operator, arguments, what the message must name."""
    x, w, s = torch.randn(3, 8), torch.zeros(4, 8, dtype=torch.int8), torch.ones(4)
    t = torch.tensor
    linear = {
        "x is double": ((x.double(), w, s), ["x", "float64|Double"]),
        "x is int": ((x.to(torch.int32), w, s), ["x", "int32"]),
        "x is a scalar": ((t(1.0), w, s), ["x"]),
        "weight is float": ((x, w.float(), s), ["weight", "float32", "int8"]),
        "weight is 1-D": ((x, w[0], s), ["weight"]),
        "weight is strided": (
            (x, torch.zeros(8, 4, dtype=torch.int8).t(), s),
            ["weight", "contig"],
        ),
        "K differs": ((x[:, :7], w, s), ["weight", "7", "8"]),
        "absmax is short": ((x, w, s[:3]), ["absmax", "3", "4"]),
        "absmax is 2-D": ((x, w, s[:, None]), ["absmax"]),
        "absmax is bf16": ((x, w, s.bfloat16()), ["absmax", "bfloat16"]),
        "absmax is strided": ((x, w, torch.ones(8)[::2]), ["absmax"]),
        "offset is of another dtype": ((x, w, s, s.half()), ["offset", "float16"]),
        "offset is long": ((x, w, s, torch.ones(5)), ["offset", "5", "4"]),
        "bias is int": ((x, w, s, None, s.to(torch.int32)), ["bias", "int32"]),
        "bias is long": ((x, w, s, None, torch.ones(5)), ["bias", "5", "4"]),
        "threshold is negative": ((x, w, s, None, None, -1.0), ["threshold", "-1"]),
        "threshold is NaN": ((x, w, s, None, None, math.nan), ["threshold", "nan"]),
        "threshold is infinite": ((x, w, s, None, None, math.inf), ["threshold", "inf"]),
        "out_dtype is double": ((x, w, s, None, None, 0.0, torch.float64), ["float64|Double"]),
        "K is too large": (
            (torch.ones(1, 133145), torch.zeros(1, 133145, dtype=torch.int8), torch.ones(1)),
            ["133145", "133144"],
        ),
    }
    grad = torch.randn(3, 4)
    others = {
        "grad_input: grad_output is double": (
            "int8_linear_grad_input",
            (grad.double(), w, s),
            ["grad_output", "float64|Double"],
        ),
        "grad_input: N differs": ("int8_linear_grad_input", (x, w, s), ["weight", "8", "4"]),
        "quantize: x is int8": ("int8_quantize", (w,), ["x", "int8"]),
        "quantize: x is a scalar": ("int8_quantize", (t(1.0),), ["x"]),
        "quantize: threshold is negative": ("int8_quantize", (x, -2.0), ["threshold", "-2"]),
        "quantize: absmax is bf16": ("int8_quantize", (x, 0.0, torch.bfloat16), ["bfloat16"]),
        "quantize_offset: weight is double": (
            "int8_quantize_offset",
            (x.double(),),
            ["weight", "float64|Double"],
        ),
        "dequantize: q is float": ("int8_dequantize", (w.float(), s), ["q", "float32", "int8"]),
        "dequantize: absmax is short": ("int8_dequantize", (w, s[:3]), ["absmax", "3", "4"]),
        "dequantize: dtype is int": ("int8_dequantize", (w, s, None, torch.int32), ["int32"]),
        "matmul: a is float": ("int8_matmul", (x, w), ["a", "float32"]),
        "matmul: b is float": ("int8_matmul", (w, x), ["b", "float32"]),
        "matmul: K differs": ("int8_matmul", (w[:, :7], w), ["b", "7", "8"]),
        "matmul: b is strided": (
            "int8_matmul",
            (w, torch.zeros(8, 4, dtype=torch.int8).t()),
            ["b", "contig"],
        ),
        "matmul: K is too large": (
            "int8_matmul",
            (torch.zeros(1, 131072, dtype=torch.int8), torch.zeros(1, 131072, dtype=torch.int8)),
            ["131072", "131071"],
        ),
    }
    c, q = dynamic_map(), torch.zeros(3, 100, dtype=torch.uint8)
    wide, scales = torch.randn(3, 100), torch.ones(2)
    quantize = {
        "x is uint8": ((q, c), ["x", "uint8"]),
        "codebook is half": ((wide, c.half()), ["codebook", "float16", "float32"]),
        "codebook is short": ((wide, c[:255]), ["codebook", "255", "256"]),
        "codebook is 2-D": ((wide, c[None]), ["codebook"]),
        "codebook is strided": ((wide, torch.zeros(512)[::2]), ["codebook", "contig"]),
        "blocksize is odd": ((wide, c, 33), ["blocksize", "33", "power of two from 32 to 4096"]),
        "blocksize is 0": ((wide, c, 0), ["blocksize", "0", "4096"]),
        "blocksize is negative": ((wide, c, -64), ["blocksize", "-64", "4096"]),
        "blocksize is large": ((wide, c, 8192), ["blocksize", "8192", "4096"]),
    }
    dequantize = {
        "q is int8": ((q.to(torch.int8), scales, c), ["q", "int8", "uint8"]),
        "absmax is half": ((q, scales.half(), c), ["absmax", "float16", "float32"]),
        "absmax is short": ((q, scales[:1], c), ["absmax", "1", "2"]),
        "absmax is 2-D": ((q, scales[None], c), ["absmax"]),
        "absmax is strided": ((q, torch.ones(4)[::2], c), ["absmax", "contig"]),
        "codebook is long": ((q, scales, torch.zeros(257)), ["codebook", "257", "256"]),
        "dtype is int": ((q, scales, c, torch.int32), ["dtype", "int32"]),
        "blocksize is 48": ((q, scales, c, None, 48), ["blocksize", "48", "4096"]),
    }
    groups = {
        "int8_linear": linear,
        "blockwise_quantize": quantize,
        "blockwise_dequantize": dequantize,
    }
    return {
        **{
            f"{op}: {name}": (op, *call)
            for op, calls in groups.items()
            for name, call in calls.items()
        },
        **others,
    }


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_refused_by_name(name: str, fake: bool) -> None:
    check_refused(*bad_calls()[name], fake=fake)


def test_tensors_of_another_device_are_refused() -> None:
    x, w, s = torch.randn(3, 8), torch.zeros(4, 8, dtype=torch.int8), torch.ones(4)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(value) for value in (x, w)]
        with pytest.raises(RuntimeError, match=r"absmax is on meta, expected cpu"):
            ops.int8_linear(*fakes, torch.empty(4, device="meta"))
    with pytest.raises(NotImplementedError):
        ops.int8_linear(x.to_sparse(), w, s)


def test_absmax_beyond_float16_is_an_error() -> None:
    x = torch.tensor([[1.0, 7e4]])
    for call in (
        lambda: ops.int8_quantize(x, 0.0, torch.float16),
        lambda: ops.int8_quantize_offset(x * 2, torch.float16),
    ):
        with pytest.raises(RuntimeError, match=r"float16|65504"):
            call()


def test_a_codebook_out_of_order_is_an_error() -> None:
    values = dynamic_map()
    q, absmax = ops.blockwise_quantize(torch.ones(3), values)
    for bad, words in ((values.flip(0), "ascending"), (values * math.inf, "finite")):
        with pytest.raises(RuntimeError, match=rf"blockwise_quantize: codebook\[\d+\].*{words}"):
            ops.blockwise_quantize(torch.ones(3), bad)
        with pytest.raises(RuntimeError, match=rf"blockwise_dequantize: codebook\[\d+\].*{words}"):
            ops.blockwise_dequantize(q, absmax, bad)


def test_limits_are_those_of_the_c_headers() -> None:
    for header, name, value in (
        ("int8_linear.h", "LOWBIT_INT8_LINEAR_MAX_K", int8_linear.MAX_K),
        ("int8_matmul.h", "LOWBIT_INT8_MATMUL_MAX_K", int8_matmul.MAX_K),
    ):
        assert re.search(rf"#define {name} {value}\b", (INCLUDE / header).read_text())


# Memory


def test_scratch_memory_is_bounded() -> None:
    check_scratch(
        """
        weight, absmax = torch.ones(n, k, dtype=torch.int8), torch.ones(n)
        for m in (4, 128):
            x = torch.randn(m, k)
            x[:, :8] = 20
            measure(m, lambda: op.int8_linear(x, weight, absmax, absmax, None, 6.0))
            measure(m, lambda: op.int8_linear_grad_input(x, weight, absmax, absmax))
        """,
        calls=4,
    )
