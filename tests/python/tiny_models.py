# SPDX-License-Identifier: MIT
"""Small random models of the shapes that matter, built from configurations, saved in float."""

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 256


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if name in ("llama", "llama_tied"):
        config = transformers.LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            tie_word_embeddings=name == "llama_tied",
        )
        return transformers.LlamaForCausalLM(config)
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=VOCABULARY)
        return transformers.GPT2LMHeadModel(config)
    if name == "mixtral":
        config = transformers.MixtralConfig(
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=4,
            vocab_size=VOCABULARY,
        )
        return transformers.MixtralForCausalLM(config)
    config = transformers.BertConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        num_labels=3,
    )
    return {
        "bert": transformers.BertModel,
        "bert_classifier": transformers.BertForSequenceClassification,
    }[name](config)


NAMES = ("bert", "bert_classifier", "llama", "llama_tied", "gpt2", "mixtral")


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
