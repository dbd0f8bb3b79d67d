# SPDX-License-Identifier: MIT
"""torch's fused Adam for float32 state, in the form of lowbit::adam8bit_step_: one step for all
parameters, numbers as tensors, and an operator that can be traced."""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op(
    "lowbit_optim::fused_adam_", mutates_args=("params", "exp_avg", "exp_avg_sq")
)
def fused_adam_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    step: Tensor,
    lr: Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
    found_inf: Tensor | None = None,
) -> None:
    fused = torch._fused_adamw_ if decoupled else torch._fused_adam_
    fused(
        params,
        grads,
        exp_avg,
        exp_avg_sq,
        [],
        [step] * len(params),
        lr=lr if lr.is_cpu else lr.float(),  # kernels on devices read a float32
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=maximize,
        grad_scale=None,  # the unscaled gradients would be written back
        found_inf=found_inf,
    )


@fused_adam_.register_fake
def _(*arguments: object) -> None:
    pass
