"""How far a long computation is.

Every public function that takes a while has an argument `progress`. It is called with the number of items that are
done so far: the numbers never fall, and the last one is the total. The function's docstring says what an item is. A
function that finds its result in a cache does not call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Progress = Callable[[int], object]

Item = TypeVar("Item")


def silent(done: int) -> None:
    """Tell nobody."""


def counted(items: Iterable[Item], progress: Progress) -> Iterator[Item]:
    """Yield `items`; call `progress` when the caller is done with each of them."""
    for done, item in enumerate(items, 1):
        yield item
        progress(done)
