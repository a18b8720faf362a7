"""Packages whose names are loaded when they are first used, from the list that type checkers read.

A package lists its public names once, as imports that only a type checker runs:

    if TYPE_CHECKING:
        from .patching import Site as Site
        from .patching import patch as patch
    else:
        __getattr__, __dir__, __all__ = exports(__name__, __file__)
"""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from .errors import did_you_mean


def exports(name: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of the module `name`: the names under `if TYPE_CHECKING:` in its
    source `file`.

    A name listed as from a module is what the module defines. A name listed as from a package is a module of it.
    """
    home: dict[str, str] = {}
    for block in ast.parse(Path(file).read_text(encoding="utf-8")).body:
        if isinstance(block, ast.If):
            lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
            home |= {alias.name: "." * line.level + (line.module or "") for line in lines for alias in line.names}

    def load(public: str) -> object:
        if public not in home:
            raise AttributeError(f"module {name!r} has no attribute {public!r}{did_you_mean(public, home)}")
        module = import_module(home[public], sys.modules[name].__package__)
        is_package = hasattr(module, "__path__")
        value = import_module(f"{module.__name__}.{public}") if is_package else getattr(module, public)
        setattr(sys.modules[name], public, value)
        return value

    return load, lambda: sorted(home), sorted(home)
