"""The geometry of the page's drawings, in a square of 100 by 100 that the page stretches to its width.

Lines, cells and intervals are drawn by the template as SVG in the page's own colours, light or dark; words and numbers
stand beside them as text, so they stay readable at any width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def line(values: Sequence[float | None], low: float = 0.0, high: float = 1.0) -> str:
    """The path of a line through `values`, evenly spaced from left to right; a None interrupts it."""
    parts, pen = [], "M"
    for i, value in enumerate(values):
        if value is None:
            pen = "M"
            continue
        parts.append(f"{pen}{x(i, len(values))} {y(value, low, high)}")
        pen = "L"
    return "".join(parts)


def dots(values: Sequence[float | None], low: float = 0.0, high: float = 1.0) -> str:
    """The same points, each as a line of no length, which a round cap makes a dot."""
    found = ((i, v) for i, v in enumerate(values) if v is not None)
    return "".join(f"M{x(i, len(values))} {y(v, low, high)}h0" for i, v in found)


def x(i: int, n: int) -> float:
    """The middle of column `i` of `n`."""
    return round(100 * (i + 0.5) / n, 2)


def y(value: float, low: float = 0.0, high: float = 1.0) -> float:
    """The height of a value, 0 at the top."""
    return round(100 * (1 - (value - low) / ((high - low) or 1.0)), 2)


def across(value: float, low: float, high: float) -> float:
    """Where a value lies on a scale from left to right, in percent."""
    return round(max(0.0, min(100.0, 100 * (value - low) / ((high - low) or 1.0))), 2)


def reach(values: Sequence[float | None]) -> float:
    """The largest magnitude, and 1 where there is none: what a symmetrical scale ends at."""
    return max((abs(v) for v in values if v is not None), default=0.0) or 1.0


def peak(values: Sequence[float | None]) -> int:
    """The column of the largest magnitude."""
    return max(range(len(values)), key=lambda i: abs(values[i] or 0.0))


def first_above(values: Sequence[float], least: float) -> int:
    """The first column that reaches `least`; the last one where none does."""
    return next((i for i, value in enumerate(values) if value >= least), len(values) - 1)


def span(values: Sequence[float | None]) -> tuple[float, float]:
    """A scale that holds all of `values`, and zero."""
    known = [v for v in values if v is not None] + [0.0]
    return min(known), max(known)


def down(low: float) -> float:
    """The next tenth below, and −0.1 at least: the lower end of a scale of losses."""
    return min(-0.1, math.floor(10 * low) / 10)


def ticks(n: int, first: int = 0, most: int = 7) -> list[int]:
    """Columns to label, at most about `most`: the `first` and every k-th after it."""
    step = next((s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200) if n <= s * most), 500)
    return list(range(first, n, step))


def decades(ranks: Sequence[int]) -> list[float]:
    """Ranks on a logarithmic scale, upside down: the first choice, 0, is the highest."""
    return [-math.log10(rank) for rank in ranks]


def powers(worst: int) -> list[tuple[float, str]]:
    """Marks for `decades`: the first choice, and powers of ten down to 10 to the `worst`."""
    names = ("1st", "10", "100", "1 k", "10 k", "100 k", "1 M")
    return [(-float(power), names[power]) for power in range(min(worst, len(names) - 1) + 1)]


def ends_and_zero(low: float, high: float) -> list[tuple[float, str]]:
    """Marks of a scale: both ends and zero, where these are not the same or too near to be told apart."""
    far = [end for end in (low, high) if abs(end) > (high - low) / 10]
    return [(0.0, "0"), *((end, f"{end:+.2f}".replace("-", "\N{MINUS SIGN}")) for end in far)]


def less(values: Sequence[Sequence[float]], base: float) -> list[list[float]]:
    """A table with `base` taken from every cell."""
    return [[value - base for value in row] for row in values]


def ends(rows: Sequence[tuple]) -> list[float | None]:
    """All that a forest plot's scale has to hold."""
    return [found[name] for *_, found in rows for name in ("value", "low", "high")]


def specificity(proof: dict, what: str) -> list[tuple[str, str, str, dict]]:
    """The rows of a forest plot about other facts."""
    names = {"same_relation": "of the same relation", "other_relations": "of other relations"}
    return [
        (title, "", f"proof.specificity.{name}.{what}", proof["specificity"][name][what])
        for name, title in names.items()
        if name in proof["specificity"]
    ]


def before(fact: dict) -> str:
    """The prompt up to its subject."""
    return fact["template"].partition("{}")[0]


def behind(fact: dict) -> str:
    """The prompt behind its subject."""
    return fact["template"].partition("{}")[2]
