"""Causal traces of many facts as one: the average indirect effect by kind of token (Meng et al. 2022, figures 2 and 7).

Prompts have different tokens, so tokens are put into classes, each token into one: the subject's last (the only one of
a subject of one token), first and middle ones, then the last of the prompt (where the answer is read), the first after
the subject, and further ones. What stands before the subject can have an effect in a masked model only. A fact counts
once in a class, with the mean over its tokens there; intervals are over facts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...display.result import Table, plain
from ...errors import InputError
from ...statistics import Estimate, mean
from ...writing.counts import number_of
from .exact import Trace

CLASSES = ("before subject", "first subject", "middle subject", "last subject", "first after", "further", "last")


@dataclass(frozen=True)
class TraceAverage:
    """The average of several traces.

    - `effects[kind][token class]`: the average indirect effect at each layer.
    - `high`, `low`, `total_effect`: of the clean and corrupted prompts.
    """

    model: str
    facts: tuple[str, ...]
    n_layers: int
    window: int
    high: Estimate
    low: Estimate
    total_effect: Estimate
    effects: dict[str, dict[str, tuple[Estimate, ...]]]
    config: dict

    def peak(self, kind: str) -> tuple[str, int, Estimate]:
        """The token class and layer of the largest average indirect effect, and that effect."""
        return max(
            ((name, layer, e) for name, row in self.effects[kind].items() for layer, e in enumerate(row)),
            key=lambda place: place[2].value,
        )

    def as_dict(self) -> dict:
        maps = {}
        for kind, classes in self.effects.items():
            name, layer, effect = self.peak(kind)
            maps[kind] = {
                "peak": {"class": name, "layer": layer, "effect": effect.as_dict()},
                "classes": plain(classes),
            }
        return {
            "model": self.model,
            "facts": list(self.facts),
            "layers": self.n_layers,
            "window": self.window,
            "high": self.high.as_dict(),
            "low": self.low.as_dict(),
            "total_effect": self.total_effect.as_dict(),
            "maps": maps,
            "config": self.config,
        }

    def table(self) -> Iterator[str | Table]:
        """For each kind, the largest effect at each class of token."""
        yield (
            f"{number_of(len(self.facts), 'fact')}, {self.model}: p = {self.high.value:.3f}, "
            f"total effect {self.total_effect.text('signed')}"
        )
        for kind, classes in self.effects.items():
            rows = []
            for name, effects in classes.items():
                layer = int(np.argmax([effect.value for effect in effects]))
                rows.append((name, effects[layer].n, layer, effects[layer].text("signed")))
            yield ""
            yield f"{kind}: largest average indirect effect at each kind of token"
            yield Table(("token", "n", "layer", "effect"), rows)

    def figure(self, path: str | Path) -> Path:
        """Draw the average effects: a heat map for each kind, and below it lines with their intervals."""
        from .figure import average_figure

        return average_figure(path, self)


def token_classes(trace: Trace) -> tuple[str, ...]:
    """The class of each token of a trace."""
    start, end = trace.subject_tokens

    def name(token: int) -> str:
        if token < start:
            return "before subject"
        if token < end:
            return "last subject" if token == end - 1 else "first subject" if token == start else "middle subject"
        if token == trace.read:
            return "last"
        return "first after" if token == end else "further"

    return tuple(name(token) for token in range(len(trace.tokens)))


def average_traces(traces: Sequence[Trace], seed: int = 0) -> TraceAverage:
    """The average of traces of one model. Raises `InputError` without any, or where they were made differently."""
    if not traces:
        raise InputError("there are no traces to average; trace at least one fact")
    first = traces[0]
    if any((t.model, t.config, t.window) != (first.model, first.config, first.window) for t in traces):
        raise InputError("traces of different models or settings have no average; make all of them alike")
    effects = {kind: _by_class(traces, kind, seed) for kind in first.effects}
    return TraceAverage(
        model=first.model,
        facts=tuple(t.fact or t.prompt for t in traces),
        n_layers=next(iter(first.effects.values())).shape[-1],
        window=first.window,
        high=mean([t.high for t in traces], seed),
        low=mean([t.low for t in traces], seed),
        total_effect=mean([t.high - t.low for t in traces], seed),
        effects=effects,
        config=first.config.as_dict(),
    )


def _by_class(traces: Sequence[Trace], kind: str, seed: int) -> dict[str, tuple[Estimate, ...]]:
    by_class: dict[str, list[np.ndarray]] = {}
    for trace in traces:
        names, effect = np.array(token_classes(trace)), trace.indirect(kind)
        for name in dict.fromkeys(names):
            by_class.setdefault(name, []).append(effect[names == name].mean(0))  # (layers,)
    if not any(row.any() for row in by_class.get("before subject", ())):
        by_class.pop("before subject", None)  # a decoder, where nothing was lost there
    return {
        name: tuple(mean(values, seed) for values in np.stack(by_class[name]).T) for name in CLASSES if name in by_class
    }
