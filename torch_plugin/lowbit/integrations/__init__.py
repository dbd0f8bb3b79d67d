# SPDX-License-Identifier: MIT
"""Plug-ins for other libraries, each in its own module, imported when its library is."""

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

# The module of the other library that a plug-in registers with, and the plug-in.
_PLUGINS = {
    "transformers.quantizers.auto": "lowbit.integrations.transformers",
    "peft": "lowbit.integrations.peft",
}


class _AfterImport(MetaPathFinder):
    """Imports a plug-in right after the module it registers with."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _PLUGINS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register(_PLUGINS[name])

            spec.loader.exec_module = run_and_register
        return spec


def _register(plugin: str) -> None:
    try:
        importlib.import_module(plugin)
    except ImportError as error:
        warnings.warn(f"{plugin} does not work with the installed version: {error}", stacklevel=2)


def __getattr__(name: str) -> ModuleType:
    if name in ("transformers", "peft", "bitsandbytes"):  # imported, with its library, when used
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Makes `import lowbit` enough, in any order with the imports of the other libraries.

    transformers takes the codes of a method it does not know for float weights, with no more than
    a warning. It has no entry points, and importing it here would cost seconds; so registration
    waits until it is imported.
    """
    sys.meta_path.insert(0, _AfterImport())
    for module, plugin in _PLUGINS.items():
        if module in sys.modules:
            _register(plugin)
