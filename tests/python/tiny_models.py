# SPDX-License-Identifier: MIT
"""Small random models of the shapes that matter, built from configurations, saved in float; and
what tests do to saved models."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

VOCABULARY = 256


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    size = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
    }
    decoder = size | {"num_key_value_heads": 2}
    if name in ("llama", "llama_tied"):
        decoder |= {"intermediate_size": 128, "num_hidden_layers": 3}
        config = transformers.LlamaConfig(**decoder, tie_word_embeddings=name == "llama_tied")
        return transformers.LlamaForCausalLM(config)
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY)
        return transformers.GPT2LMHeadModel(config)
    if name == "mixtral":
        return transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**decoder, num_local_experts=4)
        )
    if name == "qwen3_moe":
        config = transformers.Qwen3MoeConfig(
            **decoder, moe_intermediate_size=48, head_dim=16, num_experts=8, num_experts_per_tok=3
        )
        return transformers.Qwen3MoeForCausalLM(config)
    if name == "gpt_oss":
        decoder["intermediate_size"] = 96
        config = transformers.GptOssConfig(
            **decoder, head_dim=16, num_local_experts=4, pad_token_id=0
        )
        return transformers.GptOssForCausalLM(config)
    if name == "qwen3_vl_moe":
        text = decoder | {
            "moe_intermediate_size": 64,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]},
        }
        vision = {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 64,
            "deepstack_visual_indexes": [0],
        }
        config = transformers.Qwen3VLMoeConfig(text_config=text, vision_config=vision)
        return transformers.Qwen3VLMoeForConditionalGeneration(config)
    if name == "nomic_bert":
        size["intermediate_size"] = 96
        return transformers.NomicBertModel(transformers.NomicBertConfig(**size))
    size["intermediate_size"] = 128
    kind = transformers.BertModel if name == "bert" else transformers.BertForSequenceClassification
    return kind(transformers.BertConfig(**size, num_labels=3))


NAMES = (
    "bert",
    "bert_classifier",
    "llama",
    "llama_tied",
    "gpt2",
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "qwen3_vl_moe",
    "nomic_bert",
)

# A device map of "llama".
LLAMA_OFFLOADED = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


def save_all(folder: Path) -> dict[str, str]:
    paths = {}
    for name in NAMES:
        paths[name] = str(folder / name)
        build(name).save_pretrained(paths[name])
    return paths


def run(model: PreTrainedModel) -> torch.Tensor:
    """Logits, or the last hidden state of a model without a head."""
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        return model.eval()(ids)[0]


def learn(
    model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor, steps: int
) -> list[float]:
    """Trains a language model on a batch over and over. The loss before each step."""
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def spoil(folder: Path, key: str, change: Callable[[Tensor], Tensor | None]) -> None:
    """Changes a tensor of a saved model; None takes it out."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    value = change(tensors.pop(key))
    if value is not None:
        tensors[key] = value
    save_file(tensors, file, metadata={"format": "pt"})


LOAD = Path(__file__).parents[1] / "bench" / "load.py"


def check_memory_while_loading(warm_up: str, folder: Path, bits: int, more: int) -> None:
    """A process that loads the model, see LOAD, keeps little more than its footprint, and takes
    `more` bytes at the peak.

    The file is read through a memory map, which counts as resident and is taken off. One of three
    loads must do: what the holes in the heap add differs from one to the next."""
    mapped = (folder / "model.safetensors").stat().st_size
    loads = []
    for _ in range(3):
        result = subprocess.run(
            [sys.executable, LOAD, warm_up, folder, str(bits)], capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        most = 1.15 * found["footprint"]
        if found["kept"] < most and found["peak"] - mapped < most + more + 2 * 2**20:
            return
        loads.append(found)
    raise AssertionError(loads)
