# SPDX-License-Identifier: MIT
"""The Python examples, run as a user runs them, on real input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(*arguments: str | Path, example: str = "main") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{example}.py", "--threads", "1", *arguments],
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
    result = run("--rounds", "1", "--paragraphs", "100", "--output", tmp_path)
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
    result = run("--rounds", "1", "--threshold", "0", "--paragraphs", "20", "--output", tmp_path)
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
    result = run(
        model, "--rounds", "1", "--tokens", "4", "--prompt", "Once upon", "--output", tmp_path
    )
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


@pytest.mark.parametrize("example", ["main", "finetune", "train"])
def test_no_threads_are_an_error(example: str) -> None:
    result = run("--threads", "0", example=example)
    assert result.returncode == 2
    assert "--threads is 0, expected at least 1" in result.stderr


def test_the_paragraphs_are_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from corpus import paragraphs

    few, many = paragraphs(200), paragraphs(500)
    assert len(many) == 500
    assert list(few.items()) == list(many.items())[:200]
    assert len({name.split(".")[0] for name in few}) > 30
    assert len(set(many.values())) == 500


def test_a_model_is_trained_quantized_and_fine_tuned(tmp_path: Path) -> None:
    result = run("--quick", "--output", tmp_path, example="finetune")
    assert result.returncode == 0, result.stderr
    assert "the same logits, bit for bit" in result.stdout
    figures = json.loads((tmp_path / "finetune.json").read_text())
    losses = list(figures["training"]["held_out"].values())
    assert losses[0] - losses[-1] > 1

    planted = figures["planted"]
    assert planted["share"] > 0.8
    assert planted["largest"] > 100 > 10 > planted["largest_elsewhere"]

    forms = figures["forms"]
    for name, form in forms.items():
        row = f"{form['bits_per_weight']:.2f} +{form['linear_bytes'] / 2**20:.2f} "
        assert re.search(rf"^ *{name} +{row}", result.stdout, re.M)
    trained, planted = (
        {name: form[state] for name, form in forms.items()}
        for state in ("as_trained", "with_outliers")
    )
    assert trained["fp32"] == planted["fp32"]
    # Outliers spoil int8, and the decomposition takes that back.
    assert planted["int8"]["divergence"] > 20 * trained["int8"]["divergence"]
    for name in ("int8, decomposed", "int8, decomposed, zero-point"):
        assert planted[name]["divergence"] < planted["int8"]["divergence"] / 8
        for scores in (trained, planted):
            assert scores[name]["perplexity"] == pytest.approx(scores["fp32"]["perplexity"], 2e-3)

    bits = {name: form["bits_per_weight"] for name, form in forms.items()}
    assert bits["fp32"] == 32
    assert 8 < bits["int8"] < bits["int8, decomposed, zero-point"] < 9
    assert bits["INT4"] == bits["FP4"] == bits["NF4"] == bits["BOF4"] == 4.5
    assert bits["NF4, double quantization"] == pytest.approx(4.127, abs=0.005)
    error = {name: form["weight_error"] for name, form in forms.items()}
    assert error["int8"] < 0.01 < error["BOF4"] < error["NF4"] < error["INT4"] < error["FP4"] < 0.15
    assert error["NF4, double quantization"] == pytest.approx(error["NF4"], 0.01)

    floats, nf4 = figures["lora"]["fp32 base"], figures["lora"]["NF4 base"]
    for lora in (floats, nf4):
        losses = list(lora["curve"]["held_out"].values())
        assert losses[0] - losses[-1] > 0.2
        assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(list(floats["curve"]["held_out"].values())[-1], abs=0.03)
    assert nf4["base_bytes"] == forms["NF4, double quantization"]["model_bytes"]
    assert floats["base_bytes"] == forms["fp32"]["model_bytes"]
    assert floats["adapter_bytes"] == nf4["adapter_bytes"] == nf4["gradient_bytes"]
    assert_is_picture(tmp_path / "finetune.png")


@pytest.fixture
def tiny_llama(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    monkeypatch.syspath_prepend(EXAMPLES)
    import language_model

    return language_model.build(vocabulary=64, hidden=64, layers=1, context=16)


def test_outliers_that_change_the_model_are_noticed(tiny_llama: torch.nn.Module) -> None:
    import outliers

    tokens = torch.arange(64).view(4, 16)
    outliers.plant(tiny_llama, tokens, 2, 64)
    with pytest.raises(RuntimeError, match="has changed what the model computes"):
        outliers.plant(tiny_llama, tokens, 2, 3)  # a third is rounded


def test_a_base_that_does_not_stay_frozen_is_noticed(
    tiny_llama: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lora
    from language_model import Texts
    from training import Training

    texts = Texts(torch.arange(64), torch.arange(32).view(2, 16))
    options = {"steps": 2, "batch": 2, "learning_rate": 1e-3, "evaluations": 1}
    lora.fine_tune(tiny_llama, texts, rank=2, title="", **options)

    def thawed(model: torch.nn.Module, *args: object, **kwargs: object) -> Training:
        for name, parameter in model.named_parameters():
            if "q_proj.base_layer" in name:
                parameter.requires_grad_(True)
        return Training(model, *args, **kwargs)

    monkeypatch.setattr(lora, "Training", thawed)
    with pytest.raises(RuntimeError, match=r"training has changed .*q_proj\.weight$"):
        lora.fine_tune(tiny_llama, texts, rank=2, title="", **options)


def test_8_bits_train_as_32_do(tmp_path: Path) -> None:
    result = run("--quick", "--output", tmp_path, example="train")
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "train.json").read_text())
    steps, parameters, runs = (figures["settings"]["steps"], figures["parameters"], figures["runs"])
    final = {}
    for name, each in runs.items():
        assert len(each["curve"]["training"]) == steps
        first, *_, final[name] = each["curve"]["held_out"].values()
        assert first - final[name] > 1
        assert re.search(rf"^ *{name} +{final[name]:.4f} ", result.stdout, re.M)
        assert 0 < each["optimizer_seconds"] < each["step_seconds"]

    # Another start is further away than 8 bits are, and bf16 without master weights is worse.
    adamw = final["fp32 AdamW"]
    assert abs(final["fp32 AdamW, other start"] - adamw) > 0.005
    for name in ("fp32 AdamW8bit", "bf16 AdamW8bit, masters", "int8 AdamW8bit"):
        assert final[name] == pytest.approx(adamw, abs=0.004)
    assert final["bf16 AdamW8bit"] - adamw > 0.01

    size = {name: each["optimizer_bytes"] / parameters for name, each in runs.items()}
    assert size["fp32 AdamW"] == pytest.approx(8, 1e-3)
    assert 2 < size["fp32 AdamW8bit"] == size["bf16 AdamW8bit"] == size["int8 AdamW8bit"] < 2.05
    assert size["bf16 AdamW8bit, masters"] == size["bf16 AdamW8bit"] + 4
    assert {name: each["gradient_bytes"] / parameters for name, each in runs.items()} == {
        name: 2 if "bf16" in name else 4 for name in runs
    }
    weights = {name: each["weight_bytes"] / parameters for name, each in runs.items()}
    assert weights["int8 AdamW8bit"] > weights["fp32 AdamW"] > 1.99 * weights["bf16 AdamW8bit"]

    assert figures["resumed"]["step"] == steps // 2
    assert f"the same bits after step {steps}, in all" in result.stdout
    assert_is_picture(tmp_path / "train.png")


def test_a_resumed_run_that_differs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    import train_experiment
    from language_model import Texts
    from training import Training

    settings = train_experiment.Settings(
        vocabulary=64, hidden=64, layers=1, context=16, batch=2, steps=4, evaluations=1
    )
    texts = Texts(torch.arange(64), torch.arange(32).view(2, 16))
    path = tmp_path / "middle.pt"
    recipe = train_experiment.RECIPES[train_experiment.RESUMED]
    whole = train_experiment.begin(settings, recipe, texts)
    for step in range(settings.steps):
        if step == 2:
            whole.save(path)
        whole.advance()
    assert train_experiment.resume(settings, texts, path, whole) == len(whole.tensors())

    parts = Training._parts

    def lossy(self: Training) -> object:
        return {name: part for name, part in parts(self).items() if name != "schedule"}

    monkeypatch.setattr(Training, "_parts", lossy)
    with pytest.raises(RuntimeError, match="resumed from step 2, other bits have come of model"):
        train_experiment.resume(settings, texts, path, whole)


def test_held_out_text_is_not_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    from corpus import manual, sources, split

    for texts, least in ((sources(), 5_000_000), (manual(), 200_000)):
        training, held_out = split(texts)
        assert sum(map(len, training)) > least
        assert 0 < len(held_out) < len(training) / 6
        assert not set(training) & set(held_out)
    training, held_out = (
        {p for text in each for p in text.split("\n\n")} for each in split(manual())
    )
    assert not training & held_out
