# SPDX-License-Identifier: MIT
"""lowbit for PEFT: adapters train on Int8Linear as on any linear layer, but do not merge into it.

PEFT adds an adapter to the weight as it is stored. On codes, merge(safe_merge=True) would round the
adapter away without a word; here every merge into an Int8Linear raises instead.
"""

import functools
from typing import Any

from peft.tuners.lora import layer as lora

from lowbit.nn import Int8Linear

_merge = lora.Linear.merge


@functools.wraps(_merge)
def _refuse_to_merge(self: lora.Linear, *args: Any, **kwargs: Any) -> None:
    if isinstance(self.get_base_layer(), Int8Linear):
        raise ValueError(
            "an adapter cannot be merged into an Int8Linear; "
            "call model.dequantize(), attach the adapter to the result, and merge there"
        )
    _merge(self, *args, **kwargs)


lora.Linear.merge = _refuse_to_merge
