# SPDX-License-Identifier: MIT
"""Trains a small Llama, quantizes it in every form, and fine-tunes it over a frozen 4-bit base.

The model learns from the sources of Python's standard library. Outlier features, as large models
have them, are planted in it without changing what it computes. Then come the perplexity of each
low-bit form on held-out sources, and LoRA on another text, Python's language reference, over the
NF4 model beside LoRA over the fp32 one.
"""

import command

if __name__ == "__main__":
    command.run("finetune", __doc__, quick="a smaller model that has learnt less, in a minute")
