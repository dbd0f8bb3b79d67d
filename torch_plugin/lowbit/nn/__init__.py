# SPDX-License-Identifier: MIT
"""Layers with low-bit weights."""

from lowbit.nn.int8_linear import Int8Linear
from lowbit.nn.lowbit_linear import LowbitLinear
from lowbit.nn.lut4_linear import LUT4Linear

__all__ = ["Int8Linear", "LUT4Linear", "LowbitLinear"]
