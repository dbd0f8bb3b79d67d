# SPDX-License-Identifier: MIT
"""lowbit: 8-bit and 4-bit linear layers and 8-bit Adam, as ordinary PyTorch operators.

    lowbit.quantize_(model)                   every linear layer of a model, in place
    lowbit.quantize_(model, bits=4)           the same in NF4 with double quantization
    lowbit.nn.Int8Linear                      one layer: int8, with outlier decomposition
    lowbit.nn.LUT4Linear                      one layer: 4-bit codes into a table of 16 values
    lowbit.codebooks                          the tables: NF4, FP4, AF4, BOF4, INT4
    lowbit.optim.AdamW8bit, Adam8bit          optimizers with 8-bit state
    torch.ops.lowbit.int8_linear, lut4_linear the operators
    lowbit.integrations.transformers          LowbitConfig, for from_pretrained
    lowbit.integrations.peft                  LoRA over the layers, and loftq_
    lowbit.integrations.bitsandbytes          its checkpoints, and scripts written for it

`python -m lowbit info` prints what a bug report needs.
"""

from lowbit import (
    _library,
    codebooks,
    integrations,
    nn,
    ops,
    optim,
)  # _library first: it loads the operators
from lowbit.quantize import quantize_

__all__ = ["__version__", "codebooks", "integrations", "nn", "ops", "optim", "quantize_"]
__version__ = _library.VERSION

integrations.register()
