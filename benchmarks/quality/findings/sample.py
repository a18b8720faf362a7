"""What every section of the findings is given, and how curves over layers are put into a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from knowedit.facts import Fact
from knowedit.models.adapter import Model
from knowedit.prompts import Query
from knowedit.statistics import Estimate, mean

from ...samples import evenly, known


@dataclass(frozen=True)
class Sample:
    """A model and its facts; `draws` of noise in fast traces, `exact_draws` in exact ones, `nodes` of the integral."""

    model: Model
    facts: tuple[Fact, ...]
    draws: int
    exact_draws: int
    nodes: int

    def queries(self) -> list[Query]:
        return [self.model.query_of(fact) for fact in self.facts]


def chosen_facts(model: Model, n: int) -> tuple[tuple[Fact, ...], dict]:
    """Known facts whose prompts go on behind the subject, `n` or a few more, and a record of them.

    They are spread evenly over the relations, as far as these have enough.
    """
    known_facts = known(model)
    prompts = {fact.id: model.query_of(fact).prompt for fact in known_facts}
    fit = tuple(fact for fact in known_facts if prompts[fact.id].lookup != prompts[fact.id].read)
    limit = n
    while len(facts := evenly(fit, limit)) < min(n, len(fit)):
        limit += 1
    relations = [fact.relation_name for fact in facts]
    return facts, {
        "known": len(known_facts),
        "with_text_behind_the_subject": len(fit),
        "n": len(facts),
        "by_relation": {name: relations.count(name) for name in dict.fromkeys(relations)},
        "ids": [fact.id for fact in facts],
    }


def curve_of(rows: Sequence[Sequence[float | None]]) -> list[Estimate]:
    """Means by layer over the rows that have a number there."""
    return [mean([value for value in column if value is not None]) for column in zip(*rows, strict=True)]


def values_of(curve: Sequence[Estimate]) -> list[float | None]:
    return [estimate.value for estimate in curve]


def highest(curve: Sequence[Estimate]) -> dict:
    """The layer at which a curve is largest, and its value there."""
    layer = max(range(len(curve)), key=lambda at: -1.0 if curve[at].value is None else curve[at].value)
    return {"layer": layer, **curve[layer].as_dict()}


def lowest(curve: Sequence[Estimate]) -> dict:
    """The layer at which a curve is smallest, and its value there."""
    layer = min(range(len(curve)), key=lambda at: curve[at].value)
    return {"layer": layer, **curve[layer].as_dict()}
