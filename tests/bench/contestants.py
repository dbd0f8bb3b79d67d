# SPDX-License-Identifier: MIT
"""The linear layers that are compared, each made from the same float one."""

import copy
import importlib.util
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import lowbit
import torch
from race import Bench, Entry, relative_error
from torch import Tensor, nn

BF16, FP32 = torch.bfloat16, torch.float32
THRESHOLD = 6.0


def _float(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(linear).to(dtype)


def _lowbit_int8(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    return lowbit.nn.Int8Linear.from_float(linear, threshold=THRESHOLD).to(dtype)


def _lowbit_nf4(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    return lowbit.nn.LUT4Linear.from_float(linear).to(dtype)


def _bitsandbytes_int8(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear8bitLt

    layer = Linear8bitLt(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=THRESHOLD,
    )
    layer.load_state_dict(linear.state_dict())
    # to() quantizes. In training it would multiply by a dequantized weight.
    return layer.to("cpu").eval()


def _bitsandbytes_nf4(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=dtype,
        quant_type="nf4",
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").eval()


def _torchao_int8(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return _by_torchao(linear, dtype, Int8DynamicActivationInt8WeightConfig())


def _torchao_int4(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    from torchao.prototype.quantization.int4.inference_workflow import (
        PrototypeInt4WeightOnlyConfig,
    )

    config = PrototypeInt4WeightOnlyConfig(group_size=64, set_inductor_config=False)
    return _by_torchao(linear, dtype, config)


def _by_torchao(linear: nn.Linear, dtype: torch.dtype, config: object) -> nn.Module:
    from torchao.quantization import quantize_

    wrapper = nn.Sequential(_float(linear, dtype))
    quantize_(wrapper, config)
    return wrapper[0]


@dataclass(frozen=True)
class Contestant:
    """dtype: of x, and of what is kept float. weight_bytes: of one element, scales left out.
    tolerance: see race.Entry; at most twice the error that its quantization explains, with outliers
    of 20 in eight columns. multiple: N and K must be multiples of it."""

    name: str
    package: str
    weights: str
    make: Callable[[nn.Linear, torch.dtype], nn.Module]
    dtype: torch.dtype
    weight_bytes: float
    tolerance: float
    multiple: int = 1

    @property
    def label(self) -> str:
        """Its name where several widths meet and x is bf16."""
        return f"{self.package} {self.weights}"

    @property
    def peer(self) -> bool:
        return self.package not in ("lowbit", "torch")

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


WEIGHTS = {8: "int8", 4: "nf4"}  # by bits; nf4 with double quantization
TOLERANCES = {8: 0.02, 4: 0.15}
# fmt: off
TORCH_BF16 = Contestant("torch bf16", "torch", "bf16", _float, BF16, 2, 0.01)
TORCH_FP32 = Contestant("torch fp32", "torch", "fp32", _float, FP32, 4, 1e-5)
LOWBIT_BF16 = {
    8: Contestant("lowbit bf16", "lowbit", "int8", _lowbit_int8, BF16, 1, TOLERANCES[8]),
    4: Contestant("lowbit bf16", "lowbit", "nf4", _lowbit_nf4, BF16, 0.5, TOLERANCES[4]),
}
LOWBIT_FP32 = {
    8: Contestant("lowbit fp32", "lowbit", "int8", _lowbit_int8, FP32, 1, TOLERANCES[8]),
    4: Contestant("lowbit fp32", "lowbit", "nf4", _lowbit_nf4, FP32, 0.5, TOLERANCES[4]),
}
_BITSANDBYTES = "bitsandbytes"
BITSANDBYTES = {
    8: Contestant(_BITSANDBYTES, _BITSANDBYTES, "int8", _bitsandbytes_int8, BF16, 1, TOLERANCES[8]),
    4: Contestant(_BITSANDBYTES, _BITSANDBYTES, "nf4", _bitsandbytes_nf4, BF16, 0.5, TOLERANCES[4], 64),  # noqa: E501
}
# int8 without decomposition; int4, not NF4, with a scale and a zero point per 64. Eager as the
# others are, while its authors advise torch.compile.
TORCHAO = {
    8: Contestant("torchao eager", "torchao", "int8", _torchao_int8, BF16, 1, 0.15),
    4: Contestant("torchao eager", "torchao", "int4", _torchao_int4, BF16, 0.5, 0.12, 64),
}
# fmt: on

BASIC = {bits: (LOWBIT_BF16[bits], TORCH_BF16, LOWBIT_FP32[bits], TORCH_FP32) for bits in WEIGHTS}
PEERS = {bits: (BITSANDBYTES[bits], TORCHAO[bits]) for bits in WEIGHTS}


class ColdLayers:
    """One float layer [N, K] as every installed contestant has it, in so many copies that none is
    still cached when its turn comes again."""

    def __init__(self, bench: Bench, n: int, k: int, contestants: Iterable[Contestant]) -> None:
        self.float = _sample_layer(n, k)
        self.contestants = [
            c for c in contestants if c.installed and n % c.multiple == k % c.multiple == 0
        ]
        self._copies: dict[str, Iterator[nn.Module]] = {}
        for c in self.contestants:
            layer = c.make(self.float, c.dtype)
            layer(torch.zeros(1, k, dtype=c.dtype))  # bitsandbytes repacks 4 bits in its first call
            copies = math.ceil(bench.cold_bytes / (n * k * c.weight_bytes)) + 1
            layers = [layer, *(copy.deepcopy(layer) for _ in range(copies - 1))]
            self._copies[c.name] = itertools.cycle(layers)

    def entries(
        self, x: Tensor, call: Callable[[nn.Module, Tensor], Tensor] = nn.Module.__call__
    ) -> list[Entry]:
        """Of call(layer, x)."""
        return [
            Entry(c.name, partial(self._call, call, c.name, x.to(c.dtype)), c.tolerance, c.peer)
            for c in self.contestants
        ]

    def next(self, name: str) -> nn.Module:
        """The copy of contestant `name` whose turn it is."""
        return next(self._copies[name])

    def _call(self, call: Callable[[nn.Module, Tensor], Tensor], name: str, x: Tensor) -> Tensor:
        return call(self.next(name), x)

    def error(self, x: Tensor) -> Callable[[Tensor], float]:
        """Of a result for x, against float64 in every 16th output."""
        expected = nn.functional.linear(
            x.double(), self.float.weight[::16].double(), self.float.bias[::16].double()
        )
        return lambda y: relative_error(y[..., ::16], expected)


def _sample_layer(n: int, k: int) -> nn.Linear:
    """float32, of values that bf16 holds too, so that every contestant gets the same numbers."""
    linear = nn.Linear(k, n).eval()
    return linear.requires_grad_(False).to(BF16).to(FP32)


def sample_rows(m: int, k: int) -> Tensor:
    """float32 [M, K], of values that bf16 holds too: normal, and 20 in eight shared columns."""
    x = torch.randn(m, k).clamp(-5, 5)
    x[:, torch.arange(8) * (k // 8)] = 20.0
    return x.to(BF16).to(FP32)
