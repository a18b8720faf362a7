"""Several ways of doing one job, measured in turn: a machine that slows down slows all of them."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """Seconds of each run, by the name of the way: `watch("loop", function, argument, …)` runs and notes one."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, function: Callable[..., T], *arguments, **options) -> T:
        started = time.perf_counter()
        result = function(*arguments, **options)
        self.seconds[name].append(time.perf_counter() - started)
        return result

    def total(self, name: str) -> float:
        return sum(self.seconds[name])

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> dict:
        """How many times the seconds of `fast` those of `slow` are, round by round, and the median."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return {"ratio_by_round": ratios, "ratio_median": statistics.median(ratios)}


def alternated(rounds: int, ways: dict[str, Callable[[], T]]) -> tuple[Stopwatch, dict[str, T]]:
    """All ways in turn, `rounds` times: the seconds of each and its last result."""
    watch, results = Stopwatch(), {}
    for _ in range(rounds):
        for name, way in ways.items():
            results[name] = watch(name, way)
    return watch, results
