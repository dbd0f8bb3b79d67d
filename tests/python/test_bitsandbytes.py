# SPDX-License-Identifier: MIT
"""Checkpoints that the installed bitsandbytes writes and reads, and scripts written for it."""

import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from reference import same_bits
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytest.importorskip("transformers")
bnb = pytest.importorskip("bitsandbytes")

import lowbit  # noqa: E402
from lowbit.integrations import bitsandbytes as integration  # noqa: E402
from lowbit.integrations.bitsandbytes import BitsAndBytesQuantizer  # noqa: E402
from lowbit.integrations.transformers import LowbitConfig  # noqa: E402
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear  # noqa: E402
from test_bitsandbytes_format import mutations  # noqa: E402
from tiny_models import LLAMA_OFFLOADED, run  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.quantizers import auto  # noqa: E402

AUTO = {"bert": AutoModel, "bert_classifier": AutoModelForSequenceClassification}
STATE = "weight.quant_state.bitsandbytes__"

# What a script asks bitsandbytes for.
VARIANTS = {
    "int8": {"load_in_8bit": True},
    "fp4": {"load_in_4bit": True},
    "fp4+dq": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4+dq": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "bf16 storage": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_quant_storage": torch.bfloat16,
    },
    "float32 storage": {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.float32},
}
VARIANT_AND_MODEL = [
    *((variant, "llama") for variant in VARIANTS),
    *((variant, name) for variant in ("int8", "nf4+dq") for name in ("gpt2", "bert")),
    ("nf4+dq", "llama_tied"),
    ("nf4", "narrow"),
    ("fp4+dq", "narrow"),
]


@pytest.fixture(scope="module")
def float_models(
    checkpoints: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """With one whose blocks of 64 weights straddle rows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    folder = tmp_path_factory.mktemp("narrow")
    LlamaForCausalLM(config).save_pretrained(folder)
    return checkpoints | {"narrow": str(folder)}


@pytest.fixture(scope="module")
def written(float_models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """written(variant, model): a folder that bitsandbytes wrote, and its model as it reads it."""
    folders: dict[tuple[str, str], Path] = {}

    def write(variant: str, name: str) -> tuple[Path, PreTrainedModel]:
        with left_to_bnb():
            if (variant, name) not in folders:
                model = by_bnb(float_models[name], name, **VARIANTS[variant])
                folders[variant, name] = tmp_path_factory.mktemp("bnb")
                model.save_pretrained(folders[variant, name])
            folder = folders[variant, name]
            # Anew each time: a model that has run has lost its scales' last bits on some CPUs.
            return folder, AUTO.get(name, AutoModelForCausalLM).from_pretrained(folder)

    return write


@contextmanager
def left_to_bnb() -> Iterator[None]:
    was_enabled = auto.AUTO_QUANTIZER_MAPPING["bitsandbytes_4bit"] is BitsAndBytesQuantizer
    integration.disable()
    yield
    if was_enabled:
        integration.enable()


def by_bnb(path: str | Path, name: str = "llama", **options: Any) -> PreTrainedModel:
    kind = AUTO.get(name, AutoModelForCausalLM)
    return kind.from_pretrained(path, quantization_config=BitsAndBytesConfig(**options))


def by_lowbit(path: str | Path, name: str = "llama", **options: Any) -> PreTrainedModel:
    """Reads a checkpoint that bitsandbytes wrote."""
    kind = AUTO.get(name, AutoModelForCausalLM)
    config = json.loads((Path(path) / "config.json").read_text())["quantization_config"]
    loading = {k: options.pop(k) for k in tuple(options) if k in ("device_map", "offload_folder")}
    model, info = kind.from_pretrained(
        path,
        quantization_config=LowbitConfig(bits=8 if config["load_in_8bit"] else 4, **options),
        output_loading_info=True,
        **loading,
    )
    assert not any(info.values()), info
    return model


@pytest.fixture
def enabled() -> Iterator[None]:
    integration.enable()
    yield
    integration.disable()


def bnb_layers(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (bnb.nn.Linear8bitLt, bnb.nn.Linear4bit)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def lowbit_layers(model: nn.Module) -> dict[str, LowbitLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LowbitLinear)}


def same_state(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(same_bits(mine[key], other[key]) for key in mine)


def bnb_entries(layer: nn.Module) -> dict[str, Tensor]:
    """As saved."""
    return {key: value for key, value in layer.state_dict().items() if key != "bias"}


def bnb_weight(layer: nn.Module) -> Tensor:
    """The float weight [N, K] that bitsandbytes takes the codes for."""
    entries = bnb_entries(layer)
    if isinstance(layer, bnb.nn.Linear8bitLt):
        return bnb.functional.int8_vectorwise_dequant(entries["weight"], entries["SCB"])
    weight = entries.pop("weight")
    state = bnb.functional.QuantState.from_dict(
        {key.removeprefix("weight."): value for key, value in entries.items()}, "cpu"
    )
    if layer.in_features % state.blocksize == 0:
        return bnb.functional.dequantize_4bit(weight, state)
    # There its AVX-512 code starts a block with each row; its other code does as this:
    scales = state.absmax
    if state.nested:
        scales = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    weight = weight.flatten().view(torch.uint8)
    codes = torch.stack([weight >> 4, weight & 15], 1).flatten().long()
    scales = scales.repeat_interleave(state.blocksize)[: codes.numel()]
    return (state.code[codes] * scales).view(state.shape)


def check_same_layers(mine: nn.Module, other: nn.Module) -> None:
    """Codes and scales are identical, and stand for the same weights."""
    layers, expected = lowbit_layers(mine), bnb_layers(other)
    assert layers.keys() == expected.keys()
    for name, layer in layers.items():
        assert not any(p.requires_grad for p in layer.parameters())
        entries = bnb_entries(expected[name])
        weight = bnb_weight(expected[name])
        if isinstance(layer, Int8Linear):
            assert same_bits(layer.weight, entries["weight"])
            assert same_bits(layer.absmax, entries["SCB"])
            assert torch.allclose(layer.dequantize(), weight, rtol=1e-6, atol=0)
            continue
        assert same_bits(layer.weight.flatten(), entries["weight"].flatten().view(torch.uint8))
        assert same_bits(layer.absmax.flatten(), entries["weight.absmax"])
        if layer.double_quant:
            (state,) = (value for key, value in entries.items() if key.startswith(STATE))
            assert same_bits(layer.nested_absmax, entries["weight.nested_absmax"])
            offset = json.loads(bytes(state.tolist()))["nested_offset"]
            assert layer.nested_offset.item() == offset
        assert same_bits(layer.dequantize(weight.dtype), weight)


def check_same_outputs(mine: PreTrainedModel, other: PreTrainedModel) -> None:
    """Up to the rounding that bitsandbytes computes with, at worst bfloat16's. Its AVX-512 code is
    wrong where blocks straddle rows."""
    blocks = (m for m in lowbit_layers(mine).values() if isinstance(m, LUT4Linear))
    if any(layer.in_features % layer.blocksize for layer in blocks):
        return
    a, b = run(mine), run(other)
    assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.9995
    assert (a - b).abs().max() < 0.03 * b.abs().max()


# Reading


@pytest.mark.parametrize(("variant", "name"), VARIANT_AND_MODEL)
def test_reading(written: Any, variant: str, name: str, tmp_path: Path) -> None:
    folder, other = written(variant, name)
    model = by_lowbit(folder, name)
    check_same_layers(model, other)
    check_same_outputs(model, other)

    asked = VARIANTS[variant]
    config = model.config.quantization_config
    assert isinstance(config, LowbitConfig)
    assert config.bits == (8 if "load_in_8bit" in asked else 4)
    if config.bits == 4:
        assert config.codebook == asked.get("bnb_4bit_quant_type", "fp4")
        assert config.double_quant == asked.get("bnb_4bit_use_double_quant", False)

    model.save_pretrained(tmp_path)
    again = AUTO.get(name, AutoModelForCausalLM).from_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "lowbit"
    assert same_state(model, again)
    assert same_bits(run(model), run(again))


@pytest.mark.parametrize("variant", ["int8", "nf4+dq"])
def test_reading_when_enabled(written: Any, variant: str, enabled: None) -> None:
    folder, other = written(variant, "llama")
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    check_same_layers(model, other)
    layer = model.model.layers[0].mlp.up_proj
    if variant == "int8":
        assert layer.threshold == 6.0
    else:
        assert layer.compute_dtype == torch.bfloat16


def test_without_being_asked_it_leaves_bitsandbytes_alone(written: Any) -> None:
    folder, _ = written("nf4", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model.model.layers[0].mlp.up_proj, bnb.nn.Linear4bit)
    with pytest.raises(ValueError, match="BitsAndBytesConfig but you are passing a GPTQConfig"):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=gptq())


def gptq() -> Any:
    from transformers import GPTQConfig

    return GPTQConfig(bits=4)


def requantized(path: str, blocksize: int, **options: Any) -> PreTrainedModel:
    """bitsandbytes' model with blocks of another size, which transformers does not ask it for."""
    model = by_bnb(path, **options)
    for name, layer in bnb_layers(model).items():
        torch.manual_seed(len(name))
        layer.weight = bnb.nn.Params4bit(
            torch.randn(layer.out_features, layer.in_features),
            requires_grad=False,
            blocksize=blocksize,
            compress_statistics=options.get("bnb_4bit_use_double_quant", False),
            quant_type=options.get("bnb_4bit_quant_type", "fp4"),
            module=layer,
        ).to("cpu")
    return model


@pytest.mark.parametrize("variant", ["nf4+dq", "fp4"])
@pytest.mark.parametrize("blocksize", [32, 128, 4096])
def test_reading_other_blocksizes(
    checkpoints: dict[str, str], variant: str, blocksize: int, tmp_path: Path
) -> None:
    other = requantized(checkpoints["llama"], blocksize, **VARIANTS[variant])
    other.save_pretrained(tmp_path / "bnb")
    model = by_lowbit(tmp_path / "bnb")
    assert model.config.quantization_config.blocksize == blocksize
    check_same_layers(model, other)
    model.save_pretrained(tmp_path / "native")
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "native"), model)


@pytest.mark.parametrize("variant", ["int8", "nf4+dq", "fp4", "bf16 storage"])
def test_reading_onto_cpu_and_disk(written: Any, variant: str, tmp_path: Path) -> None:
    folder, _ = written(variant, "llama")
    expected = by_lowbit(folder)
    model = by_lowbit(folder, device_map=LLAMA_OFFLOADED, offload_folder=tmp_path / "offload")
    layer = model.model.layers[2].self_attn.q_proj
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    for _ in range(2):
        assert same_bits(run(model), run(expected))
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert same_state(again, expected)
    with pytest.raises(ValueError, match=r"model.layers.1.*is offloaded"):
        integration.save_pretrained(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("variant", ["int8", "nf4+dq"])
def test_reading_shards(checkpoints: dict[str, str], variant: str, tmp_path: Path) -> None:
    other = by_bnb(checkpoints["llama"], **VARIANTS[variant])
    other.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    check_same_layers(by_lowbit(tmp_path), other)


def test_reading_a_pickled_checkpoint(written: Any, tmp_path: Path) -> None:
    folder, other = written("nf4+dq", "llama")
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    check_same_layers(by_lowbit(tmp_path), other)


@pytest.mark.parametrize("variant", ["int8", "nf4"])
def test_layers_are_quantized_where_the_checkpoint_says(
    checkpoints: dict[str, str], variant: str, tmp_path: Path
) -> None:
    """A list of the user's takes the place of transformers' own: the head is quantized then."""
    skip = ["up_proj", "model.layers.1"]
    other = by_bnb(checkpoints["llama"], **VARIANTS[variant], llm_int8_skip_modules=skip)
    assert "lm_head" in bnb_layers(other)
    other.save_pretrained(tmp_path / "bnb")
    model = by_lowbit(tmp_path / "bnb")
    check_same_layers(model, other)
    model.save_pretrained(tmp_path / "native")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert same_state(again, model)
    base = AutoModel.from_pretrained(tmp_path / "native")
    assert len(lowbit_layers(base)) == len(lowbit_layers(model)) - 1


def test_the_dtype_is_that_of_the_float_weights(written: Any) -> None:
    folder, _ = written("nf4+dq", "llama")
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=LowbitConfig(bits=4), dtype=torch.bfloat16
    )
    dtypes = {name: p.dtype for name, p in model.named_parameters() if "_proj" not in name}
    assert set(dtypes.values()) == {torch.bfloat16}, dtypes
    assert model.model.layers[0].mlp.up_proj.nested_absmax.dtype == torch.float32
    assert run(model).dtype == torch.bfloat16


def test_a_head_that_the_checkpoint_lacks(written: Any) -> None:
    folder, other = written("nf4+dq", "bert")
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=5, quantization_config=LowbitConfig(bits=4)
    )
    assert type(model.classifier) is nn.Linear
    assert 0.01 < model.classifier.weight.std() < 0.04
    assert len(lowbit_layers(model)) == len(bnb_layers(other))
    assert run(model).isfinite().all()


@pytest.mark.parametrize("variant", ["int8", "nf4+dq"])
def test_a_model_without_the_checkpoints_head(written: Any, variant: str) -> None:
    folder, other = written(variant, "llama")
    bits = 8 if variant == "int8" else 4
    model = AutoModel.from_pretrained(folder, quantization_config=LowbitConfig(bits=bits))
    check_same_layers(model, other.model)


def test_experts_stay_float_as_in_the_checkpoint(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    other = by_bnb(checkpoints["mixtral"], **VARIANTS["nf4+dq"])
    other.save_pretrained(tmp_path / "bnb")
    model = by_lowbit(tmp_path / "bnb")
    check_same_layers(model, other)
    assert model.model.layers[0].mlp.experts.gate_up_proj.is_floating_point()
    model.save_pretrained(tmp_path / "native")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert same_state(again, model)
    assert same_bits(run(again), run(model))


def test_how_to_compute_is_the_callers_to_say(written: Any) -> None:
    model = by_lowbit(written("int8", "llama")[0], threshold=3.0, compute_dtype="float16")
    layer = model.model.layers[0].mlp.up_proj
    assert (layer.threshold, layer.compute_dtype) == (3.0, torch.float16)
    model = by_lowbit(written("nf4+dq", "llama")[0])
    assert model.model.layers[0].mlp.up_proj.compute_dtype is None


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("int8", {"bits": 4}, "bits is 4, but the checkpoint has 8-bit layers"),
        ("nf4", {"bits": 8}, "bits is 8, but the checkpoint has 4-bit layers"),
        ("int8", {"offset": True}, "offset is True, but the checkpoint is quantized, with False"),
        ("nf4", {"bits": 4, "codebook": "fp4"}, "codebook is fp4, but .* quantized, with nf4"),
        ("nf4", {"bits": 4, "blocksize": 128}, "blocksize is 128, but .* quantized, with 64"),
        ("nf4+dq", {"bits": 4, "double_quant": False}, "double_quant is False, but .* with True"),
        ("nf4", {"bits": 4, "skip_modules": ["up_proj"]}, "skip_modules is .*, but .* with None"),
    ],
)
def test_a_config_that_contradicts_the_checkpoint(
    written: Any, variant: str, options: dict[str, Any], message: str
) -> None:
    folder, _ = written(variant, "llama")
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=LowbitConfig(**options))


# Bad checkpoints


def spoiled(folder: Path, to: Path, **changes: Tensor | None) -> Path:
    """A copy with these entries of one layer changed or, where None, taken out."""
    tensors = load_file(folder / "model.safetensors")
    for key, value in changes.items():
        name = f"model.layers.1.mlp.up_proj.{key}"
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value
    to.mkdir()
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    (to / "config.json").write_text((folder / "config.json").read_text())
    return to


def state(**fields: object) -> Tensor:
    known = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [128, 64]}
    return torch.tensor(list(json.dumps(known | fields).encode()), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        (
            "int8",
            {"SCB": None},
            r"up_proj has the entries weight \(torch.int8\), weight_format .*, expected a float",
        ),
        (
            "int8",
            {"SCB": None, "weight_format": None},
            r"up_proj has the entries weight \(torch.int8\), expected a float weight alone",
        ),
        ("int8", {"weight": None}, "up_proj has the entries SCB, weight_format, expected SCB, wei"),
        ("int8", {"SCB": torch.ones(127)}, r"up_proj.SCB has shape \[127\], expected \[128\]"),
        ("int8", {"SCB": torch.full((128,), -1.0)}, "up_proj.SCB holds -1, expected no negative"),
        (
            "int8",
            {"weight": torch.full((128, 64), -128, dtype=torch.int8)},
            "up_proj.weight holds -128, expected codes in",
        ),
        ("int8", {"weight": torch.ones(128, 64)}, "up_proj.weight has dtype torch.float32"),
        ("int8", {"CB": torch.ones(1)}, "up_proj.CB is an unknown entry of a quantized layer"),
        (
            "int8",
            {"weight_format": torch.tensor(2, dtype=torch.uint8)},
            r"up_proj.weight_format is 2 \(col_turing\), expected 0 \(row\)",
        ),
        ("nf4", {"weight.absmax": torch.ones(7)}, r"up_proj.weight.absmax has shape \[7\]"),
        (
            "nf4",
            {"weight.absmax": torch.full((128,), torch.nan)},
            "up_proj.weight.absmax holds NaN or infinity",
        ),
        ("nf4", {"weight.code": torch.ones(1)}, "up_proj.weight.code is an unknown entry of a qu"),
        ("nf4", {"weight.quant_map": torch.ones(16)}, "up_proj.weight.quant_map has 1 at 0, expec"),
        (
            "nf4",
            {"weight": torch.zeros(4095, 1, dtype=torch.uint8)},
            r"up_proj.weight has shape \[4095, 1\] of torch.uint8, 4095 bytes, expected",
        ),
        (
            "nf4",
            {STATE + "nf4": None},
            "up_proj has the entries .*, expected a float weight alone",
        ),
        ("nf4", {STATE + "nf4": state(shape=[64, 64])}, r"has shape \[64, 64\], expected \[128, 6"),
        ("nf4", {STATE + "nf4": state(blocksize=128)}, "layers differ, .* blocksize 64.*128"),
        ("nf4", {STATE + "nf4": state(blocksize=60)}, "has blocksize 60, expected one of 32"),
        ("nf4", {STATE + "nf4": state(axis=0)}, "has the fields axis, blocksize"),
        (
            "nf4",
            {STATE + "nf4": torch.zeros(9, dtype=torch.uint8)},
            "bitsandbytes__nf4 is no JSON object",
        ),
        ("nf4+dq", {"weight.nested_absmax": None}, "up_proj has the entries .*nested_absmax"),
        (
            "nf4+dq",
            {"weight.nested_quant_map": torch.linspace(-1, 1, 256)},
            "nested_quant_map has -0.498.* at 64, expected -0.0985",
        ),
    ],
)
def test_a_bad_checkpoint_is_refused(
    written: Any, variant: str, changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    folder = spoiled(written(variant, "llama")[0], tmp_path / "bad", **changes)
    with pytest.raises(ValueError, match=rf"lowbit: the checkpoint's .*{message}"):
        by_lowbit(folder)


def test_a_truncated_file_is_refused(written: Any, tmp_path: Path) -> None:
    folder = spoiled(written("nf4+dq", "llama")[0], tmp_path / "bad")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"lowbit: the checkpoint's {file} cannot be read"):
        by_lowbit(folder)


@pytest.mark.parametrize("variant", ["int8", "nf4+dq"])
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=40)
def test_any_checkpoint_is_read_right_or_refused(
    written: Any, variant: str, data: st.DataObject
) -> None:
    """What is read runs. Without its scales a weight may pass for a float one, of a shape that
    transformers refuses."""
    folder, _ = written(variant, "llama")
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.1.mlp.up_proj."
    entries = {key.removeprefix(layer): tensors[key] for key in tensors if key.startswith(layer)}
    changed = data.draw(mutations([entries]))
    if any(value.is_meta for value in changed.values()):
        return
    with tempfile.TemporaryDirectory() as place:
        bad = spoiled(folder, Path(place) / "bad", **dict.fromkeys(entries))
        tensors = load_file(bad / "model.safetensors")
        tensors |= {layer + key: value.contiguous() for key, value in changed.items()}
        save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
        try:
            model = AutoModelForCausalLM.from_pretrained(
                bad, quantization_config=LowbitConfig(bits=8 if variant == "int8" else 4)
            )
        except ValueError as error:
            assert "up_proj" in str(error)
            return
        except RuntimeError as error:
            assert "ignore_mismatched_sizes" in str(error)
            return
    assert run(model).shape == (2, 12, 256)


def test_a_checkpoint_of_the_other_width_is_refused(written: Any, tmp_path: Path) -> None:
    int8, nf4 = (written(variant, "llama")[0] for variant in ("int8", "nf4"))
    folder = spoiled(int8, tmp_path / "bad")
    (folder / "config.json").write_text((nf4 / "config.json").read_text())
    with pytest.raises(ValueError, match="says that the checkpoint has 4-bit layers, but it has 8"):
        by_lowbit(folder)


def test_a_checkpoint_that_is_not_quantized_is_refused(
    written: Any, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    folder = spoiled(Path(checkpoints["llama"]), tmp_path / "bad")
    (folder / "config.json").write_text((written("nf4", "llama")[0] / "config.json").read_text())
    with pytest.raises(ValueError, match="hold no layer that bitsandbytes has quantized"):
        by_lowbit(folder)


def test_quantized_experts_are_refused(
    checkpoints: dict[str, str], tmp_path: Path, written: Any
) -> None:
    """Earlier versions of transformers had a layer for each expert, quantized like any other."""
    other = by_bnb(checkpoints["mixtral"], **VARIANTS["int8"])
    other.save_pretrained(tmp_path / "bnb")
    tensors = load_file(tmp_path / "bnb/model.safetensors")
    (name,) = (key for key in tensors if "layers.1." in key and "experts.2.w1" in key)
    weight = tensors.pop(name)
    tensors[name] = weight.to(torch.int8)
    tensors[name.removesuffix("weight") + "SCB"] = torch.ones(weight.shape[0])
    save_file(tensors, tmp_path / "bnb/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"experts.2.w1 is quantized, but .*experts.gate_up_proj"):
        by_lowbit(tmp_path / "bnb")


# Writing

LOWBIT = {
    "int8": {},
    "int8 threshold": {"threshold": 3.0},
    "int8 half scales": {"absmax_dtype": "float16"},
    "nf4+dq": {"bits": 4},
    "nf4": {"bits": 4, "double_quant": False, "compute_dtype": torch.bfloat16},
    "fp4": {"bits": 4, "codebook": "fp4", "double_quant": False, "blocksize": 32},
    "fp4+dq": {"bits": 4, "codebook": "fp4", "blocksize": 256},
}


@pytest.mark.parametrize("options", LOWBIT)
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "narrow"])
def test_writing(float_models: dict[str, str], options: str, name: str, tmp_path: Path) -> None:
    kind = AUTO.get(name, AutoModelForCausalLM)
    model = kind.from_pretrained(
        float_models[name], quantization_config=LowbitConfig(**LOWBIT[options])
    )
    expected, config = run(model), model.config.quantization_config
    quantizer = model.hf_quantizer
    integration.save_pretrained(model, tmp_path)
    assert model.hf_quantizer is quantizer
    assert model.config.quantization_config is config
    assert same_bits(run(model), expected)

    other, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    if options != "int8 half scales":
        check_same_layers(model, other)
    check_same_outputs(model, other)
    asked = other.config.quantization_config
    assert isinstance(asked, BitsAndBytesConfig)
    assert asked.load_in_8bit == (config.bits == 8)
    if config.bits == 8:
        assert asked.llm_int8_threshold == config.threshold
    else:
        assert asked.bnb_4bit_quant_type == config.codebook
        assert asked.bnb_4bit_use_double_quant == config.double_quant
        assert asked.bnb_4bit_compute_dtype == (
            torch.bfloat16 if config.compute_dtype else torch.float32
        )
    again = by_lowbit(tmp_path, name)
    assert lowbit_layers(again).keys() == lowbit_layers(model).keys()
    assert options == "int8 half scales" or same_state(again, model)


def test_writing_shards(checkpoints: dict[str, str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints["llama_tied"], quantization_config=LowbitConfig(bits=4)
    )
    integration.save_pretrained(model, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    check_same_layers(model, AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("bits", [8, 4])
def test_writing_a_model_quantized_in_place(
    checkpoints: dict[str, str], bits: int, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"], dtype=torch.bfloat16)
    lowbit.quantize_(model, bits=bits, skip=["model.layers.0", "model.layers.1.mlp.up_proj"])
    integration.save_pretrained(model, tmp_path)
    assert not hasattr(model, "hf_quantizer")
    assert not hasattr(model.config, "quantization_config")
    other = AutoModelForCausalLM.from_pretrained(tmp_path)
    check_same_layers(model, other)
    assert other.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_float_layers_whose_names_end_alike(tmp_path: Path) -> None:
    """transformers takes the end of a name for the whole of it."""
    torch.manual_seed(0)
    model = Tiny(Tiny.config_class(vocab_size=1))
    lowbit.quantize_(model, skip=["fc"])
    assert list(lowbit_layers(model)) == ["inner.fc"]
    integration.save_pretrained(model, tmp_path)
    other = Tiny.from_pretrained(tmp_path)
    check_same_layers(model, other)
    again = Tiny.from_pretrained(tmp_path, quantization_config=LowbitConfig())
    check_same_layers(again, other)
    again.save_pretrained(tmp_path / "native")
    assert same_state(Tiny.from_pretrained(tmp_path / "native"), model)


class Tiny(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.inner = nn.ModuleDict({"fc": nn.Linear(64, 64)})
        self.fc = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": True}, "model.layers.0.self_attn.q_proj has an offset, the zero-point form"),
        ({"bits": 4, "codebook": "bof4"}, "q_proj has the codebook bof4, but bitsandbytes has nf4"),
        ({"bits": 4, "codebook": list(range(16))}, r"q_proj has the codebook \(0.0, 1.0"),
    ],
)
def test_a_form_that_bitsandbytes_lacks_is_not_written(
    checkpoints: dict[str, str], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints["llama"], quantization_config=LowbitConfig(**options)
    )
    with pytest.raises(ValueError, match=f"save_pretrained: .*{message}"):
        integration.save_pretrained(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_other_models_that_are_not_written(checkpoints: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "no"
    with pytest.raises(TypeError, match="model is a Linear, not transformers'"):
        integration.save_pretrained(nn.Linear(2, 2), folder)
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    with pytest.raises(ValueError, match="model has no layer that lowbit has quantized"):
        integration.save_pretrained(model, folder)

    model.model.layers[0].mlp.up_proj = Int8Linear.from_float(model.model.layers[0].mlp.up_proj)
    up = model.model.layers[1].mlp.up_proj
    model.model.layers[1].mlp.up_proj = Int8Linear.from_float(up, threshold=3.0)
    with pytest.raises(ValueError, match=r"threshold is .* in different layers, but bitsandbytes"):
        integration.save_pretrained(model, folder)
    model.model.layers[1].mlp.up_proj = LUT4Linear.from_float(up)
    with pytest.raises(ValueError, match="model has 8-bit and 4-bit layers, expected one width"):
        integration.save_pretrained(model, folder)

    model = AutoModelForCausalLM.from_pretrained(
        checkpoints["mixtral"], quantization_config=LowbitConfig()
    )
    with pytest.raises(ValueError, match=r"mlp.experts is a .*, which bitsandbytes leaves float"):
        integration.save_pretrained(model, folder)
    assert not folder.exists()


def test_a_model_with_adapters_is_not_written(
    checkpoints: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints["llama"], quantization_config=LowbitConfig()
    )
    monkeypatch.setattr(model, "_hf_peft_config_loaded", True)  # as add_adapter does
    with pytest.raises(ValueError, match="model has adapters"):
        integration.save_pretrained(model, tmp_path / "no")
    assert not (tmp_path / "no").exists()


# Scripts written for bitsandbytes


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "storage" not in v])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_fresh_quantization_when_enabled(
    checkpoints: dict[str, str], written: Any, variant: str, name: str, enabled: None
) -> None:
    asked = VARIANTS[variant]
    model = by_bnb(checkpoints[name], name, **asked)
    layers = lowbit_layers(model)
    assert layers.keys() == bnb_layers(written(variant, name)[1]).keys()
    if "load_in_8bit" in asked:
        expected = LowbitConfig(bits=8)
    else:
        expected = LowbitConfig(
            bits=4,
            codebook=asked.get("bnb_4bit_quant_type", "fp4"),
            double_quant=asked.get("bnb_4bit_use_double_quant", False),
            compute_dtype=asked.get("bnb_4bit_compute_dtype", "float32"),
        )
    same = AutoModelForCausalLM.from_pretrained(checkpoints[name], quantization_config=expected)
    assert same_state(model, same)
    assert same_bits(run(model), run(same))
    assert model.quantization_method == "lowbit"
    assert not hasattr(model, "is_loaded_in_8bit")
    assert not hasattr(model, "is_loaded_in_4bit")


def test_codes_and_scales_are_those_of_bitsandbytes(
    checkpoints: dict[str, str], written: Any, enabled: None
) -> None:
    """Without double quantization, whose 8-bit codes bitsandbytes' CPU code does not round to the
    nearest, and but for FP4's two zeros, which it uses as they come."""
    check_same_layers(by_bnb(checkpoints["llama"], **VARIANTS["nf4"]), written("nf4", "llama")[1])
    model = by_bnb(checkpoints["llama"], **VARIANTS["fp4"])
    for name, other in bnb_layers(written("fp4", "llama")[1]).items():
        layer = model.get_submodule(name)
        assert same_bits(layer.absmax.flatten(), other.weight.quant_state.absmax)
        assert torch.equal(layer.dequantize(), bnb_weight(other))


def test_saved_in_lowbits_form_when_enabled(
    checkpoints: dict[str, str], enabled: None, tmp_path: Path
) -> None:
    model = by_bnb(checkpoints["llama"], **VARIANTS["nf4+dq"])
    model.save_pretrained(tmp_path)
    integration.disable()
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path), model)


def test_threshold_and_skip_modules_are_honoured(
    checkpoints: dict[str, str], enabled: None
) -> None:
    """Scripts name modules of other models as well."""
    model = by_bnb(
        checkpoints["llama"],
        load_in_8bit=True,
        llm_int8_threshold=2.5,
        llm_int8_skip_modules=["lm_head", "pre_classifier", "up_proj"],
    )
    layers = lowbit_layers(model)
    assert {layer.threshold for layer in layers.values()} == {2.5}
    assert {name.rpartition(".")[2] for name in layers} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
    }
    assert model.config.quantization_config.skip_modules == ["lm_head", "up_proj"]


def test_cpu_offload_in_fp32_is_honoured(
    checkpoints: dict[str, str], enabled: None, tmp_path: Path
) -> None:
    device_map = LLAMA_OFFLOADED | {"model.layers.0": torch.device("cpu"), "model.layers.2": 0}
    quantizer = BitsAndBytesQuantizer(
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_enable_fp32_cpu_offload=True),
        pre_quantized=False,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(checkpoints["llama"]))
    quantizer.preprocess_model(model, device_map=device_map)
    assert {name.split(".")[2] for name in lowbit_layers(model)} == {"2"}

    model = by_bnb(checkpoints["llama"], load_in_8bit=True)  # an empty map: nothing is on the CPU
    assert len(lowbit_layers(model)) == 21


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"load_in_8bit": True, "llm_int8_has_fp16_weight": True},
            r"BitsAndBytesConfig\(llm_int8_has_fp16_weight=True\): it keeps no 16-bit weights",
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_storage": torch.bfloat16},
            r"\(bnb_4bit_quant_storage=torch.bfloat16\): it stores packed codes as torch.uint8",
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_quant_type": "int4"},
            r"\(bnb_4bit_quant_type='int4'\): expected one of nf4, fp4",
        ),
        (
            {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float64},
            r"\(bnb_4bit_compute_dtype=torch.float64\): expected one of torch.float32",
        ),
        ({}, r"\(load_in_4bit=False\): neither load_in_8bit nor load_in_4bit"),
    ],
)
def test_what_lowbit_cannot_honour_is_refused(
    checkpoints: dict[str, str], options: dict[str, Any], message: str, enabled: None
) -> None:
    with pytest.raises(ValueError, match=f"lowbit cannot honour .*{message}"):
        by_bnb(checkpoints["llama"], **options)


def test_disable_puts_everything_back(checkpoints: dict[str, str]) -> None:
    before = dict(auto.AUTO_QUANTIZER_MAPPING)
    integration.disable()
    assert before == auto.AUTO_QUANTIZER_MAPPING
    integration.enable()
    integration.enable()
    assert before != auto.AUTO_QUANTIZER_MAPPING
    integration.disable()
    assert before == auto.AUTO_QUANTIZER_MAPPING
    model = by_bnb(checkpoints["llama"], **VARIANTS["nf4"])
    assert bnb_layers(model)
    assert not lowbit_layers(model)


SCRIPT = """
    import importlib.abc, importlib.metadata, sys

    class Blocked(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name.split(".")[0] == "bitsandbytes":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocked())

    import lowbit
    lowbit.integrations.bitsandbytes.enable()

    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    fresh, int8, nf4 = sys.argv[1:4]
    ids = torch.arange(12)[None]
    for options in (
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ):
        config = BitsAndBytesConfig(**options)
        model = AutoModelForCausalLM.from_pretrained(fresh, quantization_config=config)
        model.generate(ids, max_new_tokens=3)
        print(type(model.model.layers[0].mlp.up_proj).__name__)
    for folder in (int8, nf4):
        model = AutoModelForCausalLM.from_pretrained(folder)
        print(type(model.model.layers[0].mlp.up_proj).__name__)
    assert "bitsandbytes" not in sys.modules
"""


def test_a_script_where_bitsandbytes_cannot_be_imported(
    checkpoints: dict[str, str], written: Any
) -> None:
    folders = [checkpoints["llama"], *(str(written(v, "llama")[0]) for v in ("int8", "nf4+dq"))]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), *folders], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["Int8Linear", "LUT4Linear", "Int8Linear", "LUT4Linear"]
