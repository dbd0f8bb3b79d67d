# SPDX-License-Identifier: MIT
"""lowbit for what bitsandbytes left behind: its checkpoints, and scripts written for it.

    AutoModelForCausalLM.from_pretrained(folder, quantization_config=LowbitConfig(bits=4))

reads a checkpoint that bitsandbytes wrote, LLM.int8, NF4 or FP4, with or without double
quantization, whether it is installed or not. Codes and scales are taken as they are.

    lowbit.integrations.bitsandbytes.enable()

makes every from_pretrained that asks for bitsandbytes, by a BitsAndBytesConfig or by the
checkpoint, use lowbit instead; disable() ends that.

    lowbit.integrations.bitsandbytes.save_pretrained(model, folder)

writes a model with lowbit's layers as a checkpoint for bitsandbytes.
"""

from lowbit.integrations.bitsandbytes.quantizer import BitsAndBytesQuantizer, disable, enable
from lowbit.integrations.bitsandbytes.saving import save_pretrained

__all__ = ["BitsAndBytesQuantizer", "disable", "enable", "save_pretrained"]
