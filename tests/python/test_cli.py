# SPDX-License-Identifier: MIT
"""`python -m lowbit info`, and how importing lowbit fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lowbit
import pytest
import torch
from conftest import isa_levels
from lowbit import _library, cli


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def info(**environment: str) -> dict[str, str]:
    result = run("-m", "lowbit", "info", **environment)
    assert result.returncode == 0, result.stderr
    return dict(line.split("  ", 1) for line in result.stdout.splitlines())


def test_info() -> None:
    rows = {name: value.strip() for name, value in info().items()}
    assert rows["lowbit"] == lowbit.__version__
    assert rows["torch"] == torch.__version__
    assert rows["instruction sets"].split(" (")[0].split(", ") == isa_levels()
    known = [name for _, name in _library.isa_levels()]
    for m in (1, 8, 512):
        for kernel in ("int8_linear", "lut4_linear, float32", "lut4_linear, bfloat16"):
            assert rows[f"{kernel}, M = {m}"].rpartition("__")[2] in known
    assert {"threads", "CUDA", "processor", "transformers", "library"} <= rows.keys()


def test_info_shows_a_cap_and_a_wrong_one() -> None:
    rows = info(LOWBIT_CPU_ISA="scalar")
    assert rows["instruction sets"].strip() == "scalar (capped by LOWBIT_CPU_ISA=scalar)"
    assert rows["int8_linear, M = 8"].endswith("__scalar")
    assert rows["lut4_linear, bfloat16, M = 8"].endswith("__scalar")
    assert "'sse9'" in info(LOWBIT_CPU_ISA="sse9")["instruction sets"]


def test_operators_refuse_an_unknown_cap() -> None:
    code = """
import torch, lowbit
op, x, packed = torch.ops.lowbit, torch.ones(2, 64), torch.zeros(64, dtype=torch.uint8)
table = lowbit.codebooks.get("nf4")
for call in (
    lambda: op.int8_quantize(x),
    lambda: op.int8_linear(x, torch.ones(2, 64, dtype=torch.int8), torch.ones(2)),
    lambda: op.lut4_quantize(x, table),
    lambda: op.lut4_dequantize(packed, torch.ones(2), table, [2, 64]),
    lambda: op.lut4_linear(x, packed, torch.ones(2), table),
    lambda: op.lut4_linear_grad_input(torch.ones(2, 2), packed, torch.ones(2), table, 64),
    lambda: op.blockwise_quantize(x, lowbit.codebooks.dynamic_map()),
):
    try:
        print(call())
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""
    result = run("-c", code, LOWBIT_CPU_ISA="sse9")
    assert result.returncode == 0, result.stderr
    said = result.stdout.splitlines()
    assert len(said) == 7
    assert all("LOWBIT_CPU_ISA" in line and "sse9" in line for line in said), said


def test_a_command_is_required() -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(Path(lowbit.__file__).parent, tmp_path / "lowbit")
    return tmp_path


def import_error(folder: Path, before: str = "") -> str:
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); {before}\nimport lowbit"
    result = run("-c", code)
    assert result.returncode != 0
    return result.stderr.splitlines()[-1]


def test_import_without_the_library_says_what_to_do(copied: Path) -> None:
    library = copied / "lowbit/liblowbit_torch.so"
    library.unlink()
    message = import_error(copied)
    assert message.startswith("ImportError")
    assert str(library) in message
    assert "pip install" in message


def test_import_of_a_broken_library_says_what_to_do(copied: Path) -> None:
    (copied / "lowbit/liblowbit_torch.so").write_bytes(b"not a library")
    message = import_error(copied)
    assert message.startswith("ImportError")
    assert "cannot load" in message
    assert "pip install" in message


def test_import_under_an_old_torch_says_what_to_do(copied: Path) -> None:
    old = "import torch; torch.__version__ = type(torch.__version__)('2.9.1')"
    message = import_error(copied, old)
    assert "needs torch >= 2.10, but torch 2.9.1 is installed" in message
