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
from lowbit import _library


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
        assert rows[f"int8_linear, M = {m}"].rpartition("__")[2] in known
    assert {"threads", "CUDA", "processor", "transformers", "library"} <= rows.keys()


def test_info_shows_a_cap_and_a_wrong_one() -> None:
    rows = info(LOWBIT_CPU_ISA="scalar")
    assert rows["instruction sets"].strip() == "scalar (capped by LOWBIT_CPU_ISA=scalar)"
    assert rows["int8_linear, M = 8"].endswith("__scalar")
    assert "'sse9'" in info(LOWBIT_CPU_ISA="sse9")["instruction sets"]


def test_an_operator_refuses_an_unknown_cap() -> None:
    call = "import torch, lowbit; torch.ops.lowbit.int8_quantize(torch.ones(2, 2))"
    result = run("-c", call, LOWBIT_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "LOWBIT_CPU_ISA" in result.stderr
    assert "sse9" in result.stderr


def test_a_command_is_required() -> None:
    assert run("-m", "lowbit").returncode == 2


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
