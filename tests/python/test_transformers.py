# SPDX-License-Identifier: MIT
"""The plug-in for transformers: loading, saving, and the traps in between."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import same_bits
from safetensors.torch import load_file
from samples import first
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

import lowbit  # noqa: E402
from lowbit.integrations.transformers import LowbitConfig, LowbitQuantizer  # noqa: E402
from lowbit.nn import Int8Linear, LowbitLinear  # noqa: E402
from tiny_models import check_memory_while_loading, run, spoil  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D  # noqa: E402

AUTO = {
    "bert": AutoModel,
    "bert_classifier": AutoModelForSequenceClassification,
    "llama": AutoModelForCausalLM,
    "llama_tied": AutoModelForCausalLM,
    "gpt2": AutoModelForCausalLM,
}
PER_MODEL = {"bert": 13, "bert_classifier": 13, "llama": 21, "llama_tied": 21, "gpt2": 8}
RAMP = [i / 8 - 1 for i in range(16)]
OPTIONS = [
    {},
    {"offset": True, "absmax_dtype": "float16", "threshold": 3.0},
    {"bits": 4},
    # 64 columns: blocks of 128 run over the ends of rows
    {"bits": 4, "codebook": RAMP, "blocksize": 128, "double_quant": False},
]
WIDTHS = [{}, {"bits": 4}]
CODES = {8: torch.int8, 4: torch.uint8}
# Cosine to the float model, at least.
CLOSE = {8: 0.99, 4: 0.97}


def load(checkpoints: dict[str, str], name: str, **options: object) -> PreTrainedModel:
    loading = {key: options.pop(key) for key in ("dtype",) if key in options}
    config = LowbitConfig(**options)
    return AUTO[name].from_pretrained(checkpoints[name], quantization_config=config, **loading)


def quantized(model: nn.Module) -> dict[str, LowbitLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LowbitLinear)}


def bits(options: dict[str, object]) -> int:
    return options.get("bits", 8)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)


def stored(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all codes and scales."""
    return {
        f"{name}.{part}": getattr(layer, part).clone()
        for name, layer in quantized(model).items()
        for part in layer.stored()
    }


def same_state(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(same_bits(mine[key], other[key]) for key in mine)


# Loading


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("options", OPTIONS)
def test_fresh_quantization(
    checkpoints: dict[str, str], name: str, options: dict[str, object]
) -> None:
    original = AUTO[name].from_pretrained(checkpoints[name])
    model = load(checkpoints, name, **options)
    layers = quantized(model)
    assert len(layers) == PER_MODEL[name]
    for path, layer in layers.items():
        expected = type(layer).from_float(original.get_submodule(path), **layer.options())
        assert same_state(layer, expected)
        assert layer.options() == LowbitConfig(**options).new_layer(2, 2).options()
        assert not any(p.requires_grad for p in layer.parameters())
    assert cosine(run(original), run(model)) > CLOSE[bits(options)]


@pytest.mark.parametrize("options", WIDTHS)
def test_the_same_as_quantize_in_place(
    checkpoints: dict[str, str], options: dict[str, object]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"])
    report = lowbit.quantize_(model, **options)
    assert report.skipped == {"lm_head": "its weight is tied to another module"}
    assert same_bits(run(model), run(load(checkpoints, "gpt2", **options)))


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("options", WIDTHS)
def test_heads_and_tied_weights_stay_float(
    checkpoints: dict[str, str], name: str, options: dict[str, object]
) -> None:
    model = load(checkpoints, name, **options)
    head = {"bert": None, "bert_classifier": "classifier"}.get(name, "lm_head")
    if head:
        assert type(model.get_submodule(head)) is nn.Linear
    if name in ("llama_tied", "gpt2"):
        assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS)
def test_dtype_is_that_of_the_rest_of_the_model(
    checkpoints: dict[str, str], dtype: torch.dtype, options: dict[str, object]
) -> None:
    """And weights are quantized from the values that this dtype holds."""
    model = load(checkpoints, "bert", dtype=dtype, **options)
    original = AutoModel.from_pretrained(checkpoints["bert"], dtype=dtype)
    assert model.dtype == dtype
    for name, layer in quantized(model).items():
        expected = type(layer).from_float(original.get_submodule(name), **layer.options())
        assert same_state(layer, expected)
    assert run(model).dtype == dtype


@pytest.mark.parametrize("options", WIDTHS)
def test_casting_a_model_leaves_codes_and_scales(
    checkpoints: dict[str, str], options: dict[str, object]
) -> None:
    model = load(checkpoints, "bert", **options)
    before = stored(model)
    model.to(torch.bfloat16)
    same = stored(model)
    assert all(same_bits(same[name], value) for name, value in before.items())
    assert {layer.bias.dtype for layer in quantized(model).values()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="half"):
        model.half()


@pytest.mark.parametrize("options", WIDTHS)
def test_compute_dtype(checkpoints: dict[str, str], options: dict[str, object]) -> None:
    model = load(checkpoints, "bert", compute_dtype=torch.bfloat16, **options)
    assert {layer.compute_dtype for layer in quantized(model).values()} == {torch.bfloat16}
    assert run(model).dtype == torch.float32


@pytest.mark.parametrize("options", OPTIONS)
def test_layers_that_the_file_keeps_together(
    checkpoints: dict[str, str], options: dict[str, object], tmp_path: Path
) -> None:
    """Query, key and value in one matrix, as transformers takes apart and puts together again; not
    so with codes."""
    keys = load_file(Path(checkpoints["nomic_bert"]) / "model.safetensors").keys()
    assert "encoder.layers.0.attn.Wqkv.weight" in keys
    original = AutoModel.from_pretrained(checkpoints["nomic_bert"])
    config = LowbitConfig(**options)
    model = AutoModel.from_pretrained(checkpoints["nomic_bert"], quantization_config=config)
    assert len(quantized(model)) == 14
    for path, layer in quantized(model).items():
        expected = type(layer).from_float(original.get_submodule(path), **layer.options())
        assert same_state(layer, expected)
    model.save_pretrained(tmp_path)
    again, loaded = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded.values())
    assert same_state(model, again)
    model.dequantize().save_pretrained(tmp_path / "float")
    assert load_file(tmp_path / "float" / "model.safetensors").keys() == keys


# Saving and loading again


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shard", [None, "40KB"])
def test_round_trip_to_the_same_bits(
    checkpoints: dict[str, str],
    name: str,
    options: dict[str, object],
    shard: str | None,
    tmp_path: Path,
) -> None:
    model = load(checkpoints, name, **options)
    model.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    files = list(tmp_path.glob("*.safetensors"))
    assert (len(files) > 2) == (shard is not None)
    again = AUTO[name].from_pretrained(tmp_path)
    assert same_state(model, again)
    assert same_bits(run(model), run(again))
    assert not any(p.requires_grad for m in quantized(again).values() for p in m.parameters())
    assert again.config.quantization_config.to_dict() == (
        model.config.quantization_config.to_dict()
    )
    again.save_pretrained(tmp_path / "twice")
    assert same_state(AUTO[name].from_pretrained(tmp_path / "twice"), model)


def stored_size(bits: int, n: int, k: int) -> int:
    """What the README promises, in bytes."""
    if bits == 8:
        return n * k + 4 * n
    blocks = math.ceil(n * k / 64)
    return math.ceil(n * k / 2) + blocks + 4 * math.ceil(blocks / 256) + 4


@pytest.mark.parametrize("options", WIDTHS)
def test_a_checkpoint_is_as_small_as_its_layers(
    checkpoints: dict[str, str], options: dict[str, object], tmp_path: Path
) -> None:
    model = load(checkpoints, "bert", **options)
    for layer in quantized(model).values():
        n, k = layer.out_features, layer.in_features
        assert sum(p.nbytes for p in layer.parameters()) == stored_size(bits(options), n, k) + 4 * n
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(t.nbytes for t in tensors.values()) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, "auto"])
@pytest.mark.parametrize("options", OPTIONS)
def test_reload_in_another_dtype_keeps_codes_and_scales(
    checkpoints: dict[str, str],
    dtype: torch.dtype | str,
    options: dict[str, object],
    tmp_path: Path,
) -> None:
    model = load(checkpoints, "llama", **options)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    before, after = stored(model), stored(again)
    assert before.keys() == after.keys()
    assert all(same_bits(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("first", ["lowbit", "transformers"])
def test_import_lowbit_is_enough(checkpoints: dict[str, str], first: str, tmp_path: Path) -> None:
    load(checkpoints, "bert").save_pretrained(tmp_path)
    second = "transformers" if first == "lowbit" else "lowbit"
    code = f"""
import sys, {first}
assert {first!r} == "transformers" or "transformers" not in sys.modules
import {second}
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path)!r})
print(type(model.pooler.dense).__name__)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["Int8Linear"]


def test_a_base_model_and_one_with_a_head_read_each_other(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """Names in skip_modules are those of the model that was quantized; the other one's have a
    prefix more or less."""
    skip = ["encoder.layer.0.output"]
    load(checkpoints, "bert", skip_modules=skip).save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=5)
    assert type(model.bert.encoder.layer[0].output.dense) is nn.Linear
    assert type(model.bert.encoder.layer[1].output.dense) is Int8Linear
    assert model.classifier.weight.isfinite().all()
    skip = ["bert.encoder.layer.0.output"]
    load(checkpoints, "bert_classifier", skip_modules=skip).save_pretrained(tmp_path / "head")
    model = AutoModel.from_pretrained(tmp_path / "head")
    assert type(model.encoder.layer[0].output.dense) is nn.Linear
    assert type(model.encoder.layer[1].output.dense) is Int8Linear


# Fresh heads and layers that the checkpoint lacks


@pytest.mark.parametrize("pre_quantized", [False, True])
@pytest.mark.parametrize("options", WIDTHS)
def test_a_fresh_classifier_head_is_float_and_initialised(
    checkpoints: dict[str, str], pre_quantized: bool, options: dict[str, object], tmp_path: Path
) -> None:
    path, loading = checkpoints["bert"], {"quantization_config": LowbitConfig(**options)}
    if pre_quantized:
        load(checkpoints, "bert", **options).save_pretrained(tmp_path)
        path, loading = tmp_path, {}
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=5, **loading)
    assert type(model.classifier) is nn.Linear
    assert 0.01 < model.classifier.weight.std() < 0.04
    assert torch.equal(model.classifier.bias, torch.zeros(5))
    assert len(quantized(model)) == PER_MODEL["bert"]
    assert run(model).isfinite().all()


@pytest.mark.parametrize("pre_quantized", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_layer_missing_from_the_checkpoint_is_initialised_and_quantized(
    checkpoints: dict[str, str], pre_quantized: bool, options: dict[str, object], tmp_path: Path
) -> None:
    """A model saved without its pooler, as masked language models are."""
    loading = {"quantization_config": LowbitConfig(**options)}
    AutoModel.from_pretrained(
        checkpoints["bert"], add_pooling_layer=False, **(loading if pre_quantized else {})
    ).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, **({} if pre_quantized else loading))
    assert "pooler.dense" in quantized(model)
    assert model.pooler.dense.options() == model.encoder.layer[0].output.dense.options()
    assert 0.01 < model.pooler.dense.dequantize().std() < 0.04
    assert not any(p.requires_grad for p in model.pooler.dense.parameters())
    assert run(model).isfinite().all()


# What is left float


def test_skip_modules_add_to_the_defaults(checkpoints: dict[str, str]) -> None:
    model = load(checkpoints, "llama_tied", skip_modules=["up_proj", r"model.layers.\d.self_attn"])
    names = {name.rpartition(".")[2] for name in quantized(model)}
    assert names == {"gate_proj", "down_proj"}
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_unknown_skip_modules_are_refused(checkpoints: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="skip_modules names upp_proj, but LlamaForCausalLM"):
        load(checkpoints, "llama", skip_modules=["up_proj", "upp_proj"])


def test_a_layer_of_a_size_that_no_kernel_takes_is_named() -> None:
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=140_000, num_hidden_layers=1, vocab_size=8
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    message = r"model.layers.0.mlp.down_proj: Int8Linear: in_features is 140000 .*skip_modules"
    with pytest.raises(ValueError, match=message):
        LowbitQuantizer(LowbitConfig(), pre_quantized=False).preprocess_model(model)


@pytest.mark.parametrize("options", WIDTHS)
def test_the_output_head_is_quantized_if_asked(
    checkpoints: dict[str, str], options: dict[str, object], tmp_path: Path
) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    model = load(checkpoints, "llama", include_modules=["lm_head"], **options)
    assert len(quantized(model)) == PER_MODEL["llama"] + 1
    assert isinstance(model.lm_head, LowbitLinear)
    assert type(model.get_input_embeddings()) is nn.Embedding
    assert cosine(run(model), run(original)) > CLOSE[bits(options)]
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same_state(model, again)
    assert isinstance(AutoModel.from_pretrained(tmp_path).layers[0].mlp.up_proj, LowbitLinear)


def test_a_classifier_is_quantized_if_asked(checkpoints: dict[str, str]) -> None:
    """Here one that the checkpoint lacks."""
    model = AutoModelForSequenceClassification.from_pretrained(
        checkpoints["bert"],
        num_labels=5,
        quantization_config=LowbitConfig(include_modules=["classifier"]),
    )
    assert 0.01 < model.classifier.dequantize().std() < 0.04
    assert len(quantized(model)) == PER_MODEL["bert"] + 1


def test_a_tied_head_is_not_untied(checkpoints: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="include_modules names lm_head, whose weight is tied"):
        load(checkpoints, "llama_tied", include_modules=["lm_head"])
    with pytest.raises(ValueError, match="include_modules names heads, but LlamaForCausalLM"):
        load(checkpoints, "llama", include_modules=["heads"])


# Bad checkpoints


@pytest.mark.parametrize(
    ("width", "leaf", "change", "message"),
    [
        (8, "weight", first(-128), "weight holds -128"),
        (8, "weight", lambda t: t.float(), "weight has dtype torch.float32, expected torch.int8"),
        (8, "weight", lambda t: None, "lacks weight of layers.1.mlp.up_proj"),
        (8, "weight", lambda t: t[:, :63].contiguous(), "mismatch|size"),
        (8, "absmax", first(-1.0), "absmax holds -1"),
        (8, "absmax", first(float("nan")), "absmax holds NaN"),
        (8, "absmax", lambda t: None, "lacks absmax of layers.1.mlp.up_proj"),
        (8, "absmax", lambda t: t[:5].contiguous(), "mismatch|size"),
        (4, "weight", lambda t: t.float(), "weight has dtype torch.float32, expected torch.uint8"),
        (4, "weight", lambda t: t.char(), "weight has dtype torch.int8, expected torch.uint8"),
        (4, "weight", lambda t: None, "lacks weight of layers.1.mlp.up_proj"),
        (4, "weight", lambda t: t[:, :31].contiguous(), "mismatch|size"),
        (4, "weight", lambda t: t.flatten(), "mismatch|size"),
        (4, "absmax", lambda t: t.float(), "absmax has dtype torch.float32, expected torch.uint8"),
        (4, "absmax", lambda t: t[:5].contiguous(), "mismatch|size"),
        (4, "absmax", lambda t: None, "lacks absmax of layers.1.mlp.up_proj"),
        (4, "nested_absmax", first(-1.0), "nested_absmax holds -1"),
        (4, "nested_absmax", lambda t: None, "lacks nested_absmax of layers.1.mlp.up_proj"),
        (4, "nested_absmax", lambda t: t.repeat(2), "mismatch|size"),
        (4, "nested_offset", lambda t: None, "lacks nested_offset of layers.1.mlp.up_proj"),
        (4, "nested_offset", lambda t: t * torch.inf, "nested_offset holds NaN or infinity"),
        (4, "nested_offset", lambda t: t.view(1), "mismatch|size"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    checkpoints: dict[str, str],
    width: int,
    leaf: str,
    change: object,
    message: str,
    tmp_path: Path,
) -> None:
    load(checkpoints, "llama", bits=width).save_pretrained(tmp_path)
    spoil(tmp_path, f"model.layers.1.mlp.up_proj.{leaf}", change)
    with pytest.raises((ValueError, RuntimeError), match=f"(?i){message}"):
        AutoModel.from_pretrained(tmp_path)


def test_a_truncated_file_is_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    load(checkpoints, "llama", bits=4).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"(?i)incomplete|truncated|too large|invalid"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_scales_of_another_kind_are_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A checkpoint without double quantization whose configuration says that there is."""
    load(checkpoints, "llama", bits=4, double_quant=False).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["double_quant"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks nested_absmax, nested_offset of layers"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("options", WIDTHS)
def test_a_float_weight_of_another_size_is_refused(
    checkpoints: dict[str, str], options: dict[str, object], tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path)
    spoil(tmp_path, "model.layers.1.mlp.up_proj.weight", lambda t: t[:, :60].contiguous())
    with pytest.raises(ValueError, match=r"up_proj.weight has shape \[128, 60\], expected"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=LowbitConfig(**options), ignore_mismatched_sizes=True
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", WIDTHS)
def test_a_float_weight_that_is_not_finite_is_refused(
    checkpoints: dict[str, str], value: float, options: dict[str, object], tmp_path: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path)
    spoil(tmp_path, "model.layers.1.mlp.up_proj.weight", first(value))
    with pytest.raises(ValueError, match=r"layers.1.mlp.up_proj.weight holds NaN or infinity"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=LowbitConfig(**options))


def test_a_stale_single_file_beside_shards_is_refused(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """transformers leaves it there when it saves shards, and prefers it when it loads."""
    AutoModelForCausalLM.from_pretrained(checkpoints["llama"]).save_pretrained(tmp_path)
    model = load(checkpoints, "llama")
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors").exists()
    with pytest.raises(
        ValueError, match=r"holds both model.safetensors and model.safetensors.index"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path), model)


def test_a_quantized_checkpoint_is_not_quantized_again(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    model = load(checkpoints, "llama")
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        again = AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=LowbitConfig(threshold=1.0)
        )
    assert same_state(model, again)
    assert {layer.threshold for layer in quantized(again).values()} == {6.0}
    with pytest.raises(ValueError, match="already quantized by lowbit"):
        lowbit.quantize_(model)
    with pytest.raises(ValueError, match="LowbitConfig"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True)
        )


# The configuration


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bits": 2}, ValueError, "bits is 2, expected 8 or 4"),
        ({"codebook": "nf4"}, ValueError, "codebook given with bits=8, which takes threshold"),
        ({"bits": 8, "double_quant": False}, ValueError, "double_quant given with bits=8"),
        (
            {"bits": 4, "threshold": 6.0, "offset": False},
            ValueError,
            "threshold, offset given with bits=4, which takes codebook, blocksize, double_quant",
        ),
        ({"bits": 4, "absmax_dtype": "float16"}, ValueError, "absmax_dtype given with bits=4"),
        ({"bits": 4, "codebook": "nf5"}, ValueError, "LowbitConfig: codebook is 'nf5'"),
        ({"bits": 4, "codebook": RAMP[:15]}, ValueError, "expected 16 numbers"),
        ({"bits": 4, "codebook": [*RAMP[:15], float("nan")]}, ValueError, "finite"),
        ({"bits": 4, "blocksize": 48}, ValueError, "blocksize is 48"),
        ({"include_modules": "lm_head"}, TypeError, "include_modules is the string"),
        ({"threshold": -1.0}, ValueError, "threshold is -1"),
        ({"absmax_dtype": "bfloat16"}, ValueError, "absmax_dtype is torch.bfloat16"),
        ({"absmax_dtype": "int8"}, ValueError, "dtype is int8"),
        ({"compute_dtype": torch.float64}, ValueError, "dtype is torch.float64"),
        ({"skip_modules": "lm_head"}, TypeError, "expected a list"),
        ({"quant_method": "gptq"}, ValueError, "quant_method is gptq"),
        ({"treshold": 6.0}, TypeError, "treshold"),
        ({"load_in_8bit": True}, TypeError, "load_in_8bit"),
    ],
)
def test_bad_configurations_are_refused(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        LowbitConfig(**options)


def test_an_unknown_key_in_a_checkpoint_is_refused(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    load(checkpoints, "llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["codebok"] = "nf4"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TypeError, match="codebok"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


PLAIN = {"quant_method": "lowbit", "skip_modules": None, "include_modules": None}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"compute_dtype": torch.bfloat16},
            {
                "bits": 8,
                "threshold": 6.0,
                "offset": False,
                "absmax_dtype": "float32",
                "compute_dtype": "bfloat16",
            },
        ),
        (
            {"bits": 4, "skip_modules": ["up_proj"], "include_modules": ["lm_head"]},
            {
                "bits": 4,
                "codebook": "nf4",
                "blocksize": 64,
                "double_quant": True,
                "compute_dtype": None,
                "skip_modules": ["up_proj"],
                "include_modules": ["lm_head"],
            },
        ),
        (
            {"bits": 4, "codebook": torch.tensor(RAMP) / 3, "blocksize": 32, "double_quant": False},
            {
                "bits": 4,
                "codebook": (torch.tensor(RAMP) / 3).tolist(),
                "blocksize": 32,
                "double_quant": False,
                "compute_dtype": None,
            },
        ),
    ],
)
def test_the_saved_configuration_is_plain(
    checkpoints: dict[str, str],
    options: dict[str, object],
    expected: dict[str, object],
    tmp_path: Path,
) -> None:
    load(checkpoints, "llama", **options).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved == PLAIN | expected
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for layer in quantized(again).values():
        for name, value in layer.options().items():
            given = expected[name]
            given = getattr(torch, given) if name.endswith("dtype") and given else given
            assert value == (tuple(given) if isinstance(given, list) else given)


# Back to float


@pytest.mark.parametrize("name", AUTO)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("saved_first", [False, True])
def test_dequantize(
    checkpoints: dict[str, str],
    name: str,
    options: dict[str, object],
    saved_first: bool,
    tmp_path: Path,
) -> None:
    original = AUTO[name].from_pretrained(checkpoints[name])
    model = load(checkpoints, name, **options)
    if saved_first:  # saving turns the dtype in the configuration into a string
        model.save_pretrained(tmp_path / "lowbit")
        if name == "gpt2":
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "lowbit")
    weights = {n: layer.dequantize() for n, layer in quantized(model).items()}
    model = model.dequantize()
    kinds = {n: type(m) for n, m in original.named_modules()}
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    for n, weight in weights.items():
        layer = model.get_submodule(n)
        assert same_bits(layer.weight.t() if isinstance(layer, Conv1D) else layer.weight, weight)
    assert not model.is_quantized
    assert not model.config._is_quantized
    model.save_pretrained(tmp_path / "float")
    again = AUTO[name].from_pretrained(tmp_path / "float")
    assert {n: type(m) for n, m in again.named_modules()} == kinds
    assert same_bits(run(again), run(model))
    assert cosine(run(model), run(original)) > CLOSE[bits(options)]


def test_dequantize_to_a_dtype(checkpoints: dict[str, str]) -> None:
    model = load(checkpoints, "llama").dequantize(torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


# Use


def test_generation_is_deterministic_and_batch_invariant(checkpoints: dict[str, str]) -> None:
    model = load(checkpoints, "llama")
    ids = torch.randint(0, 256, (3, 7))
    together = model.generate(ids, max_new_tokens=8, do_sample=False)
    alone = model.generate(ids[1:2], max_new_tokens=8, do_sample=False)
    assert torch.equal(together[1:2], alone)


@pytest.mark.parametrize("options", WIDTHS)
def test_compiled_generation(checkpoints: dict[str, str], options: dict[str, object]) -> None:
    """With a static cache, and no graph break in the model."""
    torch._dynamo.reset()
    model = load(checkpoints, "llama", **options)
    ids = torch.randint(0, 256, (2, 7))
    generate = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    expected = model.generate(ids, **generate)
    model.forward = torch.compile(model.forward, backend="aot_eager", fullgraph=True)
    assert torch.equal(model.generate(ids, **generate), expected)


@pytest.mark.parametrize("options", WIDTHS)
def test_sentence_transformers(
    checkpoints: dict[str, str], options: dict[str, object], minilm: Path, tmp_path: Path
) -> None:
    st = pytest.importorskip("sentence_transformers")
    texts = [
        "How big is London?",
        "The capital of England has 8.9 million people.",
        "A cat sleeps.",
    ]
    model_kwargs = {"quantization_config": LowbitConfig(**options)}
    expected = st.SentenceTransformer(str(minilm)).encode(texts)
    model = st.SentenceTransformer(str(minilm), model_kwargs=model_kwargs)
    assert len(quantized(model)) == 37
    found = model.encode(texts)
    assert (found * expected).sum(1).min() > CLOSE[bits(options)] - 0.02
    model.save(str(tmp_path))
    again = st.SentenceTransformer(str(tmp_path))
    assert same_state(again, model)
    assert (again.encode(texts) == found).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("width", [8, 4])
def test_memory_while_loading(checkpoints: dict[str, str], width: int, tmp_path: Path) -> None:
    """Neither float copies of the weights, 4 or 8 times the footprint, nor the holes they leave in
    the heap. Code that runs for the first time also counts."""
    layer = 512 * 1400
    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1400,
        num_hidden_layers=16,
        num_attention_heads=8,
        vocab_size=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    check_memory_while_loading(checkpoints["llama"], tmp_path, width, more=4 * layer)
