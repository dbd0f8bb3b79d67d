# SPDX-License-Identifier: MIT
"""What Adam8bit keeps for one parameter, also where the parameter is a shard of a DTensor.

8 bits: exp_avg and exp_avg_sq are uint8 codes in the parameter's shape, exp_avg_absmax and
exp_avg_sq_absmax float32 scales, one for each block of the flattened parameter. 32 bits: exp_avg
and exp_avg_sq are float32. Both: step, a float32 tensor without dimensions, one object for all
parameters that have always been stepped together; and master, float32, where the optimizer keeps
master weights and the parameter is narrower.

For a DTensor every rank quantizes its own shard, in blocks that start where the shard does. Codes
and float32 state are DTensors placed like the parameter. The scales are a flat DTensor with the
same number of blocks on every rank, as many as the largest shard has; what is too many is zero and
never read.
"""

import math
from typing import Any

import torch
from torch import Tensor

from lowbit import codebooks
from lowbit.nn.lowbit_module import why_not_finite
from lowbit.ops._check import FLOATS, ceil_div

State = dict[str, Tensor]

MOMENTS = {"exp_avg": codebooks.DYNAMIC, "exp_avg_sq": codebooks.DYNAMIC_UNSIGNED}
_CODE_OF_ZERO = {
    name: codebooks.dynamic_map(signed=table == codebooks.DYNAMIC).tolist().index(0.0)
    for name, table in MOMENTS.items()
}


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; a plain tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def bits_of(state: State) -> int:
    return 8 if "exp_avg_absmax" in state else 32


def wants_bits(param: Tensor, group: dict[str, Any]) -> int:
    return 8 if group["bits"] == 8 and param.numel() >= group["min_8bit_size"] else 32


def wants_master(param: Tensor, group: dict[str, Any]) -> bool:
    return group["master_weights"] and param.dtype != torch.float32


def master_of(param: Tensor) -> Tensor:
    part = local(param.detach())
    return like(param, part.to(torch.float32, memory_format=torch.contiguous_format, copy=True))


def zeros(param: Tensor, bits: int, blocksize: int) -> State:
    """The moments before the first step."""
    part = local(param.detach())
    state = {}
    for name, code in _CODE_OF_ZERO.items():
        dtype, value = (torch.uint8, code) if bits == 8 else (torch.float32, 0)
        moment = torch.full(part.shape, value, dtype=dtype, device=part.device)
        state[name] = like(param, moment)
        if bits == 8:
            scales = ceil_div(part.numel(), blocksize)
            absmax = torch.zeros(scales, dtype=torch.float32, device=part.device)
            state[f"{name}_absmax"] = _per_block(param, absmax, blocksize)
    return state


def quantized(param: Tensor, moments: State, blocksize: int) -> State:
    """8-bit state of float moments, given as this rank's parts."""
    state = {}
    for name, table in MOMENTS.items():
        codes, absmax = torch.ops.lowbit.blockwise_quantize(
            moments[name], codebooks.shared(table, moments[name].device), blocksize
        )
        state[name] = like(param, codes)
        state[f"{name}_absmax"] = _per_block(param, absmax, blocksize)
    return state


def like(param: Tensor, part: Tensor) -> Tensor:
    """This rank's part of something in the shape of param, as a tensor of param's kind."""
    if not hasattr(param, "to_local"):
        return part
    stride = torch.empty(param.shape, device="meta").stride()
    return _dtensor(param, part, param.placements, param.shape, stride)


def _per_block(param: Tensor, absmax: Tensor, blocksize: int) -> Tensor:
    if not hasattr(param, "to_local"):
        return absmax
    from torch.distributed.tensor import Shard

    largest, copies = _largest_shard(param)
    part = absmax.new_zeros(ceil_div(largest, blocksize))
    part[: len(absmax)] = absmax
    placements = [p if p.is_replicate() else Shard(0) for p in param.placements]
    return _dtensor(param, part, placements, torch.Size([len(part) * copies]), (1,))


def _dtensor(
    param: Tensor, part: Tensor, placements: Any, shape: torch.Size, stride: tuple[int, ...]
) -> Tensor:
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, param.device_mesh, placements, run_check=False, shape=shape, stride=stride
    )


def _largest_shard(param: Tensor) -> tuple[int, int]:
    """Elements of the largest shard of a DTensor, and how many shards there are."""
    sizes, shards = list(param.shape), 1
    for dim, placement in enumerate(param.placements):
        if not placement.is_replicate():
            ranks = param.device_mesh.size(dim)
            sizes[placement.dim] = ceil_div(sizes[placement.dim], ranks)
            shards *= ranks
    return math.prod(sizes), shards


def _blocks(param: Tensor, blocksize: int) -> int:
    """Length of the scales, those of all ranks together."""
    if not hasattr(param, "to_local"):
        return ceil_div(param.numel(), blocksize)
    largest, shards = _largest_shard(param)
    return ceil_div(largest, blocksize) * shards


def why_not(param: Tensor, state: State, blocksize: int) -> str | None:
    """The rule that the state of a parameter breaks, to follow "the state of parameter 3"; None if
    it breaks none."""
    dtype, scales = torch.float32, ()
    if bits_of(state) == 8:
        dtype, scales = torch.uint8, tuple(f"{name}_absmax" for name in MOMENTS)
    missing = [name for name in ("step", *MOMENTS, *scales) if name not in state]
    if missing:
        return f"lacks {', '.join(missing)}"
    step = state["step"]
    if not isinstance(step, Tensor) or step.numel() != 1 or not step.is_floating_point():
        return f"has step {step!r}, expected a floating-point tensor of one element"
    for name in MOMENTS:
        if problem := _why_not_like(param, name, state[name], dtype, param.shape):
            return problem
    for name in scales:
        shape = (_blocks(param, blocksize),)
        if problem := _why_not_like(param, name, state[name], torch.float32, shape):
            return f"{problem} (blocksize {blocksize})"
    if "master" in state:
        return _why_not_like(param, "master", state["master"], torch.float32, param.shape)
    return None


def _why_not_like(
    param: Tensor, name: str, value: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> str | None:
    if not isinstance(value, Tensor):
        return f"has {name} of type {type(value).__qualname__}, expected a tensor"
    if value.dtype != dtype or value.shape != shape:
        return (
            f"has {name} of {value.dtype} and shape {list(value.shape)}, "
            f"expected {dtype} and {list(shape)}"
        )
    if hasattr(value, "to_local") != hasattr(param, "to_local"):
        return (
            f"has {name} that is {'a' if hasattr(value, 'to_local') else 'no'} DTensor, unlike the "
            "parameter; torch.distributed.checkpoint.state_dict converts state dicts"
        )
    return None


def why_not_saved(param: Tensor, state: State, group: dict[str, Any]) -> str | None:
    """The same of a state that was saved, whose values are checked too."""
    known = {"step", "master", *MOMENTS}
    if bits_of(state) == 8:
        known |= {"exp_avg_absmax", "exp_avg_sq_absmax"}
    unknown = sorted(map(str, state.keys() - known))
    if unknown:
        return f"has the unknown entries {', '.join(unknown)}"
    if param.dtype not in FLOATS:
        return f"is for a parameter of {param.dtype}"
    problem = why_not(param, state, group["blocksize"])
    if problem:
        return problem
    if ("master" in state) != wants_master(param, group):
        return (
            f"{'has a' if 'master' in state else 'lacks its'} master, "
            f"but the parameter is {param.dtype} and master_weights {group['master_weights']}"
        )
    for name in ("exp_avg_absmax", "exp_avg_sq_absmax"):
        if name in state and not state[name].is_meta and state[name].numel():
            part = local(state[name])
            if problem := why_not_finite(part):
                return f"has {name} that {problem}"
            if part.amin() < 0:
                return f"has {name} that holds {part.amin().item():g}, expected no negative value"
    return None
