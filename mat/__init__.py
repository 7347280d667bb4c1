"""Meta adversarial training (MAT) against universal patches, arXiv:2101.11453.

From Python: `mat.train`, `mat.evaluate`, `mat.load`, `mat.read_image`, `mat.fit_patch` and `mat.apply_patches`, the functions of `mat.api`.
They are imported when they are first used, as TensorFlow takes seconds to import. docs/python.md shows them at work.
"""

import importlib
import sys
import types
from typing import Any

if sys.platform == "win32":
    raise ImportError("mat runs on Linux and macOS. On Windows, run it in WSL, the Windows Subsystem for Linux: wsl --install")

__version__ = "0.5.0"

_FUNCTIONS = ("load", "read_image", "fit_patch", "apply_patches")
_COMMANDS = ("train", "evaluate")


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return importlib.import_module(f"mat.{name}")
    if name == "api":
        return _api()
    if name in _FUNCTIONS:
        return getattr(_api(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_COMMANDS, *_FUNCTIONS]


def _api() -> Any:
    """`mat.api`, imported with TensorFlow but without its greetings."""
    if "tensorflow" not in sys.modules:
        importlib.import_module("mat.cli.command").load_tensorflow()
    return importlib.import_module("mat.api")


class CallableModule(types.ModuleType):
    """The module of a command, `mat.train` or `mat.evaluate`, which can also be called: as the function of that name in `mat.api`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of `mat.api`: see `help(mat.api.train)` and `help(mat.api.evaluate)`."""
        return getattr(_api(), self.__name__.rpartition(".")[2])(*args, **kwargs)
