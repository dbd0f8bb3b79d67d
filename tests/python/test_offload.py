# SPDX-License-Identifier: MIT
"""Device maps with offloading to memory and disk. The accelerator's place is taken by the CPU: what
matters is what lies on disk and what accelerate's hooks bring back."""

from pathlib import Path

import pytest
import torch
from reference import same_bits
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from lowbit.integrations.transformers import LowbitConfig
from lowbit.nn import Int8Linear
from tiny_models import run
from transformers import AutoModelForCausalLM, PreTrainedModel

LLAMA = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}
GPT2 = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "lm_head": "cpu"}
GPT2 |= {"transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.ln_f": "cpu"}
MAPS = {"llama": LLAMA, "gpt2": GPT2}
SAMPLE = {"llama": "model.layers.2.self_attn.q_proj", "gpt2": "transformer.h.1.attn.c_proj"}


def config() -> LowbitConfig:
    return LowbitConfig(offset=True)


@pytest.fixture
def saved(checkpoints: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "quantized"
    whole(checkpoints, request.getfixturevalue("name")).save_pretrained(folder)
    return folder


def whole(checkpoints: dict[str, str], name: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoints[name], quantization_config=config())


def check(model: PreTrainedModel, expected: PreTrainedModel, name: str, folder: Path) -> None:
    """Offloaded, the same results call after call, and the same bits once saved."""
    layer = model.get_submodule(SAMPLE[name])
    assert isinstance(layer, Int8Linear)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer.weight.dtype == torch.int8
    for _ in range(2):
        assert same_bits(run(model), run(expected))
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    mine, other = again.state_dict(), expected.state_dict()
    assert mine.keys() == other.keys()
    assert all(same_bits(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize("name", MAPS)
def test_quantizing_onto_disk(checkpoints: dict[str, str], name: str, tmp_path: Path) -> None:
    """Without care, the float weights of the original file would come back at every call."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[name],
        quantization_config=config(),
        device_map=MAPS[name],
        offload_folder=tmp_path / "offload",
    )
    files = {file.stem: load_file(file) for file in (tmp_path / "offload").glob("*.safetensors")}
    for leaf, dtype in (("weight", torch.int8), ("absmax", torch.float32)):
        key = f"{SAMPLE[name]}.{leaf}"
        assert files[key][key].dtype == dtype
    check(model, whole(checkpoints, name), name, tmp_path / "again")


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("offload_folder", [False, True])
def test_a_quantized_checkpoint_on_disk(
    checkpoints: dict[str, str], name: str, saved: Path, offload_folder: bool, tmp_path: Path
) -> None:
    options = {"offload_folder": tmp_path / "offload"} if offload_folder else {}
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=MAPS[name], **options)
    check(model, whole(checkpoints, name), name, tmp_path / "again")


def test_quantizing_onto_disk_needs_a_folder(checkpoints: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="offload_folder"):
        AutoModelForCausalLM.from_pretrained(
            checkpoints["llama"], quantization_config=config(), device_map=LLAMA
        )


@pytest.mark.parametrize("name", ["llama"])
@pytest.mark.parametrize("fresh", [False, True])
def test_an_automatic_map_counts_quantized_bytes(
    checkpoints: dict[str, str], name: str, saved: Path, fresh: bool, tmp_path: Path
) -> None:
    """Room for the embedding, the head and about two of three layers, were they int8."""
    options = {"quantization_config": config()} if fresh else {}
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[name] if fresh else saved,
        device_map="auto",
        max_memory={"cpu": 240_000},
        offload_folder=tmp_path / "offload",
        **options,
    )
    places = model.hf_device_map
    assert places["model.layers.0"] == places["model.layers.1"] == "cpu"
    assert places["model.layers.2"] == "disk"
    check(model, whole(checkpoints, name), name, tmp_path / "again")


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_maps_without_offloading(
    checkpoints: dict[str, str], name: str, device_map: object
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[name], quantization_config=config(), device_map=device_map
    )
    assert not any(p.is_meta for p in model.parameters())
    assert same_bits(run(model), run(whole(checkpoints, name)))


@pytest.mark.parametrize("name", ["llama"])
def test_offloading_to_memory(checkpoints: dict[str, str], name: str, saved: Path) -> None:
    """With an accelerator, which the meta device stands for here, the CPU's layers are offloaded:
    accelerate replaces their parameters, and what transformers noted on them is gone."""
    places = {key: "cpu" if key == "model.layers.2" else "meta" for key in LLAMA}
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=places)
    expected = whole(checkpoints, name).get_submodule(SAMPLE[name])
    layer = model.get_submodule(SAMPLE[name])
    assert layer.weight.is_meta
    for leaf in ("weight", "absmax", "offset"):
        assert same_bits(layer._hf_hook.weights_map[leaf], getattr(expected, leaf))


@pytest.mark.parametrize("name", ["llama"])
def test_a_bad_scale_on_disk_is_found_while_loading(saved: Path, name: str) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors[f"{SAMPLE[name]}.absmax"][3] = float("nan")
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers.2.self_attn.q_proj.absmax holds NaN"):
        AutoModelForCausalLM.from_pretrained(saved, device_map=LLAMA)


@pytest.mark.parametrize("name", ["llama"])
def test_an_offloaded_model_cannot_be_dequantized(saved: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=LLAMA)
    with pytest.raises(ValueError, match="offloaded"):
        model.dequantize()
