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


def _lowbit(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    layer = lowbit.nn.Int8Linear.from_float(linear, threshold=THRESHOLD)
    return layer.to(dtype)


def _bitsandbytes(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
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


def _torchao(linear: nn.Linear, dtype: torch.dtype) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    wrapper = nn.Sequential(_float(linear, dtype))
    quantize_(wrapper, Int8DynamicActivationInt8WeightConfig())
    return wrapper[0]


@dataclass(frozen=True)
class Contestant:
    """package: None for what is always there. dtype: of x, and of what is kept float.
    weight_bytes: of one element. tolerance: see race.Entry; about twice the error that its
    quantization explains, with outliers of 20 in eight columns."""

    name: str
    package: str | None
    make: Callable[[nn.Linear, torch.dtype], nn.Module]
    dtype: torch.dtype
    weight_bytes: int
    tolerance: float

    @property
    def installed(self) -> bool:
        return self.package is None or importlib.util.find_spec(self.package) is not None


LOWBIT_BF16 = Contestant("lowbit bf16", None, _lowbit, BF16, 1, 0.02)
LOWBIT_FP32 = Contestant("lowbit fp32", None, _lowbit, FP32, 1, 0.02)
TORCH_BF16 = Contestant("torch bf16", None, _float, BF16, 2, 0.01)
TORCH_FP32 = Contestant("torch fp32", None, _float, FP32, 4, 1e-5)
BITSANDBYTES = Contestant("bitsandbytes", "bitsandbytes", _bitsandbytes, BF16, 1, 0.02)
# Without decomposition; and eager as the others are, while its authors advise torch.compile.
TORCHAO = Contestant("torchao eager", "torchao", _torchao, BF16, 1, 0.15)

BASIC = (LOWBIT_BF16, TORCH_BF16, LOWBIT_FP32, TORCH_FP32)
PEERS = (BITSANDBYTES, TORCHAO)


class ColdLayers:
    """One float layer [N, K] as every installed contestant has it, in so many copies that none is
    still cached when its turn comes again."""

    def __init__(
        self, bench: Bench, n: int, k: int, contestants: Iterable[Contestant] = BASIC
    ) -> None:
        self.float = _sample_layer(n, k)
        self.contestants = [c for c in contestants if c.installed]
        self._copies: dict[str, Iterator[nn.Module]] = {}
        for c in self.contestants:
            layer = c.make(self.float, c.dtype)
            copies = math.ceil(bench.cold_bytes / (n * k * c.weight_bytes)) + 1
            layers = [layer, *(copy.deepcopy(layer) for _ in range(copies - 1))]
            self._copies[c.name] = itertools.cycle(layers)

    def entries(self, x: Tensor) -> list[Entry]:
        return [
            Entry(c.name, partial(self._call, c.name, x.to(c.dtype)), c.tolerance, c in PEERS)
            for c in self.contestants
        ]

    def next(self, name: str) -> nn.Module:
        """The copy of contestant `name` whose turn it is."""
        return next(self._copies[name])

    def _call(self, name: str, x: Tensor) -> Tensor:
        return self.next(name)(x)

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
