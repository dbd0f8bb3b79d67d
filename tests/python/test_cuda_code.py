# SPDX-License-Identifier: MIT
"""What nvcc made of the CUDA kernels: the instructions they are built on, and no spilled registers.
Needs no GPU; skipped where the library has no CUDA kernels or cuobjdump is not there."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from lowbit import _library

TENSOR_CORES = {"int8": "IMMA.16832.S8.S8", "4 bits": "HMMA.16816.F32"}
OTHERS = {"ldmatrix": "LDSM.16.M88.4", "cp.async": "LDGSTS.E.BYPASS.128"}


def cuobjdump(*arguments: str) -> str:
    packages = Path(sysconfig.get_path("purelib"), "nvidia")
    path = ":".join(map(str, packages.glob("*/bin")))
    program = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=path)
    if program is None:
        pytest.skip("no cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)")
    run = subprocess.run(
        [program, *arguments, str(_library.PATH)], capture_output=True, text=True, check=False
    )
    if "does not contain device code" in run.stdout + run.stderr:
        pytest.skip("lowbit is built without CUDA kernels")
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_no_register_is_spilled(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.findall(
        r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
        cuobjdump("--dump-resource-usage"),
    )
    assert len(found) >= 40
    with capsys.disabled():
        most = max(int(registers) for _, registers, *_ in found)
        print(f"\n{len(found)} CUDA kernels use up to {most} registers, ", end="")
        print(f"{sum(int(r) > 128 for _, r, *_ in found)} of them more than 128")
    assert not [name for name, _, stack, _, local in found if int(stack) or int(local)]


@pytest.mark.parametrize("architecture", ("sm_80", "sm_90a"))
def test_instructions(architecture: str) -> None:
    code = cuobjdump("-sass", "-arch", architecture)
    for name, instruction in {**TENSOR_CORES, **OTHERS}.items():
        assert instruction in code, name
