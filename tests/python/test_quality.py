# SPDX-License-Identifier: MIT
"""A real model on real text: MiniLM over docstrings of the standard library."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers")

import lowbit
from lowbit.nn import Int8Linear
from transformers import AutoModel, AutoTokenizer

COUNT = 250


def docstrings() -> Iterator[str]:
    """Docstrings of at least 80 characters, in the order of the files."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
                text = ast.get_docstring(node)
                if text and len(text) >= 80:
                    yield text


@pytest.fixture(scope="module")
def batches(minilm: Path) -> list[dict[str, Tensor]]:
    texts = list(docstrings())
    assert len(texts) >= COUNT
    texts = sorted(texts[:: len(texts) // COUNT][:COUNT], key=len)  # little padding in a batch
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    return [
        tokenizer(
            texts[i : i + 25], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        for i in range(0, COUNT, 25)
    ]


def embed(model: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    results = []
    with torch.inference_mode():
        for batch in batches:
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None]
            results.append((hidden * mask).sum(1) / mask.sum(1))
    return torch.cat(results)


@pytest.fixture(scope="module")
def expected(minilm: Path, batches: list[dict[str, Tensor]]) -> Tensor:
    return embed(AutoModel.from_pretrained(minilm).eval(), batches)


def cosines(minilm: Path, batches: list, expected: Tensor, **options: object) -> Tensor:
    model = AutoModel.from_pretrained(minilm).eval()
    lowbit.quantize_(model, **options)
    return torch.cosine_similarity(embed(model, batches), expected)


@pytest.mark.parametrize("offset", [False, True])
def test_embeddings_are_those_of_the_float_model(
    minilm: Path, batches: list, expected: Tensor, offset: bool
) -> None:
    similar = cosines(minilm, batches, expected, threshold=6.0, offset=offset)
    assert len(similar) == COUNT
    assert similar.mean() >= 0.999
    assert similar.min() >= 0.998


def test_without_decomposition_they_are_visibly_worse(
    minilm: Path, batches: list, expected: Tensor
) -> None:
    """So a decomposition that does nothing fails the test above."""
    similar = cosines(minilm, batches, expected, threshold=0.0)
    assert similar.mean() < 0.999
    assert similar.min() < 0.998


def test_a_whole_model_has_exactly_the_bytes_of_its_codes_scales_and_biases(minilm: Path) -> None:
    model = AutoModel.from_pretrained(minilm)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    other = sum(p.nbytes for p in model.parameters()) - sum(
        p.nbytes for m in linears.values() for p in m.parameters()
    )
    report = lowbit.quantize_(model)
    assert set(report.replaced) == set(linears)
    size = sum(m.out_features * m.in_features + 8 * m.out_features for m in linears.values())
    assert sum(p.nbytes for p in model.parameters()) == other + size
    assert all(isinstance(model.get_submodule(name), Int8Linear) for name in linears)
