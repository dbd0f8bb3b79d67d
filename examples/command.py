# SPDX-License-Identifier: MIT
"""The command line of the examples that train."""

import argparse
import importlib
from pathlib import Path


def run(name: str, description: str, quick: str) -> None:
    """Runs NAME_experiment, its QUICK settings or the usual ones, as examples/NAME was told to."""
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
    experiment = importlib.import_module(f"{name}_experiment")  # takes seconds: after the errors
    experiment.run(experiment.QUICK if options.quick else experiment.Settings(), options.output)
