# SPDX-License-Identifier: MIT
"""lowbit::int8_matmul. Integers in, integers out: there is nothing to differentiate."""

import torch
from torch import Tensor

from lowbit.ops import _check

MAX_K = 131071  # LOWBIT_INT8_MATMUL_MAX_K


@torch.library.register_fake("lowbit::int8_matmul")
def _(a: Tensor, b: Tensor) -> Tensor:
    op = "int8_matmul"
    _check.check_has_rows(op, "a", a)
    _check.check_dtype(op, "a", a.dtype, (torch.int8,))
    _check.check_matrix(op, "b", b)
    _check.check_device(op, "b", b, a.device)
    _check.check_shape(op, "b", b, (b.shape[0], a.shape[-1]))
    _check.check_max_k(op, "a", a.shape[-1], MAX_K)
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32)
