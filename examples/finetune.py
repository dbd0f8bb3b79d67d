# SPDX-License-Identifier: MIT
"""Trains a small Llama, quantizes it in every form, and fine-tunes it over a frozen 4-bit base.

The model learns from the sources of Python's standard library. Outlier features, as large models
have them, are planted in it without changing what it computes. Then come the perplexity of each
low-bit form on held-out sources, and LoRA on another text, Python's language reference, over the
NF4 model beside LoRA over the fp32 one.
"""

import argparse
from pathlib import Path

OUTPUT = Path(__file__).parent / "output" / "finetune"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples/finetune", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a smaller model that has learnt less, in a minute"
    )
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder of results (examples/output/finetune)"
    )
    options = parser.parse_args()
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads is {options.threads}, expected at least 1")
    return options


def main() -> None:
    options = arguments()

    import experiment
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    experiment.run(experiment.QUICK if options.quick else experiment.Settings(), options.output)


if __name__ == "__main__":
    main()
