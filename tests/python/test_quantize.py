# SPDX-License-Identifier: MIT
"""lowbit.quantize_ on whole models."""

import subprocess
import sys

import lowbit
import pytest
import torch
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear
from reference import same_bits
from torch import nn

LAYERS = {8: Int8Linear, 4: LUT4Linear}
both = pytest.mark.parametrize("bits", LAYERS)


class Tied(nn.Module):
    """An embedding tied to lm_head, and a linear layer that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16, bias=False))
        self.shared = nn.Linear(16, 16)
        self.again = self.shared
        self.decoder = nn.Linear(16, 50, bias=False)
        self.decoder.weight = self.embed.weight
        self.lm_head = nn.Linear(16, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.body(self.again(self.shared(self.embed(ids)))))


@both
def test_what_is_replaced_what_is_left_and_the_report(bits: int) -> None:
    model = Tied().eval()
    ids = torch.arange(20)
    expected = model(ids)
    report = lowbit.quantize_(model, bits)
    assert report.replaced == ("body.0", "body.2")
    assert report.skipped == {
        "shared": "its weight is tied to another module",
        "decoder": "its weight is tied to another module",
        "lm_head": "output head",
    }
    weights, biases = 16 * 32, 32
    stored = {8: 2 * weights + 4 * (32 + 16), 4: weights + 2 * (weights // 64 + 4 + 4)}
    left = sum(p.nbytes for p in Tied().parameters()) - 4 * 2 * weights
    assert report.bytes_before == left + 4 * 2 * weights
    assert report.bytes_after == left + stored[bits] == sum(p.nbytes for p in model.parameters())
    assert model.body[0].bias.numel() == biases
    text = str(report)
    assert "2 layers quantized, 3 left" in text
    assert "lm_head (output head)" in text
    assert type(model.body[0]) is LAYERS[bits]
    assert not model.body[0].training
    assert model.decoder.weight is model.embed.weight
    assert model.shared is model.again
    torch.testing.assert_close(model(ids), expected, atol=0.3, rtol=0.3)


def test_eight_bits_are_the_default() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    lowbit.quantize_(model)
    assert type(model[0]) is Int8Linear


OPTIONS = {
    8: {
        "threshold": 2.0,
        "offset": True,
        "compute_dtype": torch.bfloat16,
        "absmax_dtype": torch.float16,
    },
    4: {
        "codebook": "fp4",
        "blocksize": 32,
        "double_quant": False,
        "compute_dtype": torch.bfloat16,
    },
}


@both
def test_options_reach_every_layer_and_progress_is_told(bits: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    told = []
    lowbit.quantize_(model, bits, progress=lambda *step: told.append(step), **OPTIONS[bits])
    assert told == [("0", 1, 2), ("1", 2, 2)]
    for layer in model:
        assert layer.options() == OPTIONS[bits]


def test_a_codebook_of_ones_own() -> None:
    values = [i / 15 for i in range(16)]
    models = [nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    lowbit.quantize_(models[0], 4, codebook=values)
    lowbit.quantize_(models[1], 4, codebook=iter(values))  # read once, though there are two layers
    for a, b in zip(*models, strict=True):
        assert same_bits(a.weight, b.weight)
        assert a.codebook == b.codebook == tuple(torch.tensor(values).tolist())


@both
def test_a_model_is_the_sum_of_its_layers(bits: int) -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    from_float = LAYERS[bits].from_float
    layers = [from_float(model[0]), nn.ReLU(), from_float(model[2])]
    lowbit.quantize_(model, bits)
    x = torch.randn(5, 40)
    assert same_bits(model(x), nn.Sequential(*layers)(x))


def test_names_in_skip() -> None:
    model = Tied()
    report = lowbit.quantize_(model, skip=["body"])
    assert report.replaced == ()
    assert report.skipped["body.0"] == report.skipped["body.2"] == "named in skip"
    with pytest.raises(ValueError, match="skip names bodi, tail"):
        lowbit.quantize_(model, skip=["body", "tail", "bodi"])
    with pytest.raises(TypeError, match="the string 'body'"):
        lowbit.quantize_(model, skip="body")


@both
def test_heads_and_tied_layers_on_request(bits: int) -> None:
    model = Tied()
    embeddings = model.embed.weight.clone()
    report = lowbit.quantize_(model, bits, skip=["body"], include=["lm_head", "decoder"])
    assert report.replaced == ("decoder", "lm_head")
    assert "shared" in report.skipped
    assert isinstance(model.decoder, LowbitLinear)
    assert same_bits(model.embed.weight, embeddings)
    torch.testing.assert_close(model.decoder.dequantize(), embeddings, atol=0.5, rtol=0)
    assert report.bytes_after == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("include", "skip", "message"),
    [
        (["lm_haed"], [], "include names lm_haed, expected names of modules"),
        (["embed"], [], r"include names embed \(a Embedding\), expected a plain linear layer"),
        (["body"], [], r"include names body \(a Sequential\)"),
        (["lm_head"], ["lm_head"], r"include names lm_head \(named in skip\)"),
    ],
)
def test_what_cannot_be_included_changes_nothing(
    include: list[str], skip: list[str], message: str
) -> None:
    model = Tied()
    with pytest.raises(ValueError, match=message):
        lowbit.quantize_(model, include=include, skip=skip)
    assert not any(isinstance(module, LowbitLinear) for module in model.modules())
    with pytest.raises(TypeError, match="include is the string 'lm_head'"):
        lowbit.quantize_(model, include="lm_head")


def test_what_a_new_layer_would_lose_is_left() -> None:
    class Special(nn.Linear):
        pass

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_up_proj = nn.Parameter(torch.randn(4, 8, 8))

    hooked, double = nn.Linear(8, 8), nn.Linear(8, 8).double()
    hooked.register_forward_hook(lambda *_: None)
    parametrized = torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model = nn.Sequential(
        Special(8, 8), Experts(), hooked, double, parametrized, nn.Conv1d(4, 4, 3), nn.Linear(8, 8)
    )
    kinds = [type(module) for module in model]
    report = lowbit.quantize_(model)
    assert report.replaced == ("6",)
    assert [type(module) for module in model][:6] == kinds[:6]
    assert "Special is a subclass" in report.skipped["0"]
    assert report.skipped["1"].startswith("gate_up_proj: ")
    assert "Experts does not follow transformers' interface of experts" in report.skipped["1"]
    assert "hooks" in report.skipped["2"]
    assert "float64" in report.skipped["3"]
    assert "subclass" in report.skipped["4"]
    assert "5" not in report.skipped


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "bits is 3, expected 8 or 4"),
        ({"threshold": -1.0}, "threshold is -1"),
        ({"absmax_dtype": torch.bfloat16}, "absmax_dtype is torch.bfloat16"),
        ({"compute_dtype": torch.int8}, "compute_dtype is torch.int8"),
        ({"bits": 4, "codebook": "nf5"}, "codebook is 'nf5'"),
        ({"bits": 4, "blocksize": 65}, "blocksize is 65"),
    ],
)
def test_bad_options_change_nothing(options: dict[str, object], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=message):
        lowbit.quantize_(model, **options)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(("bits", "other"), [(8, 4), (4, 8)])
def test_options_of_the_other_width_are_refused(bits: int, other: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    for name in OPTIONS[other].keys() - OPTIONS[bits].keys():
        with pytest.raises(TypeError, match=rf"{name} given, but .* \({bits} bits\) has no such"):
            lowbit.quantize_(model, bits, **{name: OPTIONS[other][name]})
    with pytest.raises(TypeError, match="tresh given"):
        lowbit.quantize_(model, bits, tresh=1)
    assert type(model[0]) is nn.Linear


def test_a_size_that_no_kernel_takes_is_named() -> None:
    model = nn.Sequential(nn.Linear(1, 5), nn.Linear(5, 5))
    with pytest.raises(ValueError, match=r"weight of 0 has shape \[5, 1\]: .*name it in skip"):
        lowbit.quantize_(model, bits=4)
    assert type(model[1]) is nn.Linear
    lowbit.quantize_(model, bits=8)


@both
def test_a_bad_weight_is_named_and_nothing_changes(bits: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data[0, 0] = torch.nan
    before = state(model)
    with pytest.raises(ValueError, match="weight of 1 holds NaN"):
        lowbit.quantize_(model, bits)
    assert type(model[0]) is nn.Linear
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
    assert lowbit.quantize_(model, skip=["1"]).replaced == ("0",)


@both
def test_a_quantized_model_is_refused(bits: int) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    lowbit.quantize_(model, bits, skip=["1"])
    before = state(model)
    for again in LAYERS:
        with pytest.raises(ValueError, match=r"already quantized by lowbit \(0 is a"):
            lowbit.quantize_(model, again)
    assert type(model[1]) is nn.Linear
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
    foreign = nn.Sequential(nn.Linear(8, 8))
    foreign.quantization_method = "gptq"
    with pytest.raises(ValueError, match="already quantized by gptq"):
        lowbit.quantize_(foreign)
    with pytest.raises(ValueError, match="itself a linear layer"):
        lowbit.quantize_(nn.Linear(8, 8))


@both
def test_a_model_on_the_meta_device_is_refused(bits: int) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="weight of 0 is on the meta device"):
        lowbit.quantize_(model, bits)


PEAK = """
import sys, torch, lowbit
from pathlib import Path

def status(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(16)))
bits = int(sys.argv[1])
lowbit.quantize_(torch.nn.Sequential(torch.nn.Linear(64, 64)), bits)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
lowbit.quantize_(model, bits)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@both
def test_memory_peaks_at_the_model_plus_one_layer(bits: int) -> None:
    """16 layers of 16 MiB; all of their codes at once would be 64 or 32 MiB more."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(bits)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) <= 12 * 2**20
