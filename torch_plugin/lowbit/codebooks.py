# SPDX-License-Identifier: MIT
"""Codebooks: the values that 4-bit and 8-bit codes stand for, as fractions of a block's absmax.

A 4-bit codebook has 16 values in any order; the code of a value is its place. The named ones reach
from -1 to 1 and hold 0, so that the largest value of a block and zeros are exact.
"""

import ctypes
import math
from collections.abc import Iterable

import torch
from torch import Tensor

# NormalFloat (QLoRA, arXiv:2305.14314, appendix E): quantiles of the normal distribution, 8 of its
# negative half and 9 of its positive half, scaled to [-1, 1]. In bitsandbytes' digits.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# Floats of one sign, two exponent and one mantissa bit, as bitsandbytes numbers them: bit 3 is the
# sign; code 1 is the subnormal 0.0625 and code 3 the largest, 12. Both zeros are +0. (The E2M1 of
# the OCP formats has 1 for that subnormal, and a fourth of FP4's error less.)
_FP4_MAGNITUDES = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = (
    *(value / 12 for value in _FP4_MAGNITUDES),
    *(-value / 12 if value else 0.0 for value in _FP4_MAGNITUDES),
)

# AbnormalFloat (arXiv:2306.06965) for blocks of 64: the least expected |error| of normal values
# divided by their block's absmax, each half of the line by itself, and 0 added afterwards.
AF4 = (
    -1.0,
    -0.69441008,
    -0.51243739,
    -0.3736951,
    -0.25607552,
    -0.14982478,
    -0.04934812,
    0.0,
    0.04273164,
    0.12934483,
    0.21961274,
    0.31675666,
    0.42563882,
    0.55496234,
    0.72424863,
    1.0,
)

# Block-wise optimal float (BOF4, arXiv:2505.06653, table 8, theoretical solution) for blocks of 64
# with the absolute maximum as scale: the least expected squared error of normal weights among
# codebooks that hold -1, 0 and 1.
BOF4 = (
    -1.0,
    -0.7535689203869577,
    -0.5792681492535123,
    -0.4386720084478466,
    -0.3168191039791481,
    -0.2060291109696586,
    -0.1015640796456471,
    0.0,
    0.0887646748673216,
    0.1794535266886747,
    0.274249773841407,
    0.375951029286045,
    0.4885925268369112,
    0.6187715546288008,
    0.7790828367844242,
    1.0,
)

# Symmetric integers (code - 8) / 7. Code 0, which two's complement has for free, lies beyond the
# absmax, so quantizing never yields it.
INT4 = tuple((code - 8) / 7 for code in range(16))

BY_NAME = {"nf4": NF4, "fp4": FP4, "af4": AF4, "bof4": BOF4, "int4": INT4}


def get(codebook: str | Iterable[float] | Tensor) -> Tensor:
    """A 4-bit codebook as float32 [16] on the CPU.

    codebook: a name in BY_NAME, or any 16 finite values. ValueError: neither.
    """
    known = key(codebook)
    return _tensor(BY_NAME.get(known, known), torch.device("cpu"))


def key(codebook: str | Iterable[float] | Tensor) -> str | tuple[float, ...]:
    """What tells codebooks apart: the name, or the 16 values as float32 holds them."""
    if isinstance(codebook, str):
        if codebook not in BY_NAME:
            raise ValueError(
                f"codebook is {codebook!r}, expected one of {', '.join(BY_NAME)}, or 16 values"
            )
        return codebook
    values = codebook.tolist() if isinstance(codebook, Tensor) else list(codebook)
    if len(values) != 16 or not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"codebook is {values}, expected 16 numbers")
    rounded = tuple(ctypes.c_float(value).value for value in values)
    if not all(map(math.isfinite, rounded)):
        raise ValueError(f"codebook is {values}, expected finite values in float32's range")
    return rounded


def _dynamic_values(signed: bool) -> tuple[float, ...]:
    values = [0.0, 1.0]
    for i in range(7):
        bins = 2 ** (i if signed else i + 1)
        edges = torch.linspace(0.1, 1, bins + 1, dtype=torch.float32, device="cpu")
        centres = 10 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += centres.tolist()
        if signed:
            values += (-centres).tolist()
    return tuple(sorted(values))


_DYNAMIC_VALUES = {signed: _dynamic_values(signed) for signed in (True, False)}


def dynamic_map(signed: bool = True) -> Tensor:
    """The 256 values of the dynamic tree type of 8-bit optimizers (arXiv:2110.02861), ascending,
    float32 on the CPU.

    Seven decades, from 1e-6 to 1: decade i is split into 2^i bins for each sign (signed), or
    2^(i+1) bins, and holds their centres; then 0 and 1. There is no -1.
    """
    return _tensor(_DYNAMIC_VALUES[signed], torch.device("cpu"))


# In shared(): dynamic_map(), and dynamic_map(signed=False).
DYNAMIC = "dynamic"
DYNAMIC_UNSIGNED = "dynamic unsigned"
_SHARED: dict[tuple[str, torch.device], Tensor] = {}


def shared(codebook: str | tuple[float, ...], device: torch.device) -> Tensor:
    """The tensor of a key(), of DYNAMIC or of DYNAMIC_UNSIGNED on a device, one for the whole
    process: layers and optimizers own no copy.

    RuntimeError: it is not on that GPU yet, and the copy would become a part of the CUDA graph that
    is captured: call the layer or optimizer once before, as torch.compile does by itself.
    """
    place = (repr(codebook), device)  # repr tells -0.0 from 0.0
    if place not in _SHARED:
        if (
            device.type == "cuda"
            and not torch.compiler.is_compiling()
            and torch.cuda.is_current_stream_capturing()
        ):
            raise RuntimeError(
                f"the codebook {codebook} is not on {device} yet when a CUDA graph is captured; "
                "call the layer or optimizer once before"
            )
        if codebook in (DYNAMIC, DYNAMIC_UNSIGNED):
            table = _tensor(_DYNAMIC_VALUES[codebook == DYNAMIC], device)
        else:
            table = _tensor(BY_NAME.get(codebook, codebook), device)
        if type(table) is not Tensor:
            return table  # of a tracer's own kind: it must not outlive the tracing
        _SHARED[place] = table
    return _SHARED[place]


def _tensor(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # autograd saves them for the backward
        return torch.tensor(values, dtype=torch.float32, device=device)
