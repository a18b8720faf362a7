"""torch as mypy sees it here: anything at all, but for decorators, which keep the type of what they decorate.

torch's own types take a minute to read, and call every submodule of a model `Tensor | Module`.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
nn: Any

Tensor: TypeAlias = Any

class no_grad:
    def __call__(self, function: Function) -> Function: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...

def __getattr__(name: str) -> Any: ...
