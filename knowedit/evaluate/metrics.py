"""The metrics of all studies."""

from __future__ import annotations

from .edits.metrics import METRICS as EDITS
from .metric import Metric, row_of
from .neurons.metrics import METRICS as NEURONS


def find_metric(name: str) -> Metric:
    """The row of a metric. One that no table has, of a study from elsewhere, is shown as an unbounded fraction."""
    for table in (EDITS, NEURONS):
        if (metric := row_of(table, name)) is not None:
            return metric
    return Metric(name, name, bounds=(None, None))
