# SPDX-License-Identifier: MIT
"""Optimizers with 8-bit state."""

from lowbit.optim.adam8bit import Adam8bit, AdamW8bit

__all__ = ["Adam8bit", "AdamW8bit"]
