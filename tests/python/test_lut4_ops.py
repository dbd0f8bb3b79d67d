# SPDX-License-Identifier: MIT
"""torch.ops.lowbit.lut4_*: the stored form, the accuracy promise, opcheck, gradients, errors."""

import math
from typing import Any

import pytest
import reference
import torch
from conftest import cap_isa, isa_levels
from hypothesis import given
from hypothesis import strategies as st
from lowbit import codebooks
from reference import same_bits
from samples import FLOATS, check_refused, check_scratch, layouts, opcheck
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

ops = torch.ops.lowbit
BLOCKSIZES = [32, 64, 128, 256, 512, 1024, 2048, 4096]
DYNAMIC = codebooks.dynamic_map()


def any_table() -> Tensor:
    """Unordered, with equal values and both zeros."""
    table = torch.randn(16)
    table[3], table[9], table[12] = table[7], 0.0, -0.0
    return table


def table_of(name: str) -> Tensor:
    return any_table() if name == "any" else codebooks.get(name)


def stored(
    n: int, k: int, table: Tensor, blocksize: int, nested: bool
) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """packed, absmax, and nested_absmax, nested_codebook, nested_offset of a random weight."""
    packed, absmax = ops.lut4_quantize(torch.randn(n, k) / math.sqrt(k), table, blocksize)
    if not nested:
        return packed, absmax, (None, None, None)
    offset = absmax.mean() if absmax.numel() else torch.zeros(())
    codes, nested_absmax = nearest_blockwise(absmax - offset)
    return packed, codes, (nested_absmax, DYNAMIC, offset)


def nearest_blockwise(x: Tensor) -> tuple[Tensor, Tensor]:
    groups = [x.flatten()[i : i + 256] for i in range(0, x.numel(), 256)]
    absmax = torch.tensor([float(group.abs().max()) for group in groups])
    scaled = [g / a if a else g for g, a in zip(groups, absmax, strict=True)]
    codes = [(g[:, None] - DYNAMIC).abs().argmin(1) for g in scaled]
    flat = torch.cat(codes) if codes else torch.zeros(0)
    return flat.to(torch.uint8).view(x.shape), absmax


# The stored form


def weights(n: int, k: int, dtype: torch.dtype, kind: str) -> Tensor:
    w = torch.randn(n, k)
    if kind == "scales":
        w *= 10.0 ** torch.randint(-30, 30, (n, k))
    elif kind == "denormal":
        w *= 1e-41
    elif kind == "zeros":
        w[torch.rand(n, k) < 0.9] = 0
    elif kind == "special":
        for value in (math.nan, math.inf, -math.inf, -0.0, 3e38, -3e38, 2.0**-126, 2.0**-127):
            w[torch.randint(n, (1,)), torch.randint(k, (1,))] = value
    return w.to(dtype)


@given(
    n=st.integers(1, 40),
    k=st.integers(1, 200),
    dtype=st.sampled_from(FLOATS),
    blocksize=st.sampled_from(BLOCKSIZES),
    name=st.sampled_from((*codebooks.BY_NAME, "any")),
    kind=st.sampled_from(("normal", "scales", "denormal", "zeros", "special")),
    threads=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**31),
)
def check_quantize_bits(
    n: int,
    k: int,
    dtype: torch.dtype,
    blocksize: int,
    name: str,
    kind: str,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    table = table_of(name)
    weight = weights(n, k, dtype, kind)
    packed, absmax = ops.lut4_quantize(weight, table, blocksize)
    expected_packed, expected_absmax = reference.lut4_quantize(weight, table, blocksize)
    whole = k % blocksize == 0
    assert packed.shape == ((n, k // 2) if whole else expected_packed.shape)
    assert absmax.shape == ((n, k // blocksize) if whole else expected_absmax.shape)
    assert same_bits(packed.flatten(), expected_packed)
    assert same_bits(absmax.flatten(), expected_absmax)
    w = ops.lut4_dequantize(packed, absmax, table, (n, k), dtype, blocksize)
    assert same_bits(w, reference.lut4_dequantize(packed, absmax, table, (n, k), dtype, blocksize))


@pytest.mark.parametrize("level", isa_levels())
def test_the_stored_form_has_the_bits_of_the_specification(level: str, any_isa: None) -> None:
    cap_isa(level)
    check_quantize_bits()


@pytest.mark.parametrize("level", isa_levels())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "k"), [(70, 512), (67, 515), (3, 1), (1, 1)])
def test_nested_scales_have_the_bits_of_the_specification(
    level: str, dtype: torch.dtype, n: int, k: int, any_isa: None
) -> None:
    """(70, 512) has 560 blocks of 64: three nested groups."""
    cap_isa(level)
    table = codebooks.get("nf4")
    packed, absmax, nested = stored(n, k, table, 64, nested=True)
    assert same_bits(
        ops.lut4_dequantize(packed, absmax, table, (n, k), dtype, 64, *nested),
        reference.lut4_dequantize(packed, absmax, table, (n, k), dtype, 64, *nested),
    )


@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 7), (2, 0), (0,), (0, 64)])
def test_weights_of_any_shape(shape: tuple[int, ...]) -> None:
    table = codebooks.get("nf4")
    weight = torch.randn(shape)
    packed, absmax = ops.lut4_quantize(weight, table, 32)
    assert same_bits(packed.flatten(), reference.lut4_quantize(weight, table, 32)[0])
    w = ops.lut4_dequantize(packed, absmax, table, shape, None, 32)
    assert same_bits(w, reference.lut4_dequantize(packed, absmax, table, shape, blocksize=32))


def test_strided_weights() -> None:
    table = codebooks.get("nf4")
    whole = torch.randn(128, 96)
    for view in (whole.t(), whole[:, ::2], whole[3:, 5:], whole[:1].expand(9, 96)):
        for got, expected in zip(
            ops.lut4_quantize(view, table, 32),
            ops.lut4_quantize(view.contiguous(), table, 32),
            strict=True,
        ):
            assert same_bits(got, expected)


def test_a_tie_goes_to_the_smaller_value() -> None:
    table = torch.arange(16.0) - 8  # midpoints are halves, and v = w / 8 * 8 is exact
    weight = torch.full((1, 32), -8.0)
    weight[0, :16] = torch.arange(16) - 7.5
    packed, absmax = ops.lut4_quantize(weight / 8, table / 8, 32)
    assert absmax.item() == 1
    codes = torch.stack([packed[0] >> 4, packed[0] & 15], 1).flatten()[:16]
    assert codes.tolist() == list(range(16))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("blocksize", [32, 64, 128, 512, 4096])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 256), (33, 100), (48, 77), (7, 9)])
def test_the_bytes_of_bitsandbytes(
    quant_type: str, blocksize: int, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(shape).to(dtype)
    weight[0, :70] = 0  # in the smaller blocks, whole blocks of zeros
    theirs, state = functional.quantize_4bit(
        weight, blocksize=blocksize, quant_type=quant_type, quant_storage=torch.uint8
    )
    table = codebooks.get(quant_type)
    packed, absmax = ops.lut4_quantize(weight, table, blocksize)
    if quant_type == "fp4":  # code 8 is a zero too, which of them they take depends on the backend
        high, low = (torch.where(half == 8, 0, half) for half in (theirs >> 4, theirs & 15))
        theirs = high << 4 | low
    assert torch.equal(packed.flatten(), theirs.flatten())
    largest = absmax.flatten()
    zero = largest == 0
    assert same_bits(largest[~zero], state.absmax[~zero])
    assert (state.absmax[zero] <= 1e-38).all()  # they keep zeros above 0 in the last block
    if shape[1] % blocksize == 0:  # else they take the scales of other blocks with AVX-512
        w = ops.lut4_dequantize(packed, absmax, table, shape, dtype, blocksize)
        assert torch.equal(w, functional.dequantize_4bit(theirs, state))


# lut4_linear


def error(y: Tensor, exact: Tensor) -> float:
    return (y.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("level", isa_levels())
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 4, 16, 64])
@pytest.mark.parametrize(("name", "blocksize", "k"), [("nf4", 64, 512), ("any", 128, 333)])
def test_accuracy_promise(
    level: str, dtype: torch.dtype, m: int, name: str, blocksize: int, k: int, any_isa: None
) -> None:
    """Against float64 over 64 x 1,024 outputs, beside torch's linear on the dequantized weight."""
    cap_isa(level)
    rows, n = 64, 1024
    table = table_of(name)
    packed, absmax, nested = stored(n, k, table, blocksize, nested=True)
    x = torch.randn(rows, k).to(dtype)
    bias = torch.randn(n).to(dtype)
    stored_weight = (packed, absmax, table, (n, k))
    w = ops.lut4_dequantize(*stored_weight, torch.float32, blocksize, *nested)
    exact = x.double() @ w.double().T + bias.double()
    rounded = ops.lut4_dequantize(*stored_weight, dtype, blocksize, *nested)
    blocks = x.split(m)
    theirs = torch.cat([torch.nn.functional.linear(block, rounded, bias) for block in blocks])
    ours = torch.cat(
        [ops.lut4_linear(b, packed, absmax, table, bias, blocksize, *nested) for b in blocks]
    )
    assert ours.numel() >= 65536
    factor = 2 if dtype == torch.float32 else 1.01
    assert error(ours, exact) <= factor * error(theirs, exact)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("m", [1, 3, 70])
@pytest.mark.parametrize("k", [512, 333])
def test_the_same_bits_for_any_threads_and_row_order(
    dtype: torch.dtype, m: int, k: int, any_isa: None
) -> None:
    table = codebooks.get("nf4")
    packed, absmax, nested = stored(300, k, table, 64, nested=True)
    x = torch.randn(m, k).to(dtype)
    order = torch.randperm(m)
    grad = torch.randn(m, 300).to(dtype)

    def forward(x: Tensor) -> Tensor:
        return ops.lut4_linear(x, packed, absmax, table, None, 64, *nested)

    def backward(grad: Tensor) -> Tensor:
        return ops.lut4_linear_grad_input(grad, packed, absmax, table, k, 64, *nested)

    for level in isa_levels():
        cap_isa(level)
        torch.set_num_threads(1)
        y, g = forward(x), backward(grad)
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert same_bits(forward(x), y)
            assert same_bits(forward(x[order]), y[order])
            assert same_bits(backward(grad), g)
            assert same_bits(backward(grad[order]), g[order])


def test_flush_denormal_changes_nothing() -> None:
    table = codebooks.get("nf4")
    packed, absmax, nested = stored(40, 96, table, 32, nested=True)
    x = torch.randn(5, 96) * 1e-39
    y = ops.lut4_linear(x, packed, absmax, table, None, 32, *nested)
    torch.set_flush_denormal(True)
    assert same_bits(ops.lut4_linear(x, packed, absmax, table, None, 32, *nested), y)


def bound(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the error of x W^T: one rounding of each w (and x) to 16 bits, fp32 sums, one rounding of
    the result."""
    step = torch.finfo(dtype).eps
    terms = x.double().abs() @ w.double().abs().T
    return (step + 2 * (w.shape[1] + 1) * torch.finfo(torch.float32).eps) * terms


@given(
    m=st.integers(0, 40),
    n=st.integers(1, 70),
    k=st.integers(1, 300),
    x_dtype=st.sampled_from(FLOATS),
    out_dtype=st.sampled_from((None, *FLOATS)),
    bias_dtype=st.sampled_from((None, *FLOATS)),
    blocksize=st.sampled_from(BLOCKSIZES),
    name=st.sampled_from((*codebooks.BY_NAME, "any")),
    nested=st.booleans(),
    threads=st.sampled_from((1, 2, 3)),
    seed=st.integers(0, 2**31),
)
def check_linear(
    m: int,
    n: int,
    k: int,
    x_dtype: torch.dtype,
    out_dtype: torch.dtype | None,
    bias_dtype: torch.dtype | None,
    blocksize: int,
    name: str,
    nested: bool,
    threads: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    n += n % 2 if k == 1 else 0  # the packed size does not tell an odd N from the next even one
    table = table_of(name)
    packed, absmax, nested_parts = stored(n, k, table, blocksize, nested)
    w = reference.lut4_dequantize(
        packed, absmax, table, (n, k), torch.float32, blocksize, *nested_parts
    )
    bias = None if bias_dtype is None else torch.randn(n).to(bias_dtype)
    x = torch.randn(m, k).to(x_dtype)
    y = ops.lut4_linear(x, packed, absmax, table, bias, blocksize, *nested_parts, out_dtype)
    assert y.dtype == (out_dtype or x_dtype)
    exact = x.double() @ w.double().T + (0 if bias is None else bias.double())
    half = torch.finfo(y.dtype)
    allowed = bound(x, w, x_dtype) + exact.abs() * half.eps + half.tiny
    assert ((y.double() - exact).abs() <= allowed).all()

    grad = torch.randn(m, n).to(x_dtype)
    g = ops.lut4_linear_grad_input(grad, packed, absmax, table, k, blocksize, *nested_parts)
    assert g.dtype == x_dtype
    exact = grad.double() @ w.double()
    half = torch.finfo(x_dtype)
    allowed = bound(grad, w.T, x_dtype) + exact.abs() * half.eps + half.tiny
    assert ((g.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("level", isa_levels())
def test_linear_is_the_product_with_the_stored_weight(level: str, any_isa: None) -> None:
    cap_isa(level)
    check_linear()


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_stay_in_their_row(dtype: torch.dtype) -> None:
    table = codebooks.get("nf4")
    packed, absmax, _ = stored(16, 64, table, 64, nested=False)
    x = torch.randn(6, 64).to(dtype)
    clean = ops.lut4_linear(x, packed, absmax, table)
    x[2, 3], x[4, 5] = math.nan, math.inf
    y = ops.lut4_linear(x, packed, absmax, table)
    assert y[2].isnan().all()
    assert not y[4].isfinite().any()
    assert same_bits(y[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])


# opcheck: schema, fake kernel, autograd, dynamic shapes. 10 columns: blocks straddle rows.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("nested", [False, True])
def test_opcheck_linear(dtype: torch.dtype, nested: bool) -> None:
    table = codebooks.get("nf4")
    packed, absmax, parts = stored(6, 10, table, 32, nested)
    bias = torch.randn(6).to(dtype)
    whole = ops.lut4_linear
    for x in layouts(dtype, 10):
        opcheck(dtype, whole, x, packed, absmax, table, bias, 32, *parts)
        y = whole(x.contiguous(), packed, absmax, table, bias, 32, *parts)
        assert same_bits(whole(x, packed, absmax, table, bias, 32, *parts), y)
    for out_dtype in FLOATS:
        opcheck(dtype, whole, x, packed, absmax, table, None, 32, *parts, out_dtype=out_dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "k", "nested"), [(6, 64, False), (5, 7, True), (2, 1, True)])
def test_opcheck_linear_with_gradients(dtype: torch.dtype, n: int, k: int, nested: bool) -> None:
    table = codebooks.get("fp4")
    bias = torch.randn(n, requires_grad=True)
    packed, absmax, parts = stored(n, k, table, 32, nested)
    for x in layouts(dtype, k)[:3]:
        x = x.detach().requires_grad_()
        torch.library.opcheck(ops.lut4_linear.default, (x, packed, absmax, table, bias, 32, *parts))


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck_grad_input(dtype: torch.dtype) -> None:
    table = codebooks.get("nf4")
    for nested in (False, True):
        packed, absmax, parts = stored(6, 10, table, 32, nested)
        for grad in layouts(dtype, 6):
            arguments = (packed, absmax, table, 10, 32, *parts)
            opcheck(dtype, ops.lut4_linear_grad_input, grad, *arguments)
            whole = ops.lut4_linear_grad_input(grad.contiguous(), *arguments)
            assert same_bits(ops.lut4_linear_grad_input(grad, *arguments), whole)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (9,), (4, 64), (3, 33), (0, 64), (0, 5), (2, 3, 5)])
def test_opcheck_quantize_and_dequantize(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    table = codebooks.get("nf4")
    weight = torch.randn(shape).to(dtype)
    opcheck(dtype, ops.lut4_quantize, weight, table, 32)
    packed, absmax = ops.lut4_quantize(weight, table, 32)
    opcheck(dtype, ops.lut4_dequantize, packed, absmax, table, shape, dtype, 32)
    codes, *nested = *nearest_blockwise(absmax), DYNAMIC, torch.zeros(1)
    opcheck(dtype, ops.lut4_dequantize, packed, codes, table, shape, dtype, 32, *nested)


# Gradients


@pytest.mark.parametrize("x_dtype", FLOATS)
@pytest.mark.parametrize("bias_dtype", FLOATS)
@pytest.mark.parametrize("nested", [False, True])
def test_gradients_are_those_of_the_float_layer(
    x_dtype: torch.dtype, bias_dtype: torch.dtype, nested: bool
) -> None:
    table = codebooks.get("nf4")
    packed, absmax, parts = stored(12, 20, table, 64, nested)
    x = torch.randn(2, 3, 20, dtype=x_dtype, requires_grad=True)
    bias = torch.randn(12, dtype=bias_dtype, requires_grad=True)
    grad = torch.randn(2, 3, 12)
    y = ops.lut4_linear(x, packed, absmax, table, bias, 64, *parts, torch.float32)
    y.backward(grad)
    w = ops.lut4_dequantize(packed, absmax, table, (12, 20), None, 64, *parts)
    assert x.grad.dtype == x_dtype
    assert bias.grad.dtype == bias_dtype
    torch.testing.assert_close(x.grad, (grad @ w).to(x_dtype))
    torch.testing.assert_close(bias.grad, grad.sum((0, 1)).to(bias_dtype))


def test_gradients_of_one_row_and_of_none() -> None:
    table = codebooks.get("nf4")
    packed, absmax, _ = stored(12, 20, table, 64, nested=False)
    for shape in ((20,), (0, 20)):
        x = torch.randn(shape, requires_grad=True)
        bias = torch.randn(12, requires_grad=True)
        ops.lut4_linear(x, packed, absmax, table, bias).sum().backward()
        assert x.grad.shape == shape
        assert torch.equal(bias.grad, torch.full((12,), float(len(shape) == 1)))


def test_what_has_no_gradient_says_so() -> None:
    table = codebooks.get("nf4")
    w = torch.randn(4, 6, requires_grad=True)
    with pytest.raises(NotImplementedError, match="lut4_quantize has no gradient"):
        ops.lut4_quantize(w, table)[1].sum().backward()
    packed, absmax, _ = stored(4, 6, table, 64, nested=False)
    x = torch.randn(2, 6, requires_grad=True)
    y = ops.lut4_linear(x, packed, absmax, table)
    (grad,) = torch.autograd.grad((y * y).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()
    absmax.requires_grad_()
    with pytest.raises(NotImplementedError, match="lut4_dequantize has no gradient"):
        ops.lut4_dequantize(packed, absmax, table, (4, 6)).sum().backward()


# Errors


def bad_calls() -> dict[str, tuple[str, tuple[Any, ...], list[str]]]:
    """name: operator, arguments, what the message must name."""
    t = torch.tensor
    x, p, s, c = torch.randn(3, 8), torch.zeros(16, dtype=torch.uint8), torch.ones(1), t([0.0] * 16)
    q, n, d, o = torch.zeros(1, dtype=torch.uint8), torch.ones(1), DYNAMIC, t(0.0)
    weight = {  # what comes after packed, absmax, codebook: blocksize and nested parts
        "packed is int8": ((p.to(torch.int8), s, c, 64), ["packed", "int8", "uint8"]),
        "packed is short": ((p[:15], s, c, 64), ["packed", "15"]),
        "packed is strided": (
            (torch.zeros(32, dtype=torch.uint8)[::2], s, c, 64),
            ["packed", "contig"],
        ),
        "absmax is half": ((p, s.half(), c, 64), ["absmax", "float16", "float32"]),
        "absmax is long": ((p, torch.ones(2), c, 64), ["absmax", "2", "1"]),
        "codebook is long": ((p, s, torch.ones(17), 64), ["codebook", "17", "16"]),
        "codebook is double": ((p, s, c.double(), 64), ["codebook", "float64|Double"]),
        "codebook is strided": ((p, s, torch.ones(32)[::2], 64), ["codebook", "contig"]),
        "blocksize is 48": ((p, s, c, 48), ["blocksize", "48", "power of two", "32", "4096"]),
        "blocksize is 16": ((p, s, c, 16), ["blocksize", "16"]),
        "blocksize is 8192": ((p, s, c, 8192), ["blocksize", "8192"]),
        "blocksize is 0": ((p, s, c, 0), ["blocksize", "0"]),
        "blocksize is negative": ((p, s, c, -64), ["blocksize", "-64"]),
        "nested_absmax is missing": ((p, q, c, 64, None, d, o), ["nested_absmax", "null"]),
        "nested_codebook is missing": ((p, q, c, 64, n, None, o), ["nested_codebook", "null"]),
        "nested_offset is missing": ((p, q, c, 64, n, d, None), ["nested_offset", "null"]),
        "nested parts of a float absmax": ((p, s, c, 64, n, d, o), ["nested_absmax", "given"]),
        "nested_absmax is half": ((p, q, c, 64, n.half(), d, o), ["nested_absmax", "float16"]),
        "nested_absmax is long": ((p, q, c, 64, torch.ones(2), d, o), ["nested_absmax", "2", "1"]),
        "nested_codebook is short": ((p, q, c, 64, n, d[:255], o), ["nested_codebook", "255"]),
        "nested_offset is long": ((p, q, c, 64, n, d, torch.ones(2)), ["nested_offset", "2", "1"]),
        "nested_offset is half": ((p, q, c, 64, n, d, o.half()), ["nested_offset", "float16"]),
    }
    calls = {}
    grad = torch.randn(3, 4)
    for name, ((packed, absmax, codebook, *rest), pieces) in weight.items():
        stored = (packed, absmax, codebook)
        calls[f"linear: {name}"] = ("lut4_linear", (x, *stored, None, *rest), pieces)
        calls[f"grad_input: {name}"] = ("lut4_linear_grad_input", (grad, *stored, 8, *rest), pieces)
        calls[f"dequantize: {name}"] = (
            "lut4_dequantize",
            (*stored, [4, 8], None, *rest),
            pieces,
        )
    del calls["linear: packed is short"]  # it is a weight of fewer rows
    others = {
        "linear: x is double": ("lut4_linear", (x.double(), p, s, c), ["x", "float64|Double"]),
        "linear: x is a scalar": ("lut4_linear", (t(1.0), p, s, c), ["x"]),
        "linear: x has no columns": ("lut4_linear", (x[:, :0], p, s, c), ["x"]),
        "linear: K does not fit": ("lut4_linear", (torch.randn(3, 40), p, s, c), ["packed", "16"]),
        "linear: bias is int": (
            "lut4_linear",
            (x, p, s, c, torch.ones(4, dtype=torch.int32)),
            ["bias", "int32"],
        ),
        "linear: bias is long": ("lut4_linear", (x, p, s, c, torch.ones(5)), ["bias", "5", "4"]),
        "linear: bias is strided": (
            "lut4_linear",
            (x, p, s, c, torch.ones(8)[::2]),
            ["bias", "contig"],
        ),
        "linear: out_dtype is double": (
            "lut4_linear",
            (x, p, s, c, None, 64, None, None, None, torch.float64),
            ["float64|Double"],
        ),
        "grad_input: grad_output is double": (
            "lut4_linear_grad_input",
            (grad.double(), p, s, c, 8),
            ["grad_output", "float64|Double"],
        ),
        "grad_input: in_features is negative": (
            "lut4_linear_grad_input",
            (grad, p, s, c, -8),
            ["in_features", "-8"],
        ),
        "grad_input: N differs": ("lut4_linear_grad_input", (x, p, s, c, 8), ["packed", "16"]),
        "dequantize: dtype is int": (
            "lut4_dequantize",
            (p, s, c, [4, 8], torch.int32),
            ["int32"],
        ),
        "dequantize: a negative size": ("lut4_dequantize", (p, s, c, [-4, -8]), ["shape", "-4"]),
        "dequantize: too many elements": (
            "lut4_dequantize",
            (p, s, c, [2**40, 2**22]),
            ["packed", "16", str(2**61)],
        ),
        "quantize: weight is double": ("lut4_quantize", (x.double(), c), ["weight", "float64|Dou"]),
        "quantize: weight is int8": ("lut4_quantize", (p.to(torch.int8), c), ["weight", "int8"]),
        "quantize: codebook is short": ("lut4_quantize", (x, c[:15]), ["codebook", "15", "16"]),
        "quantize: codebook is half": ("lut4_quantize", (x, c.half()), ["codebook", "float16"]),
        "quantize: blocksize is 100": ("lut4_quantize", (x, c, 100), ["blocksize", "100"]),
    }
    return calls | others


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_refused_by_name(name: str, fake: bool) -> None:
    check_refused(*bad_calls()[name], fake=fake)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_codebook_that_is_not_finite_is_refused(value: float) -> None:
    table = codebooks.get("nf4")
    table[5] = value
    packed, absmax, _ = stored(4, 8, codebooks.get("nf4"), 32, nested=False)
    for op, arguments in (
        ("lut4_quantize", (torch.ones(4, 8), table, 32)),
        ("lut4_dequantize", (packed, absmax, table, [4, 8], None, 32)),
        ("lut4_linear", (torch.ones(2, 8), packed, absmax, table, None, 32)),
        ("lut4_linear_grad_input", (torch.ones(2, 4), packed, absmax, table, 8, 32)),
    ):
        check_refused(op, arguments, ["codebook", "finite"], fake=False)


def test_tensors_of_another_device_are_refused() -> None:
    table = codebooks.get("nf4")
    packed, absmax, _ = stored(4, 8, table, 32, nested=False)
    with FakeTensorMode() as mode:
        x, p, c = (mode.from_tensor(value) for value in (torch.ones(2, 8), packed, table))
        with pytest.raises(RuntimeError, match=r"absmax is on meta, expected cpu"):
            ops.lut4_linear(x, p, torch.empty(1, device="meta"), c, None, 32)
    with pytest.raises(NotImplementedError):
        ops.lut4_linear(torch.ones(2, 8).to_sparse(), packed, absmax, table, None, 32)


# Memory


def test_scratch_memory_is_bounded() -> None:
    check_scratch(
        """
        table = lowbit.codebooks.get("nf4")
        packed = torch.zeros(n, k // 2, dtype=torch.uint8)
        absmax = torch.zeros(n, k // 64, dtype=torch.uint8)
        nested = torch.ones(n * k // 64 // 256), lowbit.codebooks.dynamic_map(), torch.zeros(())
        weight = packed, absmax, table
        for m in (1, 4, 128):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(m, k).to(dtype)
                measure(m, lambda: op.lut4_linear(x, *weight, None, 64, *nested))
                measure(m, lambda: op.lut4_linear_grad_input(x, *weight, k, 64, *nested))
        """,
        calls=12,
    )
