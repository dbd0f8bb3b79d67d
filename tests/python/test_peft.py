# SPDX-License-Identifier: MIT
"""Adapters of PEFT on a quantized model."""

from pathlib import Path

import pytest
import torch
from reference import same_bits

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from lowbit.integrations.transformers import LowbitConfig  # noqa: E402
from lowbit.nn import Int8Linear  # noqa: E402
from tiny_models import run  # noqa: E402
from transformers import AutoModelForCausalLM, PreTrainedModel  # noqa: E402

IDS = torch.arange(24).reshape(2, 12)


def base(checkpoints: dict[str, str], **options: object) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(
        checkpoints["llama"], quantization_config=LowbitConfig(), **options
    )


def adapted(model: PreTrainedModel, **options: object) -> peft.PeftModel:
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], **options)
    return peft.get_peft_model(model, config)


def train(model: peft.PeftModel, steps: int = 4) -> list[float]:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def frozen_state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items() if "lora" not in n}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_trains_and_leaves_the_base_alone(
    checkpoints: dict[str, str], dtype: torch.dtype
) -> None:
    model = adapted(base(checkpoints, dtype=dtype))
    before = frozen_state(model)
    losses = train(model)
    assert losses[-1] < losses[0]
    after = frozen_state(model)
    assert all(same_bits(after[name], before[name]) for name in before)
    assert all("lora" in name for name, p in model.named_parameters() if p.requires_grad)


def test_an_adapter_is_saved_and_loaded(checkpoints: dict[str, str], tmp_path: Path) -> None:
    model = adapted(base(checkpoints))
    train(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(base(checkpoints), tmp_path)
    assert same_bits(run(again), run(model))


def test_dora_takes_the_norms_of_the_weight_not_of_the_codes(checkpoints: dict[str, str]) -> None:
    model = adapted(base(checkpoints), use_dora=True)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    norms = layer.base_layer.dequantize().norm(dim=1)
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude.detach(), norms)
    assert train(model)[-1] < train(model)[0] + 1


@pytest.mark.parametrize("safe", [False, True])
def test_merging_into_codes_is_refused(checkpoints: dict[str, str], safe: bool) -> None:
    model = adapted(base(checkpoints))
    train(model)
    before, expected = frozen_state(model), run(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for merge in (model.merge_adapter, model.merge_and_unload, layer.merge):
        with pytest.raises(ValueError, match="cannot be merged into an Int8Linear"):
            merge(safe_merge=safe)
    after = frozen_state(model)
    assert all(same_bits(after[name], before[name]) for name in before)
    assert same_bits(run(model), expected)


def test_merging_after_dequantizing(checkpoints: dict[str, str], tmp_path: Path) -> None:
    model = adapted(base(checkpoints))
    train(model)
    model.save_pretrained(tmp_path)
    plain = peft.PeftModel.from_pretrained(base(checkpoints).dequantize(), tmp_path)
    expected = run(plain)
    merged = plain.merge_and_unload()
    assert not any(isinstance(m, Int8Linear) for m in merged.modules())
    torch.testing.assert_close(run(merged), expected)


def test_merging_into_a_float_layer_still_works(checkpoints: dict[str, str]) -> None:
    model = adapted(AutoModelForCausalLM.from_pretrained(checkpoints["llama"]))
    train(model)
    expected = run(model)
    torch.testing.assert_close(run(model.merge_and_unload()), expected)
