# SPDX-License-Identifier: MIT
"""The arrows of the house: shim -> ops -> kernels, and no include against them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_INCLUDE = {
    "kernels": {"kernels"},
    "ops": {"ops", "kernels"},
    "shim": {"shim", "ops"},
}
SOURCES = ("*.c", "*.h", "*.inc", "*.cpp", "*.cu", "*.cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


def layer_of(root: Path, file: Path) -> str:
    return file.resolve().relative_to(root.resolve()).parts[0]


def target_of(root: Path, source: Path, name: str) -> Path | None:
    """The project's file that an include names; None for a header of the system."""
    places = [source.parent / name, root / "ops/include" / name, root / name]
    places += [p for layer in MAY_INCLUDE for p in sorted((root / layer).rglob(name))]
    return next((place for place in places if place.is_file()), None)


def violations(root: Path) -> list[str]:
    found = []
    for layer, allowed in MAY_INCLUDE.items():
        for source in sorted(p for pattern in SOURCES for p in (root / layer).rglob(pattern)):
            for name in INCLUDE.findall(source.read_text()):
                target = target_of(root, source, name)
                wrong = (
                    layer_of(root, target) not in allowed
                    if target
                    else (layer != "shim" and name.startswith(("torch/", "ATen/", "c10/")))
                )
                if wrong:
                    found.append(f"{source.relative_to(root)} includes {name}")
    return found


def test_no_include_crosses_the_layers_backwards() -> None:
    assert any((ROOT / "kernels").rglob("*.c"))
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("source", "include"),
    [
        ("kernels/cpu/a.c", "lowbit/status.h"),
        ("kernels/cpu/a.c", "../../ops/check.h"),
        ("ops/a.c", "../shim/bridge.h"),
        ("shim/a.cpp", "kernels/cpu/a.h"),
        ("ops/a.c", "torch/torch.h"),
    ],
)
def test_a_backward_include_is_found(tmp_path: Path, source: str, include: str) -> None:
    files = ("ops/include/lowbit/status.h", "ops/check.h", "shim/bridge.h", "kernels/cpu/a.h")
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert violations(tmp_path) == []
    (tmp_path / source).write_text(f'#include "{include}"\n')
    assert violations(tmp_path)
