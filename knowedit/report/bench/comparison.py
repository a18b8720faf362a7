"""Two or more runs compared record by record: the same records, so differences are paired.

The first run is what the others are compared with. For each metric there are

- the difference of the means over the common records, with its 95 % bootstrap interval over records; of rates and
  magnitudes it allows for rare records that the sample does not show (`bounded_interval`), so it can hold zero where
  nearly all records lean to one side and p is small;
- p: exact McNemar where each record is 0 or 1 in both runs, else Wilcoxon's signed-rank test on the records' values;
- q: p after Benjamini and Hochberg over all tests of the comparison, since among many metrics some differ by chance.

Only records that both runs measured count. Runs about other data, of another study or without common records are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from ...errors import DataError, InputError
from ...evaluate.edits.metrics import METRICS
from ...evaluate.edits.summary import Columns
from ...evaluate.metrics import find_metric
from ...evaluate.neurons.records import effect_of, mean_probabilities
from ...evaluate.neurons.summary import WHATS
from ...evaluate.runs.folder import RunFolder
from ...evaluate.runs.metric import Metric
from ...statistics import Estimate, bounded_interval, estimate, false_discovery, harmonic_mean, mcnemar, mean, wilcoxon

_BEFORE = "before:"  # a column that is needed, but no metric


@dataclass(frozen=True)
class Difference:
    """A metric of two runs: their means over `n` common records, and `difference`, `other` − `one`, with its interval.

    `higher` and `lower`: on how many records the other run has more and less. `test` is `mcnemar` or `wilcoxon`, or
    None where a metric is not one of records (Score), or no record has it in both runs.
    """

    metric: str
    runs: tuple[str, str]
    n: int
    one: float | None = None
    other: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    higher: int | None = None
    lower: int | None = None
    test: str | None = None
    p: float | None = None
    q: float | None = None

    def as_dict(self) -> dict:
        return {**asdict(self), "runs": list(self.runs)}


@dataclass(frozen=True)
class Comparison:
    """`records`: by name of the other run, how many it has in common with the `first`, and how many only one of both
    measured."""

    first: str
    records: dict[str, dict[str, int]]
    differences: tuple[Difference, ...]

    def as_dict(self) -> dict:
        return {
            "first": self.first,
            "records": self.records,
            "differences": [difference.as_dict() for difference in self.differences],
        }


def compare(runs: Sequence[RunFolder], names: Sequence[str] | None = None, seed: int = 0) -> Comparison:
    """Each of `runs` but the first with the first, metric by metric.

    `names`: what to call them, by default their folders' names. Of each run only numbers are kept, a few for a record.

    Raises `InputError` for fewer than two runs and for runs that have nothing to compare.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run is given, expected at least two to compare")
    names = list(names or [run.folder.name for run in runs])
    for name, run in zip(names[1:], runs[1:], strict=True):
        _check_same_records(names[0], runs[0], name, run)
    places, values = _read(runs[0])
    records: dict[str, dict[str, int]] = {}
    differences: list[Difference] = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        other_places, other_values = _read(run)
        pairs = [(places[i], place) for i, place in other_places.items() if i in places]
        if not pairs:
            raise InputError(
                f"the runs {names[0]!r} and {name!r} have no record in common; compare runs over the same records"
            )
        records[name] = {
            "common": len(pairs), "only_first": len(places) - len(pairs),
            "only_other": len(other_places) - len(pairs),
        }  # fmt: skip
        places_first, places_second = np.array(pairs).T
        first = {metric: column[places_first] for metric, column in values.items()}
        second = {metric: column[places_second] for metric, column in other_values.items()}
        differences += _differences(first, second, (names[0], name), seed)
    q = false_discovery([difference.p for difference in differences])
    differences = [replace(d, q=value) for d, value in zip(differences, q, strict=True)]
    return Comparison(names[0], records, tuple(differences))


def _check_same_records(name: str, run: RunFolder, other_name: str, other: RunFolder) -> None:
    manifest, other_manifest = run.manifest, other.manifest
    if manifest.get("study") != other_manifest.get("study"):
        raise InputError(
            f"{name!r} is a study of {manifest.get('study')}, {other_name!r} one of {other_manifest.get('study')}; "
            "compare runs of one study"
        )
    hashes = [manifest.get("identity", {}).get("data") for manifest in (run.manifest, other.manifest)]
    if hashes[0] != hashes[1]:
        shown = " and ".join(str(value)[:12] for value in hashes)
        raise InputError(
            f"{name!r} and {other_name!r} are about other data (SHA-256 {shown}); compare runs over one source"
        )


# ---------------------------------------------------------------- the records' numbers


def _read(run: RunFolder) -> tuple[dict[str, int], dict[str, np.ndarray]]:
    """Places of a run's records by id, and by metric their values (records,), NaN where a record has none."""
    reads = neuron_values if run.manifest.get("study") == "neurons" else edit_values
    places: dict[str, int] = {}
    columns = Columns()
    for row in run.rows():
        if "error" in row:
            continue
        try:
            columns.add(dict(reads(row)))
        except (KeyError, TypeError, AttributeError, ValueError):
            raise DataError(
                f"the record {row['id']!r} of {str(run.folder)!r} is not one of its study; the file was changed"
            ) from None
        places[row["id"]] = len(places)
    return places, columns.arrays()


def edit_values(row: dict) -> Iterator[tuple[str, float]]:
    """The metrics of one record of `bench edit`, after the edit."""
    for name, value in row["after"].items():
        yield name, math.nan if value is None else float(value)


def neuron_values(row: dict) -> Iterator[tuple[str, float]]:
    """The number of neurons of one record of `bench neurons`, and the probabilities before and with neurons changed.

    Neurons located by the run's own method are called `located`, so that runs by different methods compare.
    """
    yield "neurons", float(len(row["located"]["neurons"]))
    effect = effect_of(row)
    if effect is None:
        return
    before = float(effect.before.mean())
    yield "probability", before
    for kind, probabilities in mean_probabilities(effect).items():
        for what, key in WHATS:
            yield f"{what}:{kind}", probabilities[key]
        yield f"{_BEFORE}{kind}", before


# ---------------------------------------------------------------- differences


def _differences(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray], runs: tuple[str, str], seed: int
) -> Iterator[Difference]:
    """Of all metrics that both runs have."""
    for name in first:
        missing = [np.isnan(columns[name]).all() for columns in (first, second) if name in columns]
        if name.startswith(_BEFORE) or len(missing) < 2 or any(missing):
            continue
        what, _, kind = name.partition(":")
        before = [columns[_BEFORE + kind] for columns in (first, second)] if what in dict(WHATS) else None
        yield _difference(name, first[name], second[name], before, runs, seed)
    for metric in METRICS.values():
        if metric.combines and all(part in columns for part in metric.combines for columns in (first, second)):
            parts = np.stack([columns[part] for columns in (first, second) for part in metric.combines], 1)
            yield _combined(metric, parts, runs, seed)


def _difference(
    name: str,
    first: np.ndarray,
    second: np.ndarray,
    before: list[np.ndarray] | None,
    runs: tuple[str, str],
    seed: int,
) -> Difference:
    metric = find_metric(name)
    kept = ~np.isnan(first) & ~np.isnan(second)
    first, second = first[kept], second[kept]
    n = len(first)
    if not n:
        return Difference(name, runs, 0)
    if before is not None:  # changes relative to the probability before: as ratios of means, and each record's own
        samples = (before[0][kept], first, before[1][kept], second)
        interval = estimate(_difference_of_ratios, samples, seed)
        means = [_finite(_ratio(samples[i], samples[i + 1], -1)) for i in (0, 2)]
        positive = (samples[0] > 0) & (samples[2] > 0)
        first, second = (samples[i + 1][positive] / samples[i][positive] - 1 for i in (0, 2))
    else:
        interval = _mean_difference(metric, second - first, seed)
        means = [float(first.mean()), float(second.mean())]
    binary = metric.is_rate and bool(np.isin([first, second], (0, 1)).all())
    test, p = ("mcnemar", mcnemar(first, second)) if binary else ("wilcoxon", wilcoxon(first, second))
    return Difference(
        name, runs, n, means[0], means[1], interval.value, interval.low, interval.high,
        int((second > first).sum()), int((second < first).sum()), test if p is not None else None, p,
    )  # fmt: skip


def _mean_difference(metric: Metric, differences: np.ndarray, seed: int) -> Estimate:
    """The mean of the records' differences; where the metric is bounded its interval allows for rare records."""
    low, high = metric.bounds
    if low is None or high is None:
        interval = mean(differences, seed)
        return (
            replace(interval, low=None, high=None) if interval.low == interval.high else interval
        )  # nothing to resample
    n, value, span = len(differences), float(differences.mean()), high - low
    if n < 2:
        return Estimate(value, None, None, n)
    scaled = (differences[:, None] / span + 1) / 2
    ends = bounded_interval(scaled, lambda means: span * (2 * means[..., 0] - 1), seed)
    return Estimate(value, *ends, n)


def _combined(metric: Metric, values: np.ndarray, runs: tuple[str, str], seed: int) -> Difference:
    """The difference of two harmonic means, values (records, the parts of one run and then of the other).

    It is no metric of records, so there is no test.
    """
    parts = len(metric.combines)
    missing = np.isnan(values[:, :parts]) | np.isnan(values[:, parts:])
    values = np.where(np.tile(missing, 2), math.nan, values)[~missing.all(1)]
    if not len(values) or np.isnan(values).all(0).any():
        return Difference(metric.name, runs, 0)
    first, other = (float(harmonic_mean(np.nanmean(columns, 0))) for columns in np.split(values, 2, 1))
    low = high = None
    if len(values) > 1:
        low, high = bounded_interval(
            values, lambda means: harmonic_mean(means[..., parts:]) - harmonic_mean(means[..., :parts]), seed
        )
    return Difference(metric.name, runs, len(values), first, other, other - first, low, high, *[None] * 4)


def _difference_of_ratios(before_first, first, before_second, second, axis=-1):
    return _ratio(before_second, second, axis) - _ratio(before_first, first, axis)


def _ratio(before: np.ndarray, after: np.ndarray, axis: int):
    with np.errstate(divide="ignore", invalid="ignore"):
        return after.mean(axis) / before.mean(axis) - 1


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
