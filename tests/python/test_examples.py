# SPDX-License-Identifier: MIT
"""The Python examples, run as a user runs them, on real input."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "main.py", "--threads", "1", "--rounds", "1", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "120"},
    )


def table(output: str) -> dict[str, tuple[float, float]]:
    """The numbers of the comparison: the original's and int8's, by the name of the row."""
    rows = re.findall(
        r"^ *(\w+(?:[ ,]+\w+)*?)  +\S.*?  +([\d.,]+) +([\d.,]+) *(?:[\d.]+x \w+)? *$", output, re.M
    )
    return {
        name: (float(before.replace(",", "")), float(after.replace(",", "")))
        for name, before, after in rows
    }


def assert_is_picture(path: Path) -> None:
    from matplotlib.image import imread

    pixels = imread(path)
    assert min(pixels.shape[:2]) >= 400
    assert pixels.std() > 0.05  # bars and letters, not a blank page


@pytest.mark.usefixtures("minilm")
def test_an_encoder_answers_as_before(tmp_path: Path) -> None:
    result = run("--paragraphs", "100", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the middle value of a list of numbers" in result.stdout
    assert " difflib." in result.stdout  # for: how similar are two pieces of text?
    rows = table(result.stdout)
    before, after = rows["Linear layers"]
    assert 3.9 < before / after < 4
    before, after = rows["Whole model"]
    assert after < before / 1.5
    for name in ("Loading", "Batch of 1", "Batch of 32"):
        assert min(rows[name]) > 0
    # What a decomposition that did not work would fail.
    assert rows["Cosine, mean"][1] >= 0.999
    assert rows["Cosine, worst"][1] >= 0.998
    assert rows["Same top 5"][1] >= 90
    assert_is_picture(tmp_path / "MiniLM.png")


def test_without_decomposition_the_answers_drift(tmp_path: Path, minilm: Path) -> None:
    """The figures above are of the outliers' making, not of a test that passes anything."""
    result = run("--threshold", "0", "--paragraphs", "100", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert table(result.stdout)["Cosine, mean"][1] < 0.999


def test_a_language_model_writes(tmp_path: Path, minilm: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = tmp_path / "tiny"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(model)
    tokenizer.save_pretrained(model)
    result = run(model, "--tokens", "4", "--prompt", "Once upon", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Once upon") == 2
    assert "tiny: bf16 and int8" in result.stdout
    rows = table(result.stdout)
    assert 1.9 < rows["Linear layers"][0] / rows["Linear layers"][1] < 2.05
    assert min(rows["Reading"] + rows["Writing"]) > 0
    assert rows["Perplexity"][1] == pytest.approx(rows["Perplexity"][0], rel=0.01)
    assert rows["Same next token"][1] > 80
    assert_is_picture(tmp_path / "tiny.png")


def test_what_it_cannot_compare_is_an_error(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    result = run(tmp_path)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("encoders and causal language models")
    assert "Traceback" not in result.stderr

    result = run("--paragraphs", "0")
    assert result.returncode == 2
    assert "--paragraphs is 0, expected at least 1" in result.stderr


def test_the_paragraphs_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from corpus import paragraphs

    few, many = paragraphs(200), paragraphs(500)
    assert len(many) == 500
    assert list(few.items()) == list(many.items())[:200]
    assert len({name.split(".")[0] for name in few}) > 30
    assert len(set(many.values())) == 500
