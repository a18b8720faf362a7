"""What a metric is: what it says, its unit and its bounds. How it is averaged, compared and shown follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from ...facts import Fact
from ...statistics import Estimate, bounded_interval, harmonic_mean, rate


def _nothing(fact: Fact) -> Sequence[tuple[str, str]]:
    return ()


@dataclass(frozen=True)
class Metric:
    """A row of a table of metrics.

    - `name`: in records and summaries. One that ends in a colon is a family: `probe:` stands for `probe:two-hop`.
    - `words`: what it says.
    - `of`: its value for one record, from an `Observation`; of a family a value for each member. None where there is
      none, such as a share of no prompts.
    - `asks`: the (prompt, target) pairs that have to be asked about a fact for it.
    - `needs`: the field of an `Observation` that it is computed from; a record without that has no such metric.
    - `unit`: "%" for fractions, which are shown times 100; `digits` after the point; `signed`: shown with its sign.
    - `bounds`: of a record's value, None where there is no bound; they decide what its interval is.
    - `headline`: among the few that figures and wide tables show.
    - `by_format`: measured only for sources whose `Format` names it.
    - `of_model`: about the model as a whole, whatever the fact; measured once at a checkpoint.
    - `combines`: metrics of records; this one is the harmonic mean of their means, and no record has it.
    """

    name: str
    words: str
    of: Callable | None = None
    asks: Callable[[Fact], Sequence[tuple[str, str]]] = _nothing
    needs: str = "answers"
    unit: str = "%"
    digits: int = 1
    signed: bool = False
    bounds: tuple[float | None, float | None] = (0, 1)
    headline: bool = False
    by_format: bool = False
    of_model: bool = False
    combines: tuple[str, ...] = ()

    @property
    def scale(self) -> int:
        """What values are multiplied by to be in `unit`."""
        return 100 if self.unit == "%" else 1

    @property
    def label(self) -> str:
        """The name, with the unit where that is not %."""
        return self.name if self.unit == "%" else f"{self.name}, {self.unit}"

    @property
    def is_rate(self) -> bool:
        return self.bounds == (0, 1)

    def text(self, value: float | None) -> str:
        """A value in the metric's unit, without the unit; "" for None."""
        return "" if value is None else f"{self.scale * value:.{self.digits}f}"

    def mean(self, values: np.ndarray, seed: int = 0) -> Estimate:
        """The mean of the values (records,) with its 95 % interval, which is None for fewer than two.

        - A rate whose records are single prompts (all 0 or 1): Wilson's interval.
        - Others with two bounds: bootstrap over records (Rubin's, with random weights), with half a success and half a
          failure beside them as in Jeffreys' interval. Where records agree, as after most edits, a bootstrap without
          these knows no doubt: it held the truth in as few as half of the sets that
          `benchmarks/robustness/coverage.py` simulates.
        - The rest: Student's t, cut at the bound that there is.

        The order of the values does not change a bit of the result.
        """
        n, values = len(values), np.sort(values)
        if n < 2:
            return Estimate(float(values[0]) if n else None, None, None, n)
        if self.is_rate and np.isin(values, (0, 1)).all():
            return rate(values == 1)
        least, most = self.bounds
        if least is not None and most is not None:
            span = most - least
            ends = bounded_interval((values[:, None] - least) / span, harmonic_mean, seed)
            low, high = (least + span * end for end in ends)
        else:
            half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
            low, high = values.mean() - half, values.mean() + half
            low = low if least is None else max(least, low)
        return Estimate(float(values.mean()), float(low), float(high), n)

    def combined(self, values: np.ndarray, seed: int = 0) -> Estimate:
        """The harmonic mean of the means of the columns, values (records, metrics of `combines`) with NaN for none."""
        values = values[~np.isnan(values).all(1)]
        values = values[np.lexsort(values.T)]
        low, high = bounded_interval(values, harmonic_mean, seed) if len(values) > 1 else (None, None)
        return Estimate(float(harmonic_mean(np.nanmean(values, 0))), low, high, len(values))


def row_of(table: Mapping[str, Metric], name: str) -> Metric | None:
    """The row of a metric; of a member of a family, `probe:two-hop`, the family's under the member's name."""
    family, colon, member = name.partition(":")
    if colon and member and f"{family}:" in table:
        return replace(table[f"{family}:"], name=name)
    return table.get(name)


def row_in(name: str, *tables: Mapping[str, Metric]) -> Metric:
    """The row of a metric in the first table that has it; an unbounded fraction where none has, as of a study from
    elsewhere."""
    rows = (row_of(table, name) for table in tables)
    return next((row for row in rows if row is not None), Metric(name, name, bounds=(None, None)))
