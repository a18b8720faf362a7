"""What the records of `bench neurons` say together: effects, overlaps, layers, per relation.

Metrics are named by what is measured and of which neurons: `suppress:ig` is the change of the target's mean probability
when neurons located by `ig` are set to zero (ratio of means, as Dai et al. have it), `suppress_ratios:ig` the mean over
facts of each fact's own change; `neurons` is their number a fact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from ...statistics import Estimate, mean, mean_of_ratios, ratio_of_means

WHATS = (("suppress", "suppressed"), ("amplify", "amplified"))
PAIRS = 20000  # four times so many pairs of facts are compared at most


def summary(rows: Iterable[dict], metrics: Sequence[str] = (), seed: int = 0, layers: int | None = None) -> dict:
    """`metrics`, `by_relation`, `layers`, `overlap`, `specificity`, `stability` and `located` neurons by relation.

    Of each record means over its prompts are kept, and its neurons. Records may come in any order.
    """
    kept = sorted((_reduced(row) for row in rows), key=lambda row: row["id"])
    proved = [row for row in kept if row["methods"]]
    relations = sorted({row["relation"] for row in kept if row["relation"]})
    chosen = {
        "metrics": _metrics(kept, seed),
        "by_relation": {name: _metrics([row for row in kept if row["relation"] == name], seed) for name in relations},
    }
    if metrics:
        chosen["metrics"] = {name: chosen["metrics"][name] for name in metrics if name in chosen["metrics"]}
    located = {name: {row["id"]: row["sites"] for row in proved if row["relation"] == name} for name in relations}
    return {
        **chosen,
        "empty": len(kept) - len(proved),
        "layers": _layers(proved, layers),
        "overlap": _overlap([(row["relation"], row["sites"]) for row in proved], seed),
        "specificity": _specificity(proved, seed),
        "stability": _stability(kept, seed),
        "located": located,
    }


def _reduced(row: dict) -> dict:
    methods = {name: {what: float(np.mean(found[what])) for _, what in WHATS} for name, found in row["methods"].items()}
    own = next(iter(row["methods"].values()), {})
    return {
        "id": row["id"],
        "relation": row["relation"],
        "before": float(np.mean(row["before"])),
        "neurons": row["neurons"],
        "methods": methods,
        "sites": [tuple(site) for site in own.get("neurons", ())],
        "of": {name: [tuple(site) for site in found.get("neurons", ())] for name, found in row["methods"].items()},
        "specificity": row.get("specificity", {}),
        "stability": row.get("stability", {}),
    }


def _metrics(rows: Sequence[dict], seed: int) -> dict[str, dict]:
    proved = [row for row in rows if row["methods"]]
    found = {"neurons": _figure(mean([row["neurons"] for row in rows], seed)),
             "probability": _figure(mean([row["before"] for row in rows], seed))}  # fmt: skip
    before = [row["before"] for row in proved]
    for name in proved[0]["methods"] if proved else ():
        for what, key in WHATS:
            after = [row["methods"][name][key] for row in proved]
            found[f"{what}:{name}"] = _figure(ratio_of_means(before, after, seed))
            found[f"{what}_ratios:{name}"] = _figure(mean_of_ratios(before, after, seed))
    return found


def _figure(estimate: Estimate) -> dict:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _layers(rows: Sequence[dict], layers: int | None) -> dict[str, list[int]]:
    """By method, how many neurons lie in each layer."""
    names = [name for name in (rows[0]["of"] if rows else ()) if rows[0]["of"][name]]
    last = max((layer for row in rows for name in names for layer, _ in row["of"][name]), default=0)
    found = {}
    for name in names:
        counts = Counter(layer for row in rows for layer, _ in row["of"][name])
        found[name] = [counts[layer] for layer in range(layers or last + 1)]
    return found


def _overlap(sets: Sequence[tuple[str | None, list]], seed: int) -> dict[str, dict]:
    """Shared neurons and Jaccard index of pairs of facts, of one relation and of different ones (Dai et al., 4.4)."""
    found: dict[str, list[tuple[int, float]]] = {"within": [], "between": []}
    for i, j in _pairs(len(sets), seed):
        one, other = set(sets[i][1]), set(sets[j][1])
        both, either = len(one & other), len(one | other)
        found["within" if sets[i][0] == sets[j][0] else "between"].append((both, both / either if either else 0.0))
    return {
        name: {"pairs": len(values), "shared": float(np.mean([v[0] for v in values])),
               "jaccard": float(np.mean([v[1] for v in values]))}
        for name, values in found.items()
        if values
    }  # fmt: skip


def _pairs(n: int, seed: int) -> Iterable[tuple[int, int]]:
    """All pairs of `n`, or so many of them drawn: of 10,000 facts there are 50 million."""
    total = n * (n - 1) // 2
    if total <= 4 * PAIRS:
        return combinations(range(n), 2)
    first = np.cumsum(np.arange(n - 1, 0, -1))  # pairs that begin with 0, with 0 or 1, …
    drawn = np.sort(np.random.default_rng(seed).choice(total, 4 * PAIRS, replace=False))
    i = np.searchsorted(first, drawn, side="right")
    j = drawn - np.concatenate([[0], first])[i] + i + 1
    return zip(i.tolist(), j.tolist(), strict=True)


def _specificity(rows: Sequence[dict], seed: int) -> dict[str, dict]:
    """Change of other facts' targets, of the same relation and of others."""
    found = {}
    for name in ("same_relation", "other_relations"):
        mine = [row["specificity"][name] for row in rows if name in row["specificity"]]
        if mine:
            before = [found["before"] for found in mine]
            found[name] = {
                what: _figure(ratio_of_means(before, [found[key] for found in mine], seed)) for what, key in WHATS
            }
    return found


def _stability(rows: Sequence[dict], seed: int) -> dict[str, dict]:
    """Per setting: mean number of neurons, mean overlap (Jaccard) with those of the study's own setting."""
    names = list(dict.fromkeys(name for row in rows for name in row["stability"]))
    found = {}
    for name in names:
        values = [row["stability"][name] for row in rows if name in row["stability"]]
        found[name] = {"neurons": float(np.mean([v[0] for v in values])),
                       "jaccard": _figure(mean([v[1] for v in values], seed))}  # fmt: skip
    return found
