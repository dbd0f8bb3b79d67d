# SPDX-License-Identifier: MIT
"""The specification of the operators in numpy, written to be read beside the C headers.

Every function works on float32 arrays, one rounding per operation, and returns the exact bits that
the operators promise (lut4_linear promises bounds instead, and is not here). fma is exact too: a
float32 product is exact in float64, and the sum is rounded to odd there before it is rounded to
float32, so that it is rounded only once in effect.
"""

import itertools
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

F32 = np.float32
_CHUNK = 1024
_GRAD_CHUNK = 256
_SMALLEST = F32(2.0**-118)
_SMALLEST_LUT4 = F32(2.0**-126)
_NESTED_BLOCKSIZE = 256


def to_numpy(x: Tensor) -> np.ndarray:
    return x.detach().float().numpy()


def from_float32(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Rounded half to even; NaN as the positive quiet NaN."""
    result = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
    nan = torch.full_like(result, torch.nan)
    return torch.where(result.isnan(), nan, result)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        product = a.astype(np.float64) * b.astype(np.float64)
        total = product + c
        # the exact error of the sum (Knuth's TwoSum)
        back = total - product
        error = (product - (total - back)) + (c - back)
        inexact_even = (
            np.isfinite(total) & (error != 0) & (total.view(np.int64) & 1 == 0) & ~np.isnan(error)
        )
        toward = np.where(error > 0, np.inf, -np.inf)
        return np.where(inexact_even, np.nextafter(total, toward), total).astype(F32)


def round_up(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    rounded = torch.from_numpy(values).to(dtype)
    if dtype == torch.float16:
        too_small = to_numpy(rounded) < values
        rounded.view(torch.int16)[torch.from_numpy(too_small)] += 1  # the next larger one
    return rounded


def difference_up(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b rounded up: the error of the rounded difference is a float (Knuth's TwoSum)."""
    d = a - b
    b_used = a - d
    error = (a - (d + b_used)) + (b_used - b)
    return np.where(error > 0, np.nextafter(d, F32(np.inf)), d)


def inverse(absmax: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.where(absmax >= _SMALLEST, F32(127) / absmax, F32(0)).astype(F32)


def quantize(
    x: Tensor, threshold: float = 0.0, absmax_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    values = to_numpy(x)
    t = F32(threshold) if threshold else F32(np.inf)
    inlier = np.abs(values) < t
    largest = np.where(inlier, np.abs(values), F32(0)).max(-1, initial=0).astype(F32)
    absmax = round_up(largest, absmax_dtype)
    with np.errstate(all="ignore"):
        scaled = values * inverse(to_numpy(absmax))[..., None]
    q = np.where(inlier, np.rint(np.where(inlier, scaled, 0)).clip(-127, 127), 0)
    return torch.from_numpy(q.astype(np.int8)), absmax


def quantize_offset(
    weight: Tensor, absmax_dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    values = to_numpy(weight)
    finite = np.isfinite(values)
    some = finite.any(-1)
    highest = np.where(some, np.where(finite, values, -np.inf).max(-1), 0).astype(F32)
    lowest = np.where(some, np.where(finite, values, np.inf).min(-1), 0).astype(F32)
    middle = F32(0.5) * highest + F32(0.5) * lowest + F32(0)  # a row of -0 has offset +0
    offset = torch.from_numpy(middle).to(absmax_dtype)
    center = to_numpy(offset)
    absmax = round_up(
        np.maximum(difference_up(highest, center), difference_up(center, lowest)), absmax_dtype
    )
    with np.errstate(all="ignore"):
        scaled = (values - center[..., None]) * inverse(to_numpy(absmax))[..., None]
    q = np.where(finite, np.rint(np.where(finite, scaled, 0)).clip(-127, 127), 0)
    return torch.from_numpy(q.astype(np.int8)), absmax, offset


def weights(q: Tensor, absmax: Tensor, offset: Tensor | None) -> np.ndarray:
    codes = q.numpy().astype(F32)
    s = (to_numpy(absmax) / F32(127))[..., None]
    if offset is None:
        return codes * s
    return fma(codes, s, to_numpy(offset)[..., None])


def dequantize(
    q: Tensor, absmax: Tensor, offset: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    return from_float32(weights(q, absmax, offset), dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    offset: Tensor | None = None,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    rows = to_numpy(x).reshape(-1, x.shape[-1])
    n, _ = weight.shape
    w = weights(weight, absmax, offset)
    s = to_numpy(absmax) / F32(127)
    t = F32(threshold) if threshold else F32(np.inf)
    q, a = (part.numpy() for part in quantize(torch.from_numpy(rows), threshold))
    acc = (q.astype(np.int64) @ weight.numpy().astype(np.int64).T).astype(F32)
    xsum = q.astype(np.int64).sum(-1, keepdims=True).astype(F32)
    y = np.empty((len(rows), n), F32)
    with np.errstate(all="ignore"):
        r = (a / F32(127))[:, None]
        if offset is None:
            main = r * (s * acc)
        else:
            main = r * fma(np.broadcast_to(s, acc.shape), acc, to_numpy(offset) * xsum)
        for m, row in enumerate(rows):
            o = np.zeros(n, F32)
            outliers = np.flatnonzero(~(np.abs(row) < t))
            for chunk in np.unique(outliers // _CHUNK):
                c = np.zeros(n, F32)
                for k in outliers[outliers // _CHUNK == chunk]:
                    c = fma(np.full(n, row[k]), w[:, k], c)
                o = o + c
            y[m] = main[m] + o
        if bias is not None:
            y = y + to_numpy(bias)
    return from_float32(y, out_dtype or x.dtype).reshape(*x.shape[:-1], n)


def grad_input(
    grad_output: Tensor, weight: Tensor, absmax: Tensor, offset: Tensor | None = None
) -> Tensor:
    rows = to_numpy(grad_output).reshape(-1, grad_output.shape[-1])
    n, k = weight.shape
    w = weights(weight, absmax, offset)
    total = np.zeros((len(rows), k), F32)
    with np.errstate(all="ignore"):
        for begin in range(0, n, _GRAD_CHUNK):
            c = np.zeros((len(rows), k), F32)
            for j in range(begin, min(n, begin + _GRAD_CHUNK)):
                c = fma(np.broadcast_to(rows[:, j, None], c.shape), w[None, j], c)
            total = total + c
    return from_float32(total, grad_output.dtype).reshape(*grad_output.shape[:-1], k)


def nearest(v: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The first code of the nearest value, a tie to the smaller one, in exact arithmetic."""
    values, inverse = np.unique(codebook + F32(0), return_index=True)  # + 0: one zero of the two
    middles = [(Fraction(float(a)) + Fraction(float(b))) / 2 for a, b in itertools.pairwise(values)]
    below = np.array([float(m) for m in middles])  # float64, then the float32 that is not above
    below = below.astype(F32)
    for i, m in enumerate(middles):
        if Fraction(float(below[i])) > m:
            below[i] = np.nextafter(below[i], F32(-np.inf))
    return inverse[np.searchsorted(below, v, side="left")].astype(np.uint8)


def blockwise_quantize(x: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    values = to_numpy(x).reshape(-1)
    values = np.where(np.isfinite(values), values, F32(0))
    padded = np.zeros((-(-values.size // blocksize), blocksize), F32)
    padded.reshape(-1)[: values.size] = values
    absmax = np.abs(padded).max(-1, initial=0)
    with np.errstate(all="ignore"):
        inv = np.where(absmax >= F32(2.0**-126), F32(1) / absmax, F32(0)).astype(F32)
    q = nearest((padded * inv[:, None]).reshape(-1)[: values.size], codebook.numpy())
    return torch.from_numpy(q).view(x.shape), torch.from_numpy(absmax)


def blockwise_dequantize(
    q: Tensor, absmax: Tensor, codebook: Tensor, dtype: torch.dtype, blocksize: int
) -> Tensor:
    scales = np.repeat(absmax.numpy(), blocksize)[: q.numel()].reshape(q.shape)
    return from_float32(codebook.numpy()[q.numpy()] * scales, dtype)


def nearest_code(values: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The code of the nearest codebook value: a tie goes to the smaller value, equal values to the
    smaller code."""
    order = np.argsort(codebook, kind="stable")
    ascending = codebook[order]
    middle = (ascending[:-1] + ascending[1:]) * F32(0.5)
    place = np.searchsorted(middle, values, side="left")  # the one with middle above or at value
    first = np.searchsorted(ascending, ascending[place], side="left")  # of a run of equal values
    return order[first]


def lut4_quantize(weight: Tensor, codebook: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
    """Flat: packed [ceil(n / 2)] and absmax [ceil(n / blocksize)]."""
    flat = to_numpy(weight).reshape(-1)
    table = codebook.numpy()
    codes, absmax = [], []
    for begin in range(0, len(flat), blocksize):
        block = flat[begin : begin + blocksize]
        finite = np.isfinite(block)
        largest = np.abs(block[finite]).max(initial=F32(0))
        inv = F32(1) / largest if largest >= _SMALLEST_LUT4 else F32(0)
        scaled = np.where(finite, np.where(finite, block, F32(0)) * inv, F32(0))
        codes.extend(nearest_code(scaled, table))
        absmax.append(largest)
    if len(codes) % 2:
        codes.append(nearest_code(np.zeros(1, F32), table)[0])
    pairs = np.array(codes, np.uint8).reshape(-1, 2)
    packed = pairs[:, 0] << 4 | pairs[:, 1]
    return torch.from_numpy(packed), torch.from_numpy(np.array(absmax, F32))


def lut4_dequantize(
    packed: Tensor,
    absmax: Tensor,
    codebook: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    blocksize: int = 64,
    nested_absmax: Tensor | None = None,
    nested_codebook: Tensor | None = None,
    nested_offset: Tensor | None = None,
) -> Tensor:
    count = int(np.prod(shape))
    bytes_ = packed.numpy().reshape(-1)
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(-1)[:count]
    scale = absmax.numpy().reshape(-1)
    if nested_absmax is not None:
        group = np.arange(len(scale)) // _NESTED_BLOCKSIZE
        product = nested_codebook.numpy()[scale] * nested_absmax.numpy().reshape(-1)[group]
        scale = product + nested_offset.numpy().reshape(-1)
    w = codebook.numpy()[codes] * scale[np.arange(count) // blocksize]
    return from_float32(w, dtype).reshape(shape)


def same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integers = {4: torch.int32, 2: torch.int16, 1: torch.int8}[a.element_size()]
    return torch.equal(a.contiguous().view(integers), b.contiguous().view(integers))
