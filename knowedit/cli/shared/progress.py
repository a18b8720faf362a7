"""What a user sees of time: one kind of bar, and one clock."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Yield `step(done, doing=None)`: show on a terminal how many of `total` items are done, and what is being done.

    `done` counts from the beginning, not from the last call. The bar appears at the first call, so work that is
    found in a cache shows none, and goes when the context ends. Elsewhere the log has a line at its beginning.
    """
    from tqdm.auto import tqdm

    bar = None

    def step(done: int, doing: str | None = None) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, desc=what, unit=unit, leave=False, disable=None)
            _log.info("%s, %s", what, f"{unit}s" if total is None else f"{total} {unit}s")
        bar.update(done - bar.n)
        if doing is not None:
            bar.set_description(doing)

    try:
        yield step
    finally:
        if bar is not None:
            bar.close()


class Clock:
    """Seconds since it was made, or since the last lap."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last
