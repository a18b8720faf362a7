"""The metrics of `bench neurons`: how its figures are shown. What they are computed from is in `summary.py`."""

from __future__ import annotations

from functools import partial

from ..runs.metric import Metric

change = partial(Metric, signed=True, bounds=(None, None))

METRICS = {
    metric.name: metric
    for metric in (
        Metric("neurons", "neurons that were located", unit="per fact", digits=2, bounds=(0, None)),
        Metric("probability", "the target's mean probability before anything is changed", bounds=(0, None)),
        change("suppress:", "change of the target's mean probability with the neurons at zero"),
        change("suppress_ratios:", "mean over facts of each fact's own change with the neurons at zero"),
        change("amplify:", "change of the target's mean probability with the neurons doubled"),
        change("amplify_ratios:", "mean over facts of each fact's own change with the neurons doubled"),
    )
}
