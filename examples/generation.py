# SPDX-License-Identifier: MIT
"""Text from a causal language model: speed, and whether the two forms say the same."""

import math

import torch
from comparison import Measure, Pair, median_seconds
from corpus import paragraphs
from rich.console import Console
from rich.panel import Panel
from rich.progress import track
from rich.text import Text
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

CONTEXT = 512  # tokens of a text at a time, where the model takes so many
TEXTS = 4  # so many contexts are predicted, token by token


def is_causal(config: PretrainedConfig) -> bool:
    """ValueError: an encoder-decoder, which this example has no task for."""
    if config.is_encoder_decoder:
        raise ValueError(
            f"{config.model_type} is an encoder-decoder; this example compares encoders and causal "
            "language models"
        )
    return any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in config.architectures or ())


@torch.inference_mode()
def compare(
    pair: Pair,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    tokens: int,
    rounds: int,
    console: Console,
) -> list[Measure]:
    window = min(CONTEXT, getattr(pair.float_model.config, "max_position_embeddings", CONTEXT))
    texts = contexts(tokenizer, window)
    prefill = tuple(lambda model=model: model(input_ids=texts[:1]) for model in pair)
    prefill_seconds = median_seconds(f"{window} tokens read", prefill, rounds)

    start = tokenizer(prompt, return_tensors="pt")["input_ids"]
    generated: list[Tensor] = [start, start]
    calls = tuple(
        lambda i=i, model=model: generated.__setitem__(i, generate(model, start, tokens))
        for i, model in enumerate(pair)
    )
    decode_seconds = median_seconds(f"{tokens} tokens written", calls, rounds)
    for name, ids in zip((pair.float_name, "int8"), generated, strict=True):
        text = Text(prompt, style="dim") + Text(tokenizer.decode(ids[0, start.shape[1] :]))
        console.print(Panel(text, title=name, title_align="left"))

    loss, same = predictions(pair, texts)
    return [
        Measure(
            "Reading",
            f"tokens/s, {window} at once",
            *(window / s for s in prefill_seconds),
            1,
            "faster",
            more_is_better=True,
        ),
        Measure(
            "Writing",
            "tokens/s, one by one",
            *(tokens / s for s in decode_seconds),
            1,
            "faster",
            more_is_better=True,
        ),
        Measure("Perplexity", "of docstrings", *(math.exp(value) for value in loss), 3),
        Measure("Same next token", f"% of {texts.numel()}", 100, 100 * same, 1),
    ]


def contexts(tokenizer: PreTrainedTokenizerBase, window: int) -> Tensor:
    """Token ids [TEXTS, window] of docstrings, one after the other."""
    text = "\n\n".join(paragraphs(most=200).values())
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    return ids[: TEXTS * window].view(TEXTS, window)


def generate(model: nn.Module, start: Tensor, tokens: int) -> Tensor:
    """The most likely continuation, always `tokens` long, so that times compare."""
    return model.generate(
        start,
        attention_mask=torch.ones_like(start),
        generation_config=GenerationConfig(
            max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        ),
    )


def predictions(pair: Pair, texts: Tensor) -> tuple[tuple[float, float], float]:
    """The mean loss of each model over the texts, and how often their best next tokens agree."""
    loss = torch.zeros(2, dtype=torch.float64)
    same = 0.0
    for text in track(texts, "Comparing predictions", transient=True):
        logits = [model(input_ids=text[None]).logits[0].float() for model in pair]
        loss += torch.tensor([cross_entropy(each[:-1], text[1:]) for each in logits])
        same += (logits[0].argmax(-1) == logits[1].argmax(-1)).float().mean().item()
    return tuple((loss / len(texts)).tolist()), same / len(texts)
