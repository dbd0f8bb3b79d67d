# SPDX-License-Identifier: MIT
"""Adapters of PEFT on a quantized model."""

import copy
import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import lowbit
import pytest
import torch
from reference import same_bits
from torch import Tensor, nn

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from lowbit.integrations.peft import Linear, loftq_  # noqa: E402
from lowbit.integrations.transformers import LowbitConfig  # noqa: E402
from lowbit.nn import LowbitLinear  # noqa: E402
from tiny_models import run  # noqa: E402
from transformers import (  # noqa: E402
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

IDS = torch.arange(24).reshape(2, 12)
TARGETS = ["q_proj", "down_proj"]
KINDS = {
    "int8": {"bits": 8},
    "int8 offset": {"bits": 8, "offset": True, "absmax_dtype": torch.float16, "threshold": 0.0},
    "nf4": {"bits": 4},
    "fp4": {"bits": 4, "codebook": "fp4", "blocksize": 128, "double_quant": False},
}
kinds = pytest.mark.parametrize("kind", KINDS)


def base(kind: str, name: str = "llama", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = tiny_models.build(name).to(dtype).eval()
    skip = ["classifier"] if name == "bert_classifier" else []
    lowbit.quantize_(model, skip=skip, **KINDS[kind])
    return model


def adapted(model: nn.Module, seed: int = 0, **options: object) -> peft.PeftModel:
    torch.manual_seed(seed)
    config = {"r": 4, "target_modules": TARGETS} | options
    return peft.get_peft_model(model, peft.LoraConfig(**config))


def perturbed(model: nn.Module, seed: int = 0) -> peft.PeftModel:
    """With adapters that do something, as after a long training."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float32)
            p.data += 0.02 * noise.to(p) * (10 if "magnitude" in name else 1)
    return model.eval()


def layers(model: nn.Module) -> dict[str, Linear]:
    found = {n: m for n, m in model.named_modules() if isinstance(m, Linear)}
    assert found
    return found


def first(model: nn.Module) -> Linear:
    return next(iter(layers(model).values()))


def train(
    model: peft.PeftModel, steps: int = 6, autocast: torch.dtype | None = None
) -> list[float]:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    model.train()
    for _ in range(steps):
        with torch.autocast("cpu", autocast) if autocast else nullcontext():
            loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def frozen(model: nn.Module) -> dict[str, Tensor]:
    return {n: v.clone() for n, v in model.state_dict().items() if "lora_" not in n}


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(same_bits(one[name], other[name]) for name in one)


def distance(a: Tensor, b: Tensor) -> float:
    return torch.linalg.vector_norm(a.float() - b.float()).item()


def quantization_error(kind: str, name: str = "llama") -> float:
    """How far quantizing the whole model moves its logits."""
    return distance(run(base(kind, name)), run(tiny_models.build(name)))


# Training


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lora_trains_and_leaves_the_base_alone(kind: str, dtype: torch.dtype) -> None:
    model = adapted(base(kind, dtype=dtype))
    before = frozen(model)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05
    assert same_state(frozen(model), before)
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


@kinds
def test_training_under_autocast(kind: str) -> None:
    model = adapted(base(kind))
    before = frozen(model)
    losses = train(model, autocast=torch.bfloat16)
    assert losses[-1] < losses[0] - 0.05
    assert same_state(frozen(model), before)


@kinds
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(kind: str, reentrant: bool) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = perturbed(adapted(base(kind))).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
            assert model.base_model.model.model.layers[0].gradient_checkpointing
        model(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(plain[name].any() for name in plain)
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name])


@kinds
def test_preparing_for_kbit_training_keeps_what_the_model_computes(kind: str) -> None:
    """PEFT enables gradient checkpointing for the methods that it knows by name, and lowbit is not
    one of them; whoever wants it calls gradient_checkpointing_enable()."""
    model = base(kind, dtype=torch.bfloat16)
    weights = {n: m.dequantize() for n, m in model.named_modules() if isinstance(m, LowbitLinear)}
    model = peft.prepare_model_for_kbit_training(model)
    assert not any(p.requires_grad for p in model.parameters())
    assert model.model.norm.weight.dtype == torch.float32
    for name, weight in weights.items():  # float16 scales become float32 ones of the same value
        assert same_bits(model.get_submodule(name).dequantize(), weight)
    losses = train(adapted(model))
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_training_step_compiles(kind: str) -> None:
    torch._dynamo.reset()

    def gradients(compile_it: bool) -> dict[str, Tensor]:
        model = perturbed(adapted(base(kind))).train()
        step = torch.compile(model, fullgraph=True, backend="aot_eager") if compile_it else model
        step(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, compiled = gradients(False), gradients(True)
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name])


@kinds
def test_the_options_of_lora(kind: str) -> None:
    """all-linear, rank-stabilized scaling, a bias in the adapter, a trained bias of the layer, and
    a whole module beside them."""
    model = adapted(
        base(kind, "bert_classifier"),
        target_modules="all-linear",
        use_rslora=True,
        lora_alpha=8,
        lora_bias=True,
        lora_dropout=0.1,
        bias="lora_only",
        modules_to_save=["classifier"],
    )
    wrapped = layers(model)
    assert len(wrapped) == 13  # six in each of two blocks, and the pooler
    assert {layer.scaling["default"] for layer in wrapped.values()} == {4.0}
    before = {n: v for n, v in frozen(model).items() if n.endswith(("weight", "absmax", "offset"))}
    labels = torch.tensor([0, 2])
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(input_ids=IDS, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    layer = first(model)
    assert layer.lora_B["default"].bias.any()
    assert layer.base_layer.bias.grad.any()
    after = frozen(model)
    changed = {name for name in before if not same_bits(after[name], before[name])}
    assert changed == {"base_model.model.classifier.modules_to_save.default.weight"}


# DoRA


@kinds
def test_dora_is_the_norm_of_the_weight_not_of_the_codes(kind: str) -> None:
    model = adapted(base(kind), use_dora=True)
    layer = first(model)
    norms = layer.base_layer.dequantize().norm(dim=1)
    magnitude = layer.lora_magnitude_vector["default"].weight
    torch.testing.assert_close(magnitude.detach(), norms)
    torch.testing.assert_close(run(model), run(base(kind)))
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05


@kinds
def test_dora_computes_what_its_paper_says(kind: str) -> None:
    model = perturbed(adapted(base(kind, "bert"), use_dora=True, target_modules=["query"]))
    layer = first(model)
    x = torch.randn(5, layer.in_features)
    inner, bias = layer.base_layer, layer.base_layer.bias
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    delta = layer.scaling["default"] * up @ down
    factor = layer.lora_magnitude_vector["default"].weight / (inner.dequantize() + delta).norm(
        dim=1
    )
    with torch.no_grad():
        expected = factor * (inner(x) - bias + x @ delta.t()) + bias
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


# Merging


@kinds
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("safe", [False, True])
def test_merging_quantizes_the_sum_with_the_options_of_the_layer(
    kind: str, dora: bool, safe: bool
) -> None:
    model = perturbed(adapted(base(kind), use_dora=dora))
    sums, inner = {}, {n: m.base_layer for n, m in layers(model).items()}
    for name, layer in layers(model).items():
        weight = inner[name].dequantize() + layer.get_delta_weight("default")
        if dora:
            weight *= (layer.lora_magnitude_vector["default"].weight / weight.norm(dim=1))[:, None]
        sums[name] = weight.detach()
    expected = run(model)
    merged = model.merge_and_unload(safe_merge=safe)
    assert not any(isinstance(m, Linear) for m in merged.modules())
    for name, weight in sums.items():
        layer = merged.get_submodule(name.removeprefix("base_model.model."))
        assert layer is inner[name]
        assert same_state(layer.state_dict(), again(layer, weight).state_dict())
    assert distance(run(merged), expected) < quantization_error(kind)


def again(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A new layer of the same kind and options for another weight."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight.data = weight
    return type(layer).from_float(linear, **layer.options())


@kinds
@pytest.mark.parametrize("dora", [False, True])
def test_unmerging_puts_every_bit_back(kind: str, dora: bool) -> None:
    model = perturbed(adapted(base(kind, "bert"), target_modules=["query", "dense"], use_dora=dora))
    before, expected = frozen(model), run(model)
    parameters = {id(p) for p in model.parameters()}
    model.merge_adapter()
    assert not same_state(frozen(model), before)
    merged = run(model)
    model.unmerge_adapter()
    assert same_state(frozen(model), before)
    assert same_bits(run(model), expected)
    assert {id(p) for p in model.parameters()} == parameters  # an optimizer still knows them
    model.merge_adapter(safe_merge=True)
    assert same_bits(run(model), merged)
    with model.disable_adapter():  # unmerges
        assert same_bits(run(model), run(base(kind, "bert")))
    assert same_state(frozen(model), before)
    assert same_bits(run(model), expected)


@kinds
def test_a_merged_model_may_move_and_be_copied_before_it_is_unmerged(kind: str) -> None:
    model = perturbed(adapted(base(kind)))
    expected, dtype = run(model), first(model).base_layer.absmax.dtype
    model.merge_adapter()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        other.unmerge_adapter()
        assert same_bits(run(other), expected)
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.unmerge_adapter()
    assert first(half).base_layer.absmax.dtype == dtype
    assert same_bits(first(half).base_layer.weight, first(adapted(base(kind))).base_layer.weight)


def two_adapters(kind: str) -> peft.PeftModel:
    model = adapted(base(kind, "bert"), target_modules=["query"], lora_bias=True)
    second = peft.LoraConfig(r=2, target_modules=["query"], use_dora=True)
    model.add_adapter("second", second)
    model.base_model.set_adapter(["default", "second"])
    return perturbed(model)


@kinds
def test_adapters_one_over_the_other_merge_as_they_are_applied(kind: str) -> None:
    layer = first(two_adapters(kind))
    inner, x = layer.base_layer, torch.randn(5, layer.in_features)
    deltas = [layer.get_delta_weight(name).detach() for name in ("default", "second")]
    magnitude = layer.lora_magnitude_vector["second"].weight.detach()
    factor = magnitude / (inner.dequantize() + deltas[1]).norm(dim=1)
    weight = factor[:, None] * (inner.dequantize() + deltas[0] + deltas[1])
    bias = (inner.bias + factor * 2 * layer.lora_B["default"].bias).detach()  # alpha / r = 8 / 4
    error = distance(layer(x), nn.functional.linear(x, weight, bias))
    assert error < 0.02 * distance(layer(x), inner(x))
    expected = again(inner, weight)
    layer.merge()
    assert same_bits(inner.weight, expected.weight)
    assert same_bits(inner.dequantize(), expected.dequantize())
    torch.testing.assert_close(inner.bias.detach(), bias)


@kinds
def test_adapters_merge_to_the_same_bits_one_by_one_or_together(kind: str) -> None:
    model = two_adapters(kind)
    before = frozen(model)
    model.merge_adapter()
    together = frozen(model)
    model.unmerge_adapter()
    assert same_state(frozen(model), before)
    with pytest.warns(UserWarning, match="additionally merging"):
        model.merge_adapter(["default"])
        model.merge_adapter(["second"])
    assert first(model).merged_adapters == ["default", "second"]
    assert same_state(frozen(model), together)
    with pytest.warns(UserWarning, match="nothing to do"):
        model.merge_adapter()
    assert same_state(frozen(model), together)
    model.unmerge_adapter()
    assert same_state(frozen(model), before)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


@kinds
def test_the_bias_of_an_adapter_is_merged_as_it_is_added(kind: str) -> None:
    model = adapted(base(kind, "bert"), target_modules=["query"], lora_bias=True, lora_alpha=8)
    layer = first(perturbed(model))
    inner = layer.base_layer
    weight, bias = inner.weight.data, inner.bias.detach().clone()
    for p in (layer.lora_A, layer.lora_B):
        p["default"].weight.data.zero_()
    x = torch.randn(5, layer.in_features)
    expected = layer(x)
    layer.merge()
    assert same_bits(inner.weight, again(inner, inner.dequantize()).weight)
    torch.testing.assert_close(inner.bias, bias + 2 * layer.lora_B["default"].bias)
    torch.testing.assert_close(layer(x), expected, atol=0.02, rtol=0)  # quantized once more
    layer.unmerge()
    assert same_bits(inner.bias, bias)
    assert inner.weight.data_ptr() == weight.data_ptr()  # kept, not copied
    with pytest.warns(UserWarning, match="has no bias"):
        model = adapted(base(kind), lora_bias=True)
    before = frozen(model)
    with pytest.raises(RuntimeError, match="the layer that it would be merged into has none"):
        model.merge_adapter()
    assert same_state(frozen(model), before)


@kinds
@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("broken", ["weight", "bias", "infinite"])
def test_a_broken_adapter_is_not_merged(kind: str, safe: bool, broken: str) -> None:
    model = perturbed(adapted(base(kind, "bert"), target_modules=["query"], lora_bias=True))
    model.add_adapter("good", peft.LoraConfig(r=2, target_modules=["query"]))
    layer = first(perturbed(model))
    layer.merge(adapter_names=["good"])
    before = frozen(layer)
    up = layer.lora_B["default"]
    if broken == "infinite":
        up.weight.data.fill_(torch.inf)
    else:
        getattr(up, broken).data.view(-1)[3] = torch.nan
    with (
        pytest.warns(UserWarning, match="additionally"),
        pytest.raises(ValueError, match=r"NaNs detected.* The adapter default seems"),
    ):
        layer.merge(safe_merge=safe, adapter_names=["default"])
    assert same_state(frozen(layer), before)
    assert layer.merged_adapters == ["good"]


def test_scales_out_of_range_leave_the_layer_unmerged() -> None:
    layer = first(perturbed(adapted(base("int8 offset"))))
    before = frozen(layer)
    layer.lora_B["default"].weight.data *= 1e7
    with pytest.raises(ValueError, match=r"beyond the range of torch\.float16"):
        layer.merge()
    assert same_state(frozen(layer), before)
    assert not layer.merged


@kinds
def test_a_layer_that_was_a_conv1d(kind: str) -> None:
    """fan_in_fan_out is about the float layer; the quantized one is [N, K] like any other."""
    for given in (False, True):
        model = adapted(base(kind, "gpt2"), target_modules=["c_attn"], fan_in_fan_out=given)
        layer = first(perturbed(model))
        assert layer.get_delta_weight("default").shape == (192, 64)
        expected = run(model)
        error = distance(run(model.merge_and_unload()), expected)
        assert error < quantization_error(kind, "gpt2")
        assert error < distance(run(base(kind, "gpt2")), expected) / 1.5


def test_merging_into_a_float_layer_still_works(checkpoints: dict[str, str]) -> None:
    model = perturbed(adapted(AutoModelForCausalLM.from_pretrained(checkpoints["llama"])))
    expected = run(model)
    model.merge_adapter()
    torch.testing.assert_close(run(model), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(run(model), expected)
    torch.testing.assert_close(run(model.merge_and_unload()), expected)


# Saving and loading, with transformers


widths = pytest.mark.parametrize("bits", [8, 4])


def loaded(checkpoints: dict[str, str], bits: int, name: str = "llama") -> PreTrainedModel:
    config = LowbitConfig(bits=bits)
    return AutoModelForCausalLM.from_pretrained(checkpoints[name], quantization_config=config)


@widths
def test_adapters_are_saved_loaded_switched_and_deleted(
    checkpoints: dict[str, str], bits: int, tmp_path: Path
) -> None:
    model = adapted(loaded(checkpoints, bits))
    plain = run(model)
    train(model)
    first_result = run(model)
    model.save_pretrained(tmp_path / "first")
    model = adapted(loaded(checkpoints, bits), seed=1, use_dora=True)
    train(model)
    second_result = run(model)
    model.save_pretrained(tmp_path / "second")
    model = peft.PeftModel.from_pretrained(loaded(checkpoints, bits), tmp_path / "first")
    assert same_bits(run(model), first_result)
    model.load_adapter(tmp_path / "second", "second")
    assert same_bits(run(model), first_result)
    model.set_adapter("second")
    assert same_bits(run(model), second_result)
    with model.disable_adapter():
        assert same_bits(run(model), plain)
    model.delete_adapter("second")
    model.set_adapter("default")
    assert same_bits(run(model), first_result)
    assert same_bits(run(model.unload()), plain)
    native = loaded(checkpoints, bits)
    native.load_adapter(str(tmp_path / "first"))  # transformers' own
    assert same_bits(run(native), first_result)
    assert all(isinstance(layer, Linear) for layer in layers(native).values())


@widths
def test_a_merged_model_is_saved_and_loaded(
    checkpoints: dict[str, str], bits: int, tmp_path: Path
) -> None:
    model = perturbed(adapted(loaded(checkpoints, bits)))
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same_bits(run(again), run(merged))
    assert same_state(frozen(again), frozen(merged))


@widths
def test_merging_after_dequantizing_is_exact(
    checkpoints: dict[str, str], bits: int, tmp_path: Path
) -> None:
    model = perturbed(adapted(loaded(checkpoints, bits)))
    model.save_pretrained(tmp_path)
    plain = peft.PeftModel.from_pretrained(loaded(checkpoints, bits).dequantize(), tmp_path)
    expected = run(plain)
    merged = plain.merge_and_unload()
    assert not any(isinstance(m, LowbitLinear) for m in merged.modules())
    torch.testing.assert_close(run(merged), expected)


@widths
def test_offloaded_layers_merge_and_unmerge(
    checkpoints: dict[str, str], bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # PEFT writes merged layers below the current folder
    loaded(checkpoints, bits).save_pretrained(tmp_path / "base")
    whole = perturbed(adapted(loaded(checkpoints, bits)))
    whole.save_pretrained(tmp_path / "adapter")
    expected = run(whole)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
    places |= {"model.layers.1": "disk", "model.layers.2": "disk", "model.norm": "cpu"}
    places |= {"lm_head": "cpu"}
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", device_map=places, offload_folder=tmp_path / "before"
        ),
        tmp_path / "adapter",
        device_map={f"base_model.model.{name}": place for name, place in places.items()},
        offload_dir=str(tmp_path / "after"),
    )
    last = list(layers(model).values())[-1]
    assert last.base_layer.weight.is_meta
    assert same_bits(run(model), expected)
    with pytest.raises(ValueError, match="is offloaded; use merge_adapter"):
        last.merge()
    model.merge_adapter()
    whole.merge_adapter()
    assert same_bits(run(model), run(whole))
    last.enable_adapters(False)
    with pytest.raises(ValueError, match="is offloaded; use merge_adapter"):
        last.unmerge()
    last.enable_adapters(True)
    assert same_bits(run(model), run(whole))
    model.unmerge_adapter()
    assert same_bits(run(model), expected)


@widths
def test_the_trainer_trains_adapters(
    checkpoints: dict[str, str], bits: int, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    model = adapted(loaded(checkpoints, bits))
    before = frozen(model)
    arguments = TrainingArguments(
        tmp_path,
        max_steps=6,
        learning_rate=1e-2,
        gradient_checkpointing=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    rows = [{"input_ids": IDS[i % 2], "labels": IDS[i % 2]} for i in range(8)]
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.05
    assert same_state(frozen(model), before)


# What reads the codes


@kinds
@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora"])
def test_an_initialisation_from_the_weight_takes_it_from_the_base(
    kind: str, init: str, tmp_path: Path
) -> None:
    """W = B A + the rest: the rest is quantized again, and the sum stays W to that rounding."""
    untouched = base(kind)
    model = adapted(base(kind), init_lora_weights=init)
    for name, layer in layers(model).items():
        weight = untouched.get_submodule(name.removeprefix("base_model.model.")).dequantize()
        delta = layer.get_delta_weight("default").detach()
        assert delta.norm() > 0.2 * weight.norm()
        rest = again(layer.base_layer, weight - delta)
        assert same_bits(layer.base_layer.weight, rest.weight)
        assert same_bits(layer.base_layer.dequantize(), rest.dequantize())
    assert distance(run(model), run(untouched)) < quantization_error(kind)
    losses = train(model)
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)  # loading starts the same way, then takes the trained adapter
    if init != "pissa_niter_16":  # which draws random numbers
        assert same_bits(run(peft.PeftModel.from_pretrained(base(kind), tmp_path)), run(model))


@kinds
@pytest.mark.parametrize("init", [True, "gaussian", "eva", "orthogonal", "mica"])
def test_an_initialisation_that_leaves_the_base_alone(kind: str, init: bool | str) -> None:
    if init == "mica" and not hasattr(peft.tuners.lora.Linear, "mica_init"):
        pytest.skip("this PEFT has no such initialisation")
    model = adapted(base(kind), init_lora_weights=init)
    assert first(model).lora_A["default"].weight.dtype == torch.float32
    before = frozen(model)
    assert same_state(
        {
            n.removeprefix("base_model.model.").replace(".base_layer", ""): v
            for n, v in before.items()
        },
        base(kind).state_dict(),
    )
    torch.testing.assert_close(run(model), run(base(kind)))
    losses = train(model)
    assert losses[-1] < losses[0]
    assert same_state(frozen(model), before)


def refused(kind: str, make: Callable[[nn.Module], object], match: str) -> None:
    """Raises, and leaves the model as it was."""
    model = base(kind)
    modules = [type(module) for module in model.modules()]
    before = frozen(model)
    with pytest.raises(ValueError, match=match):
        make(model)
    assert [type(module) for module in model.modules()] == modules
    assert same_state(frozen(model), before)


@kinds
@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}}, r"peft\.loftq_\("),
        ({"init_lora_weights": "corda"}, "reads the float weight"),
        ({"init_lora_weights": "lora_ga"}, "reads the float weight"),
        ({"use_bdlora": {"nblocks": 2}}, "variant use_bdlora is not supported"),
        ({"velora_config": {"num_groups": 2}}, "variant velora_config is not supported"),
        ({"kasa_config": {}}, "variant kasa_config is not supported"),
        ({"modules_to_save": ["k_proj"]}, "modules_to_save names model.layers.0.self_attn.k_proj"),
        ({"modules_to_save": ["mlp"]}, "modules_to_save names model.layers.0.mlp"),
        ({"trainable_token_indices": {"k_proj": [1]}}, "trainable_token_indices names"),
        ({"target_parameters": ["q_proj.weight"], "target_modules": ["lm_head"]}, "holds codes"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_read_the_codes_are_refused(
    kind: str, given: dict[str, object], match: str
) -> None:
    known = peft.LoraConfig.__dataclass_fields__
    if not known.keys() >= given.keys():
        pytest.skip("this PEFT has no such option")
    for name, holder in (("use_bdlora", "BdLoraConfig"), ("velora_config", "VeloraConfig")):
        if name in given:
            given = {name: getattr(peft.tuners.lora.config, holder)(**given[name])}
    if "kasa_config" in given:
        given = {"kasa_config": peft.tuners.lora.config.KasaConfig()}
    refused(kind, lambda model: adapted(model, **given), match)


@widths
def test_experts_are_refused_and_the_attention_beside_them_trains(
    checkpoints: dict[str, str], bits: int
) -> None:
    for given, match in (
        ({"target_parameters": ["experts.down_proj"]}, "the parameter down_proj of a Quantized"),
        ({"target_modules": "all-linear"}, "gate_up_proj of a Quantized.*all-linear includes"),
        ({"modules_to_save": ["experts"]}, "modules_to_save names model.layers.0.mlp.experts"),
    ):
        model = loaded(checkpoints, bits, "mixtral")
        before = frozen(model)
        with pytest.raises(ValueError, match=match):
            adapted(model, **{"target_modules": ["q_proj"]} | given)
        assert same_state(frozen(model), before)
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = adapted(loaded(checkpoints, bits, "mixtral"), target_modules=attention)
    before = frozen(model)
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05
    assert same_state(frozen(model), before)
    expected, error = run(model), distance(run(model), run(loaded(checkpoints, bits, "mixtral")))
    assert distance(run(model.merge_and_unload()), expected) < error


@kinds
def test_a_second_adapter_is_refused_as_the_first_is(kind: str) -> None:
    model = adapted(base(kind))
    before = frozen(model)
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="corda")
    with pytest.raises(ValueError, match="reads the float weight"):
        model.add_adapter("second", config)
    assert same_state(frozen(model), before)
    assert set(first(model).lora_A) == {"default"}
    model.merge_adapter()
    config = peft.LoraConfig(r=2, target_modules=TARGETS, init_lora_weights="pissa")
    with pytest.raises(ValueError, match="unmerge them first"):
        model.add_adapter("third", config)


@kinds
@pytest.mark.parametrize(
    "method", ["IA3", "LoHa", "LoKr", "AdaLora", "Vera", "OFT", "VBLoRA", "HRA"]
)
def test_methods_that_read_the_codes_are_refused(kind: str, method: str) -> None:
    given = {"target_modules": TARGETS}
    given |= {"feedforward_modules": ["down_proj"]} if method == "IA3" else {}
    given |= {"total_step": 9} if method == "AdaLora" else {}
    given |= {"vector_length": 32} if method == "VBLoRA" else {}
    config = getattr(peft, f"{method}Config")(**given)
    refused(kind, lambda model: peft.get_peft_model(model, config), f"{method}Config adapts the")


def test_they_still_work_on_float_layers() -> None:
    model = tiny_models.build("llama")
    model = peft.get_peft_model(model, peft.LoHaConfig(r=4, target_modules=TARGETS))
    losses = train(model)
    assert losses[-1] < losses[0]
    lowbit_beside = base("int8")  # an output head in float, and blocks in int8
    peft.get_peft_model(lowbit_beside, peft.LoHaConfig(r=4, target_modules=["lm_head"]))


# LoftQ


def output_error(model: nn.Module, exact: PreTrainedModel) -> float:
    return distance(run(model), run(exact))


@kinds
@pytest.mark.parametrize("dora", [False, True])
def test_loftq_starts_nearer_to_the_float_model(kind: str, dora: bool) -> None:
    exact = tiny_models.build("llama").eval()
    targets = {"target_modules": "all-linear", "r": 16, "lora_alpha": 40, "use_dora": dora}
    model = adapted(base(kind), **targets)
    before, plain = frozen(model), output_error(model, exact)
    errors = loftq_(model, exact)
    assert same_state(frozen(model), before)
    assert set(errors) == {name.removeprefix("base_model.model.") for name in layers(model)}
    for was, now in errors.values():
        assert now < 0.8 * was
    assert output_error(model, exact) < 0.9 * plain
    losses = train(model)
    assert losses[-1] < losses[0] - 0.05

    model = adapted(base(kind), **targets)
    again = loftq_(model, exact, iterations=5)
    assert all(again[name][1] <= errors[name][1] * 1.001 for name in errors)
    assert sum(now for _, now in again.values()) < 0.95 * sum(now for _, now in errors.values())
    assert output_error(model, exact) < 0.9 * plain


def test_the_errors_of_loftq_are_those_of_the_weights() -> None:
    exact = tiny_models.build("llama")
    model = adapted(base("int8"), r=8, lora_alpha=4)
    errors = loftq_(model, exact)
    for name, layer in layers(model).items():
        name = name.removeprefix("base_model.model.")
        weight = exact.get_submodule(name).weight
        quantized = layer.base_layer.dequantize()
        was = distance(weight, quantized) / weight.norm()
        now = distance(weight, quantized + layer.get_delta_weight("default")) / weight.norm()
        assert errors[name] == pytest.approx((was.item(), now.item()), rel=1e-4)
        full = torch.linalg.svdvals(weight - quantized)[8:].norm() / weight.norm()
        assert now <= 1.01 * full  # the randomized decomposition is as good as the exact one


@pytest.mark.parametrize("bits", [8, 4])
def test_loftq_on_real_weights_and_text(minilm: Path, bits: int) -> None:
    sentences = (Path(__file__).parents[2] / "README.md").read_text("utf-8").split("\n\n")[:24]
    tokens = AutoTokenizer.from_pretrained(minilm)(
        sentences, padding=True, truncation=True, max_length=64, return_tensors="pt"
    )

    @torch.no_grad()
    def output(model: nn.Module) -> Tensor:
        return model.eval()(**tokens).last_hidden_state[tokens["attention_mask"].bool()]

    exact, model = (AutoModel.from_pretrained(minilm) for _ in range(2))
    lowbit.quantize_(model, bits)
    model = adapted(model, target_modules="all-linear", r=32)
    plain = distance(output(model), output(exact))
    errors = loftq_(model, minilm)
    assert len(errors) == 37
    assert all(now < 0.95 * was for was, now in errors.values())
    assert distance(output(model), output(exact)) < 0.95 * plain


def test_loftq_reads_state_dicts_and_checkpoints(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    exact = tiny_models.build("llama")
    exact.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    exact.model.save_pretrained(tmp_path / "headless")  # its keys lack the prefix "model."
    results = []
    for weights in (
        exact,
        exact.state_dict(),
        checkpoints["llama"],
        Path(checkpoints["llama"]) / "model.safetensors",
        tmp_path / "sharded",
        tmp_path / "headless",
    ):
        model = adapted(base("int8"))
        seen = []
        torch.manual_seed(0)
        loftq_(model, weights, progress=lambda *args, seen=seen: seen.append(args))
        assert [args[1:] for args in seen] == [(done, 6) for done in range(1, 7)]
        results.append(run(model))
    assert all(same_bits(result, results[0]) for result in results)
    gpt2 = adapted(base("int8", "gpt2"), target_modules=["c_attn", "c_proj"])  # some are square
    by_module = loftq_(gpt2, tiny_models.build("gpt2"))
    by_file = loftq_(gpt2, checkpoints["gpt2"])
    for name in by_module:
        assert by_file[name] == pytest.approx(by_module[name], rel=0.01)
        assert by_file[name][1] < by_file[name][0] < 0.02


def test_loftq_refuses_what_does_not_fit(tmp_path: Path) -> None:
    exact = tiny_models.build("llama")
    model = perturbed(adapted(base("int8")))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = exact.state_dict()
    last = "model.layers.2.mlp.down_proj.weight"
    other, missing, broken = dict(state), dict(state), dict(state)
    other[last] = torch.randn_like(state[last])
    del missing[last]
    broken[last] = state[last].clone()
    broken[last][0, 0] = torch.nan

    def check(match: str, *args: object, **options: object) -> None:
        with pytest.raises(ValueError, match=match):
            loftq_(*args, **options)
        assert same_state(dict(model.state_dict()), before)

    check("expected the weight that was quantized", model, other)
    check("expected the weight that was quantized", model, other, iterations=2)
    check("weights has 0 entries for model.layers.2.mlp.down_proj", model, missing)
    check("expected the weight that was quantized", model, broken)
    check(r"has shape \[5, 128\], expected \[64, 128\]", model, state | {last: state[last][:5]})
    check(r"has shape \[64\]", model, state | {last: state[last][:, 0]})
    check("no plain linear layer model.layers.0.self_attn.q_proj", model, base("int8"))
    check("expected a safetensors file or a folder", model, tmp_path)
    check("has an adapter 'other'", model, exact, adapter_name="other")
    check("has an adapter 'default'", exact, exact)
    check("iterations is 0", model, exact, iterations=0)
    wide = adapted(base("int8"), r=65)
    check("has rank 65, expected at most 64", wide, exact)
    check("has scaling 0", adapted(base("int8"), lora_alpha=0), exact)
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=TARGETS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check("would change the weight under all of them", model, exact, iterations=2)
    model.merge_adapter()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check(r"has \['default'\] merged", model, exact)


# Registration


@pytest.mark.parametrize("order", ["lowbit, peft", "peft.tuners.lora.layer, lowbit"])
def test_import_lowbit_is_enough(order: str) -> None:
    code = f"""
import {order}
import peft, torch, lowbit
net = torch.nn.Sequential(torch.nn.Linear(32, 8), torch.nn.ReLU())
lowbit.quantize_(net)
model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["0"]))
model.merge_adapter()
print(type(model.base_model.model[0]).__module__)
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["lowbit.integrations.peft"]
