# SPDX-License-Identifier: MIT
"""tests/gpu/bench.py with the CPU in the place of the GPU: every case runs and is accounted for."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[1] / "gpu" / "bench.py"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_bench", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {
        "DEVICE": "cpu",
        "SHAPES": ((128, 256),),
        "ROWS": (1, 32, 2048),
        "OUTLIERS": ((64, 128), (1, 20)),
        "WEIGHT": (64, 128),
        "PARAMETERS": 1 << 18,
        "TENSORS": 5,
        "COPIED": 1000,
        "COLD": 1000,
    }
    for name, value in small.items():
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)
    return module


def run_each(calls: list[Callable[[], Any]]) -> float:
    for call in calls:
        call()
    return 10.0


def test_every_case(bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.graph_time = run_each
    assert bench.main(tmp_path, "none") == 0
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert all(row["time"] == 10 for row in results)
    assert all(
        "reach" in row for row in results if row["operator"] in ("int8 linear", "nf4 linear")
    )
    counts = {}
    for row in results:
        name = row["operator"].partition(",")[0].partition(" float")[0].partition(" bfloat")[0]
        counts[name] = counts.get(name, 0) + 1
    linears = dict.fromkeys(("int8 linear", "int8 grad_input", "nf4 linear", "nf4 grad_input"), 3)
    families = ("int8", "lut4", "blockwise")
    elementwise = {f"{f}_{way}": 1 for f in families for way in ("quantize", "dequantize")}
    assert counts == {"adam8bit": 4, "int8": 6, **linears, **elementwise}
    table = (tmp_path / "bench.txt").read_text().splitlines()
    assert len(table) == len(results) + 2
    assert f"{len(results)} cases, 0 failed" in capsys.readouterr().out


def test_a_case_that_fails(
    bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are measured all the same."""
    count = 0

    def some(calls: list[Callable[[], Any]]) -> float:
        nonlocal count
        count += 1
        if count == 3:  # the copy, and torch, come before
            raise RuntimeError("out of memory\nand more")
        return run_each(calls)

    bench.graph_time = some
    assert bench.main(tmp_path, "none") == 1
    results = json.loads((tmp_path / "bench.json").read_text())["results"]
    (failed,) = (row for row in results if "error" in row)
    assert failed["operator"].startswith("adam8bit")
    assert failed["error"] == "RuntimeError: out of memory"
    assert "RuntimeError: out of memory" in (tmp_path / "bench.txt").read_text()


def test_what_is_to_reach(bench: ModuleType) -> None:
    def row(m: int) -> dict[str, float]:
        return {"m": m, "torch": 30.0, "floor": 4.0}

    assert [bench.reach_int8(row(m)) for m in (1, 16, 17, 512)] == [7.5, 7.5, 30, 30]
    assert bench.reach_int8(row(2048)) == pytest.approx(30 / 1.1)
    assert bench.reach_int8({"m": 1, "torch": 5.0, "floor": 4.0}) == 5
    assert [bench.reach_lut4(row(m)) for m in (16, 17, 128)] == [7, 30, 30]
    assert bench.reach_lut4(row(2048)) == pytest.approx(30 / 0.9)
