# SPDX-License-Identifier: MIT
"""`python -m lowbit info`: what a bug report needs."""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

from lowbit import _library

_COMPANIONS = ("transformers", "accelerate", "peft", "bitsandbytes", "torchao")
_EXAMPLE_ROWS = (1, 4, 8, 16, 64, 512)
_EXAMPLE_K = 4096
_EXAMPLE_BLOCKSIZE = 64
_DTYPES = {"float32": 0, "bfloat16": 2}  # lowbit_dtype


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lowbit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, build, instruction sets, kernels, threads, CUDA")
    parser.parse_args(arguments)
    rows = list(info())
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def info() -> Iterator[tuple[str, str]]:
    yield "lowbit", _library.VERSION
    yield "library", f"{_library.PATH} ({_library.PATH.stat().st_size} bytes)"
    yield "torch", torch.__version__
    for name in _COMPANIONS:
        yield name, _installed(name)
    yield "python", f"{platform.python_version()} ({platform.python_implementation()})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    yield "processor", _processor()
    yield "instruction sets", _instruction_sets()
    for m in _EXAMPLE_ROWS:
        yield (
            f"int8_linear, M = {m}",
            _name(_library.c_api().lowbit_int8_linear_ukernel(m, _EXAMPLE_K)),
        )
    for dtype, code in _DTYPES.items():
        for m in _EXAMPLE_ROWS:
            yield (
                f"lut4_linear, {dtype}, M = {m}",
                _name(
                    _library.c_api().lowbit_lut4_linear_ukernel(
                        code, m, _EXAMPLE_K, _EXAMPLE_BLOCKSIZE
                    )
                ),
            )
    yield "threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"
    yield "CUDA", _cuda()


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _instruction_sets() -> str:
    levels = _library.isa_levels()
    cap = os.environ.get("LOWBIT_CPU_ISA")
    used = _library.c_api().lowbit_cpu_isa()
    if not used:
        known = ", ".join(name for _, name in levels)
        return f"none: LOWBIT_CPU_ISA is {cap!r}, expected one of {known}"
    names = [name for bit, name in levels if used & bit]
    return ", ".join(names) + (f" (capped by LOWBIT_CPU_ISA={cap})" if cap else "")


def _name(kernel: bytes | None) -> str:
    return kernel.decode() if kernel else "none"


def _cuda() -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"no device (torch built for {built})" if built else "torch built without it"
    key = torch._C._dispatch_key_for_device("cuda")
    there = torch._C._dispatch_has_kernel_for_dispatch_key("lowbit::int8_linear", key)
    kernels = "kernels for it" if there else "CPU kernels only"
    return f"{torch.version.cuda}, {torch.cuda.get_device_name()}; lowbit has {kernels}"
