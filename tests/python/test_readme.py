# SPDX-License-Identifier: MIT
"""The snippets of README.md run as they stand there."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def elsewhere(tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in which MiniLM's hub id is also a path, to the same weights."""
    monkeypatch.chdir(tmp_path)
    Path("sentence-transformers").mkdir()
    Path("sentence-transformers/all-MiniLM-L6-v2").symlink_to(minilm)
    return tmp_path


def test_the_commands_stand_at_the_top() -> None:
    first, *_ = snippets("sh")
    assert README.index(first) < README.index("\n## ")
    for line in first.splitlines():
        command = ROOT / line.split()[0]
        assert command.is_file()
        assert command.stat().st_mode & 0o111
    assert {line.split()[0] for line in first.splitlines()} == {"examples/run", "tests/run"}


@pytest.mark.parametrize("code", snippets("python"))
@pytest.mark.usefixtures("elsewhere")
def test_python(code: str) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    if "import bitsandbytes" in code:
        pytest.importorskip("bitsandbytes")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    torch.compiler.reset()


@pytest.mark.parametrize("code", snippets("c"))
def test_c(code: str, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "readme.c"
    source.write_text(code)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    include = f"-I{ROOT / 'ops/include'}"
    subprocess.run([compiler, *flags, include, source], check=True)


def test_operators_are_those_of_the_library() -> None:
    """Each row of the operator table gives the operator's arguments, in order."""
    rows = re.findall(r"^\| `(\w+)\((.*?)\)` \|", README, re.MULTILINE)
    assert {name for name, _ in rows} == {
        name.removeprefix("lowbit::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("lowbit::")
    }
    for name, arguments in rows:
        schema = getattr(torch.ops.lowbit, name).default._schema
        assert arguments.split(", ") == [argument.name for argument in schema.arguments]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
