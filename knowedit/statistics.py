"""Intervals and p-values, on scipy: shared by everything that measures.

Every figure carries its n and a 95 % interval; where there is nothing to compute an interval from (fewer than two
values) it is None, never a zero-width one. Resampling is over facts (or prompts where there is one fact), seeded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import stats

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval: `change` is a fraction (−0.6 is −60 %), `n` what it was computed from."""

    change: float | None
    low: float | None
    high: float | None
    n: int

    def as_dict(self) -> dict:
        return asdict(self)


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
            found = stats.bootstrap(
                samples, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES, method=method, rng=seed
            ).confidence_interval
        if np.isfinite(found.low) and np.isfinite(found.high):
            return Estimate(value, float(found.low), float(found.high), n)
    return Estimate(value, None, None, n)


def monte_carlo_p(observed: float, null: Sequence[float], alternative: str) -> float:
    """How often draws under the null are as extreme, (1 + count) / (1 + draws): exact for exchangeable draws."""
    null = np.asarray(null, dtype=np.float64)
    beyond = null <= observed if alternative == "less" else null >= observed
    return float((1 + beyond.sum()) / (1 + len(null)))


def log_odds(p: Sequence[float]) -> np.ndarray:
    """log(p / (1 − p)), with p kept off 0 and 1 by the resolution of float32."""
    p = np.clip(np.asarray(p, dtype=np.float64), 1e-12, 1 - 1e-7)
    return np.log(p) - np.log1p(-p)
