# SPDX-License-Identifier: MIT
"""lowbit::adam8bit_step_."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit.ops import _check

_OP = "adam8bit_step_"


@torch.library.register_fake("lowbit::adam8bit_step_")
def _(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_absmax: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    exp_avg_sq_absmax: Sequence[Tensor],
    masters: Sequence[Tensor],
    codebook1: Tensor,
    codebook2: Tensor,
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    blocksize: int = 256,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    _check.check_blocksize(_OP, blocksize)
    state = {
        "grads": grads,
        "exp_avg": exp_avg,
        "exp_avg_absmax": exp_avg_absmax,
        "exp_avg_sq": exp_avg_sq,
        "exp_avg_sq_absmax": exp_avg_sq_absmax,
        "masters": masters or [torch.empty(0)] * len(params),
    }
    for name, tensors in state.items():
        torch._check(
            len(tensors) == len(params),
            lambda name=name, tensors=tensors: (
                f"lowbit::{_OP}: {name} holds {len(tensors)} tensors, "
                f"expected as many as params: {len(params)}"
            ),
        )
    for i, param in enumerate(params):
        _check_param(i, param, {name: tensors[i] for name, tensors in state.items()}, blocksize)
    device = codebook1.device
    _check.check_flat(_OP, "codebook1", codebook1, (torch.float32,), 256, device)
    _check.check_flat(_OP, "codebook2", codebook2, (torch.float32,), 256, device)
    _check.check_flat(_OP, "step", step, (torch.int64, torch.float32, torch.float64), 1, device)
    _check.check_flat(_OP, "lr", lr, (torch.float32, torch.float64), 1, device)
    for name, factor in (("grad_scale", grad_scale), ("found_inf", found_inf)):
        if factor is not None:
            _check.check_flat(_OP, name, factor, (torch.float32,), 1, device)


def _check_param(i: int, param: Tensor, own: dict[str, Tensor], blocksize: int) -> None:
    device, count = param.device, param.numel()
    blocks = _check.ceil_div(count, blocksize)
    _check.check_flat(_OP, f"params[{i}]", param, _check.FLOATS, count, device)
    _check.check_shape(_OP, f"grads[{i}]", own["grads"], param.shape)
    _check.check_flat(_OP, f"grads[{i}]", own["grads"], _check.FLOATS, count, device)
    for name in ("exp_avg", "exp_avg_sq"):
        codes, absmax = own[name], own[name + "_absmax"]
        _check.check_flat(_OP, f"{name}[{i}]", codes, (torch.uint8,), count, device)
        _check.check_flat(_OP, f"{name}_absmax[{i}]", absmax, (torch.float32,), blocks, device)
    if own["masters"].numel() != 0:
        _check.check_flat(_OP, f"masters[{i}]", own["masters"], (torch.float32,), count, device)
