"""The metrics of all studies."""

from __future__ import annotations

from .edits.metrics import METRICS as EDITS
from .neurons.metrics import METRICS as NEURONS
from .runs.metric import Metric, row_in


def find_metric(name: str) -> Metric:
    """The row of a metric. One that no table has, of a study from elsewhere, is shown as an unbounded fraction."""
    return row_in(name, EDITS, NEURONS)
