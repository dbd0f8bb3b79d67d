# SPDX-License-Identifier: MIT
"""A small language model in the shape of Llama: its tokenizer, its training, its perplexity."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import LlamaConfig, LlamaForCausalLM

WARM_UP = 0.05  # of the steps


@dataclass
class Curve:
    """Losses in nats per token: one of each training batch, and of held-out text by step."""

    training: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step
    held_out: dict[int, float] = field(default_factory=dict)


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


def train(
    model: nn.Module,
    stream: Tensor,
    held_out: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    evaluations: int,
    title: str,
) -> tuple[Curve, torch.optim.Optimizer]:
    """Trains what is not frozen on random windows of the stream, the same ones at every call.

    Returns the curve, with the held-out loss at `evaluations` + 1 steps from the first to the last,
    and the optimizer, whose state is part of what training takes.
    """
    context = held_out.shape[1]
    random = torch.Generator().manual_seed(0)
    starts = torch.randint(len(stream) - context, (steps, batch), generator=random)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_up(step, steps))
    evaluated = {round(i * steps / evaluations) for i in range(evaluations + 1)}
    curve = Curve()
    with progress() as bar:
        task = bar.add_task(title, total=steps)
        for step in range(steps + 1):
            if step in evaluated:
                curve.held_out[step] = mean_loss(model, held_out)
            if step == steps:
                break
            begin = time.perf_counter()
            tokens = torch.stack([stream[start : start + context] for start in starts[step]])
            loss = next_token_loss(model.train()(input_ids=tokens).logits, tokens)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            schedule.step()
            curve.training.append(loss.item())
            curve.seconds.append(time.perf_counter() - begin)
            bar.update(task, advance=1, description=f"{title}, loss {loss.item():.3f}")
    return curve, optimizer


def _warm_up(step: int, steps: int) -> float:
    """A straight line up, then a cosine down to a twentieth."""
    up = (step + 1) / (WARM_UP * steps)
    return min(up, 0.525 + 0.475 * math.cos(math.pi * step / steps))


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
