# SPDX-License-Identifier: MIT
"""Search with an encoder: embed paragraphs, answer queries, compare the two forms of the model."""

import torch
from comparison import Measure, Pair, median_seconds
from corpus import paragraphs
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize
from transformers import PreTrainedTokenizerBase

QUERIES = (
    "read the rows of a spreadsheet saved as text",
    "remember the results of a function so that it is not computed twice",
    "run another program and collect what it prints",
    "unpack all files of an archive into a folder",
    "how similar are two pieces of text?",
    "a random choice where some items are more likely",
    "send an email message to several recipients",
    "the middle value of a list of numbers",
)
BEST = 5
SHOWN = 2
MAX_TOKENS = 128
TIMED_TOKENS = 64


def compare(
    pair: Pair, tokenizer: PreTrainedTokenizerBase, count: int, rounds: int, console: Console
) -> list[Measure]:
    texts = paragraphs(count)
    names = ("the original", "int8")
    documents = [
        embed(model, tokenizer, list(texts.values()), f"Embedding {len(texts)} paragraphs, {name}")
        for model, name in zip(pair, names, strict=True)
    ]
    queries = [embed(model, tokenizer, list(QUERIES)) for model in pair]
    found = [search(q, d) for q, d in zip(queries, documents, strict=True)]
    print_answers(console, list(texts.items()), queries[1], documents[1], found)

    cosine = cosine_similarity(*documents)
    # Every paragraph is a query too, for its neighbours.
    found = [
        torch.cat([best, search(d, d, exclude_self=True)])
        for best, d in zip(found, documents, strict=True)
    ]
    shared = (found[0][:, :, None] == found[1][:, None, :]).any(-1).float().mean()
    return [
        *latencies(pair, tokenizer, list(texts.values()), rounds),
        Measure("Cosine, mean", "int8 to the original", 1, cosine.mean().item(), 5),
        Measure("Cosine, worst", "int8 to the original", 1, cosine.min().item(), 5),
        Measure(f"Same top {BEST}", f"% of {len(found[0])} searches", 100, 100 * shared.item(), 1),
    ]


@torch.inference_mode()
def embed(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], title: str = ""
) -> Tensor:
    """Unit vectors [len(texts), width]: the mean of the last states over each text's tokens."""
    vectors = []
    batches = [texts[i : i + 32] for i in range(0, len(texts), 32)]
    for batch in track(batches, title, transient=True, disable=not title):
        tokens = tokenizer(
            batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        states = model(**tokens).last_hidden_state.float()
        mask = tokens["attention_mask"][..., None]
        vectors.append(normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(vectors)


def search(queries: Tensor, documents: Tensor, exclude_self: bool = False) -> Tensor:
    """The indices [queries, BEST] of the nearest documents, best first."""
    scores = queries @ documents.T
    if exclude_self:
        scores.fill_diagonal_(-1)
    return scores.topk(BEST).indices


def print_answers(
    console: Console,
    texts: list[tuple[str, str]],
    queries: Tensor,
    documents: Tensor,
    found: list[Tensor],
) -> None:
    """The int8 model's best answers to QUERIES, and how many of the BEST the original gives too."""
    for i, query in enumerate(QUERIES):
        original, best = (each[i].tolist() for each in found)
        same = len(set(original) & set(best))
        console.print(f"[bold]{query}[/]  [dim]{same} of {BEST} as before[/]")
        table = Table.grid(padding=(0, 2))
        for j in best[:SHOWN]:
            name, text = texts[j]
            sentence = " ".join(text.split()).split(". ")[0]
            score = f"  {queries[i] @ documents[j]:.2f}"
            table.add_row(score, Text(name), Text(sentence, overflow="ellipsis", no_wrap=True))
        console.print(table)


@torch.inference_mode()
def latencies(
    pair: Pair, tokenizer: PreTrainedTokenizerBase, texts: list[str], rounds: int
) -> list[Measure]:
    """Time per batch of texts that are exactly TIMED_TOKENS long: nothing is padding."""
    stream = tokenizer(" ".join(texts), return_tensors="pt", verbose=False)["input_ids"][0]
    stream = stream.repeat(-(-32 * TIMED_TOKENS // len(stream)))
    measures = []
    for batch, calls_each in ((1, 4 * rounds), (32, rounds)):
        tokens = stream[: batch * TIMED_TOKENS].view(batch, TIMED_TOKENS)
        calls = tuple(lambda model=model, tokens=tokens: model(input_ids=tokens) for model in pair)
        seconds = median_seconds(f"batch {batch}", calls, calls_each)
        measures.append(
            Measure(
                f"Batch of {batch}",
                f"ms, {TIMED_TOKENS} tokens",
                *(1000 * s for s in seconds),
                2 if batch == 1 else 1,
                "faster",
            )
        )
    return measures
