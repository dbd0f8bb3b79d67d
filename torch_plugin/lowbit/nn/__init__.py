# SPDX-License-Identifier: MIT
"""Layers with low-bit weights."""

from lowbit.nn.int8_linear import Int8Linear

__all__ = ["Int8Linear"]
