# SPDX-License-Identifier: MIT
"""python load.py WARM_UP FOLDER BITS [THREADS]

Loads the saved model FOLDER in bfloat16, its linear layers in BITS (8 or 4; 16: as they are), and
prints as JSON: load, the seconds of from_pretrained; first_token, those until the model has also
run on one token; and in bytes footprint, of the model; kept, in anonymous memory after loading;
mapped, resident of files then; peak, resident on the way, files included. The files are read
through memory maps, and weights that keep their dtype stay there, unread until the first token.
WARM_UP is a small model that goes first, since code that runs for the first time also takes time
and memory. Linux only.
"""

import json
import logging
import sys
from pathlib import Path
from time import perf_counter

logging.disable(logging.WARNING)  # torchao reports optional parts it lacks

import torch  # noqa: E402
from lowbit.integrations.transformers import LowbitConfig  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402


def main() -> None:
    disable_progress_bar()
    warm_up, folder, bits, *threads = sys.argv[1:]
    if threads:
        torch.set_num_threads(int(threads[0]))
    config = {} if bits == "16" else {"quantization_config": LowbitConfig(bits=int(bits))}
    token = torch.zeros(1, 1, dtype=torch.int64)
    with torch.inference_mode():
        AutoModelForCausalLM.from_pretrained(warm_up, dtype=torch.bfloat16, **config)(token)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        before = {key: _status(key) for key in ("RssAnon:", "RssFile:", "VmRSS:")}
        start = perf_counter()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **config)
        load = perf_counter() - start
        found = {
            "load": load,
            "footprint": model.get_memory_footprint(),
            "kept": _status("RssAnon:") - before["RssAnon:"],
            "mapped": _status("RssFile:") - before["RssFile:"],
            "peak": _status("VmHWM:") - before["VmRSS:"],
        }
        start = perf_counter()
        model(token)
        found["first_token"] = load + perf_counter() - start
    print(json.dumps(found))


def _status(key: str) -> int:
    return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024


if __name__ == "__main__":
    main()
