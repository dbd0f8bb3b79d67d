# SPDX-License-Identifier: MIT
"""The machine, and the ceilings that results are held against."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lowbit import cli
from race import interleave

# What caps instruction sets and places threads. An AVX2 machine is played by a larger one with
# LOWBIT_CPU_ISA=avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2.
ENVIRONMENT = (
    "LOWBIT_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "OMP_PROC_BIND",
    "OMP_NUM_THREADS",
)
READ_LABEL = "DRAM read, best of torch.sum and torch.dot"
INT8_LABEL = "int8 products in cache, best of lowbit int8_matmul and torch._int_mm"
FLOAT_LABEL = "float products in cache, best of torch.matmul in bf16 and fp32"


def describe() -> dict[str, str]:
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    return {
        **dict(cli.info()),
        "torch's CPU capability": torch.backends.cpu.get_cpu_capability(),
        "last-level cache": f"{last_level_cache() / 2**20:g} MiB",
        "environment": " ".join(f"{name}={value}" for name, value in environment.items()),
    }


def last_level_cache() -> int:
    """Bytes; 0 where the system does not say."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    sizes = (file.read_text().strip() for file in folder.glob("index*/size"))
    return max((int(size.removesuffix("K")) * 1024 for size in sizes), default=0)


def ceilings(read_bytes: int, seconds: float) -> dict[str, Any]:
    """Bytes and multiply-adds per second with torch's current threads, as measured by the fastest
    call at hand: a machine may be capable of a little more."""
    numbers = torch.ones(read_bytes // 4)
    m, n, k = 512, 512, 1024
    a, b = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8)
    reads = interleave(
        {"sum": numbers.sum, "dot": lambda: torch.dot(numbers, numbers)},
        seconds,
    )
    int8_products = interleave(
        {
            "lowbit": lambda: torch.ops.lowbit.int8_matmul(a, b),
            "torch": lambda: torch._int_mm(a, b.t()),
        },
        seconds,
    )
    float_products = interleave(
        {
            str(dtype): partial(torch.matmul, a.to(dtype), b.to(dtype).t())
            for dtype in (torch.bfloat16, torch.float32)
        },
        seconds,
    )
    return {
        "threads": torch.get_num_threads(),
        "read": read_bytes / min(t.best for t in reads.values()),
        "int8_products": m * n * k / min(t.best for t in int8_products.values()),
        "float_products": m * n * k / min(t.best for t in float_products.values()),
    }
