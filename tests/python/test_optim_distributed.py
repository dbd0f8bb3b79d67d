# SPDX-License-Identifier: MIT
"""lowbit.optim over FSDP2: two processes on the CPU, beside one."""

import copy
import os
import socket
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from lowbit.nn import Int8Linear
from lowbit.optim import AdamW8bit
from reference import same_bits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard

K = 64
OPTIONS = {"lr": 1e-2, "weight_decay": 0.1}

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch has no distributed part")


def model(width: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(K, width), nn.ReLU(), nn.Linear(width, K)).to(dtype)


def sharded(width: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    whole = model(width, dtype)
    fully_shard(whole[0])
    fully_shard(whole[2])
    return fully_shard(whole)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    """Every process has the same batch, so the mean of the gradients is that of one process."""
    dtype = next(p.dtype for p in net.parameters() if p.requires_grad)
    for seed in steps:
        x = torch.randn(8, K, generator=torch.Generator().manual_seed(seed)).to(dtype)
        (net(x) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach()


def same_state(a: Any, b: Any) -> bool:
    """The state of both, parameter by parameter, has the same local bits."""
    params = [[p for g in o.param_groups for p in g["params"]] for o in (a, b)]
    for p, q in zip(*params, strict=True):
        for name in a.state[p].keys() | b.state[q].keys():
            values = [o.state[x][name] for o, x in ((a, p), (b, q))]
            local = [v.to_local() if hasattr(v, "to_local") else v for v in values]
            if type(values[0]) is not type(values[1]) or not same_bits(*local):
                return False
    return True


def _one_process(width: int, **options: Any) -> tuple[nn.Module, AdamW8bit]:
    dtype = options.pop("dtype", torch.float32)
    net = model(width, dtype)
    optimizer = AdamW8bit(net.parameters(), **OPTIONS, **options)
    train(net, optimizer, range(4))
    return net, optimizer


def _shards_of_whole_blocks(_: str) -> None:
    """128 x 64 over two ranks: shards of 16 blocks. The same bits as one process; also with
    master weights and in bfloat16."""
    for options in ({}, {"dtype": torch.bfloat16, "master_weights": True}):
        alone, reference = _one_process(128, **options)
        options = dict(options)
        net = sharded(128, options.pop("dtype", torch.float32))
        optimizer = AdamW8bit(net.parameters(), **OPTIONS, **options)
        train(net, optimizer, range(4))
        for p, q in zip(net.parameters(), alone.parameters(), strict=True):
            assert same_bits(full(p), q.detach())
            for name, value in reference.state[q].items():
                assert same_bits(full(optimizer.state[p][name]), value), name
        weight = next(net.parameters())
        assert optimizer.state[weight]["exp_avg"].to_local().dtype == torch.uint8
        assert optimizer.state[weight]["exp_avg"].placements == weight.placements
        assert ("master" in optimizer.state[weight]) == bool(options)


def _other_shards(_: str) -> None:
    """Blocks start anew in every shard, so the scales are other ones: near the one process."""
    for width in (129, 101, 65):
        start = model(width)
        alone, _ = _one_process(width)
        net = sharded(width)
        optimizer = AdamW8bit(net.parameters(), **OPTIONS)
        train(net, optimizer, range(4))
        for p, q, before in zip(
            net.parameters(), alone.parameters(), start.parameters(), strict=True
        ):
            assert torch.dist(full(p), q) < 0.03 * torch.dist(before, q)


def _checkpoints(folder: str) -> None:
    for width in (128, 129):
        net = sharded(width)
        optimizer = AdamW8bit(net.parameters(), **OPTIONS)
        train(net, optimizer, range(3))
        saved = {
            "model": get_model_state_dict(net),
            "optimizer": get_optimizer_state_dict(net, optimizer),
        }
        dcp.save(saved, checkpoint_id=f"{folder}/{width}")
        whole = StateDictOptions(full_state_dict=True)
        rank_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        flat = StateDictOptions(flatten_optimizer_state_dict=True)
        gathered = get_optimizer_state_dict(net, optimizer, options=whole)
        flattened = get_optimizer_state_dict(net, optimizer, options=flat)

        other = sharded(width)
        resumed = AdamW8bit(other.parameters(), lr=1.0)
        loaded = {
            "model": get_model_state_dict(other),
            "optimizer": get_optimizer_state_dict(other, resumed),
        }
        dcp.load(loaded, checkpoint_id=f"{folder}/{width}")
        set_model_state_dict(other, loaded["model"])
        set_optimizer_state_dict(other, resumed, loaded["optimizer"])
        assert same_state(optimizer, resumed)
        here = gathered if dist.get_rank() == 0 else {}
        for state_dict, options in ((gathered, whole), (flattened, flat), (here, rank_0)):
            again = AdamW8bit(other.parameters(), lr=1.0)
            set_optimizer_state_dict(other, again, state_dict, options=options)
            assert same_state(optimizer, again)
            assert again.param_groups[0]["lr"] == 1e-2
        train(net, optimizer, range(3, 5))
        train(other, resumed, range(3, 5))
        assert same_state(optimizer, resumed)
        for p, q in zip(net.parameters(), other.parameters(), strict=True):
            assert same_bits(full(p), full(q))


def _refusals(_: str) -> None:
    net = sharded(128)
    optimizer = AdamW8bit(net.parameters(), **OPTIONS)
    whole = model(128)
    other = AdamW8bit(whole.parameters(), **OPTIONS)
    train(whole, other, range(1))
    try:
        optimizer.load_state_dict(other.state_dict())
    except ValueError as error:
        assert "no DTensor, unlike the parameter" in str(error)
        assert not optimizer.state
    else:
        raise AssertionError("state of whole parameters was loaded for shards")
    trainable = nn.Sequential(Int8Linear.from_float(nn.Linear(K, K), trainable=True))
    fully_shard(trainable)
    try:
        trainable(torch.randn(2, K))
    except RuntimeError as error:
        assert "FSDP and functional_call are not supported" in str(error)
    else:
        raise AssertionError("FSDP over a trainable Int8Linear was not refused")


def _data_parallel(_: str) -> None:
    """DistributedDataParallel leaves parameters as they are: also trainable int8 layers."""
    torch.manual_seed(0)
    alone = nn.Sequential(Int8Linear.from_float(nn.Linear(K, K), trainable=True))
    net = nn.parallel.DistributedDataParallel(copy.deepcopy(alone))
    for each in (alone, net):
        params = [p for p in each.parameters() if p.requires_grad]
        train(each, AdamW8bit(params, min_8bit_size=0, **OPTIONS), range(3))
    for (name, p), q in zip(alone.named_parameters(), net.parameters(), strict=True):
        assert same_bits(p.detach(), q.detach()), name


CASES = (_shards_of_whole_blocks, _other_shards, _checkpoints, _refusals, _data_parallel)


def _process(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for case in CASES:
        case(folder)
        Path(folder, f"{case.__name__}-{rank}").touch()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def passed(folder: Path) -> tuple[set[str], str]:
    """What both processes have passed, one case after the other, and what then went wrong."""
    error = ""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        mp.spawn(_process, (port, str(folder)), nprocs=2)
    except mp.ProcessException as raised:
        error = str(raised)
    names = {case.__name__ for case in CASES}
    return {n for n in names if all((folder / f"{n}-{rank}").exists() for rank in (0, 1))}, error


@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: Callable[[str], None], passed: tuple[set[str], str]) -> None:
    assert case.__name__ in passed[0], passed[1]


def test_a_checkpoint_of_whole_blocks_loads_in_one_process(
    folder: Path, passed: tuple[set[str], str]
) -> None:
    assert _checkpoints.__name__ in passed[0], passed[1]
    expected = model(128)
    reference = AdamW8bit(expected.parameters(), **OPTIONS)
    train(expected, reference, range(3))
    net = model(128)
    optimizer = AdamW8bit(net.parameters(), lr=1.0)
    loaded = {
        "model": get_model_state_dict(net),
        "optimizer": get_optimizer_state_dict(net, optimizer),
    }
    dcp.load(loaded, checkpoint_id=str(folder / "128"), no_dist=True)
    set_model_state_dict(net, loaded["model"])
    set_optimizer_state_dict(net, optimizer, loaded["optimizer"])
    assert same_state(reference, optimizer)
    for each in ((expected, reference), (net, optimizer)):
        train(*each, range(3, 5))
    for p, q in zip(expected.parameters(), net.parameters(), strict=True):
        assert same_bits(p.detach(), q.detach())
