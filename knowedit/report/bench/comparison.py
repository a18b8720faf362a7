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

from ...edit.rewrite_quality import PARTS
from ...errors import DataError, InputError
from ...evaluate.edits.metrics import MAGNITUDES, PROBE, RATES, Columns
from ...evaluate.neurons.summary import WHATS
from ...evaluate.runs.folder import RunFolder
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
    one: float | None
    other: float | None
    difference: float | None
    low: float | None
    high: float | None
    higher: int | None
    lower: int | None
    test: str | None
    p: float | None
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
    records, differences = {}, []
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
        one, two = np.array(pairs).T
        both = [{n: column[at] for n, column in found.items()} for found, at in ((values, one), (other_values, two))]
        differences += _differences(*both, (names[0], name), seed)
    q = false_discovery([difference.p for difference in differences])
    differences = [replace(d, q=value) for d, value in zip(differences, q, strict=True)]
    return Comparison(names[0], records, tuple(differences))


def _check_same_records(name: str, run: RunFolder, other_name: str, other: RunFolder) -> None:
    one, two = run.manifest, other.manifest
    if one.get("study") != two.get("study"):
        raise InputError(
            f"{name!r} is a study of {one.get('study')}, {other_name!r} one of {two.get('study')}; "
            "compare runs of one study"
        )
    hashes = [manifest.get("identity", {}).get("data") for manifest in (one, two)]
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
    for name, value in (*row["after"].items(), ("perplexity", row.get("perplexity"))):
        yield name, math.nan if value is None else float(value)


def neuron_values(row: dict) -> Iterator[tuple[str, float]]:
    """Of one record of `bench neurons`: neurons, probability, and the probabilities that suppressing and amplifying
    leave. Neurons located by the run's own method are called `located`, so that runs by different methods compare."""
    before = float(np.mean(row["before"]))
    yield "neurons", float(row["neurons"])
    yield "probability", before
    for i, (name, found) in enumerate(row["methods"].items()):
        kind = name if i else "located"
        for what, key in WHATS:
            yield f"{what}:{kind}", float(np.mean(found[key]))
        yield f"{_BEFORE}{kind}", before


# ---------------------------------------------------------------- differences


def _differences(
    one: dict[str, np.ndarray], other: dict[str, np.ndarray], runs: tuple[str, str], seed: int
) -> Iterator[Difference]:
    """Of all metrics that both runs have."""
    for name in one:
        missing = [np.isnan(columns[name]).all() for columns in (one, other) if name in columns]
        if name.startswith(_BEFORE) or len(missing) < 2 or any(missing):
            continue
        what, _, kind = name.partition(":")
        before = [columns[_BEFORE + kind] for columns in (one, other)] if what in dict(WHATS) else None
        yield _difference(name, one[name], other[name], before, runs, seed)
    if all(part in columns for part in PARTS for columns in (one, other)):
        yield _score(np.stack([columns[part] for columns in (one, other) for part in PARTS], 1), runs, seed)


def _difference(
    name: str,
    one: np.ndarray,
    other: np.ndarray,
    before: list[np.ndarray] | None,
    runs: tuple[str, str],
    seed: int,
) -> Difference:
    kept = ~np.isnan(one) & ~np.isnan(other)
    one, other = one[kept], other[kept]
    n = len(one)
    if not n:
        return Difference(name, runs, 0, *[None] * 8, None)
    if before is not None:  # changes relative to the probability before: as ratios of means, and each record's own
        samples = (before[0][kept], one, before[1][kept], other)
        found = estimate(_difference_of_ratios, samples, seed)
        means = [_finite(_ratio(samples[i], samples[i + 1], -1)) for i in (0, 2)]
        some = (samples[0] > 0) & (samples[2] > 0)
        one, other = (samples[i + 1][some] / samples[i][some] - 1 for i in (0, 2))
    else:
        found = _bounded(name, other - one, seed) or mean(other - one, seed)
        means = [float(one.mean()), float(other.mean())]
        if found.low == found.high:  # all differences are the same: nothing to resample
            found = replace(found, low=None, high=None)
    binary = _is_rate(name) and bool(np.isin([one, other], (0, 1)).all())
    test, p = ("mcnemar", mcnemar(one, other)) if binary else ("wilcoxon", wilcoxon(one, other))
    return Difference(
        name, runs, n, *means, found.value, found.low, found.high,
        int((other > one).sum()), int((other < one).sum()), test if p is not None else None, p,
    )  # fmt: skip


def _bounded(name: str, differences: np.ndarray, seed: int) -> Estimate | None:
    """The mean difference of a metric that is bounded; None for others."""
    if _is_rate(name):
        span = 1
    elif name in MAGNITUDES:
        span = 2
    else:
        return None
    n, change = len(differences), float(differences.mean())
    if n < 2:
        return Estimate(change, None, None, n)
    scaled = (differences[:, None] / span + 1) / 2
    low, high = bounded_interval(scaled, lambda means: span * (2 * means[..., 0] - 1), seed)
    return Estimate(change, low, high, n)


def _is_rate(name: str) -> bool:
    return name in RATES or name.startswith(PROBE)


def _score(values: np.ndarray, runs: tuple[str, str], seed: int) -> Difference:
    """Of columns (records, 6): ES, PS and NS of one run and of the other. It is no metric of records, so no test."""
    one, other = values[:, :3], values[:, 3:]
    missing = np.isnan(one) | np.isnan(other)
    values = np.where(np.tile(missing, 2), math.nan, values)[~missing.all(1)]
    if not len(values) or np.isnan(values).all(0).any():
        return Difference("Score", runs, 0, *[None] * 8, None)
    scores = [float(harmonic_mean(np.nanmean(part, 0))) for part in (values[:, :3], values[:, 3:])]
    low = high = None
    if len(values) > 1:
        low, high = bounded_interval(
            values, lambda means: harmonic_mean(means[..., 3:]) - harmonic_mean(means[..., :3]), seed
        )
    return Difference("Score", runs, len(values), *scores, scores[1] - scores[0], low, high, None, None, None, None)


def _difference_of_ratios(before_one, one, before_other, other, axis=-1):
    return _ratio(before_other, other, axis) - _ratio(before_one, one, axis)


def _ratio(before: np.ndarray, after: np.ndarray, axis: int):
    with np.errstate(divide="ignore", invalid="ignore"):
        return after.mean(axis) / before.mean(axis) - 1


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
