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
from lowbit.nn.lowbit_module import LowbitModule
from tiny_models import LLAMA_OFFLOADED, run
from transformers import AutoModelForCausalLM, PreTrainedModel

GPT2 = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "lm_head": "cpu"}
GPT2 |= {"transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.ln_f": "cpu"}
MOE = {key: place for key, place in LLAMA_OFFLOADED.items() if key != "model.layers.2"}
MAPS = {"llama": LLAMA_OFFLOADED, "gpt2": GPT2, "mixtral": MOE, "gpt_oss": MOE}
SAMPLE = {
    "llama": "model.layers.2.self_attn.q_proj.weight",
    "gpt2": "transformer.h.1.attn.c_proj.weight",
    "mixtral": "model.layers.1.mlp.experts.gate_up_proj",
    "gpt_oss": "model.layers.1.mlp.experts.down_proj",
}
OPTIONS = {
    "int8": {"offset": True},
    "nf4": {"bits": 4},
    "fp4": {"bits": 4, "codebook": "fp4", "blocksize": 128, "double_quant": False},
}
every_width = pytest.mark.parametrize("width", OPTIONS)


@pytest.fixture
def config(width: str) -> LowbitConfig:
    return LowbitConfig(**OPTIONS[width])


@pytest.fixture
def whole(checkpoints: dict[str, str], name: str, config: LowbitConfig) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoints[name], quantization_config=config)


@pytest.fixture
def saved(whole: PreTrainedModel, tmp_path: Path) -> Path:
    whole.save_pretrained(tmp_path / "quantized")
    return tmp_path / "quantized"


def sample(model: PreTrainedModel, name: str) -> tuple[LowbitModule, str]:
    """A module that the maps put on disk, and the name of its codes."""
    path, _, codes = SAMPLE[name].rpartition(".")
    return model.get_submodule(path), codes


def check(model: PreTrainedModel, expected: PreTrainedModel, name: str, folder: Path) -> None:
    """Offloaded, the same results call after call, and the same bits once saved."""
    module, codes = sample(model, name)
    assert isinstance(module, LowbitModule)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert getattr(module, codes).dtype in (torch.int8, torch.uint8)
    for _ in range(2):
        assert same_bits(run(model), run(expected))
    model.save_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder)
    mine, other = again.state_dict(), expected.state_dict()
    assert mine.keys() == other.keys()
    assert all(same_bits(mine[key], other[key]) for key in mine)


@pytest.mark.parametrize("name", MAPS)
@every_width
def test_quantizing_onto_disk(
    checkpoints: dict[str, str],
    name: str,
    config: LowbitConfig,
    whole: PreTrainedModel,
    tmp_path: Path,
) -> None:
    """Without care, the float weights of the original file would come back at every call."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[name],
        quantization_config=config,
        device_map=MAPS[name],
        offload_folder=tmp_path / "offload",
    )
    files = {file.stem: load_file(file) for file in (tmp_path / "offload").glob("*.safetensors")}
    module, _ = sample(whole, name)
    path = SAMPLE[name].rpartition(".")[0]
    for part in module.stored():
        key = f"{path}.{part}"
        assert same_bits(files[key][key], getattr(module, part))
    check(model, whole, name, tmp_path / "again")


@pytest.mark.parametrize("name", MAPS)
@every_width
@pytest.mark.parametrize("offload_folder", [False, True])
def test_a_quantized_checkpoint_on_disk(
    name: str, whole: PreTrainedModel, saved: Path, offload_folder: bool, tmp_path: Path
) -> None:
    options = {"offload_folder": tmp_path / "offload"} if offload_folder else {}
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=MAPS[name], **options)
    check(model, whole, name, tmp_path / "again")


@every_width
def test_quantizing_onto_disk_needs_a_folder(
    checkpoints: dict[str, str], config: LowbitConfig
) -> None:
    with pytest.raises(ValueError, match="offload_folder"):
        AutoModelForCausalLM.from_pretrained(
            checkpoints["llama"], quantization_config=config, device_map=LLAMA_OFFLOADED
        )


@pytest.mark.parametrize("name", ["llama"])
@every_width
@pytest.mark.parametrize("fresh", [False, True])
def test_an_automatic_map_counts_quantized_bytes(
    checkpoints: dict[str, str],
    name: str,
    config: LowbitConfig,
    whole: PreTrainedModel,
    saved: Path,
    fresh: bool,
    tmp_path: Path,
) -> None:
    """Room for the embedding, the head and two of three layers, as they are stored, and for half of
    the third."""
    options = {"quantization_config": config} if fresh else {}
    layer = sum(p.nbytes for p in whole.model.layers[0].parameters())
    rest = whole.get_memory_footprint() - 3 * layer
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[name] if fresh else saved,
        device_map="auto",
        max_memory={"cpu": rest + int(2.5 * layer)},
        offload_folder=tmp_path / "offload",
        **options,
    )
    places = model.hf_device_map
    assert places["model.layers.0"] == places["model.layers.1"] == "cpu"
    assert places["model.layers.2"] == "disk"
    check(model, whole, name, tmp_path / "again")


@pytest.mark.parametrize("name", MAPS)
@every_width
@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_maps_without_offloading(
    checkpoints: dict[str, str],
    name: str,
    config: LowbitConfig,
    whole: PreTrainedModel,
    device_map: object,
) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        checkpoints[name], quantization_config=config, device_map=device_map
    )
    assert not any(p.is_meta for p in model.parameters())
    assert same_bits(run(model), run(whole))


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@every_width
def test_offloading_to_memory(name: str, whole: PreTrainedModel, saved: Path) -> None:
    """With an accelerator, which the meta device stands for here, the CPU's layers are offloaded:
    accelerate replaces their parameters, and what transformers noted on them is gone."""
    on_cpu = ".".join(SAMPLE[name].split(".")[:3])
    places = {key: "cpu" if key == on_cpu else "meta" for key in MAPS[name]}
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=places)
    (module, codes), (expected, _) = sample(model, name), sample(whole, name)
    assert getattr(module, codes).is_meta
    for part in expected.stored():
        assert same_bits(module._hf_hook.weights_map[part], getattr(expected, part))


@pytest.mark.parametrize("name", MAPS)
@every_width
def test_a_bad_scale_on_disk_is_found_while_loading(saved: Path, name: str, width: str) -> None:
    path, _, codes = SAMPLE[name].rpartition(".")
    part = "nested_absmax" if width == "nf4" else "absmax"
    part = part if codes == "weight" else f"{codes}_{part}"
    tensors = load_file(saved / "model.safetensors")
    (key,) = (  # in the file the module of the experts has another name
        key
        for key in tensors
        if key == f"{path}.{part}" or (".1." in key and key.endswith(f".experts.{part}"))
    )
    tensors[key].view(-1)[0] = float("nan")
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{path}.{part} holds NaN"):
        AutoModelForCausalLM.from_pretrained(saved, device_map=MAPS[name])


@pytest.mark.parametrize("name", ["llama", "mixtral"])
@every_width
def test_an_offloaded_model_cannot_be_dequantized(saved: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved, device_map=MAPS[name])
    with pytest.raises(ValueError, match="offloaded"):
        model.dequantize()
