# SPDX-License-Identifier: MIT
"""Mixture of experts: fused weights quantized expert by expert, in a module and in whole models."""

import copy
import pickle
import sys
from pathlib import Path

import lowbit
import pytest
import torch
from reference import same_bits
from safetensors.torch import load_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from lowbit.integrations.transformers import LowbitConfig, LowbitQuantizer  # noqa: E402
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear  # noqa: E402
from lowbit.nn.experts import (  # noqa: E402
    QuantizedExperts,
    quantize_experts,
    restore_experts,
    why_not_experts,
)
from tiny_models import check_memory_while_loading, learn, run, spoil  # noqa: E402
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel  # noqa: E402
from transformers.activations import ACT2FN  # noqa: E402
from transformers.integrations.accelerate import compute_module_sizes  # noqa: E402
from transformers.integrations.moe import use_experts_implementation  # noqa: E402

# mixtral and qwen3_moe keep each expert's matrices apart in the file; gpt_oss has transposed fused
# ones and biases.
MODELS = ("mixtral", "qwen3_moe", "gpt_oss")
PROJECTIONS = ("gate_up_proj", "down_proj")
OPTIONS = [
    {},
    {"offset": True, "absmax_dtype": "float16", "threshold": 0.5},
    {"bits": 4},
    {"bits": 4, "codebook": "fp4", "blocksize": 256, "double_quant": False},
]
WIDTHS = [{}, {"bits": 4}]
CLOSE = {8: 0.99, 4: 0.95}
E, H, I, K = 5, 48, 24, 3  # noqa: E741


def load(checkpoints: dict[str, str], name: str, **options: object) -> PreTrainedModel:
    loading = {key: options.pop(key) for key in ("dtype",) if key in options}
    config = LowbitConfig(**options)
    return AutoModelForCausalLM.from_pretrained(
        checkpoints[name], quantization_config=config, **loading
    )


def experts(model: nn.Module) -> dict[str, QuantizedExperts]:
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantizedExperts)}


def same_state(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(same_bits(mine[key], other[key]) for key in mine)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)


# One module


class Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def module(
    gate: bool = True, transposed: bool = False, bias: bool = False, norm: bool = False
) -> nn.Module:
    """Experts as transformers' models have them, with random weights."""

    @use_experts_implementation(
        has_gate=gate, is_transposed=transposed, has_bias=bias, has_post_expert_norm=norm
    )
    class Experts(nn.Module):
        def __init__(self, config: object) -> None:
            super().__init__()
            self.num_experts = E
            self.act_fn = ACT2FN["silu"]
            first = {True: "gate_up_proj", False: "up_proj"}[gate]
            for name, n, k in ((first, 2 * I if gate else I, H), ("down_proj", H, I)):
                shape = (E, k, n) if transposed else (E, n, k)
                self.register_parameter(name, nn.Parameter(torch.randn(shape) / k**0.5))
                if bias:
                    self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(E, n)))
            if norm:
                self.post_expert_norm = Norm()

        def forward(self, *args: Tensor) -> Tensor:
            raise AssertionError("transformers dispatches elsewhere")

    config = transformers.PreTrainedConfig()
    config._experts_implementation = "batched_mm"
    return Experts(config)


def new_layer(options: dict[str, object]) -> object:
    return LowbitConfig(**options).new_layer


def routing(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """An expert without tokens, one with all, and some in between."""
    x = torch.randn(tokens, H, dtype=dtype)
    index = torch.stack([torch.randperm(E - 2)[: K - 1] for _ in range(tokens)])
    index = torch.cat([index, torch.full((tokens, 1), E - 1)], 1)
    return x, index, torch.rand(tokens, K)


def layer_by_layer(
    original: nn.Module, options: dict[str, object], x: Tensor, index: Tensor, weights: Tensor
) -> Tensor:
    """Each expert's matrices as layers from_float, the routing written out as plain loops."""
    kind = LUT4Linear if options.get("bits") == 4 else Int8Linear
    layer_options = new_layer(options)(2, 2).options()

    def layer(name: str, e: int) -> LowbitLinear:
        weight = getattr(original, name)[e].detach()
        weight = weight.t() if original.is_transposed else weight
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=original.has_bias)
        linear.weight = nn.Parameter(weight.contiguous())
        if original.has_bias:
            linear.bias = nn.Parameter(getattr(original, f"{name}_bias")[e].detach())
        return kind.from_float(linear, **layer_options)

    outputs = torch.zeros(*index.shape, H, dtype=x.dtype)
    for e in range(E):
        token, place = torch.where(index == e)
        if len(token):
            h = layer("gate_up_proj" if original.has_gate else "up_proj", e)(x[token])
            h = original._apply_gate(h) if original.has_gate else original.act_fn(h)
            h = layer("down_proj", e)(h)
            h = h / 2 if original.has_post_expert_norm else h
            outputs[token, place] = h.to(outputs.dtype)
    return (outputs * weights[..., None]).sum(1).to(x.dtype)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    "shape",
    [{}, {"transposed": True, "bias": True}, {"gate": False}, {"norm": True, "bias": True}],
    ids=lambda shape: "-".join(shape) or "plain",
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bits_of_layers_of_their_own(
    options: dict[str, object], shape: dict[str, bool], dtype: torch.dtype
) -> None:
    original = module(**shape)
    quantized = quantize_experts(copy.deepcopy(original), new_layer(options))
    assert isinstance(quantized, type(original))
    for tokens in (1, 11):
        x, index, weights = routing(tokens, dtype)
        expected = layer_by_layer(original, options, x, index, weights)
        assert same_bits(quantized(x, index, weights), expected)
        if dtype == torch.float32:
            floats = original(x, index, weights)
            assert cosine(expected, floats) > CLOSE[options.get("bits", 8)]


@pytest.mark.parametrize("options", WIDTHS)
def test_no_tokens(options: dict[str, object]) -> None:
    quantized = quantize_experts(module(), new_layer(options))
    index = torch.empty(0, K, dtype=torch.long)
    assert quantized(torch.empty(0, H), index, torch.empty(0, K)).shape == (0, H)


@pytest.mark.parametrize("options", WIDTHS)
def test_gradients_reach_x_the_routing_and_a_thawed_bias(options: dict[str, object]) -> None:
    quantized = quantize_experts(module(bias=True), new_layer(options))
    assert not any(quantized._parameters[name].requires_grad for name in quantized.stored())
    x, index, weights = routing(7)
    x, weights = x.requires_grad_(), weights.requires_grad_()
    quantized(x, index, weights).square().sum().backward()
    floats = copy.deepcopy(quantized)
    restore_experts(floats, floats.dequantize())
    grads = [x.grad, weights.grad, quantized.down_proj_bias.grad, quantized.gate_up_proj_bias.grad]
    x.grad = weights.grad = None
    floats(x, index, weights).square().sum().backward()
    expected = [x.grad, weights.grad, floats.down_proj_bias.grad, floats.gate_up_proj_bias.grad]
    for mine, other in zip(grads, expected, strict=True):
        assert cosine(mine, other) > 0.999


@pytest.mark.parametrize("options", OPTIONS)
def test_casts_copies_and_state_dicts(options: dict[str, object]) -> None:
    quantized = quantize_experts(module(bias=True), new_layer(options))
    args = routing(6)
    expected = quantized(*args)
    twin = copy.deepcopy(quantized)
    assert same_bits(twin(*args), expected)
    assert twin.down_proj.data_ptr() != quantized.down_proj.data_ptr()
    before = {name: value.clone() for name, value in quantized.state_dict().items()}
    twin = quantize_experts(module(bias=True), new_layer(options))
    twin.load_state_dict(before)
    assert same_bits(twin(*args), expected)
    quantized.to(torch.bfloat16)
    assert quantized.down_proj_bias.dtype == torch.bfloat16
    for name in quantized.stored():
        assert same_bits(getattr(quantized, name), before[name])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "down_proj",
            lambda t: t.float(),
            "down_proj has dtype torch.float32, expected torch.int8",
        ),
        ("down_proj", lambda t: torch.full_like(t, -128), "down_proj holds -128"),
        (
            "down_proj",
            lambda t: t[:2],
            r"down_proj has shape \[2, 48, 24\], expected \[5, 48, 24\]",
        ),
        ("gate_up_proj_absmax", lambda t: -t, "gate_up_proj_absmax holds -"),
        ("gate_up_proj_absmax", lambda t: None, "expected down_proj, down_proj_absmax, gate_up"),
    ],
)
def test_a_bad_state_dict_is_refused_and_changes_nothing(
    name: str, change: object, message: str
) -> None:
    quantized = quantize_experts(module(), new_layer({}))
    before = {key: value.clone() for key, value in quantized.state_dict().items()}
    state = dict(quantize_experts(module(), new_layer({})).state_dict())
    value = change(state.pop(name))
    if value is not None:
        state[name] = value
    with pytest.raises(RuntimeError, match=message):
        quantized.load_state_dict(state, strict=False)
    assert all(same_bits(value, before[key]) for key, value in quantized.state_dict().items())


@pytest.mark.parametrize("options", WIDTHS)
def test_autocast_casts_x_as_for_layers(options: dict[str, object]) -> None:
    original = module()
    quantized = quantize_experts(copy.deepcopy(original), new_layer(options))
    args = routing(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same_bits(quantized(*args), layer_by_layer(original, options, *args))
    assert not same_bits(quantized(*args), quantized(args[0].bfloat16(), *args[1:]).float())


def test_what_is_not_taken() -> None:
    odd = module()
    odd.down_proj = nn.Parameter(torch.randn(E, H, I + 1))
    assert "expected gate_up_proj and down_proj of 5 experts with matching" in why_not_experts(odd)
    more = module()
    more.third = nn.Parameter(torch.randn(E, H, I))
    assert "third [5, 48, 24]" in why_not_experts(more)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(E, 2 * I, H))

    assert "Own does not follow transformers' interface" in why_not_experts(Own())
    assert why_not_experts(module()) is None


def test_compiled_around_the_loop() -> None:
    """The loop itself is left to Python: no recompilation for other routings."""
    torch._dynamo.reset()
    quantized = quantize_experts(module(), new_layer({}))
    compiled = torch.compile(quantized, backend="aot_eager")
    for _ in range(3):
        args = routing(6)
        assert same_bits(compiled(*args), quantized(*args))


# Whole models


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
def test_fresh_quantization(
    checkpoints: dict[str, str], name: str, options: dict[str, object]
) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    model = load(checkpoints, name, **options)
    assert len(experts(model)) == 2
    for path, each in experts(model).items():
        expected = quantize_experts(original.get_submodule(path), new_layer(options))
        assert same_state(each, expected)
        assert not any(p.requires_grad for p in each.parameters())
    assert isinstance(model.model.layers[0].self_attn.q_proj, LowbitLinear)
    original = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    assert cosine(run(original), run(model)) > CLOSE[options.get("bits", 8)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", WIDTHS)
def test_the_file_may_hold_them_fused(
    checkpoints: dict[str, str], name: str, options: dict[str, object], tmp_path: Path
) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    original.save_pretrained(tmp_path, save_original_format=False)
    keys = load_file(tmp_path / "model.safetensors").keys()
    assert any(key.endswith("experts.gate_up_proj") for key in keys)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=LowbitConfig(**options)
    )
    assert same_state(model, load(checkpoints, name, **options))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_file_may_hold_them_transposed(
    checkpoints: dict[str, str], options: dict[str, object], tmp_path: Path
) -> None:
    """transformers transposes a float weight of this model if its shape is not the parameter's:
    gate_up_proj here, not the square down_proj, and neither of them once they are codes."""
    loading = {"quantization_config": LowbitConfig(**options)}
    path, kind = checkpoints["qwen3_vl_moe"], transformers.Qwen3VLMoeForConditionalGeneration
    expected = kind.from_pretrained(path, **loading)
    for name, each in experts(expected).items():
        floats = kind.from_pretrained(path).get_submodule(name)
        assert same_state(each, quantize_experts(floats, new_layer(options)))
    kind.from_pretrained(path).save_pretrained(tmp_path)
    for key in load_file(tmp_path / "model.safetensors"):
        if key.endswith("experts.gate_up_proj"):
            spoil(tmp_path, key, lambda t: t.mT.contiguous())
    model = kind.from_pretrained(tmp_path, **loading)
    assert len(experts(model)) == 2
    assert same_state(model, expected)
    model.save_pretrained(tmp_path / "quantized")
    again = kind.from_pretrained(tmp_path / "quantized")
    assert same_state(again, expected)
    assert same_bits(run(again), run(expected))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shard", [None, "40KB"])
def test_round_trip_to_the_same_bits(
    checkpoints: dict[str, str],
    name: str,
    options: dict[str, object],
    shard: str | None,
    tmp_path: Path,
) -> None:
    model = load(checkpoints, name, **options)
    model.save_pretrained(tmp_path, **({"max_shard_size": shard} if shard else {}))
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (shard is not None)
    again, loaded = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loaded.values())
    assert same_state(model, again)
    assert same_bits(run(model), run(again))
    assert not any(p.requires_grad for m in experts(again).values() for p in m.parameters())
    again.save_pretrained(tmp_path / "twice")
    assert same_state(AutoModelForCausalLM.from_pretrained(tmp_path / "twice"), model)
    base = AutoModel.from_pretrained(tmp_path)
    assert len(experts(base)) == 2
    assert all(same_state(each, experts(model)[f"model.{n}"]) for n, each in experts(base).items())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", WIDTHS)
def test_a_checkpoint_is_as_small_as_its_experts(
    checkpoints: dict[str, str], name: str, options: dict[str, object], tmp_path: Path
) -> None:
    """The sum of the layers that the experts' matrices would be. Planning a device map counts the
    same bytes."""
    model = load(checkpoints, name, **options)
    for each in experts(model).values():
        layers = [each.layer(p, e) for p in PROJECTIONS for e in range(each.num_experts)]
        size = sum(p.nbytes for layer in layers for p in layer.parameters())
        assert sum(p.nbytes for p in each.parameters()) == size
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(t.nbytes for t in tensors.values()) == sum(p.nbytes for p in model.parameters())
    planned, _ = compute_module_sizes(model, model.hf_quantizer)
    buffers = sum(b.nbytes for b in model.buffers())
    assert planned[""] == sum(p.nbytes for p in model.parameters()) + buffers


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", WIDTHS)
def test_dequantize(
    checkpoints: dict[str, str], name: str, options: dict[str, object], tmp_path: Path
) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    model = load(checkpoints, name, **options)
    weights = {n: each.dequantize() for n, each in experts(model).items()}
    model = model.dequantize()
    kinds = {n: type(m) for n, m in original.named_modules()}
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in original.named_parameters()
    }
    for n, projections in weights.items():
        for projection, weight in projections.items():
            found = getattr(model.get_submodule(n), projection)
            assert same_bits(found.mT if name == "gpt_oss" else found, weight)
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    original.save_pretrained(tmp_path / "original")
    assert keys == load_file(tmp_path / "original" / "model.safetensors").keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same_bits(run(again), run(model))
    assert cosine(run(model), run(original)) > CLOSE[options.get("bits", 8)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("skip", ["model.layers.1.mlp.experts", "layers.1.mlp.experts.down_proj"])
def test_skip_modules(checkpoints: dict[str, str], name: str, skip: str, tmp_path: Path) -> None:
    original = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    model = load(checkpoints, name, skip_modules=[skip])
    assert list(experts(model)) == ["model.layers.0.mlp.experts"]
    left = model.model.layers[1].mlp.experts
    assert type(left) is type(original.model.layers[1].mlp.experts)
    assert same_bits(left.down_proj, original.model.layers[1].mlp.experts.down_proj)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert same_state(model, again)
    torch.testing.assert_close(run(model), run(again))  # float products depend on alignment


def test_experts_that_no_layer_can_stand_for_stay_float_with_a_warning() -> None:
    """Llama 4 has the fused weights and a way of its own to use them."""
    config = transformers.Llama4TextConfig(
        hidden_size=64,
        intermediate_size=64,
        intermediate_size_mlp=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        interleave_moe_layer_step=1,
        vocab_size=256,
    )
    with torch.device("meta"):
        model = transformers.Llama4ForCausalLM(config)
    quantizer = LowbitQuantizer(LowbitConfig(bits=4), pre_quantized=False)
    with pytest.warns(
        UserWarning, match="fused weights of 2 modules float.*Llama4TextExperts does"
    ):
        quantizer.preprocess_model(model)
    assert model.model.layers[0].feed_forward.experts.gate_up_proj.is_floating_point()
    assert isinstance(model.model.layers[0].self_attn.q_proj, LUT4Linear)


# Bad checkpoints


def key_of(folder: Path, leaf: str) -> str:
    """Models differ in the name of the module above."""
    keys = load_file(folder / "model.safetensors").keys()
    (key,) = (k for k in keys if ".layers.1." in k and k.endswith(f"experts.{leaf}"))
    return key


@pytest.mark.parametrize("options", WIDTHS)
@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
@pytest.mark.parametrize(
    ("leaf", "change", "message"),
    [
        ("gate_up_proj", lambda t: t.float(), "gate_up_proj has dtype torch.float32, expected"),
        ("gate_up_proj", lambda t: None, "lacks gate_up_proj of layers.1.mlp.experts"),
        ("down_proj", lambda t: t[:, :5].contiguous(), "mismatch|size"),
        ("down_proj", lambda t: t[:3].contiguous(), "mismatch|size"),
        ("down_proj_absmax", lambda t: None, "lacks down_proj_absmax of layers.1.mlp.experts"),
        ("gate_up_proj_absmax", lambda t: t.char(), "gate_up_proj_absmax has dtype torch.int8"),
    ],
)
def test_a_bad_checkpoint_is_refused(
    checkpoints: dict[str, str],
    name: str,
    options: dict[str, object],
    leaf: str,
    change: object,
    message: str,
    tmp_path: Path,
) -> None:
    load(checkpoints, name, **options).save_pretrained(tmp_path)
    spoil(tmp_path, key_of(tmp_path, leaf), change)
    with pytest.raises((ValueError, RuntimeError), match=f"(?i){message}"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("mixtral", "2.w1.weight", lambda t: t * torch.nan, r"gate_up_proj holds NaN.*expert 2"),
        ("mixtral", "2.w2.weight", lambda t: t[:, :3].contiguous(), r"down_proj has shape"),
        ("mixtral", "3.w2.weight", lambda t: None, "down_proj has 3 experts, expected 4"),
        (
            "gpt_oss",
            "down_proj",
            lambda t: t[:3].contiguous(),
            "down_proj has 3 experts, expected 4",
        ),
        ("gpt_oss", "down_proj", lambda t: t.mT.contiguous(), r"down_proj has shape \[96, 64\]"),
        ("gpt_oss", "down_proj", lambda t: t * torch.inf, "down_proj holds NaN or infinity"),
    ],
)
def test_bad_float_experts_are_refused(
    checkpoints: dict[str, str],
    name: str,
    key: str,
    change: object,
    message: str,
    tmp_path: Path,
) -> None:
    AutoModelForCausalLM.from_pretrained(checkpoints[name]).save_pretrained(tmp_path)
    spoil(tmp_path, key_of(tmp_path, key), change)
    with pytest.raises(ValueError, match=f"layers.1.mlp.experts.{message}"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path, quantization_config=LowbitConfig(bits=4), ignore_mismatched_sizes=True
        )


@pytest.mark.parametrize("options", WIDTHS)
@pytest.mark.parametrize("pre_quantized", [False, True])
def test_experts_missing_from_the_checkpoint_are_initialised_and_quantized(
    checkpoints: dict[str, str], options: dict[str, object], pre_quantized: bool, tmp_path: Path
) -> None:
    loading = {"quantization_config": LowbitConfig(**options)}
    AutoModelForCausalLM.from_pretrained(
        checkpoints["mixtral"], **(loading if pre_quantized else {})
    ).save_pretrained(tmp_path)
    keys = load_file(tmp_path / "model.safetensors").keys()
    for key in keys:
        if ".layers.1." in key and ".experts." in key:
            spoil(tmp_path, key, lambda t: None)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, **({} if pre_quantized else loading))
    for weight in experts(model)["model.layers.1.mlp.experts"].dequantize().values():
        assert 0.01 < weight.std() < 0.04
    assert not any(p.requires_grad for m in experts(model).values() for p in m.parameters())
    assert run(model).isfinite().all()


# Use


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", WIDTHS)
def test_lora_on_the_attention_trains(
    checkpoints: dict[str, str], name: str, options: dict[str, object]
) -> None:
    peft = pytest.importorskip("peft")
    model = load(checkpoints, name, **options)
    model = peft.get_peft_model(
        model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    ids = torch.arange(24).reshape(2, 12)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = learn(model, optimizer, ids, steps=8)
    assert losses[-1] < losses[0] - 0.05


@pytest.mark.parametrize("options", WIDTHS)
def test_pickle_and_generate(checkpoints: dict[str, str], options: dict[str, object]) -> None:
    model = load(checkpoints, "qwen3_moe", **options)
    twin = pickle.loads(pickle.dumps(model))
    assert same_bits(run(twin), run(model))
    ids = torch.randint(0, 256, (3, 7))
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(twin.generate(ids, max_new_tokens=8, do_sample=False), expected)
    if not options:  # int8 products do not depend on the batch
        alone = model.generate(ids[1:2], max_new_tokens=8, do_sample=False)
        assert torch.equal(expected[1:2], alone)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("width", [8, 4])
def test_memory_while_loading(checkpoints: dict[str, str], width: int, tmp_path: Path) -> None:
    """The experts of a layer are never merged in float: that would be another layer's worth."""
    config = transformers.MixtralConfig(
        hidden_size=512,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_local_experts=8,
        vocab_size=256,
    )
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    layer = 8 * 3 * 512 * 512 * 2  # in bfloat16
    check_memory_while_loading(checkpoints["mixtral"], tmp_path, width, more=layer)


# quantize_


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_quantize_takes_experts(
    checkpoints: dict[str, str], name: str, options: dict[str, object]
) -> None:
    """The same parameters as from_pretrained makes."""
    options = dict(options)
    model = AutoModelForCausalLM.from_pretrained(checkpoints[name])
    loaded = load(checkpoints, name, **options)
    if "absmax_dtype" in options:
        options["absmax_dtype"] = torch.float16
    report = lowbit.quantize_(model, options.pop("bits", 8), **options)
    assert set(experts(model)) <= set(report.replaced)
    assert len(experts(model)) > 0
    assert same_state(model, loaded)
    assert same_bits(run(model), run(loaded))
    assert report.bytes_after == sum(t.nbytes for t in (*model.parameters(), *model.buffers()))


def test_quantize_checks_every_expert_first() -> None:
    model = nn.Sequential(nn.Linear(8, 8), module(), module())
    model[2].down_proj.data[E - 1, 2, 3] = torch.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match="the weight of 2 holds NaN"):
        lowbit.quantize_(model, bits=4)
    assert not experts(model)
    assert all(torch.equal(v, before[n]) or v.isnan().any() for n, v in model.state_dict().items())
    assert lowbit.quantize_(model, bits=4, skip=["2"]).replaced == ("0", "1")
    with pytest.raises(ValueError, match="already quantized by lowbit"):
        lowbit.quantize_(model[1:], bits=4)
