# SPDX-License-Identifier: MIT
"""The compiled library: operators for torch's dispatcher, and the C functions that report on it.

Importing this module loads it, and with it torch.ops.lowbit.
"""

import ctypes
import importlib.metadata
from functools import cache
from pathlib import Path

import torch

PATH = Path(__file__).with_name("liblowbit_torch.so")
OLDEST_TORCH = (2, 10)

try:
    VERSION = importlib.metadata.version("lowbit")
except importlib.metadata.PackageNotFoundError as error:
    raise ImportError(
        f"{Path(__file__).parent} is lowbit's source, not an installed package; "
        "run `pip install --no-build-isolation .` in lowbit's folder"
    ) from error


def _load() -> None:
    if torch.__version__ < OLDEST_TORCH:
        raise ImportError(
            f"lowbit {VERSION} needs torch >= {'.'.join(map(str, OLDEST_TORCH))}, "
            f"but torch {torch.__version__} is installed; upgrade torch"
        )
    if not PATH.is_file():
        raise ImportError(
            f"lowbit {VERSION} is installed without its compiled library, {PATH}; "
            "run `pip install --no-build-isolation --force-reinstall --no-deps .` in its folder"
        )
    try:
        torch.ops.load_library(str(PATH))
    except OSError as error:
        raise ImportError(
            f"lowbit {VERSION} cannot load {PATH} under torch {torch.__version__}: {error}; "
            "rebuild it here with `pip install --no-build-isolation --force-reinstall --no-deps .`"
        ) from error


@cache
def c_api() -> ctypes.CDLL:
    """The C functions of the loaded library that Python calls, with their signatures."""
    library = ctypes.CDLL(str(PATH))
    library.lowbit_cpu_isa.restype = ctypes.c_uint32
    library.lowbit_cpu_isa_name.argtypes = [ctypes.c_uint32]
    library.lowbit_cpu_isa_name.restype = ctypes.c_char_p
    library.lowbit_cpu_isa_cap.argtypes = [ctypes.c_char_p]
    library.lowbit_cpu_isa_cap.restype = ctypes.c_int
    library.lowbit_int8_linear_ukernel.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
    library.lowbit_int8_linear_ukernel.restype = ctypes.c_char_p
    library.lowbit_lut4_linear_ukernel.argtypes = [ctypes.c_int, *[ctypes.c_size_t] * 3]
    library.lowbit_lut4_linear_ukernel.restype = ctypes.c_char_p
    library.lowbit_last_error.restype = ctypes.c_char_p
    return library


def isa_levels() -> list[tuple[int, str]]:
    """Bits and names of the instruction-set levels that lowbit knows, lowest first."""
    levels = []
    while name := c_api().lowbit_cpu_isa_name(1 << len(levels)):
        levels.append((1 << len(levels), name.decode()))
    return levels


_load()
