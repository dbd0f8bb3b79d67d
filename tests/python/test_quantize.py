# SPDX-License-Identifier: MIT
"""lowbit.quantize_ on whole models."""

import subprocess
import sys

import lowbit
import pytest
import torch
from lowbit.nn import Int8Linear
from reference import same_bits
from torch import nn


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


def test_what_is_replaced_what_is_left_and_the_report() -> None:
    model = Tied().eval()
    ids = torch.arange(20)
    expected = model(ids)
    report = lowbit.quantize_(model)
    assert report.replaced == ("body.0", "body.2")
    assert report.skipped == {
        "shared": "its weight is tied to another module",
        "decoder": "its weight is tied to another module",
        "lm_head": "output head",
    }
    saved = 2 * 16 * 32 * 3 - 4 * (32 + 16)
    assert report.bytes_before - report.bytes_after == saved
    assert report.bytes_after == sum(p.nbytes for p in model.parameters())
    text = str(report)
    assert "2 linear layers quantized, 3 left" in text
    assert "lm_head (output head)" in text
    assert isinstance(model.body[0], Int8Linear)
    assert not model.body[0].training
    assert model.decoder.weight is model.embed.weight
    assert model.shared is model.again
    torch.testing.assert_close(model(ids), expected, atol=0.05, rtol=0.05)


def test_options_reach_every_layer_and_progress_is_told() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    told = []
    lowbit.quantize_(
        model,
        8,
        threshold=2.0,
        offset=True,
        compute_dtype=torch.bfloat16,
        absmax_dtype=torch.float16,
        progress=lambda *step: told.append(step),
    )
    assert told == [("0", 1, 2), ("1", 2, 2)]
    for layer in model:
        assert layer.threshold == 2.0
        assert layer.offset.dtype == layer.absmax.dtype == torch.float16
        assert layer.compute_dtype == torch.bfloat16


def test_a_model_is_the_sum_of_its_layers() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    layers = [Int8Linear.from_float(model[0]), nn.ReLU(), Int8Linear.from_float(model[2])]
    lowbit.quantize_(model)
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
    assert "gate_up_proj" in report.skipped["1"]
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
    ],
)
def test_bad_options_change_nothing(options: dict[str, object], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=message):
        lowbit.quantize_(model, **options)
    assert type(model[0]) is nn.Linear


def test_a_bad_weight_is_named_and_nothing_changes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight.data[0, 0] = torch.nan
    before = state(model)
    with pytest.raises(ValueError, match="weight of 1 holds NaN"):
        lowbit.quantize_(model)
    assert type(model[0]) is nn.Linear
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
    assert lowbit.quantize_(model, skip=["1"]).replaced == ("0",)


def test_a_quantized_model_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    lowbit.quantize_(model, skip=["1"])
    before = state(model)
    with pytest.raises(ValueError, match="already quantized by lowbit"):
        lowbit.quantize_(model)
    assert type(model[1]) is nn.Linear
    assert all(same_bits(value, before[name]) for name, value in model.state_dict().items())
    foreign = nn.Sequential(nn.Linear(8, 8))
    foreign.quantization_method = "gptq"
    with pytest.raises(ValueError, match="already quantized by gptq"):
        lowbit.quantize_(foreign)
    with pytest.raises(ValueError, match="itself a linear layer"):
        lowbit.quantize_(nn.Linear(8, 8))


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="weight of 0 is on the meta device"):
        lowbit.quantize_(model)


PEAK = """
import torch, lowbit
from pathlib import Path

def status(key):
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

model = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(16)))
lowbit.quantize_(torch.nn.Sequential(torch.nn.Linear(64, 64)))
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS:")
lowbit.quantize_(model)
print(status("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_peaks_at_the_model_plus_one_layer() -> None:
    """16 layers of 16 MiB; all of their codes at once would be 64 MiB more."""
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(run.stdout) <= 12 * 2**20
