"""How many unrelated relations share a neuron, in the model's own basis and in randomly rotated ones.

A relation *uses* a neuron if, where the answers to its facts are read, the neuron is among the `top` share of its layer
by contribution |a|·‖v‖ for at least half of them. A neuron is *polysemantic* here if two or more unrelated relations
use it; relations are unrelated where their facts have no subject and no target in common.

The control puts the same neurons through a random rotation R, a′ = aR and V′ = VR, which leaves the layer's output
Σ a v as it is. Coordinates of a rotated basis mean nothing by themselves (Elhage et al. 2022 on privileged bases): if
neurons were no better units than they, both bases would show the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..display.result import Record, Table
from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from ..progress import Progress, silent
from ..statistics import Estimate, proportion
from .corpus_scan import chosen_layers, neurons_at

FEWEST = 3  # facts of a relation: of fewer, half is one


@dataclass(frozen=True)
class PolysemanticityConfig:
    """A neuron counts for a fact among the `top` share of its layer, and for a relation by `agreement` of its facts;
    `rotations` are drawn by `seed`; `layers` (None: all) are looked at."""

    top: float = 0.01
    agreement: float = 0.5
    rotations: int = 3
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("top", "agreement"):
            if not isinstance(getattr(self, name), int | float) or not 0 < getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number above 0, up to 1")
        if not isinstance(self.rotations, int) or self.rotations < 1:
            raise InputError(f"rotations is {self.rotations!r}, expected 1 or more")


@dataclass(frozen=True)
class Shared(Record):
    """Coordinates of one basis that relations use, over all layers.

    - `used`: how many; `relations`: how many relations use one of them, on average.
    - `polysemantic`: the share that two or more unrelated relations use; `general`: the share that all relations use;
      n counts coordinates (of all rotations).
    - `histogram[k]`: how many are used by k + 1 pairwise unrelated relations; a mean over rotations.
    - `by_layer`: the polysemantic share of each layer, None where nothing is used.
    """

    used: float
    relations: float | None
    polysemantic: Estimate
    general: Estimate
    histogram: tuple[float, ...]
    by_layer: tuple[float | None, ...]


@dataclass(frozen=True)
class Polysemanticity(Record):
    """`neurons` against `rotated` coordinates; `relations` with the number of their facts, and which are `related`."""

    model: str
    layers: tuple[int, ...]
    relations: dict[str, int]
    related: tuple[tuple[str, str], ...]
    neurons: Shared
    rotated: Shared

    def table(self) -> Iterator[str | Table]:
        """Neurons beside coordinates of a rotated basis."""
        rows = [
            (
                name,
                f"{part.used:.0f}",
                f"{part.relations:.2f}" if part.relations else "",
                part.polysemantic.text("share"),
                part.general.text("share"),
            )
            for name, part in (("neurons", self.neurons), ("rotated basis", self.rotated))
        ]
        columns = ("", "used", "relations each", "by unrelated ones", "by all")
        yield Table(columns, rows, f"Neurons that {len(self.relations)} relations use")

    def figure(self, path: str | Path) -> Path:
        """Draw how many unrelated relations use a neuron."""
        from .figure import memory_figure

        return memory_figure(path, polysemanticity=self)


@torch.no_grad()
def polysemanticity(
    model: Model,
    facts: Sequence[Fact],
    config: PolysemanticityConfig | None = None,
    *,
    progress: Progress = silent,
) -> Polysemanticity:
    """How many unrelated relations share neurons, and rotated coordinates. `progress` counts facts.

    Relations of fewer than three facts are left out. Raises `InputError` where fewer than two remain.
    """
    config = config or PolysemanticityConfig()
    layers = chosen_layers(model, config.layers)
    by_relation = _relations(facts)
    names = list(by_relation)
    related = _related(by_relation)
    chosen = [fact for group in by_relation.values() for fact in group]
    prompts = [model.encode(fact.prompt, fact.subject) for fact in chosen]
    neurons = torch.empty(len(chosen), len(layers), model.n_neurons)
    done = 0
    for rows, found in neurons_at(model, [p.ids for p in prompts], [p.read for p in prompts]):
        neurons[rows] = found[:, list(layers)]
        done += len(rows)
        progress(done)
    of_relation = torch.tensor([names.index(name) for name, group in by_relation.items() for _ in group])
    weights = [model.down_weight(layer).detach().float().cpu() for layer in layers]
    bases = [None, *(_rotation(model.n_neurons, config.seed + i) for i in range(config.rotations))]
    patterns = [_patterns(neurons, weights, basis, of_relation, len(names), config) for basis in bases]
    return Polysemanticity(
        model=model.name,
        layers=layers,
        relations={name: len(group) for name, group in by_relation.items()},
        related=tuple((names[i], names[j]) for i, j in related),
        neurons=_shared(patterns[:1], related, len(names)),
        rotated=_shared(patterns[1:], related, len(names)),
    )


def _relations(facts: Sequence[Fact]) -> dict[str, list[Fact]]:
    by_relation: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.relation is not None or fact.relation_name is not None:
            by_relation.setdefault(fact.relation_name or fact.relation, []).append(fact)
    kept = {name: group for name, group in by_relation.items() if len(group) >= FEWEST}
    if len(kept) < 2:
        raise InputError(
            f"{len(kept)} relations have {FEWEST} facts or more, expected two relations or more: "
            "give more facts, each with its relation"
        )
    return kept


def _related(by_relation: dict[str, list[Fact]]) -> list[tuple[int, int]]:
    """Pairs of relations whose facts share a subject or a target."""
    words = [
        {t.casefold() for fact in group for t in (fact.subject, fact.target) if t} for group in by_relation.values()
    ]
    return [(i, j) for i in range(len(words)) for j in range(i + 1, len(words)) if words[i] & words[j]]


def _rotation(n: int, seed: int) -> Tensor:
    """A random orthogonal matrix, uniformly distributed."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator))
    return q * r.diagonal().sign()


def _patterns(
    neurons: Tensor, weights: list[Tensor], basis: Tensor | None, of_relation: Tensor, n: int, config
) -> list[Tensor]:
    """Which relations use each coordinate of each layer, (n_neurons, relations)."""
    found = []
    for at, weight in enumerate(weights):
        a = neurons[:, at]
        if basis is not None:
            a, weight = a @ basis, weight @ basis
        c = a.abs() * weight.norm(dim=0)
        best = c.topk(max(1, round(config.top * c.shape[1])), dim=1).indices
        chosen = torch.zeros_like(c).scatter_(1, best, 1.0)
        shares = torch.stack([chosen[of_relation == r].mean(0) for r in range(n)], 1)
        found.append(shares >= config.agreement - 1e-6)
    return found


def _shared(patterns: list[list[Tensor]], related: list[tuple[int, int]], n: int) -> Shared:
    unrelated = _independent(related, n)
    layers = [torch.cat(of_layer) for of_layer in zip(*patterns, strict=True)]
    layers = [pattern[pattern.any(1)] for pattern in layers]
    together = torch.cat(layers)
    apart = [np.array([unrelated(_mask(row)) for row in pattern.tolist()]) for pattern in layers]
    counts = np.concatenate(apart).astype(int)
    histogram = np.bincount(counts, minlength=n + 1)[1:] / len(patterns)
    return Shared(
        used=len(together) / len(patterns),
        relations=together.sum(1).double().mean().item() if len(together) else None,
        polysemantic=proportion((counts >= 2).astype(float)),
        general=proportion(together.all(1).double().numpy()),
        histogram=tuple(histogram.tolist()),
        by_layer=tuple(float((part >= 2).mean()) if len(part) else None for part in apart),
    )


def _mask(row: list[bool]) -> int:
    return sum(1 << i for i, used in enumerate(row) if used)


def _independent(related: list[tuple[int, int]], n: int) -> Callable[[int], int]:
    """How many of a set of relations, given as bits, are at most pairwise unrelated."""
    near = [0] * n
    for i, j in related:
        near[i] |= 1 << j
        near[j] |= 1 << i

    @cache
    def largest(mask: int) -> int:
        worst = max((i for i in range(n) if mask >> i & 1), key=lambda i: (near[i] & mask).bit_count(), default=None)
        if worst is None or not near[worst] & mask:
            return mask.bit_count()
        without = mask & ~(1 << worst)
        return max(largest(without), 1 + largest(without & ~near[worst]))

    return largest
