# SPDX-License-Identifier: MIT
"""The stored form of bitsandbytes: what the installed package writes, and what no one may write."""

import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lowbit import codebooks
from lowbit.integrations.bitsandbytes import format as form
from reference import same_bits
from samples import first
from torch import Tensor, nn

bnb = pytest.importorskip("bitsandbytes")

NAME = "model.layers.0.up"
STORAGE = (torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def entries_of(layer: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in layer.state_dict().items() if k != "bias"}


def bnb_8bit(n: int = 6, k: int = 40) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layer = bnb.nn.Linear8bitLt(k, n, has_fp16_weights=False)
    return entries_of(layer.to("cpu"))


def bnb_4bit(
    codebook: str = "nf4",
    double_quant: bool = True,
    blocksize: int = 64,
    n: int = 6,
    k: int = 64,
    dtype: torch.dtype = torch.float32,
    storage: torch.dtype = torch.uint8,
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(k, n, bias=False, quant_storage=storage)
    layer.weight = bnb.nn.Params4bit(
        torch.randn(n, k, dtype=dtype),
        requires_grad=False,
        blocksize=blocksize,
        compress_statistics=double_quant,
        quant_type=codebook,
        quant_storage=storage,
        module=layer,
    )
    return entries_of(layer.to("cpu"))


def state_key(entries: dict[str, Tensor]) -> str:
    (key,) = (key for key in entries if key.startswith(form.STATE))
    return key


def state_of(entries: dict[str, Tensor]) -> dict[str, Any]:
    return json.loads(bytes(entries[state_key(entries)].tolist()))


def encode(state: object) -> Tensor:
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def with_state(entries: dict[str, Tensor], **fields: object) -> dict[str, Tensor]:
    """The entries with these fields of the JSON object changed, or taken out where None."""
    state = {k: v for k, v in (state_of(entries) | fields).items() if v is not None}
    return entries | {state_key(entries): encode(state)}


def same_entries(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)


# What the installed bitsandbytes writes


def test_8bit_entries() -> None:
    entries = bnb_8bit()
    assert entries.keys() == set(form.KEYS_8BIT)
    weight, absmax = form.read_int8(NAME, entries, (6, 40))
    assert same_bits(weight, entries["weight"])
    assert same_bits(absmax, entries["SCB"])
    assert same_entries(form.write_int8(weight, absmax), entries)


def test_8bit_entries_without_a_format() -> None:
    entries = bnb_8bit()
    del entries["weight_format"]
    assert same_bits(form.read_int8(NAME, entries).weight, entries["weight"])


def test_float16_scales_are_written_as_float32() -> None:
    entries = form.write_int8(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2).half())
    assert entries["SCB"].dtype == torch.float32


@pytest.mark.parametrize("codebook", form.CODEBOOKS)
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("blocksize", [32, 64, 128, 4096])
@pytest.mark.parametrize("shape", [(6, 64), (300, 128), (3, 50), (5, 33), (1, 1)])
def test_4bit_entries(
    codebook: str, double_quant: bool, blocksize: int, shape: tuple[int, int]
) -> None:
    entries = bnb_4bit(codebook, double_quant, blocksize, *shape, dtype=torch.bfloat16)
    values = form.read_lut4(NAME, entries, shape)
    assert values.options == (codebook, blocksize, double_quant, "bfloat16")
    assert form.read_options(NAME, entries) == (values.options, shape)
    assert same_bits(values.weight, entries["weight"].flatten())
    assert same_bits(values.absmax, entries["weight.absmax"])
    if double_quant:
        assert same_bits(values.nested_absmax, entries["weight.nested_absmax"])
        assert values.nested_offset.item() == state_of(entries)["nested_offset"]
        assert values.nested_offset.shape == ()
    assert same_entries(form.write_lut4(values, shape), entries)


def test_the_default_dtype_does_not_matter() -> None:
    entries = bnb_4bit()
    expected = form.read_lut4(NAME, entries)
    torch.set_default_dtype(torch.bfloat16)
    try:
        values = form.read_lut4(NAME, entries)
    finally:
        torch.set_default_dtype(torch.float32)
    assert same_bits(values.nested_offset, expected.nested_offset)


@pytest.mark.parametrize("storage", STORAGE)
def test_any_storage_dtype_is_the_same_bytes(storage: torch.dtype) -> None:
    values = form.read_lut4(NAME, bnb_4bit(storage=storage))
    expected = form.read_lut4(NAME, bnb_4bit())
    assert same_bits(values.weight, expected.weight)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("n", [1, 6])
def test_strided_bytes_are_read(storage: torch.dtype, n: int) -> None:
    entries = bnb_4bit(storage=storage, n=n, k=32, blocksize=32)
    weight = entries["weight"]
    for strided in (weight.reshape(1, -1).t(), weight.repeat(1, 3)[:, 1:2]):
        values = form.read_lut4(NAME, entries | {"weight": strided})
        assert same_bits(values.weight, weight.flatten().view(torch.uint8))


def test_the_scales_are_those_that_bitsandbytes_computes() -> None:
    entries = bnb_4bit(n=300, k=128)
    state = bnb.functional.QuantState.from_dict(
        {k.removeprefix("weight."): v for k, v in entries.items() if k != "weight"}, "cpu"
    )
    expected = bnb.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    values = form.read_lut4(NAME, entries)
    nested = values.nested_absmax.repeat_interleave(256)[: values.absmax.numel()]
    scales = codebooks.dynamic_map()[values.absmax.long()] * nested + values.nested_offset
    assert same_bits(scales, expected)


def test_a_codebook_that_another_build_rounds_otherwise() -> None:
    entries = bnb_4bit()
    for key in ("weight.quant_map", "weight.nested_quant_map"):
        up = torch.full_like(entries[key], math.inf)
        entries[key] = torch.where(entries[key] > 0, entries[key].nextafter(up), entries[key])
    form.read_lut4(NAME, entries)


# What it never writes


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight", lambda t: t.float(), "weight has dtype torch.float32, expected torch.int8"),
        ("weight", lambda t: t[:, :39], r"weight has shape \[6, 39\], expected \[6, 40\]"),
        ("weight", lambda t: t.flatten(), r"weight has shape \[240\], expected \[6, 40\]"),
        ("weight", first(-128), r"weight holds -128, expected codes in \[-127, 127\]"),
        ("weight", lambda t: t.to("meta"), "weight is Tensor, expected a dense tensor with data"),
        ("weight", lambda t: None, "has the entries SCB, weight_format, expected SCB, weight"),
        ("SCB", lambda t: None, "has the entries weight, weight_format, expected SCB, weight"),
        ("SCB", lambda t: t[:5], r"SCB has shape \[5\], expected \[6\]"),
        ("SCB", lambda t: t[None], r"SCB has shape \[1, 6\], expected \[6\]"),
        ("SCB", lambda t: t.half(), "SCB has dtype torch.float16, expected torch.float32"),
        ("SCB", first(-1.0), "SCB holds -1, expected no negative value"),
        ("SCB", first(math.nan), "SCB holds NaN or infinity"),
        ("SCB", first(math.inf), "SCB holds NaN or infinity"),
        ("weight_format", first(2), r"weight_format is 2 \(col_turing\), expected 0 \(row\)"),
        ("weight_format", first(9), r"weight_format is 9, expected 0 \(row\)"),
        ("weight_format", lambda t: t.int(), "weight_format has dtype torch.int32"),
        ("weight_format", lambda t: t[None], r"weight_format has shape \[1\], expected \[\]"),
        ("CB", lambda t: torch.zeros(1), "has the entries CB, SCB, weight, weight_format"),
    ],
)
def test_bad_8bit_entries(key: str, change: Any, message: str) -> None:
    entries = bnb_8bit()
    value = change(entries.pop(key, None))
    if value is not None:
        entries[key] = value
    with pytest.raises(ValueError, match=rf"^{NAME}.*{message}"):
        form.read_int8(NAME, entries, (6, 40))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("weight", lambda t: t[:-1], r"weight has shape \[191, 1\] of torch.uint8, 191 bytes, exp"),
        ("weight", lambda t: t.view(6, 32), r"weight has shape \[6, 32\].*expected \[n, 1\]"),
        ("weight", lambda t: t.int(), "weight has dtype torch.int32, expected one of torch.uint8"),
        ("weight", lambda t: t.float(), r"of torch.float32, 768 bytes, expected \[n, 1\] of 192"),
        ("weight.absmax", lambda t: t[:-1], r"weight.absmax has shape \[5\], expected \[6\]"),
        ("weight.absmax", lambda t: t.float(), "has dtype torch.float32, expected torch.uint8"),
        ("weight.absmax", lambda t: None, "has the entries weight, weight.nested_absmax"),
        ("weight.nested_absmax", lambda t: t.repeat(2), r"has shape \[2\], expected \[1\]"),
        ("weight.nested_absmax", first(math.inf), "nested_absmax holds NaN or infinity"),
        ("weight.nested_absmax", first(-1.0), "nested_absmax holds -1"),
        ("weight.nested_absmax", lambda t: None, "has the entries .*, expected .*nested_absmax"),
        ("weight.nested_quant_map", first(-1.0), "nested_quant_map has -1 at 0, expected -0.992"),
        ("weight.nested_quant_map", lambda t: t[:16], r"has shape \[16\], expected \[256\]"),
        ("weight.quant_map", first(-0.9), "quant_map has -0.9 at 0, expected -1: it is not the"),
        ("weight.quant_map", first(math.nan), "quant_map has nan at 0, expected -1"),
        ("weight.quant_map", lambda t: t.flip(0), "quant_map has .*, expected"),
        ("weight.quant_map", lambda t: t.double(), "has dtype torch.float64, expected torch.floa"),
        ("weight.scale", lambda t: torch.zeros(1), "has the entries .*, weight.scale, expected"),
        ("weight.code", lambda t: torch.zeros(1), "has the entries .*, expected"),
        (form.STATE + "nf4", lambda t: None, "has the quant_state entries none, expected one of"),
        (form.STATE + "fp4", lambda t: encode({}), "has the quant_state entries weight.quant_stat"),
        (form.STATE + "nf4", lambda t: t[:-1], "nf4 is no JSON object: Expecting"),
        (form.STATE + "nf4", lambda t: t[:0], "nf4 is no JSON object: Expecting"),
        (form.STATE + "nf4", lambda t: t[None], r"has shape \[1, \d+\], expected at most \[4096\]"),
        (form.STATE + "nf4", lambda t: t.to(torch.int8), "has dtype torch.int8, expected torch.u"),
        (form.STATE + "nf4", first(0xFF), "is no JSON object: 'utf-8' codec can't decode"),
        (form.STATE + "nf4", lambda t: encode([1]), "nf4 is a list, expected a JSON object"),
        (form.STATE + "nf4", lambda t: encode("x" * 5000), r"expected at most \[4096\] bytes"),
        (
            form.STATE + "nf4",
            lambda t: torch.tensor(list(b"[" * 4096), dtype=torch.uint8),
            "is no JSON object",
        ),
        (
            form.STATE + "nf4",
            lambda t: torch.tensor(list(b'{"dtype": 1, "dtype": 2}'), dtype=torch.uint8),
            "is no JSON object: a field stands there twice",
        ),
    ],
)
def test_bad_4bit_entries(key: str, change: Any, message: str) -> None:
    entries = bnb_4bit()
    value = change(entries.pop(key, None))
    if value is not None:
        entries[key] = value
    with pytest.raises(ValueError, match=rf"^{NAME}.*{message}"):
        form.read_lut4(NAME, entries, (6, 64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quant_type": "fp4"}, "has quant_type 'fp4', expected 'nf4'"),
        ({"quant_type": ["nf4"]}, r"has quant_type \['nf4'\], expected 'nf4'"),
        ({"blocksize": 48}, "has blocksize 48, expected one of 32, 64"),
        ({"blocksize": 0}, "has blocksize 0"),
        ({"blocksize": -64}, "has blocksize -64"),
        ({"blocksize": 8192}, "has blocksize 8192"),
        ({"blocksize": 64.0}, "has blocksize 64.0"),
        ({"blocksize": True}, "has blocksize True"),
        ({"blocksize": 128}, r"absmax has shape \[6\], expected \[3\]"),
        ({"dtype": "float64"}, "has dtype 'float64', expected one of float32"),
        ({"dtype": 32}, "has dtype 32"),
        ({"shape": [64, 6]}, r"has shape \[64, 6\], expected \[6, 64\]"),
        ({"shape": [384]}, r"has shape \[384\], expected \[N, K\]"),
        ({"shape": [6, 64, 1]}, r"has shape \[6, 64, 1\], expected \[N, K\]"),
        ({"shape": [-6, -64]}, r"has shape \[-6, -64\], expected \[N, K\]"),
        ({"shape": [6.0, 64]}, r"expected \[N, K\]"),
        ({"shape": "6,64"}, r"expected \[N, K\]"),
        ({"shape": [10**30, 10**30]}, r"expected \[6, 64\]"),
        ({"shape": None}, "has the fields blocksize, dtype.*, expected .*shape"),
        ({"axis": 0}, "has the fields axis, blocksize"),
        ({"nested_blocksize": 2048}, "has nested_blocksize 2048, expected 256"),
        ({"nested_dtype": "float16"}, "has nested_dtype 'float16', expected 'float32'"),
        ({"nested_offset": math.nan}, "has nested_offset nan, expected a finite number"),
        ({"nested_offset": math.inf}, "has nested_offset inf"),
        ({"nested_offset": 1e300}, "has nested_offset 1e[+]300"),
        ({"nested_offset": 10**400}, "has nested_offset 1000"),
        ({"nested_offset": "0.1"}, "has nested_offset '0.1'"),
        ({"nested_offset": None}, "has the fields .*, expected .*nested_offset"),
        (
            {"nested_offset": None, "nested_dtype": None, "nested_blocksize": None},
            "has the entries .*weight.nested_absmax.*, expected",
        ),
    ],
)
def test_bad_quant_states(fields: dict[str, object], message: str) -> None:
    entries = with_state(bnb_4bit(), **fields)
    with pytest.raises(ValueError, match=rf"^{NAME}.*{message}"):
        form.read_lut4(NAME, entries, (6, 64))


def test_nested_fields_without_nested_entries() -> None:
    entries = with_state(
        bnb_4bit(double_quant=False),
        nested_blocksize=256,
        nested_dtype="float32",
        nested_offset=0.1,
    )
    with pytest.raises(ValueError, match=r"has the entries .*, expected .*weight.nested_absmax"):
        form.read_lut4(NAME, entries)


# Fuzzing: a correct result or a ValueError that names the layer, whatever the file holds

BASES_4BIT = [
    bnb_4bit(),
    bnb_4bit("fp4", False),
    bnb_4bit("fp4", True, 32, 5, 33),
    bnb_4bit("nf4", True, 32, 80, 128, storage=torch.bfloat16),
]
BASES_8BIT = [bnb_8bit(), bnb_8bit(1, 1)]
DTYPES = (*STORAGE, torch.int32, torch.int64, torch.bool)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([32, 64, 256, "nf4", "fp4", "float32", "bfloat16", 10**40, -(10**400)])
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
FIELDS = ("quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype")


@st.composite
def mutations(draw: st.DrawFn, bases: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    entries = dict(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 3))):
        if not entries:
            break
        key = draw(st.sampled_from(sorted(entries)))
        value = entries[key]
        kind = draw(st.sampled_from(["drop", "rename", "cast", "view", "shape", "bytes", "json"]))
        if kind == "drop":
            del entries[key]
        elif kind == "rename":
            other = draw(st.sampled_from([*form.KEYS_4BIT, *form.KEYS_8BIT]) | st.text(max_size=9))
            entries[other] = entries.pop(key)
        elif kind == "cast":
            entries[key] = value.to(draw(st.sampled_from(DTYPES)))
        elif kind == "view" and value.dim():
            dtype = draw(st.sampled_from(STORAGE))
            if value.shape[-1] * value.element_size() % dtype.itemsize == 0:
                entries[key] = value.clone(memory_format=torch.contiguous_format).view(dtype)
        elif kind == "shape":
            change = draw(
                st.sampled_from(
                    [
                        lambda t: t[None],
                        lambda t: t.flatten(),
                        lambda t: t.flatten()[1:],
                        lambda t: t.flatten()[:0],
                        lambda t: t.flatten().repeat(2),
                        lambda t: t.reshape(-1, 1)[::2],
                        lambda t: t.reshape(1, -1).t(),
                        lambda t: t.reshape(-1, 1).expand(-1, 3),
                        lambda t: t.to("meta"),
                    ]
                )
            )
            entries[key] = change(value)
        elif kind == "bytes" and value.numel() and not value.is_meta:
            value = value.contiguous().clone()
            raw = value.reshape(-1).view(torch.uint8)
            raw[draw(st.integers(0, raw.numel() - 1))] = draw(st.integers(0, 255))
            entries[key] = value
        elif kind == "json" and "quant_state" in key:
            try:
                state = json.loads(bytes(value.tolist()))
            except (ValueError, TypeError, OverflowError, NotImplementedError):
                continue
            if isinstance(state, dict):
                field = draw(st.sampled_from([*FIELDS, "nested_offset"]) | st.text(max_size=5))
                state[field] = draw(JSON)
                entries[key] = encode(state)
    return entries


@given(mutations(BASES_4BIT))
def test_a_4bit_layer_is_read_right_or_refused(entries: dict[str, Tensor]) -> None:
    try:
        values = form.read_lut4(NAME, entries)
    except ValueError as error:
        assert str(error).startswith(NAME)
        return
    options, shape = form.read_options(NAME, entries)
    blocks = -(-math.prod(shape) // options.blocksize)
    assert values.options == options
    assert values.weight.numel() == (math.prod(shape) + 1) // 2
    assert values.absmax.shape == (blocks,)
    assert values.weight.dtype == torch.uint8
    if options.double_quant:
        assert values.absmax.dtype == torch.uint8
        assert values.nested_absmax.shape == (-(-blocks // 256),)
        assert values.nested_absmax.isfinite().all()
        assert values.nested_offset.isfinite()
    else:
        assert values.absmax.isfinite().all()
    again = form.read_lut4(NAME, form.write_lut4(values, shape), shape)
    assert all(
        a == b if not isinstance(a, Tensor) else same_bits(a, b)
        for a, b in zip(values, again, strict=True)
    )


@given(mutations(BASES_8BIT))
def test_an_8bit_layer_is_read_right_or_refused(entries: dict[str, Tensor]) -> None:
    try:
        weight, absmax = form.read_int8(NAME, entries)
    except ValueError as error:
        assert str(error).startswith(NAME)
        return
    assert weight.dtype == torch.int8
    assert absmax.dtype == torch.float32
    assert absmax.shape == weight.shape[:1]
    assert weight.numel() == 0 or weight.amin() >= -127
    assert absmax.isfinite().all()
    again = form.read_int8(NAME, form.write_int8(weight, absmax))
    assert same_bits(again.weight, weight)
    assert same_bits(again.absmax, absmax)


@given(st.binary(max_size=300))
def test_any_bytes_for_a_quant_state(data: bytes) -> None:
    entries = bnb_4bit()
    entries[form.STATE + "nf4"] = torch.tensor(list(data), dtype=torch.uint8)
    with pytest.raises(ValueError, match=NAME):
        form.read_lut4(NAME, entries)
