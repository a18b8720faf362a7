"""What the records of located neurons say together: effects, proof, overlaps, layers, per relation.

Metrics are named by what is measured and of which neurons: `suppress:ig` is the change of the target's mean probability
when neurons located by `ig` are set to zero (ratio of means, as Dai et al. have it), `suppress_ratios:ig` the mean over
facts of each fact's own change; `neurons` is their number a fact. `random` neurons are matched by layer and activation,
`random_by_layer` by layer only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ...locate.attribution import INCOMPLETE
from ...locate.proof.effect import Effect
from ...locate.proof.proof import summarise
from ...locate.refinement import Site
from ...statistics import mean, mean_of_ratios, ratio_of_means
from ...writing.counts import number_of
from .records import effect_of, mean_probabilities, neurons_of

WHATS = (("suppress", "suppressed"), ("amplify", "amplified"))
PAIRS = 20000  # at most four times as many pairs of facts are compared


@dataclass(frozen=True)
class _Fact:
    """What is kept of a record: `sites` by method, `probabilities` by set of neurons and what was done to them."""

    id: str
    relation: str | None
    neurons: int
    missing: float | None
    sites: dict[str, list[Site]]
    effect: Effect | None
    probabilities: dict[str, dict[str, float]]
    faithfulness: dict | None
    stability: dict[str, list[float]]

    @property
    def located(self) -> list[Site]:
        return next(iter(self.sites.values()))


def summary(rows: Iterable[dict], metrics: Sequence[str] = (), seed: int = 0, layers: int | None = None) -> dict:
    """`metrics`, `by_relation`, `proof`, `layers`, `overlap`, `specificity`, `faithfulness`, `stability`,
    `completeness` and `located`.

    `empty` counts facts without neurons, `unproved` those with neurons and without a prompt to prove them on. Records
    may come in any order. Only the means of each record are kept, its neurons, and its random draws.
    """
    facts = sorted((_kept(row) for row in rows), key=lambda fact: fact.id)
    full = [fact for fact in facts if fact.neurons]
    effects = [fact.effect for fact in facts if fact.effect is not None]
    relations = sorted({fact.relation for fact in facts if fact.relation})
    values = _metrics(facts, seed)
    proof = summarise(effects).as_dict() if effects else None
    return {
        "metrics": {name: values[name] for name in metrics if name in values} if metrics else values,
        "by_relation": {name: _metrics([f for f in facts if f.relation == name], seed) for name in relations},
        "proof": proof,
        "completeness": _completeness(facts),
        "empty": len(facts) - len(full),
        "unproved": len(full) - len(effects),
        "layers": _layers(full, layers),
        "overlap": _overlap(full, seed),
        "specificity": {} if proof is None else proof["specificity"],
        "faithfulness": _faithfulness(facts, seed),
        "stability": _stability(facts, seed),
        "located": {name: {f.id: f.located for f in full if f.relation == name} for name in relations},
    }


def _kept(row: dict) -> _Fact:
    neurons, effect = neurons_of(row), effect_of(row)
    rivals = {name: [tuple(site) for site in sites] for name, sites in row["rivals"].items()}
    return _Fact(
        id=row["id"],
        relation=row["relation"],
        neurons=len(neurons),
        missing=neurons.missing,
        sites={neurons.method: list(neurons), **rivals},
        effect=effect,
        probabilities={} if effect is None else mean_probabilities(effect, neurons.method),
        faithfulness=row["faithfulness"],
        stability=row.get("stability", {}),
    )


def _metrics(facts: Sequence[_Fact], seed: int) -> dict[str, dict]:
    proved = [fact for fact in facts if fact.effect is not None]
    before = [float(fact.effect.before.mean()) for fact in proved]
    figures = {
        "neurons": mean([fact.neurons for fact in facts], seed).as_dict(),
        "probability": mean(before, seed).as_dict(),
    }
    for name in proved[0].probabilities if proved else ():
        for what, key in WHATS:
            after = [fact.probabilities[name][key] for fact in proved]
            figures[f"{what}:{name}"] = ratio_of_means(before, after, seed).as_dict()
            figures[f"{what}_ratios:{name}"] = mean_of_ratios(before, after, seed).as_dict()
    return figures


def _completeness(facts: Sequence[_Fact]) -> dict:
    """In how many facts the scores of a layer miss more than `INCOMPLETE` of F, and what to think of it in words."""
    missing = [fact.missing for fact in facts if fact.missing is not None]
    incomplete = sum(value > INCOMPLETE for value in missing)
    warning = None
    if incomplete:
        warning = (
            f"in {incomplete} of {number_of(len(missing), 'fact')} the scores of a layer miss more than "
            f"{INCOMPLETE:.0%} of F ({max(missing):.0%} at most), so they may be wrong; let nodes be auto"
        )
    return {"facts": len(missing), "incomplete": incomplete, "missing": max(missing, default=None), "warning": warning}


def _layers(facts: Sequence[_Fact], layers: int | None) -> dict[str, list[int]]:
    """By method, how many neurons lie in each layer."""
    counts: dict[str, Counter] = {}
    for fact in facts:
        for name, sites in fact.sites.items():
            counts.setdefault(name, Counter()).update(layer for layer, _ in sites)
    last = max((layer for counter in counts.values() for layer in counter), default=0)
    return {name: [counter[layer] for layer in range(layers or last + 1)] for name, counter in counts.items()}


def _overlap(facts: Sequence[_Fact], seed: int) -> dict[str, dict]:
    """Shared neurons and Jaccard index of pairs of facts, of one relation and of different ones (Dai et al., 4.4)."""
    sets = [set(fact.located) for fact in facts]
    pairs: dict[str, list[tuple[int, float]]] = {"within": [], "between": []}
    for i, j in _pairs(len(sets), seed):
        both, either = len(sets[i] & sets[j]), len(sets[i] | sets[j])
        kind = "within" if facts[i].relation == facts[j].relation else "between"
        pairs[kind].append((both, both / either if either else 0.0))
    return {
        kind: {
            "pairs": len(values),
            "shared": float(np.mean([both for both, _ in values])),
            "jaccard": float(np.mean([jaccard for _, jaccard in values])),
        }
        for kind, values in pairs.items()
        if values
    }


def _pairs(n: int, seed: int) -> Iterable[tuple[int, int]]:
    """All pairs of `n`, or `4 * PAIRS` of them drawn: 10,000 facts make 50 million pairs."""
    total = n * (n - 1) // 2
    if total <= 4 * PAIRS:
        return combinations(range(n), 2)
    first = np.cumsum(np.arange(n - 1, 0, -1))  # pairs that begin with 0, with 0 or 1, …
    drawn = np.sort(np.random.default_rng(seed).choice(total, 4 * PAIRS, replace=False))
    i = np.searchsorted(first, drawn, side="right")
    j = drawn - np.concatenate([[0], first])[i] + i + 1
    return zip(i.tolist(), j.tolist(), strict=True)


def _faithfulness(facts: Sequence[_Fact], seed: int) -> dict:
    """At each share of all neurons P with only these, and without these, over P (ratios of means); CPR and CMD."""
    curves = [fact.faithfulness for fact in facts if fact.faithfulness is not None]
    if not curves:
        return {}
    whole = np.mean([curve["kept"][-1] for curve in curves])
    areas = {name: [c[name] for c in curves if c[name] is not None] for name in ("cpr", "cmd")}
    return {
        "share": [size / curves[0]["neurons"] for size in curves[0]["sizes"]],
        **{
            name: (np.mean([curve[name] for curve in curves], axis=0) / whole).tolist()
            for name in ("kept", "removed", "kept_by_size")
        },
        **{name: mean(values, seed).as_dict() for name, values in areas.items()},
    }


def _stability(facts: Sequence[_Fact], seed: int) -> dict[str, dict]:
    """Per setting: mean number of neurons, mean overlap (Jaccard) with those of the study's own setting."""
    by_setting: dict[str, list[list[float]]] = {}
    for fact in facts:
        for name, values in fact.stability.items():
            by_setting.setdefault(name, []).append(values)
    return {
        name: {
            "neurons": float(np.mean([neurons for neurons, _ in values])),
            "jaccard": mean([jaccard for _, jaccard in values], seed).as_dict(),
        }
        for name, values in by_setting.items()
    }
