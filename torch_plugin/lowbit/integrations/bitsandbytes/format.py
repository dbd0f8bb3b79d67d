# SPDX-License-Identifier: MIT
"""The entries in which bitsandbytes stores a linear layer, read and written.

Pure functions of tensors: neither bitsandbytes nor transformers is needed. The keys follow the name
of the layer.

8 bits (LLM.int8), W[n, k] = weight[n, k] * SCB[n] / 127:
    weight          int8 [N, K]
    SCB             float32 [N]
    weight_format   uint8 [], 0 for row-major; early files leave it out

4 bits, B = ceil(N K / blocksize), in the layout of lut4_linear:
    weight          ceil(N K / 2) bytes, as [n, 1] of whatever dtype they were stored in
    weight.absmax   float32 [B]; with double quantization uint8 [B]
    weight.quant_map                        float32 [16], the codebook
    weight.quant_state.bitsandbytes__nf4    uint8, a JSON object: quant_type, blocksize, dtype and
                    (or bitsandbytes__fp4)  shape, the float weight's
  and with double quantization, absmax[i] = nested_quant_map[absmax[i]] * nested_absmax[i / 256]
  + nested_offset:
    weight.nested_absmax                    float32 [ceil(B / 256)]
    weight.nested_quant_map                 float32 [256], the signed dynamic map
    in the JSON object                      nested_blocksize, nested_dtype and nested_offset
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowbit import codebooks

STATE = "weight.quant_state.bitsandbytes__"
CODEBOOKS = ("nf4", "fp4")
KEYS_8BIT = ("weight", "SCB", "weight_format")
KEYS_4BIT = (
    "weight",
    "weight.absmax",
    "weight.quant_map",
    "weight.nested_absmax",
    "weight.nested_quant_map",
    *(STATE + codebook for codebook in CODEBOOKS),
)

_NESTED_KEYS = ("weight.nested_absmax", "weight.nested_quant_map")
_NESTED_BLOCKSIZE = 256
_BLOCKSIZES = [2**n for n in range(5, 13)]
_DTYPES = ("float32", "float16", "bfloat16")
_STORAGE = (
    torch.uint8,
    torch.int8,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_WEIGHT_FORMATS = ("row", "col32", "col_turing", "col_ampere")
# The object takes about 200 bytes; one that is longer is not worth parsing.
_MAX_STATE_BYTES = 4096


class Int8Entries(NamedTuple):
    """The parameters of an Int8Linear."""

    weight: Tensor  # int8 [N, K]
    absmax: Tensor  # float32 [N]


class Lut4Options(NamedTuple):
    """What a layer's quant_state says, but for its shape."""

    codebook: str  # "nf4" or "fp4"
    blocksize: int
    double_quant: bool
    dtype: str  # of the float weight, by name


class Lut4Entries(NamedTuple):
    """The parameters of a LUT4Linear, flat, with its options."""

    weight: Tensor  # uint8 [ceil(N K / 2)]
    absmax: Tensor  # float32 or uint8 [B]
    nested_absmax: Tensor | None  # float32 [ceil(B / 256)]
    nested_offset: Tensor | None  # float32 []
    options: Lut4Options


def read_int8(
    layer: str, entries: Mapping[str, Tensor], shape: tuple[int, int] | None = None
) -> Int8Entries:
    """The entries of an 8-bit layer, checked; shape is the expected [N, K].

    ValueError, naming the entry and the rule: a key, dtype, shape or value that the format does not
    have.
    """
    _check_keys(layer, entries, ("weight", "SCB"), KEYS_8BIT)
    weight = _entry(layer, entries, "weight", torch.int8)
    if weight.dim() != 2 or (shape is not None and tuple(weight.shape) != tuple(shape)):
        expected = "[N, K]" if shape is None else list(shape)
        raise _error(layer, "weight", f"has shape {list(weight.shape)}, expected {expected}")
    absmax = _entry(layer, entries, "SCB", torch.float32, (weight.shape[0],))
    if "weight_format" in entries:
        code = int(_entry(layer, entries, "weight_format", torch.uint8, ()))
        if code != 0:
            meaning = f" ({_WEIGHT_FORMATS[code]})" if code < len(_WEIGHT_FORMATS) else ""
            raise _error(layer, "weight_format", f"is {code}{meaning}, expected 0 (row)")
    if weight.numel() and weight.amin() == -128:
        raise _error(layer, "weight", "holds -128, expected codes in [-127, 127]")
    _check_scales(layer, "SCB", absmax)
    return Int8Entries(weight, absmax)


def write_int8(weight: Tensor, absmax: Tensor) -> dict[str, Tensor]:
    """The entries of an 8-bit layer from its codes [N, K] and scales [N]."""
    return {
        "weight": weight,
        "SCB": absmax.float(),
        "weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def read_options(layer: str, entries: Mapping[str, Tensor]) -> tuple[Lut4Options, tuple[int, int]]:
    """What the quant_state among a 4-bit layer's entries says: options, and the weight's [N, K].

    ValueError, naming the entry and the rule: it is missing, or not what the format has.
    """
    _, state = _read_state(layer, entries)
    options = Lut4Options(
        state["quant_type"], state["blocksize"], "nested_offset" in state, state["dtype"]
    )
    return options, tuple(state["shape"])


def read_lut4(
    layer: str, entries: Mapping[str, Tensor], shape: tuple[int, int] | None = None
) -> Lut4Entries:
    """The entries of a 4-bit layer, checked; shape is the expected [N, K].

    ValueError, naming the entry and the rule: a key, dtype, shape or value that the format does not
    have, a codebook that is not the one that its quant_state names, nested blocks other than 256.
    """
    options, stated = read_options(layer, entries)
    key, state = _read_state(layer, entries)
    required = ("weight", "weight.absmax", "weight.quant_map", key)
    if options.double_quant:
        required += _NESTED_KEYS
    _check_keys(layer, entries, required, required)
    if shape is not None and stated != tuple(shape):
        raise _error(layer, key, f"has shape {list(stated)}, expected {list(shape)}")

    count = math.prod(stated)
    blocks = -(-count // options.blocksize)
    stored = _entry(layer, entries, "weight")
    given, expected = stored.numel() * stored.element_size(), (count + 1) // 2
    if stored.dtype not in _STORAGE:
        names = ", ".join(map(str, _STORAGE))
        raise _error(layer, "weight", f"has dtype {stored.dtype}, expected one of {names}")
    if stored.dim() != 2 or stored.shape[1] != 1 or given != expected:
        raise _error(
            layer,
            "weight",
            f"has shape {list(stored.shape)} of {stored.dtype}, {given} bytes, "
            f"expected [n, 1] of {expected} bytes for a weight of shape {list(stated)}",
        )
    flat = stored.reshape(-1)
    if flat.stride(0) != 1:
        flat = flat.clone(memory_format=torch.contiguous_format)
    weight = flat.view(torch.uint8)
    scales = torch.uint8 if options.double_quant else torch.float32
    absmax = _entry(layer, entries, "weight.absmax", scales, (blocks,))
    _check_map(layer, entries, "weight.quant_map", _map(options.codebook))
    if not options.double_quant:
        _check_scales(layer, "weight.absmax", absmax)
        return Lut4Entries(weight, absmax, None, None, options)

    _check_map(layer, entries, "weight.nested_quant_map", _map(codebooks.DYNAMIC))
    nested_absmax = _entry(
        layer, entries, "weight.nested_absmax", torch.float32, (-(-blocks // _NESTED_BLOCKSIZE),)
    )
    _check_scales(layer, "weight.nested_absmax", nested_absmax)
    offset = float(state["nested_offset"])
    nested_offset = torch.tensor(offset, dtype=torch.float32, device=weight.device)
    return Lut4Entries(weight, absmax, nested_absmax, nested_offset, options)


def write_lut4(values: Lut4Entries, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The entries of a 4-bit layer whose float weight has this shape [N, K]."""
    options = values.options
    state: dict[str, Any] = {
        "quant_type": options.codebook,
        "blocksize": options.blocksize,
        "dtype": options.dtype,
        "shape": list(shape),
    }
    entries = {
        "weight": values.weight.reshape(-1, 1),
        "weight.absmax": values.absmax.reshape(-1),
        "weight.quant_map": _map(options.codebook).clone(),
    }
    if values.nested_absmax is not None and values.nested_offset is not None:
        state |= {
            "nested_blocksize": _NESTED_BLOCKSIZE,
            "nested_dtype": "float32",
            "nested_offset": values.nested_offset.item(),
        }
        entries["weight.nested_absmax"] = values.nested_absmax
        entries["weight.nested_quant_map"] = _map(codebooks.DYNAMIC).clone()
    encoded = json.dumps(state).encode()
    entries[STATE + options.codebook] = torch.tensor(list(encoded), dtype=torch.uint8)
    return entries


def _read_state(layer: str, entries: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """The quant_state's key, and its fields, checked."""
    keys = [key for key in entries if key.startswith(STATE)]
    if len(keys) != 1:
        given = ", ".join(sorted(keys)) or "none"
        raise ValueError(
            f"{layer} has the quant_state entries {given}, expected one of "
            f"{', '.join(STATE + codebook for codebook in CODEBOOKS)}"
        )
    (key,) = keys
    codebook = key.removeprefix(STATE)
    if codebook not in CODEBOOKS:
        raise _error(layer, key, f"is for {codebook}, expected one of {', '.join(CODEBOOKS)}")
    state = _parse_state(layer, key, _entry(layer, entries, key, torch.uint8))
    blocksize, nested_blocksize = state.get("blocksize"), state.get("nested_blocksize")
    rules = {
        "quant_type": (state.get("quant_type") == codebook, repr(codebook)),
        "blocksize": (
            _is_int(blocksize) and blocksize in _BLOCKSIZES,
            f"one of {', '.join(map(str, _BLOCKSIZES))}",
        ),
        "dtype": (state.get("dtype") in _DTYPES, f"one of {', '.join(_DTYPES)}"),
        "shape": (_is_shape(state.get("shape")), "[N, K]"),
    }
    if any(field.startswith("nested_") for field in state):
        rules |= {
            "nested_blocksize": (
                _is_int(nested_blocksize) and nested_blocksize == _NESTED_BLOCKSIZE,
                str(_NESTED_BLOCKSIZE),
            ),
            "nested_dtype": (state.get("nested_dtype") == "float32", "'float32'"),
            "nested_offset": (
                _is_float32(state.get("nested_offset")),
                "a finite number in the range of float32",
            ),
        }
    if state.keys() != rules.keys():
        given, expected = (", ".join(sorted(fields)) for fields in (state, rules))
        raise _error(layer, key, f"has the fields {given}, expected {expected}")
    for field, (holds, expected) in rules.items():
        if not holds:
            raise _error(layer, key, f"has {field} {state[field]!r:.100}, expected {expected}")
    return key, state


# Checks


def _error(layer: str, key: str, problem: str) -> ValueError:
    return ValueError(f"{layer}.{key} {problem}")


def _check_keys(
    layer: str, entries: Iterable[str], required: Iterable[str], known: Iterable[str]
) -> None:
    given, required, known = set(entries), set(required), set(known)
    if not required <= given <= known:
        optional = known - required
        raise ValueError(
            f"{layer} has the entries {', '.join(sorted(given))}, "
            f"expected {', '.join(sorted(required))}"
            + (f" and perhaps {', '.join(sorted(optional))}" if optional else "")
        )


def _entry(
    layer: str,
    entries: Mapping[str, Tensor],
    key: str,
    dtype: torch.dtype | None = None,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    value = entries[key]
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise _error(layer, key, f"is {type(value).__name__}, expected a dense tensor with data")
    if dtype is not None and value.dtype != dtype:
        raise _error(layer, key, f"has dtype {value.dtype}, expected {dtype}")
    if shape is not None and tuple(value.shape) != shape:
        raise _error(layer, key, f"has shape {list(value.shape)}, expected {list(shape)}")
    return value.detach()


def _check_scales(layer: str, key: str, value: Tensor) -> None:
    if not value.isfinite().all():
        raise _error(layer, key, "holds NaN or infinity, expected finite values")
    if value.numel() and value.amin() < 0:
        raise _error(layer, key, f"holds {value.amin():g}, expected no negative value")


def _map(codebook: str) -> Tensor:
    return codebooks.shared(codebook, torch.device("cpu"))


def _check_map(layer: str, entries: Mapping[str, Tensor], key: str, expected: Tensor) -> None:
    """The map that the format names, to a rounding of its float32 values: bitsandbytes computes it,
    and not every build to the last bit."""
    value = _entry(layer, entries, key, torch.float32, tuple(expected.shape))
    if not torch.allclose(value.cpu(), expected, rtol=1e-6, atol=0):
        worst = int((value.cpu() - expected).abs().nan_to_num(math.inf).argmax())
        raise _error(
            layer,
            key,
            f"has {value[worst].item():.7g} at {worst}, expected {expected[worst].item():.7g}: "
            "it is not the map that bitsandbytes uses, and another one is not read",
        )


def _parse_state(layer: str, key: str, value: Tensor) -> dict[str, Any]:
    if value.dim() != 1 or value.numel() > _MAX_STATE_BYTES:
        raise _error(
            layer,
            key,
            f"has shape {list(value.shape)}, expected at most [{_MAX_STATE_BYTES}] bytes",
        )
    try:
        state = json.loads(bytes(value.tolist()).decode(), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise _error(layer, key, f"is no JSON object: {error}") from None
    if not isinstance(state, dict):
        raise _error(layer, key, f"is a {type(state).__name__}, expected a JSON object")
    return state


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a field stands there twice")
    return result


def _is_int(value: object) -> bool:
    return type(value) is int  # True is an int as well


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_int(n) and n > 0 for n in value)


def _is_float32(value: object) -> bool:
    return type(value) in (int, float) and abs(value) <= torch.finfo(torch.float32).max
