"""Do the 95 % intervals of a summary hold the truth in 95 % of data sets? Simulated ones, where the truth is known.

    python -m benchmarks.robustness.coverage

Records are drawn whose prompts agree within a record more than between records (each record has its own probability,
from a beta distribution), with rates as before an edit and after one, for one prompt a kind (as CounterFact-lite) and
for six (as the built-in facts). Magnitudes are differences of two probabilities. Beside `summarise` stands, on the same
sets, the percentile bootstrap of the mean.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from knowedit.evaluate.edits.summary import summarise

from ..results import save

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
            own = rng.beta(rate * self.spread, (1 - rate) * self.spread, n)
            size = 1 if name == "ES" else self.prompts
            columns[name] = rng.binomial(size, own) / size
            prefers = rng.beta(*_shape(own[:, None]), (n, size)) - rng.beta(*_shape(1 - own[:, None]), (n, size))
            columns[name[0] + "M"] = prefers.mean(1)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=int, default=1000)
    options = parser.parse_args()
    record = {"sets": options.sets, "coverage": {}}
    for name, truth in TRUTHS.items():
        for n in SIZES:
            record["coverage"][f"{name}, {n} records"] = coverage(truth, n, options.sets)
    save("robustness/coverage", record)


def coverage(truth: Truth, n: int, sets: int, seed: int = 0, plain: bool = True) -> dict[str, dict[str, float]]:
    """The share of `sets` whose interval holds the truth, by metric; with the plain bootstrap if `plain`."""
    rng = np.random.default_rng(seed)
    wanted = truth.values()
    held = {way: dict.fromkeys(NAMES, 0) for way in ("summarise", "percentile")}
    for s in tqdm(range(sets), desc=f"{n} records", disable=not plain):
        records = truth.draw(n, rng)
        means = summarise(records, seed=s)
        for name in NAMES:
            held["summarise"][name] += means[name].low <= wanted[name] <= means[name].high
        if plain:
            values = np.array([[record[name] for name in NAMES[:-1]] for record in records])
            draws = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ values / n
            low, high = np.quantile(draws, (0.025, 0.975), axis=0)
            for name, a, b in zip(NAMES, low, high, strict=False):
                held["percentile"][name] += a <= wanted[name] <= b
    if not plain:
        del held["percentile"]
    else:
        del held["percentile"]["Score"]
    return {way: {name: count / sets for name, count in counts.items()} for way, counts in held.items()}


def _shape(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Beta parameters of probabilities with these means, mostly near 0 or 1."""
    return np.maximum(mean, 1e-9), np.maximum(1 - mean, 1e-9)


if __name__ == "__main__":
    main()
