"""Do the 95 % intervals of a summary hold the truth in 95 % of data sets? Simulated ones, where the truth is known.

Records are drawn whose prompts agree within a record more than between records (each record has its own probability,
from a beta distribution), with rates as before an edit and after one, for one prompt a kind (as CounterFact-lite) and
for six (as the built-in facts). Magnitudes are differences of two probabilities. Beside `summarise` stands, on the same
sets, the percentile bootstrap of the mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from knowedit.evaluate.edits.summary import summarise

from ..registry import benchmark

NAMES = ("ES", "PS", "NS", "EM", "PM", "NM", "GE", "Score")
RESAMPLES = 1000  # of the plain bootstrap


@dataclass(frozen=True)
class Truth:
    """Mean rates of ES, PS and NS; `prompts` a record for the last two; `spread`: a + b of the records' own rates."""

    rates: tuple[float, float, float]
    prompts: int
    spread: float = 2.0

    def draw(self, n: int, rng: np.random.Generator) -> list[dict[str, float]]:
        """`n` records."""
        columns = {}
        for name, rate in zip(("ES", "PS", "NS"), self.rates, strict=True):
            each = rng.beta(rate * self.spread, (1 - rate) * self.spread, n)  # a record's own rate
            size = 1 if name == "ES" else self.prompts
            columns[name] = rng.binomial(size, each) / size
            p, p_other = (rng.beta(*_shape(mean[:, None]), (n, size)) for mean in (each, 1 - each))
            columns[name[0] + "M"] = (p - p_other).mean(1)
        columns["GE"] = rng.gamma(4.0, 0.25, n)  # any figure without bounds, skewed
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def values(self) -> dict[str, float]:
        """What means over all possible records are."""
        means = dict(zip(("ES", "PS", "NS"), self.rates, strict=True))
        magnitudes = {name[0] + "M": 2 * rate - 1 for name, rate in means.items()}  # E beta(c q, c (1 − q)) = q
        return {**means, **magnitudes, "GE": 1.0, "Score": 3 / sum(1 / rate for rate in self.rates)}


TRUTHS = {
    "edited, six prompts": Truth((0.97, 0.80, 0.88), 6),
    "edited, one prompt": Truth((0.95, 0.85, 0.62), 1),
    "unedited, six prompts": Truth((0.08, 0.10, 0.88), 6),
    "middling, two prompts": Truth((0.6, 0.5, 0.4), 2, spread=5.0),
}
SIZES = (25, 50, 200)


@benchmark("robustness.coverage", "Do 95 % intervals hold the truth in 95 % of data sets?")
def simulated(sets: int = 1000) -> dict:
    """Simulated data sets of edits' records, in which the truth is known."""
    simulations = {f"{name}, {n} records": (truth, n) for name, truth in TRUTHS.items() for n in SIZES}
    return {"sets": sets, "coverage": {name: coverage(truth, n, sets) for name, (truth, n) in simulations.items()}}


@simulated.row
def simulated_row(record: dict) -> list[str]:
    lines = []
    for way in ("summarise", "percentile"):
        shares = [share for ways in record["coverage"].values() for share in ways[way].values()]
        lines.append(f"{way}: {min(shares):.0%} to {max(shares):.0%}, mean {sum(shares) / len(shares):.1%}")
    return [f"{len(record['coverage'])} simulations, 7 or 8 metrics, {record['sets']:,} data sets each", *lines]


def coverage(truth: Truth, n: int, sets: int, seed: int = 0, plain: bool = True) -> dict[str, dict[str, float]]:
    """The share of `sets` whose interval holds the truth, by metric; with the plain bootstrap if `plain`."""
    rng = np.random.default_rng(seed)
    true_values = truth.values()
    held = {"summarise": dict.fromkeys(NAMES, 0), **({"percentile": dict.fromkeys(NAMES[:-1], 0)} if plain else {})}
    for s in tqdm(range(sets), desc=f"{n} records", disable=not plain):
        records = truth.draw(n, rng)
        means = summarise(records, seed=s)
        for name in NAMES:
            held["summarise"][name] += means[name].low <= true_values[name] <= means[name].high
        if plain:
            values = np.array([[record[name] for name in NAMES[:-1]] for record in records])
            draws = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ values / n
            low, high = np.quantile(draws, (0.025, 0.975), axis=0)
            for name, a, b in zip(NAMES, low, high, strict=False):
                held["percentile"][name] += a <= true_values[name] <= b
    return {way: {name: count / sets for name, count in counts.items()} for way, counts in held.items()}


def _shape(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Beta parameters of probabilities with these means, mostly near 0 or 1."""
    return np.maximum(mean, 1e-9), np.maximum(1 - mean, 1e-9)
