"""The recall of many facts as one: means over facts, with their intervals, of what `pipeline.recall_fact` measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import InputError
from ...statistics import Estimate, mean, rate
from .knockout import SUBLAYERS, Knockout
from .pipeline import Recall

_HEADS = 10

Curve = tuple[Estimate, ...]
"""One estimate a layer."""


@dataclass(frozen=True)
class RecallAverage:
    """Means over facts; every estimate's `change` is the mean, its `n` the facts in it.

    - `rate`, `control`, `separation`: of enrichment, by layer.
    - `without[name]`: how the rate at layer `enrichment_read` changes with a sublayer silent around each layer.
    - `edges[set]`, `sublayers[name]`: the relative change of the target's probability by layer.
    - `events[name]`: the share of facts with an extraction event of the layer's `attention` or `mlp`.
    - `any_event[name]`: the share with at least one in any layer, or of any of the `heads`.
    - `heads`: the heads that are events for most facts, as (layer, head, facts).
    """

    model: str
    facts: tuple[str, ...]
    window: int
    enrichment_read: int
    probability: Estimate
    rate: Curve
    control: Curve
    separation: Curve
    without: dict[str, Curve]
    edges: dict[str, Curve]
    sublayers: dict[str, Curve]
    events: dict[str, Curve]
    any_event: dict[str, Estimate]
    heads: tuple[tuple[int, int, int], ...]
    config: dict

    def worst(self, curve: Curve) -> tuple[int, Estimate]:
        """The layer with the lowest mean, and that mean."""
        layer = min(range(len(curve)), key=lambda i: curve[i].value if curve[i].value is not None else 0.0)
        return layer, curve[layer]

    def as_dict(self) -> dict:
        return {
            "model": self.model,
            "facts": list(self.facts),
            "window": self.window,
            "probability": self.probability.as_dict(),
            "enrichment": {
                "rate": _plain(self.rate),
                "control": _plain(self.control),
                "separation": _plain(self.separation),
                "read": self.enrichment_read,
                "without": {name: _plain(curve) for name, curve in self.without.items()},
            },
            "propagation": {name: self._knocked(curve) for name, curve in self.edges.items()},
            "sublayers": {name: self._knocked(curve) for name, curve in self.sublayers.items()},
            "extraction": {
                "events": {name: _plain(curve) for name, curve in self.events.items()},
                "any": {name: one.as_dict() for name, one in self.any_event.items()},
                "heads": [{"layer": layer, "head": head, "facts": n} for layer, head, n in self.heads],
            },
            "config": self.config,
        }

    def _knocked(self, curve: Curve) -> dict:
        layer, worst = self.worst(curve)
        return {"worst": {"layer": layer, **worst.as_dict()}, "change": _plain(curve)}


def average_recall(found: Sequence[Recall], seed: int = 0) -> RecallAverage:
    """The average of recalls of one model. Raises `InputError` without any, or where they were made differently."""
    if not found:
        raise InputError("there are no recalls to average; measure at least one fact")
    one = found[0]
    if any((r.model, r.config, r.edges.window) != (one.model, one.config, one.edges.window) for r in found):
        raise InputError("recalls of different models or settings have no average; make all of them alike")
    n_layers = len(one.enrichment.rate)

    def curve(values: Callable[[Recall], Sequence[float | None]]) -> Curve:
        return _curve([values(r) for r in found], n_layers, seed)

    events = {name: [getattr(r.extraction, name) for r in found] for name in ("attention", "mlp")}
    heads = Counter(head for r in found for head in r.extraction.heads)
    return RecallAverage(
        model=one.model,
        facts=tuple(r.fact or r.prompt for r in found),
        window=one.edges.window,
        enrichment_read=one.enrichment.read,
        probability=mean([r.probability for r in found], seed),
        rate=curve(lambda r: r.enrichment.rate),
        control=curve(lambda r: r.enrichment.control),
        separation=curve(lambda r: r.enrichment.separation),
        without={name: curve(lambda r, name=name: _lost(r, name)) for name in SUBLAYERS},
        edges=_knockouts([r.edges for r in found], n_layers, seed),
        sublayers=_knockouts([r.sublayers for r in found], n_layers, seed),
        events={name: tuple(rate(layer) for layer in zip(*rows, strict=True)) for name, rows in events.items()},
        any_event={name: rate([any(row) for row in rows]) for name, rows in events.items()}
        | {"heads": rate([bool(r.extraction.heads) for r in found])},
        heads=tuple((*head, n) for head, n in sorted(heads.items(), key=lambda item: (-item[1], item[0]))[:_HEADS]),
        config=one.config.as_dict(),
    )


def _lost(found: Recall, name: str) -> list[float]:
    clean = found.enrichment.rate[found.enrichment.read]
    return [rate - clean for rate in found.enrichment.without[name]]


def _knockouts(found: Sequence[Knockout], n_layers: int, seed: int) -> dict[str, Curve]:
    """By set, over the facts whose prompts have it."""
    names = dict.fromkeys(name for one in found for name in one.after)
    return {name: _curve([one.change(name) for one in found if name in one.after], n_layers, seed) for name in names}


def _curve(rows: Sequence[Sequence[float | None]], n_layers: int, seed: int) -> Curve:
    return tuple(mean([row[layer] for row in rows if row[layer] is not None], seed) for layer in range(n_layers))


def _plain(curve: Curve) -> list[dict]:
    return [one.as_dict() for one in curve]
