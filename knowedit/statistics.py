"""Intervals and p-values, on scipy: shared by everything that measures.

Every figure carries its n and a 95 % interval; where there is nothing to compute an interval from (fewer than two
values) it is None, never a zero-width one. Resampling is over facts (or prompts where there is one fact), seeded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy  # whose parts load when they are first used: `scipy.stats` alone takes a second

from .display.result import Record
from .errors import InputError

Values: TypeAlias = Sequence[float] | np.ndarray

RESAMPLES = 2000
_BLOCK = 1 << 20  # numbers that are drawn at once
_STYLES = {"change": "+.1%", "share": ".1%", "number": ".2f", "signed": "+.3f"}


@dataclass(frozen=True)
class Estimate(Record):
    """A figure with its interval: `value` may be a fraction (−0.6 is −60 %), `n` what it was computed from."""

    value: float | None
    low: float | None
    high: float | None
    n: int

    def text(self, kind: str = "number") -> str:
        """The figure with its interval for people: `-94.5%  [-97.0%, -90.1%]`.

        `kind` is change (percent with a sign), share (percent), number, signed, or a format such as `.3f`.
        """
        if self.value is None:
            return "not measured"
        style = _STYLES.get(kind, kind)
        interval = "" if self.low is None else f"  [{self.low:{style}}, {self.high:{style}}]"
        return f"{self.value:{style}}{interval}"


def ratio_of_means(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Estimate:
    """(mean after − mean before) / mean before, the measure of Dai et al. 2022; resampled in pairs."""
    return estimate(lambda b, a, axis=-1: (a.mean(axis) - b.mean(axis)) / b.mean(axis), (before, after), seed)


def mean_of_ratios(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Estimate:
    """The mean of each pair's (after − before) / before."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return mean((np.asarray(after) - np.asarray(before)) / np.asarray(before), seed)


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean with its bootstrap interval."""
    return estimate(lambda v, axis=-1: v.mean(axis), (values,), seed)


def rate(hits: Sequence[bool]) -> Estimate:
    """The share of hits with Wilson's interval."""
    n, k = len(hits), int(sum(hits))
    if n < 2:
        return Estimate(k / n if n else None, None, None, n)
    interval = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    return Estimate(k / n, float(interval.low), float(interval.high), n)


def estimate(statistic: Callable, samples: tuple[Sequence[float], ...], seed: int = 0) -> Estimate:
    """`statistic` of paired samples with its 95 % bootstrap interval (BCa; percentile where BCa is undefined)."""
    samples = tuple(np.asarray(s, dtype=np.float64) for s in samples)
    n = len(samples[0])
    if n == 0:
        return Estimate(None, None, None, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*samples))
    if not np.isfinite(value):  # a ratio to nothing
        return Estimate(None, None, None, n)
    if n < 2:
        return Estimate(value, None, None, n)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # degenerate data: told by the NaN that follows
            interval = scipy.stats.bootstrap(
                samples,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=RESAMPLES,
                method=method,
                rng=seed,
                batch=max(1, _BLOCK // n),
            ).confidence_interval
        if np.isfinite(interval.low) and np.isfinite(interval.high):
            return Estimate(value, float(interval.low), float(interval.high), n)
    return Estimate(value, None, None, n)


def bounded_interval(values: np.ndarray, statistic: Callable, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of `statistic` of the columns' means; values (records, columns) in [0, 1] or NaN, n > 1.

    `statistic` maps (…, columns) to (…). Bootstrap over records (Rubin's, with random weights), with half a success and
    half a failure beside them as in Jeffreys' interval: where records agree, a bootstrap without these knows no doubt.
    """
    n, columns = values.shape
    there, filled = (~np.isnan(values)).astype(np.float64), np.nan_to_num(values)
    value = statistic(filled.sum(0) / there.sum(0))
    rng = np.random.default_rng(seed)
    draws = []
    rows = max(1, _BLOCK // n)
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        weights = rng.standard_exponential((size, n))
        more, less = rng.standard_gamma(0.5, (2, size, columns))
        draws.append(statistic((weights @ filled + more) / (weights @ there + more + less)))
    low, high = np.quantile(np.concatenate(draws), (0.025, 0.975))
    return float(min(low, value)), float(max(high, value))


def proportion(values: Values, seed: int = 0) -> Estimate:
    """The mean of values in [0, 1] with its `bounded_interval`."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Estimate(float(values[0]) if len(values) else None, None, None, len(values))
    low, high = bounded_interval(values[:, None], lambda means: means[..., 0], seed)
    return Estimate(float(values.mean()), low, high, len(values))


def harmonic_mean(values: np.ndarray) -> np.ndarray:
    """Along the last axis; 0 where one of them is 0."""
    with np.errstate(divide="ignore"):
        return values.shape[-1] / (1 / values).sum(-1)


# ---------------------------------------------------------------- two samples, in pairs


def mcnemar(first: Values, second: Values) -> float:
    """Exact two-sided p of as many pairs (0, 1) as (1, 0), by the binomial distribution; 1 where no pair differs.

    Raises `InputError` for values that are not 0 or 1.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not np.isin([first, second], (0, 1)).all():
        raise InputError("McNemar's test was given other values than 0 and 1; use Wilcoxon's for these")
    up, down = int((second > first).sum()), int((second < first).sum())
    return float(scipy.stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def wilcoxon(first: Values, second: Values) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; pairs that agree are split over both sides (`zsplit`).

    None without pairs, 1 where all agree (scipy has NaN there). Differences are rounded to 12 digits of their pair
    first, since the last bits of values that should agree would be ranked otherwise.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not len(first) or not np.isfinite([first, second]).all():
        return None
    rounded = _rounded(second - first, np.maximum(np.abs(first), np.abs(second)))
    if not rounded.any():
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a small sample with ties, whose p is approximate
        p = float(scipy.stats.wilcoxon(rounded, zero_method="zsplit").pvalue)
    return p if np.isfinite(p) else 1.0


def _rounded(differences: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """To 12 digits of `scale`, and so that the same decimal number is the same float."""
    quantum = 10.0 ** (np.ceil(np.log10(np.maximum(scale, 1e-280))) - 12)
    return np.array([float(f"{value:.11g}") for value in np.round(differences / quantum) * quantum])


def false_discovery(p: Sequence[float | None]) -> list[float | None]:
    """p-values after Benjamini and Hochberg: among those below q, a share of q is expected to be by chance.

    None stays None and does not count.
    """
    there = [value for value in p if value is not None]
    adjusted = iter(scipy.stats.false_discovery_control(there).tolist() if there else ())
    return [None if value is None else next(adjusted) for value in p]


def monte_carlo_p(observed: float, null: Values, alternative: str) -> float:
    """How often draws under the null are as extreme, (1 + count) / (1 + draws): exact for exchangeable draws."""
    draws: Any = np.asarray(null, dtype=np.float64)
    beyond = draws <= observed if alternative == "less" else draws >= observed
    return float((1 + beyond.sum()) / (1 + len(null)))


def log_odds(p: Values) -> np.ndarray:
    """log(p / (1 − p)), with p kept off 0 and 1 by the resolution of float32."""
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)
