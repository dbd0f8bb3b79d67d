# SPDX-License-Identifier: MIT
"""Trains a small Llama by torch's AdamW and by lowbit's AdamW8bit, and compares the two.

Every run learns from the same batches of the sources of Python's standard library, and all but one
start from the same weights: in fp32 by either optimizer, in bf16 with and without master weights,
and in full with int8 weights. Then one of them is taken up again in the middle, from a file, and
must end at the same bits.
"""

import command

if __name__ == "__main__":
    command.run("train", __doc__, quick="a smaller model that learns less, in half a minute")
