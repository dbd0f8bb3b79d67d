# SPDX-License-Identifier: MIT
"""Saved states as Adam8bit keeps them: its own, bitsandbytes' and torch's."""

from collections import defaultdict
from copy import deepcopy
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowbit import codebooks
from lowbit.optim import _state
from lowbit.optim._state import local

if TYPE_CHECKING:
    from lowbit.optim.adam8bit import Adam8bit

FORMAT = "lowbit.adam8bit.1"  # of the state dict, in every group

# Options that a group of another optimizer gives to ours.
_SHARED_OPTIONS = ("lr", "betas", "eps", "weight_decay", "maximize", "initial_lr", "param_names")
_BNB_BLOCKSIZE = 256
# bitsandbytes hides the tensors that FSDP cannot gather in a dict of this name.
_BNB_HIDDEN = "__bnb_optimizer_quant_state__"
_BNB_NAMES = {
    "state1": "exp_avg",
    "state2": "exp_avg_sq",
    "absmax1": "exp_avg_absmax",
    "absmax2": "exp_avg_sq_absmax",
    "step": "step",
}
_BNB_MAPS = {"qmap1": codebooks.DYNAMIC, "qmap2": codebooks.DYNAMIC_UNSIGNED}


def read(
    optimizer: "Adam8bit", state_dict: dict[str, Any]
) -> tuple[dict[Tensor, _state.State], list[dict[str, Any]]]:
    """State by parameter, in memory of its own, and param groups. ValueError: they do not fit the
    optimizer, which has not changed."""
    here = f"{type(optimizer).__name__}.load_state_dict"
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            f"{here}: the entries are {', '.join(map(str, state_dict))}, "
            "expected state and param_groups"
        )
    saved_groups = state_dict["param_groups"]
    sizes = [
        [len(g["params"]) for g in groups] for groups in (saved_groups, optimizer.param_groups)
    ]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{here}: the groups have {sizes[0]} parameters, expected {sizes[1]}, as here"
        )
    keys = list(chain.from_iterable(group["params"] for group in saved_groups))
    unknown = sorted(map(str, state_dict["state"].keys() - set(keys)))
    if unknown:
        raise ValueError(f"{here}: there is state of {', '.join(unknown)}, which no group names")
    foreign = _family(here, saved_groups, state_dict["state"])
    state: defaultdict[Tensor, _state.State] = defaultdict(dict)  # as torch has it
    groups = []
    for mine, saved in zip(optimizer.param_groups, saved_groups, strict=True):
        group = _group(here, optimizer, mine, saved, foreign)
        optimizer._check_group(group)
        groups.append(group)
        shared: dict[tuple[float, int, torch.device], Tensor] = {}
        for param, key in zip(mine["params"], saved["params"], strict=True):
            entry = state_dict["state"].get(key)
            if not entry:
                continue
            try:
                state[param] = _entry(param, group, entry, foreign)
            except ValueError as error:
                name = optimizer._name_of(param)
                raise ValueError(f"{here}: the state of {name} {error}") from None
            _share_step(param, state[param], shared)
    return state, groups


def _family(here: str, groups: list[dict[str, Any]], state: dict[Any, Any]) -> str | None:
    """Whose state it is: None for our own."""
    formats = {group.get("format") for group in groups}
    if formats == {FORMAT}:
        return None
    if formats != {None}:
        found = ", ".join(map(str, sorted(map(str, formats))))
        raise ValueError(f"{here}: the format is {found}, expected {FORMAT}")
    entries = [entry for entry in state.values() if entry]
    if entries and all("state1" in entry or _BNB_HIDDEN in entry for entry in entries):
        return "bitsandbytes"
    if all("exp_avg" in entry and "exp_avg_absmax" not in entry for entry in entries):
        return "torch"
    names = sorted({str(name) for entry in entries for name in entry})
    raise ValueError(
        f"{here}: the state has the entries {', '.join(names)}, expected those of lowbit's, "
        "bitsandbytes' or torch's Adam"
    )


def _group(
    here: str,
    optimizer: "Adam8bit",
    mine: dict[str, Any],
    saved: dict[str, Any],
    foreign: str | None,
) -> dict[str, Any]:
    options = {name: value for name, value in saved.items() if name != "params"}
    if foreign is None:
        # torch's __setstate__ adds differentiable.
        missing = sorted(optimizer.defaults.keys() - options.keys() - {"differentiable"})
        if missing:
            raise ValueError(f"{here}: a group lacks {', '.join(missing)}")
        kept = {"param_names"}
    else:
        if options.get("amsgrad"):
            raise ValueError(f"{here}: a group has amsgrad, which has no 8-bit form")
        _check_decay(here, options, foreign, optimizer._decoupled)
        options = {name: value for name, value in options.items() if name in _SHARED_OPTIONS}
        if "betas" in options:
            betas = options["betas"][:2]  # bitsandbytes' may have a third, for another optimizer
            options["betas"] = tuple(float(beta) for beta in betas)
        if foreign == "bitsandbytes":
            options["blocksize"] = _BNB_BLOCKSIZE
        kept = mine.keys()
    group = {name: value for name, value in mine.items() if name in kept}
    return group | deepcopy(options) | {"params": mine["params"]}


def _check_decay(here: str, options: dict[str, Any], foreign: str, decoupled: bool) -> None:
    """A decay means something else in the other class; bitsandbytes' is decoupled in both."""
    theirs = foreign == "bitsandbytes" or options.get("decoupled_weight_decay", decoupled)
    if options.get("weight_decay") and theirs != decoupled:
        raise ValueError(
            f"{here}: weight_decay is {'decoupled' if theirs else 'part of the gradient'} where "
            f"the state was saved; load it into {'AdamW8bit' if theirs else 'Adam8bit'}"
        )


def _entry(
    param: Tensor, group: dict[str, Any], entry: dict[str, Any], foreign: str | None
) -> _state.State:
    """One parameter's state. ValueError: why it cannot be."""
    if foreign == "bitsandbytes":
        entry = _from_bitsandbytes(entry)
    elif foreign == "torch":
        entry = _from_torch(param, group, entry)
    if foreign is not None and _state.wants_master(param, group):
        entry["master"] = _state.master_of(param)
    problem = _state.why_not_saved(param, entry, group)
    if problem:
        raise ValueError(problem)
    step = entry["step"].detach().reshape(()).to(param.device, torch.float32, copy=True)
    return {"step": step} | {
        name: value.detach().to(param.device, copy=True).contiguous()
        for name, value in entry.items()
        if name != "step"
    }


def _from_bitsandbytes(entry: dict[str, Any]) -> dict[str, Any]:
    entry = entry | entry.get(_BNB_HIDDEN, {})
    entry.pop(_BNB_HIDDEN, None)
    for name, table in _BNB_MAPS.items():
        qmap = entry.pop(name, None)
        expected = codebooks.dynamic_map(signed=table == codebooks.DYNAMIC)
        if qmap is not None and not torch.equal(qmap.to("cpu", torch.float32), expected):
            raise ValueError(f"has a {name} that is not the dynamic map, expected that")
    renamed = {_BNB_NAMES.get(name, name): value for name, value in entry.items()}
    if isinstance(renamed.get("step"), int | float):
        renamed["step"] = torch.tensor(float(renamed["step"]))
    return renamed


def _from_torch(param: Tensor, group: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    """torch's moments have the parameter's dtype."""
    entry = dict(entry)
    for name in _state.MOMENTS:
        value = entry.get(name)
        if isinstance(value, Tensor) and value.is_floating_point():
            entry[name] = value.float()
    if _state.wants_bits(param, group) == 32 or _state.why_not(param, entry, group["blocksize"]):
        return entry
    moments = {name: local(entry[name]).to(param.device) for name in _state.MOMENTS}
    return entry | _state.quantized(param, moments, group["blocksize"])


def _share_step(
    param: Tensor, state: _state.State, shared: dict[tuple[float, int, torch.device], Tensor]
) -> None:
    """Makes parameters that are stepped by one call, if their steps are equal, share the tensor."""
    if param.is_meta:
        return
    key = (state["step"].item(), _state.bits_of(state), param.device)
    state["step"] = shared.setdefault(key, state["step"])
