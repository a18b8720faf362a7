"""What the records of `bench edit` say together: means with intervals, by relation, and at checkpoints."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np

from ...statistics import Estimate
from ..runs.metric import row_in
from .metrics import METRICS

WITHIN = (1, 2)  # percent of perplexity


class Columns:
    """Values of many records, one column for each metric: eight bytes a value, where a dict a record takes 100."""

    def __init__(self, records: Iterable[dict[str, float | None]] = ()):
        self.n = 0
        self._columns: dict[str, array] = {}
        for record in records:
            self.add(record)

    def add(self, record: dict[str, float | None]) -> None:
        for name, value in record.items():
            self._padded(name).append(math.nan if value is None else value)
        self.n += 1

    def arrays(self, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Name → (records,), NaN where a record has no such value; of all records, or of those where `rows` is true."""
        whole = {name: np.array(self._padded(name), dtype=np.float64) for name in self._columns}
        return whole if rows is None else {name: column[rows] for name, column in whole.items()}

    def _padded(self, name: str) -> array:
        column = self._columns.setdefault(name, array("d"))
        column.extend([math.nan] * (self.n - len(column)))
        return column


def summarise(
    records: Iterable[dict[str, float | None]] | Columns, seed: int = 0, rows: np.ndarray | None = None
) -> dict[str, Estimate]:
    """Means over records with 95 % intervals, as `Metric.mean` has them, all in the units that records have.

    `rows` (records,) of bool chooses records. A record without a metric (None, or no such name) is left out of it.
    Combined metrics, the Score, are added where their parts are there.

    Memory is that of the values, whatever the number of resamples. Records may come in any order, as workers and shards
    leave them: the figures are the same to the bit.
    """
    columns = records if isinstance(records, Columns) else Columns(records)
    arrays = columns.arrays(rows)
    means = {name: row_in(name, METRICS).mean(column[~np.isnan(column)], seed) for name, column in arrays.items()}
    for metric in METRICS.values():
        if metric.combines and all(name in means and means[name].n for name in metric.combines):
            means[metric.name] = metric.combined(np.stack([arrays[name] for name in metric.combines], 1), seed)
    return means


def summary(records: Iterable[dict], metrics: Sequence[str] = (), seed: int = 0) -> dict:
    """Means over the records of a run with intervals: `metrics` after the edit, `before`, `by_relation`, `checkpoints`.

    As JSON values; `metrics` are the names to keep, all by default. Only numbers are kept of the records, in columns,
    so memory hardly grows with them.
    """
    after, before, relation_of = Columns(), Columns(), []
    relations: dict[str, int] = {}
    checkpoints: dict[str, dict] = {}
    for record in records:
        after.add(record["after"])
        before.add(record["before"])
        relation_of.append(relations.setdefault(record["relation"], len(relations)))
        if "checkpoint" in record:
            checkpoints[str(record["checkpoint"]["edits"])] = record["checkpoint"]
    if not relation_of:
        return {"metrics": {}, "before": {}, "by_relation": {}}

    def means(columns: Columns, rows: np.ndarray | None = None) -> dict[str, dict]:
        by_name = summarise(columns, seed, rows)
        return {name: mean.as_dict() for name, mean in by_name.items() if not metrics or name in metrics}

    found = {
        "metrics": means(after),
        "before": means(before),
        "by_relation": {
            name: means(after, np.array(relation_of) == relations[name]) for name in sorted(filter(None, relations))
        },
    }
    if rises := _rises(after):
        found["perplexity"] = rises
    if checkpoints:
        found["checkpoints"] = checkpoints
    return found


def _rises(after: Columns) -> dict | None:
    """How many records leave the perplexity of plain text within some percent of what it was, the rise in the middle
    and the worst: a mean says little beside one record that wrecked the model."""
    rises = after.arrays().get("perplexity", np.array([]))
    rises = rises[~np.isnan(rises)]
    if not len(rises):
        return None
    within = {f"within_{percent}_percent": float(np.mean(np.abs(rises) <= percent / 100)) for percent in WITHIN}
    return {**within, "median": float(np.median(rises)), "worst": float(rises.max()), "n": len(rises)}
