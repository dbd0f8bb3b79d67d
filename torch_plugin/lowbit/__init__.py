# SPDX-License-Identifier: MIT
"""lowbit: int8 linear layers with outlier decomposition, as ordinary PyTorch operators.

    lowbit.quantize_(model)                   every linear layer of a model, in place
    lowbit.nn.Int8Linear                      one layer
    torch.ops.lowbit.int8_linear              the operator
    lowbit.integrations.transformers          LowbitConfig, for from_pretrained

`python -m lowbit info` prints what a bug report needs.
"""

from lowbit import _library, integrations, nn, ops  # _library first: it loads the operators
from lowbit.quantize import quantize_

__all__ = ["__version__", "integrations", "nn", "ops", "quantize_"]
__version__ = _library.VERSION

integrations.register()
