# SPDX-License-Identifier: MIT
"""Adam and AdamW with 8-bit state."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lowbit import codebooks
from lowbit.ops._check import BLOCKSIZES, FLOATS, ceil_div, is_blocksize
from lowbit.optim import _load, _state
from lowbit.optim._fused_adam import fused_adam_
from lowbit.optim._state import local

# The tensors of a batch, parameters that are stepped by one call, in the order of _init_group.
_Lists = tuple[list[Any], ...]
_Stepped = list[list[tuple[Tensor, Tensor]]]  # parameters with their gradients, by group


class Adam8bit(torch.optim.Optimizer):
    r"""Adam (arXiv:1412.6980) whose moments are 8-bit codes: 2.03 bytes of state per parameter.

        g = gradient (+ weight_decay p)           of a maximized objective: -gradient
        m = beta1 m + (1 - beta1) g               v = beta2 v + (1 - beta2) g^2
        p = p - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + eps)

    Between steps m and v are codes of the dynamic map with a float32 scale for each block of
    blocksize elements (8-bit optimizers, arXiv:2110.02861), every value rounded to the nearest
    code; the arithmetic is float32 on the values before they are rounded. As a v may have been
    rounded to zero while its m was not, sqrt(v) is taken to be at least |m| times the least ratio
    that exact moments can have, so no step is larger than one of exact Adam could be. The step of a
    list of parameters is one call, lowbit::adam8bit_step_, with the same bits for any order and
    grouping of the parameters, number of threads and processor.

    Used like torch.optim.Adam, with closures, param groups, hooks, schedulers, GradScaler (which
    never waits for the device: its scale and its found-inf flag are read in the same pass, and a
    step with an infinity changes nothing) and torch.compile.

    Args:
        params: parameters, named parameters, or dicts of groups, which may override every other
            argument, and hold "bits": 32 to keep the group's state in float32 (for embeddings).
        lr: a number, or a tensor of one element that may change between steps.
        betas, eps, maximize: as in torch.optim.Adam; betas are numbers.
        weight_decay: 0 unless given, and 1e-2 in AdamW8bit, as in torch.optim.
        capturable: as torch's has it. Steps can be captured in a graph in either case: state, step
            and a tensor lr live on the parameters' device and are never read by the host.
        master_weights: keep a float32 master of each float16 or bfloat16 parameter in its state; it
            is updated instead, and rounded into the parameter in the same pass.
        blocksize: elements that share a scale, a power of two from 32 to 4096.
        min_8bit_size: parameters with fewer elements keep float32 state.

    Parameters and gradients are float32, float16 or bfloat16 in any mixture. With float32 state
    they are stepped by torch's own fused Adam. A parameter or gradient that is not contiguous is
    copied for the step and its state is in row-major order.

    An element whose gradient is NaN or infinite, or so large that its square is, keeps its value
    and its state, and the others are not affected; with float32 state it becomes NaN, as in torch.

    State per parameter: "step", a float32 tensor that parameters stepped together share, and
    "exp_avg", "exp_avg_sq" (uint8 codes in the parameter's shape, or float32), "exp_avg_absmax",
    "exp_avg_sq_absmax" (float32, one per block; only with 8 bits), "master" (float32; only where
    there is one). The parameters' codebooks are shared, one per device.

    Parameters that are DTensors (FSDP2, tensor parallel) are stepped shard by shard, without
    communication; their state are DTensors too and go through torch.distributed.checkpoint. Blocks
    start anew in every shard: the result has the bits of a single process where shards consist of
    whole blocks, and then also loads with another number of ranks that divides evenly.

    Raises:
        TypeError, ValueError: an argument, or an option of a group, is wrong.
        RuntimeError, from step: a gradient is sparse, a parameter or gradient has another dtype
            (complex, float64) or is on a device without this operator, or the state is not that of
            its parameter. Nothing has changed then.
    """

    _decoupled = False
    _weight_decay = 0.0  # unless given
    _step_supports_amp_scaling = True  # GradScaler then sets grad_scale and found_inf

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | None = None,
        *,
        maximize: bool = False,
        capturable: bool = False,
        master_weights: bool = False,
        blocksize: int = 256,
        min_8bit_size: int = 4096,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": self._weight_decay if weight_decay is None else weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "master_weights": master_weights,
            "bits": 8,
            "blocksize": blocksize,
            "min_8bit_size": min_8bit_size,
            "format": _load.FORMAT,  # what state dicts name themselves
        }
        self._check_group(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, as in torch.optim.Optimizer. TypeError, ValueError: an option is wrong,
        or a parameter is there twice; nothing has changed then."""
        self._check_group(self.defaults | param_group)
        params = param_group["params"]
        if not isinstance(params, Tensor):
            param_group["params"] = params = list(params)
            tensors = [p[1] if isinstance(p, tuple) else p for p in params]
            if len({id(p) for p in tensors}) < len(tensors):
                raise ValueError(
                    f"{type(self).__name__}: a group holds a parameter twice, expected it once"
                )
        super().add_param_group(param_group)

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raises unless every option has a value that it may have."""
        name = type(self).__name__
        for option in ("amsgrad", "differentiable"):  # of torch's, and would change the result
            if group.get(option):
                raise ValueError(f"{name}: {option} is {group[option]}, expected none: unsupported")
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError(f"{name}: lr has shape {list(lr.shape)}, expected one element")
        for option in ("eps", "weight_decay", *(() if isinstance(lr, Tensor) else ("lr",))):
            value = group[option]
            if not isinstance(value, int | float):
                raise TypeError(
                    f"{name}: {option} is a {type(value).__qualname__}, expected a number"
                )
        for option in ("lr", "eps", "weight_decay"):
            if not group[option] >= 0:
                raise ValueError(
                    f"{name}: {option} is {group[option]}, expected a number that is not negative"
                )
        betas = group["betas"]
        if len(betas) != 2 or not all(isinstance(b, int | float) and 0 <= b < 1 for b in betas):
            raise ValueError(f"{name}: betas is {betas}, expected two numbers in [0, 1)")
        for option in ("maximize", "capturable", "master_weights"):
            if not isinstance(group[option], bool):
                raise TypeError(f"{name}: {option} is {group[option]!r}, expected a bool")
        if group["bits"] not in (8, 32):
            raise ValueError(f"{name}: bits is {group['bits']}, expected 8 or 32")
        if not is_blocksize(group["blocksize"]):
            raise ValueError(
                f"{name}: blocksize is {group['blocksize']}, "
                f"expected a power of two from {BLOCKSIZES[0]} to {BLOCKSIZES[-1]}"
            )
        if not isinstance(group["min_8bit_size"], int) or group["min_8bit_size"] < 0:
            raise ValueError(
                f"{name}: min_8bit_size is {group['min_8bit_size']}, "
                "expected an integer that is not negative"
            )

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what state_dict() of this class returned; the options of its groups replace the
        present ones. Tensors are copied.

        Also loads the state dicts of bitsandbytes' Adam8bit and AdamW8bit (their blocks of 256) and
        of torch.optim.Adam and AdamW, whose moments are quantized; of their groups lr, betas, eps,
        weight_decay (and maximize) are taken over. Master weights then start at the parameters.

        ValueError: the state is of other parameters, or has a form that is unknown; nothing has
        changed then.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        state, param_groups = _load.read(self, state_dict)
        self.__setstate__({"state": state, "param_groups": param_groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient.

        closure: evaluates the model again and returns the loss, which is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        start = True
        while True:
            lists: _Lists = ([], [], [], [], [], [], [], [])
            batch = self._init_group(start, *lists)
            if batch is None:
                return loss
            start = False
            group, bits = batch
            self._step_batch(self.param_groups[group], bits, *lists)

    def _init_group(self, start: bool, *lists: list[Any]) -> tuple[int, int] | None:
        """Fills the lists with the next batch and returns its group's index and its bits; None
        after the last. With start, the first batch of a new step.

        torch.compile runs a method of this name and shape (lists to fill, a constant to return)
        while it traces, without tracing it: state is made, checked and sorted here alone.
        """
        if start:
            self._batches = self._plan()
        if not self._batches:
            return None
        batch, tensors = self._batches.pop(0)
        for mine, given in zip(lists, tensors, strict=True):
            mine.extend(given)
        return batch

    def _plan(self) -> list[tuple[tuple[int, int], _Lists]]:
        stepped = [
            [(p, grad) for p in group["params"] if (grad := p.grad) is not None]
            for group in self.param_groups
        ]
        self._check_gradients(stepped)
        self._check_state(stepped)
        sharing = Counter(id(state["step"]) for state in self.state.values() if "step" in state)
        plan: list[tuple[tuple[int, int], _Lists]] = []
        for index, (group, pairs) in enumerate(zip(self.param_groups, stepped, strict=True)):
            fresh: dict[tuple[int, torch.device], Tensor] = {}
            batches: dict[tuple[int, int, torch.device], list[tuple[Any, ...]]] = {}
            for p, grad in pairs:
                state = self.state[p]
                if not state:
                    state.update(self._new_state(p, group, fresh))
                if "master" not in state and _state.wants_master(p, group):
                    state["master"] = _state.master_of(p)
                key = (id(state["step"]), _state.bits_of(state), p.device)
                batches.setdefault(key, []).append((p, grad, state))
            for (step, bits, _), members in batches.items():
                params, grads, states = map(list, zip(*members, strict=True))
                if sharing[step] > len(members):  # the others stay behind
                    own = states[0]["step"].clone()
                    for state in states:
                        state["step"] = own
                plan.append(((index, bits), (params, grads, *_parts(states))))
        return plan

    def _check_gradients(self, stepped: _Stepped) -> None:
        def kind(p: Tensor, grad: Tensor) -> tuple[Any, ...]:
            return p.dtype, grad.dtype, grad.layout, p.device

        kinds = {kind(p, grad) for pairs in stepped for p, grad in pairs}
        for wrong, problem in ((k, _why_not_steppable(*k)) for k in kinds):
            if problem:
                p = next(p for pairs in stepped for p, g in pairs if kind(p, g) == wrong)
                raise RuntimeError(f"{type(self).__name__}: {self._name_of(p)} {problem}")

    def _check_state(self, stepped: _Stepped) -> None:
        """Of what is not the very tensors that were checked last: the operators check too, but only
        their own batch, when another may have been stepped already."""
        now = [
            (group["blocksize"], [id(t) for p, _ in pairs for t in self.state.get(p, {}).values()])
            for group, pairs in zip(self.param_groups, stepped, strict=True)
        ]
        if now == self.__dict__.get("_checked"):
            return
        for group, pairs in zip(self.param_groups, stepped, strict=True):
            for p, _ in pairs:
                state = self.state.get(p)
                problem = _state.why_not(p, state, group["blocksize"]) if state else None
                if problem:
                    raise RuntimeError(
                        f"{type(self).__name__}: {self._name_of(p)} cannot be stepped: "
                        f"its state {problem}"
                    )
        self._checked = now

    def _new_state(
        self, p: Tensor, group: dict[str, Any], fresh: dict[tuple[int, torch.device], Tensor]
    ) -> _state.State:
        bits = _state.wants_bits(p, group)
        if (bits, p.device) not in fresh:
            fresh[bits, p.device] = torch.zeros((), dtype=torch.float32, device=p.device)
        return {"step": fresh[bits, p.device], **_state.zeros(p, bits, group["blocksize"])}

    def _name_of(self, param: Tensor) -> str:
        number = 0
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p is param:
                    names = group.get("param_names")
                    name = f" ({names[i]})" if names else ""
                    return f"parameter {number}{name} of shape {list(p.shape)}"
                number += 1
        raise KeyError("not a parameter of this optimizer")

    def _step_batch(
        self,
        group: dict[str, Any],
        bits: int,
        params: list[Tensor],
        grads: list[Tensor],
        exp_avg: list[Tensor],
        exp_avg_absmax: list[Tensor],
        exp_avg_sq: list[Tensor],
        exp_avg_sq_absmax: list[Tensor],
        masters: list[Tensor | None],
        steps: list[Tensor],
    ) -> None:
        step = steps[0]
        device = step.device
        grad_scale = getattr(self, "grad_scale", None)
        found_inf = getattr(self, "found_inf", None)
        if grad_scale is not None:
            grad_scale = grad_scale.to(device, torch.float32)
        if found_inf is not None:  # the sum over devices
            found_inf = (found_inf.to(device) != 0).to(torch.float32)
        if not torch.compiler.is_compiling():  # which does it itself
            torch.autograd.graph.increment_version(params)
        lr = group["lr"]
        if isinstance(lr, Tensor):
            lr = lr.to(device, torch.float64)
        else:
            lr = torch.full((), lr, dtype=torch.float64, device=device)
        grads = [_as_placed(g, p) for g, p in zip(grads, params, strict=True)]
        params = [local(p) for p in params]
        moments = [local(t) for t in exp_avg], [local(t) for t in exp_avg_sq]
        masters = [None if master is None else local(master) for master in masters]
        numbers = (
            step + 1,
            lr,
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            self._decoupled,
            group["maximize"],
        )
        if bits == 8:
            scales = [
                [_scales(t, p, group["blocksize"]) for t, p in zip(absmax, params, strict=True)]
                for absmax in (exp_avg_absmax, exp_avg_sq_absmax)
            ]
            kept: list[Tensor] = []
            if any(master is not None for master in masters):
                none = torch.empty(0, dtype=torch.float32, device=device)
                kept = [none if master is None else master for master in masters]
            values = [p.contiguous() for p in params]
            torch.ops.lowbit.adam8bit_step_(
                values,
                [g.contiguous() for g in grads],
                moments[0],
                scales[0],
                moments[1],
                scales[1],
                kept,
                codebooks.shared(codebooks.DYNAMIC, device),
                codebooks.shared(codebooks.DYNAMIC_UNSIGNED, device),
                *numbers,
                group["blocksize"],
                grad_scale,
                found_inf,
            )
        else:
            values = [
                p.float().contiguous() if master is None else master
                for p, master in zip(params, masters, strict=True)
            ]
            grads = [g.float().contiguous() for g in grads]
            if grad_scale is not None:
                grads = [g / grad_scale for g in grads]
            fused_adam_(values, grads, *moments, *numbers, found_inf)
        for p, value in zip(params, values, strict=True):
            if value is not p:
                p.copy_(value)
        step.add_(1 if found_inf is None else 1 - found_inf)


class AdamW8bit(Adam8bit):
    """Adam8bit with decoupled weight decay (AdamW, arXiv:1711.05101), like torch.optim.AdamW:
    the decay is not part of g, instead p is multiplied by 1 - lr * weight_decay first.

    Arguments, state and errors as in Adam8bit.
    """

    _decoupled = True
    _weight_decay = 1e-2


@functools.cache
def _has_operator(device: str) -> bool:
    key = torch._C._dispatch_key_for_device(device)
    return torch._C._dispatch_has_kernel_for_dispatch_key("lowbit::adam8bit_step_", key)


def _why_not_steppable(
    dtype: torch.dtype, grad_dtype: torch.dtype, layout: torch.layout, device: torch.device
) -> str | None:
    if layout != torch.strided:
        return "has a sparse gradient, expected a dense one"
    for name, given in (("", dtype), ("a gradient of ", grad_dtype)):
        if given not in FLOATS:
            return f"has {name}dtype {given}, expected one of {', '.join(map(str, FLOATS))}"
    if not _has_operator(device.type):
        return f"is on {device}, for which lowbit::adam8bit_step_ is not there"
    return None


def _parts(states: list[_state.State]) -> _Lists:
    names = ("exp_avg", "exp_avg_absmax", "exp_avg_sq", "exp_avg_sq_absmax")
    parts = ([state[name] for state in states if name in state] for name in names)
    return *parts, [state.get("master") for state in states], [states[0]["step"]]


def _as_placed(grad: Tensor, param: Tensor) -> Tensor:
    """The local part of a gradient, which tensor parallel may have left to be summed up."""
    if hasattr(grad, "to_local") and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return local(grad)


def _scales(absmax: Tensor, part: Tensor, blocksize: int) -> Tensor:
    """The scales of this rank's part: a shard smaller than the largest leaves some unused."""
    if not hasattr(absmax, "to_local"):
        return absmax
    return local(absmax)[: ceil_div(part.numel(), blocksize)]
