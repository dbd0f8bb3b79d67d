# SPDX-License-Identifier: MIT
"""A small language model in the shape of Llama: its texts as tokens, its losses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Texts:
    """Token ids: a stream to learn from, and held-out windows [., context]."""

    training: Tensor
    held_out: Tensor

    def __str__(self) -> str:
        held_out = self.held_out.numel()
        return f"{len(self.training):,} tokens to learn from, {held_out:,} held out"


@dataclass(frozen=True)
class Score:
    perplexity: float
    divergence: float  # KL from the first model's next-token distribution, in nats


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        transient=True,
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE: it can spell any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """All texts as one stream of token ids, two newlines between them."""
    encoded = tokenizer.encode_batch([f"{text}\n\n" for text in texts])
    return torch.tensor([token for each in encoded for token in each.ids])


def windows(stream: Tensor, context: int, count: int) -> Tensor:
    """Windows [count, context], spread over the whole stream; fewer if it has not so many."""
    whole = stream[: len(stream) // context * context].view(-1, context)
    return whole[:: max(1, len(whole) // count)][:count]


def texts(
    tokenizer: Tokenizer, training: list[str], held_out: list[str], context: int, count: int
) -> Texts:
    """Of the held-out texts, `count` windows."""
    rest = encode(tokenizer, held_out)
    return Texts(encode(tokenizer, training), windows(rest, context, count))


def build(vocabulary: int, hidden: int, layers: int, context: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=11 * hidden // 4,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=context,
            tie_word_embeddings=True,
            initializer_range=0.06,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def next_token_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())


@torch.inference_mode()
def mean_loss(model: nn.Module, texts: Tensor, batch: int = 8) -> float:
    model.eval()
    losses = [
        next_token_loss(model(input_ids=part).logits, part).item() * len(part)
        for part in texts.split(batch)
    ]
    return sum(losses) / len(texts)


@torch.inference_mode()
def scores(
    forms: dict[str, nn.Module], texts: Tensor, title: str, batch: int = 8
) -> dict[str, Score]:
    """How well each form of a model predicts texts [., context], and how far from the first."""
    parts = texts.split(batch)
    total = {name: torch.zeros(2, dtype=torch.float64) for name in forms}
    with progress() as bar:
        task = bar.add_task(title, total=len(parts) * len(forms))
        for part in parts:
            reference = None
            for name, model in forms.items():
                logits = model.eval()(input_ids=part).logits[:, :-1].flatten(0, 1)
                logs = log_softmax(logits, -1)
                reference = logs if reference is None else reference
                loss = cross_entropy(logits, part[:, 1:].flatten())
                divergence = kl_div(logs, reference, reduction="batchmean", log_target=True)
                total[name] += len(part) * torch.stack([loss, divergence])
                bar.update(task, advance=1, description=f"{title}, {name}")
    return {
        name: Score(math.exp(loss), divergence)
        for name, (loss, divergence) in ((n, (t / len(texts)).tolist()) for n, t in total.items())
    }
