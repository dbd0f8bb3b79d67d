# SPDX-License-Identifier: MIT
"""The command line of the examples that train."""

import argparse
from pathlib import Path


def options(name: str, description: str, quick: str) -> argparse.Namespace:
    """What examples/NAME was told: quick, output. --threads has taken effect."""
    parser = argparse.ArgumentParser(prog=f"examples/{name}", description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent / "output" / name,
        help=f"folder of results (examples/output/{name})",
    )
    options = parser.parse_args()
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"--threads is {options.threads}, expected at least 1")
        import torch

        torch.set_num_threads(options.threads)
    return options
