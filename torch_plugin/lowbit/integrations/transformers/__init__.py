# SPDX-License-Identifier: MIT
"""lowbit for Hugging Face transformers 5.

    AutoModel.from_pretrained(name, quantization_config=LowbitConfig(bits=8))  # or bits=4

quantizes each weight as it is loaded. save_pretrained writes the quantized model, from_pretrained
reads it back to the same bits, and model.dequantize() makes it a float one again.
"""

import importlib

from lowbit.integrations.transformers.config import LowbitConfig
from lowbit.integrations.transformers.quantizer import LowbitQuantizer

__all__ = ["LowbitConfig", "LowbitQuantizer"]

importlib.import_module("lowbit.integrations.bitsandbytes")  # reads its checkpoints, if asked to
