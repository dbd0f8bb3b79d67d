# SPDX-License-Identifier: MIT
"""Outlier features as large language models grow them, planted in a small one.

From some billions of parameters on, a few features of the hidden state, the same ones in every
layer, are far larger than all others (LLM.int8, arXiv:2208.07339). They decide how coarse the int8
codes of a whole row become. A small model has none; but a norm's gain can be made larger and the
columns that read the feature smaller by the same factor, and the model still computes what it did.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

THRESHOLD = 6.0  # |x| from here on is what LLM.int8 calls an outlier


@dataclass(frozen=True)
class Planted:
    features: list[int]
    share: float  # of their |x| that is an outlier
    largest: float
    largest_elsewhere: float


def norms_and_readers(model: LlamaForCausalLM) -> Iterator[tuple[nn.Module, list[nn.Linear]]]:
    """Each norm inside the layers, and the linear layers that read its output."""
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        yield layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]
        yield layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]


@torch.inference_mode()
def inputs(model: LlamaForCausalLM, tokens: Tensor) -> list[Tensor]:
    """What the readers of each norm read: x [rows, hidden]."""
    outputs: list[Tensor] = []
    hooks = [
        norm.register_forward_hook(lambda module, args, y: outputs.append(y.flatten(0, -2)))
        for norm, _ in norms_and_readers(model)
    ]
    try:
        model.eval()(input_ids=tokens)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


@torch.no_grad()
def importance(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """The share of each feature [hidden] in the power of what the readers compute, on average."""
    shares = []
    for x, (_, readers) in zip(inputs(model, tokens), norms_and_readers(model), strict=True):
        power = x.square().mean(0) * sum(linear.weight.square().sum(0) for linear in readers)
        shares.append(power / power.sum())
    return torch.stack(shares).mean(0)


@torch.no_grad()
def plant(model: LlamaForCausalLM, tokens: Tensor, count: int, factor: int) -> Planted:
    """Makes `count` features of every x `factor` times as large.

    Those of least importance: 4 bits hardly hold columns that are so much smaller than their
    neighbours. A power of two scales without rounding, so the logits keep their bits; RuntimeError:
    they do not.
    """
    before = model.eval()(input_ids=tokens).logits
    features = importance(model, tokens).topk(count, largest=False).indices
    for norm, readers in norms_and_readers(model):
        norm.weight[features] *= factor
        for linear in readers:
            linear.weight[:, features] /= factor
    if not torch.equal(model(input_ids=tokens).logits, before):
        raise RuntimeError("planting outlier features has changed what the model computes")
    x = torch.cat(inputs(model, tokens)).abs()
    elsewhere = torch.ones(x.shape[1], dtype=torch.bool).index_fill(0, features, False)
    return Planted(
        features.tolist(),
        (x[:, features] >= THRESHOLD).float().mean().item(),
        x[:, features].max().item(),
        x[:, elsewhere].max().item(),
    )
