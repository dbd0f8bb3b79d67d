# SPDX-License-Identifier: MIT
"""What is asked for, and what config.json says of it."""

from collections.abc import Iterable
from typing import Any

import torch
from transformers.quantizers.auto import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit import codebooks
from lowbit.nn import Int8Linear, LowbitLinear, LUT4Linear

METHOD = "lowbit"
_DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16")}
_LAYERS: dict[int, type[LowbitLinear]] = {8: Int8Linear, 4: LUT4Linear}
_DEFAULTS: dict[int, dict[str, Any]] = {
    8: {"threshold": 6.0, "offset": False, "absmax_dtype": "float32"},
    4: {"codebook": "nf4", "blocksize": 64, "double_quant": True},
}


@register_quantization_config(METHOD)
class LowbitConfig(QuantizationConfigMixin):
    """How a transformers model is quantized; it is saved in the checkpoint's config.json.

    Args:
        bits: 8 or 4. The options of the other width are an error.
        threshold, offset: of 8 bits, see lowbit.nn.Int8Linear; 6.0 and False unless given.
        absmax_dtype: of 8 bits, "float32" (unless given) or "float16" (or the torch dtype).
        codebook: of 4 bits, a name in lowbit.codebooks or 16 finite values; "nf4" unless given.
        blocksize, double_quant: of 4 bits, see lowbit.nn.LUT4Linear; 64 and True unless given.
        compute_dtype: "float32", "float16", "bfloat16" (or the torch dtype), or None for the dtype
            of the activations.
        skip_modules: names of further modules to leave float: a full name ("model.layers.0.mlp"),
            its end ("up_proj") or a regular expression. The output head, tied weights and modules
            that the model keeps in float32 are left float in any case. A projection of fused
            experts ("down_proj") stands for them all.
        include_modules: names, of the same kind, of modules to quantize although they are the
            output head. A weight that is tied is an error there: it would lose its twin.
    """

    def __init__(
        self,
        bits: int = 8,
        *,
        threshold: float | None = None,
        offset: bool | None = None,
        absmax_dtype: torch.dtype | str | None = None,
        codebook: str | Iterable[float] | None = None,
        blocksize: int | None = None,
        double_quant: bool | None = None,
        compute_dtype: torch.dtype | str | None = None,
        skip_modules: list[str] | None = None,
        include_modules: list[str] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        if bits not in _LAYERS:
            raise ValueError(f"LowbitConfig: bits is {bits}, expected 8 or 4")
        if quant_method != METHOD:
            raise ValueError(f"LowbitConfig: quant_method is {quant_method}, expected {METHOD}")
        options = {
            "threshold": threshold,
            "offset": offset,
            "absmax_dtype": None if absmax_dtype is None else dtype_name(absmax_dtype),
            "codebook": None if codebook is None else _codebook(codebook),
            "blocksize": blocksize,
            "double_quant": double_quant,
        }
        given = {name: value for name, value in options.items() if value is not None}
        foreign = [name for name in given if name not in _DEFAULTS[bits]]
        if foreign:
            raise ValueError(
                f"LowbitConfig: {', '.join(foreign)} given with bits={bits}, "
                f"which takes {', '.join(_DEFAULTS[bits])}"
            )
        self.quant_method = quant_method
        self.bits = bits
        for name, value in (_DEFAULTS[bits] | given).items():
            setattr(self, name, value)
        self.compute_dtype = None if compute_dtype is None else dtype_name(compute_dtype)
        self.skip_modules = _names("skip_modules", skip_modules)
        self.include_modules = _names("include_modules", include_modules)
        self.new_layer(2, 2)  # checks the options

    def new_layer(self, in_features: int, out_features: int, **where: Any) -> LowbitLinear:
        """A layer with these options, on the meta device. where: bias, dtype."""
        options = {name: getattr(self, name) for name in _DEFAULTS[self.bits]}
        if "absmax_dtype" in options:
            options["absmax_dtype"] = _DTYPES[options["absmax_dtype"]]
        return _LAYERS[self.bits](
            in_features,
            out_features,
            compute_dtype=_DTYPES.get(self.compute_dtype),
            device="meta",
            **options,
            **where,
        )


def dtype_name(dtype: torch.dtype | str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise ValueError(f"LowbitConfig: dtype is {dtype}, expected one of {', '.join(_DTYPES)}")
    return name


def to_dtype(dtype: torch.dtype | str) -> torch.dtype:
    return _DTYPES[dtype_name(dtype)]


def _codebook(codebook: str | Iterable[float]) -> str | list[float]:
    """As json takes it: the name, or the values as float32 holds them."""
    try:
        key = codebooks.key(codebook)
    except ValueError as error:
        raise ValueError(f"LowbitConfig: {error}") from None
    return key if isinstance(key, str) else list(key)


def _names(argument: str, given: list[str] | None) -> list[str] | None:
    if isinstance(given, str):
        raise TypeError(f"LowbitConfig: {argument} is the string {given!r}, expected a list")
    return list(given) if given else None
