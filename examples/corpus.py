# SPDX-License-Identifier: MIT
"""Real text that every machine has: Python's standard library, its docstrings and its manual."""

import ast
import sysconfig
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from pydoc_data.topics import topics

# What most questions are about, in an order that never changes.
MODULES = """
    argparse base64 calendar collections configparser contextlib copy csv datetime difflib fnmatch
    fractions functools getpass glob gzip heapq inspect ipaddress json logging os pathlib pickle
    random re secrets shutil smtplib statistics string subprocess tarfile tempfile textwrap
    threading timeit traceback urllib.parse urllib.request uuid warnings webbrowser zipfile
""".split()  # noqa: SIM905
SHORTEST = 60  # characters; less is a remark
NOT_SOURCES = {"site-packages", "test", "tests", "idle_test"}
TABLES = {"encodings", "pydoc_data"}  # Python by name only


def paragraphs(most: int) -> dict[str, str]:
    """Up to `most` docstrings of public functions and classes by their full names.

    Taken in turn from each module, so that a smaller number still covers all of them.
    """
    found: dict[str, str] = {}
    for turn in zip_longest(*map(_docstrings, MODULES)):
        for name, text in filter(None, turn):
            if len(found) < most and text not in found.values():
                found[name] = text
    return found


def sources() -> list[str]:
    """The modules of the standard library as their authors wrote them, code and docstrings."""
    base = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(base) for path in base.rglob("*.py"))
    texts = (
        (base / path).read_text("utf-8", errors="replace")
        for path in paths
        if not (NOT_SOURCES | TABLES).intersection(path.parts)
    )
    return [text for text in dict.fromkeys(texts) if len(text) >= SHORTEST]


def manual() -> list[str]:
    """The language reference, topic by topic as `help()` shows it, every paragraph once."""
    seen: set[str] = set()
    texts = []
    for _, topic in sorted(topics.items()):
        fresh = dict.fromkeys(p for p in topic.split("\n\n") if p not in seen)
        seen.update(fresh)
        texts.append("\n\n".join(fresh))
    return [text for text in texts if len(text) >= SHORTEST]


def split(texts: list[str], every: int = 8) -> tuple[list[str], list[str]]:
    """Texts to learn from, and every eighth one, to be held out."""
    return [text for i, text in enumerate(texts) if i % every], texts[::every]


def _docstrings(module: str) -> Iterator[tuple[str, str]]:
    """Functions and classes first, then methods."""
    base = Path(sysconfig.get_path("stdlib"), *module.split("."))
    path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    level = [(module, ast.parse(path.read_text("utf-8")))]
    while level:
        level = [
            (f"{name}.{node.name}", node)
            for name, parent in level
            if not isinstance(parent, ast.FunctionDef)
            for node in parent.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        for name, node in level:
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield name, text
