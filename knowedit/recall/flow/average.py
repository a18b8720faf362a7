"""The recall of many facts as one: means over facts, with their intervals, of what `pipeline.recall_fact` measures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ...display.result import Table, plain
from ...errors import InputError
from ...statistics import Estimate, mean, rate
from ...writing.counts import number_of
from .knockout import SUBLAYERS, Knockout
from .pipeline import Recall

_HEADS = 10

Curve = tuple[Estimate, ...]
"""One estimate a layer."""


@dataclass(frozen=True)
class RecallAverage:
    """Means over facts; every estimate's `value` is the mean, its `n` the facts in it.

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
                "rate": plain(self.rate),
                "control": plain(self.control),
                "separation": plain(self.separation),
                "read": self.enrichment_read,
                "without": plain(self.without),
            },
            "propagation": {name: self._knocked(curve) for name, curve in self.edges.items()},
            "sublayers": {name: self._knocked(curve) for name, curve in self.sublayers.items()},
            "extraction": {
                "events": plain(self.events),
                "any": plain(self.any_event),
                "heads": [{"layer": layer, "head": head, "facts": n} for layer, head, n in self.heads],
            },
            "config": self.config,
        }

    def table(self) -> Iterator[str | Table]:
        """Each measure at the layer where it is largest, or costs most."""
        yield f"{number_of(len(self.facts), 'fact')} that {self.model} knows, mean p = {self.probability.value:.3f}"
        yield ""
        rate, separation = _highest(self.rate), _highest(self.separation)
        rows: list[tuple[str, int | str, str]] = [
            ("attributes among the first words", rate, self.rate[rate].text("share"))
        ]
        rows.append(("separation from other subjects'", separation, self.separation[separation].text("share")))
        knockouts = [(f"no {name} at the subject's last token", curve) for name, curve in self.sublayers.items()]
        knockouts += [(f"{name} hidden from the last token", curve) for name, curve in self.edges.items()]
        for name, curve in knockouts:
            layer, worst = self.worst(curve)
            rows.append((name, layer, worst.text("change")))
        for name, share in self.any_event.items():
            rows.append((f"extraction event of {name}, any layer", "", share.text("share")))
        yield Table(("", "layer", "mean over facts [95 %]"), rows)
        if self.heads:
            yield ""
            yield "Extraction heads (facts): " + ", ".join(f"{layer}.{head} ({n})" for layer, head, n in self.heads)

    def figure(self, path: str | Path) -> Path:
        """Draw the means of the three stages by layer, with their intervals."""
        from .figure import recall_figure

        return recall_figure(path, self)

    def _knocked(self, curve: Curve) -> dict:
        layer, worst = self.worst(curve)
        return {"worst": {"layer": layer, **worst.as_dict()}, "change": plain(curve)}


def average_recall(recalls: Sequence[Recall], seed: int = 0) -> RecallAverage:
    """The average of recalls of one model. Raises `InputError` without any, or where they were made differently."""
    if not recalls:
        raise InputError("there are no recalls to average; measure at least one fact")
    first = recalls[0]
    if any((r.model, r.config, r.edges.window) != (first.model, first.config, first.edges.window) for r in recalls):
        raise InputError("recalls of different models or settings have no average; make all of them alike")
    n_layers = len(first.enrichment.rate)

    def curve(values: Callable[[Recall], Sequence[float | None]]) -> Curve:
        return _curve([values(r) for r in recalls], n_layers, seed)

    events = {name: [getattr(r.extraction, name) for r in recalls] for name in ("attention", "mlp")}
    heads = Counter(head for r in recalls for head in r.extraction.heads)
    return RecallAverage(
        model=first.model,
        facts=tuple(r.fact or r.prompt for r in recalls),
        window=first.edges.window,
        enrichment_read=first.enrichment.read,
        probability=mean([r.probability for r in recalls], seed),
        rate=curve(lambda r: r.enrichment.rate),
        control=curve(lambda r: r.enrichment.control),
        separation=curve(lambda r: r.enrichment.separation),
        without={name: curve(partial(_lost, name=name)) for name in SUBLAYERS},
        edges=_knockouts([r.edges for r in recalls], n_layers, seed),
        sublayers=_knockouts([r.sublayers for r in recalls], n_layers, seed),
        events={name: tuple(rate(layer) for layer in zip(*rows, strict=True)) for name, rows in events.items()},
        any_event={name: rate([any(row) for row in rows]) for name, rows in events.items()}
        | {"heads": rate([bool(r.extraction.heads) for r in recalls])},
        heads=tuple((*head, n) for head, n in sorted(heads.items(), key=lambda item: (-item[1], item[0]))[:_HEADS]),
        config=first.config.as_dict(),
    )


def _highest(curve: Curve) -> int:
    """The layer with the highest mean."""
    return max(range(len(curve)), key=lambda i: -1.0 if curve[i].value is None else curve[i].value)


def _lost(recall: Recall, name: str) -> list[float]:
    clean = recall.enrichment.rate[recall.enrichment.read]
    return [rate - clean for rate in recall.enrichment.without[name]]


def _knockouts(knockouts: Sequence[Knockout], n_layers: int, seed: int) -> dict[str, Curve]:
    """By set, over the facts whose prompts have it."""
    names = dict.fromkeys(name for knockout in knockouts for name in knockout.after)
    return {
        name: _curve([knockout.change(name) for knockout in knockouts if name in knockout.after], n_layers, seed)
        for name in names
    }


def _curve(rows: Sequence[Sequence[float | None]], n_layers: int, seed: int) -> Curve:
    return tuple(mean([row[layer] for row in rows if row[layer] is not None], seed) for layer in range(n_layers))
