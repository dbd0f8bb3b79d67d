# SPDX-License-Identifier: MIT
"""A small Llama that learns from the sources of Python's standard library."""

from dataclasses import dataclass
from typing import Any

import language_model
import torch
from corpus import sources, split
from language_model import Texts
from tokenizers import Tokenizer
from torch import nn
from training import Training
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Settings:
    modules: int = 1  # every so many of the library's modules is read
    vocabulary: int = 2048
    hidden: int = 256
    layers: int = 4
    context: int = 128
    batch: int = 4
    steps: int = 1500
    learning_rate: float = 2e-3
    windows: int = 256  # of held-out text, each as long as a context
    evaluations: int = 6  # of the held-out loss, after the first


# A smaller model that learns less, for the quick form of an example.
SMALL = {
    "modules": 8,
    "vocabulary": 512,
    "hidden": 128,
    "layers": 2,
    "steps": 100,
    "windows": 64,
    "evaluations": 3,
}


def read(settings: Settings) -> tuple[Tokenizer, Texts]:
    """The tokenizer learns from the texts as well."""
    code = split(sources()[:: settings.modules])
    tokenizer = language_model.train_tokenizer(code[0], settings.vocabulary)
    return tokenizer, language_model.texts(tokenizer, *code, settings.context, settings.windows)


def build(settings: Settings, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return language_model.build(
        settings.vocabulary, settings.hidden, settings.layers, settings.context
    )


def training(settings: Settings, model: nn.Module, texts: Texts, **options: Any) -> Training:
    return Training(
        model,
        texts,
        steps=settings.steps,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        evaluations=settings.evaluations,
        **options,
    )
