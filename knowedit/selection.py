"""Which facts of a source a study is about: those that can be used, that the model knows, and as many as are asked for.

    facts = choose(source.facts, limit=100, known=lambda some: [...])

Limits count what is left by all that stands before them, so `limit=100` of known facts gives a hundred of them where
the source has so many, and the model is asked no further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .answers import ask_facts
from .errors import InputError, did_you_mean
from .facts import Fact
from .models.adapter import Model
from .sources import Source, load_source
from .sources.loading import check_number, drawing_order

Known = Callable[[Sequence[Fact]], Sequence[bool]]  # of some facts, whether the model knows each

ASKED = 128  # facts at once, whether the model knows them


def source_of(config) -> Source:
    """The whole source of a study."""
    return load_source(config.source, format=config.format, revision=config.revision)


def choose(
    facts: Sequence[Fact],
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    known: Known | None = None,
) -> list[Fact]:
    """The first `limit` of the facts, or `sample` of them drawn by `seed`, in their order; of those that are `known`.

    With both, so many are drawn of what the limit leaves. `known` is asked about some facts at a time, until there are
    enough. Raises `InputError` for numbers below 1.
    """
    for what, number in (("limit", limit), ("sample", sample)):
        check_number(what, number)
    first = limit if limit is not None else sample
    order = list(facts) if limit is not None or sample is None else drawing_order(facts, seed)
    found: list[Fact] = []
    for start in range(0, len(order), ASKED):
        some = order[start : start + ASKED]
        found += some if known is None else [fact for fact, yes in zip(some, known(some), strict=True) if yes]
        if first is not None and len(found) >= first:
            break
    found = found[:first]
    if limit is not None and sample is not None:
        found = drawing_order(found, seed)[:sample]
    kept = {fact.id for fact in found}
    return [fact for fact in facts if fact.id in kept]


def known_to(model: Model, chat: bool = False) -> Known:
    """What `choose` asks: whether the model's first choice is each fact's target (the first token of it)."""
    return lambda facts: [answer.known for answer in ask_facts(model, facts, chat=chat)]


def of_relations(facts: Sequence[Fact], relations: Sequence[str]) -> list[Fact]:
    """The facts of some relations, by name or id; all facts where none is named. Raises `InputError` for others."""
    names = sorted({name for fact in facts for name in (fact.relation, fact.relation_name) if name})
    for name in relations:
        if name not in names:
            raise InputError(f"no relation is called {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
    return [fact for fact in facts if not relations or {fact.relation, fact.relation_name} & set(relations)]


def spread_over_relations(facts: Sequence[Fact], most: int | None) -> list[Fact]:
    """At most `most` facts of each relation, evenly spread, in their order."""
    if most is None:
        return list(facts)
    by_relation: dict = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    kept = {fact.id for group in by_relation.values() for fact in evenly_spaced(group, most)}
    return [fact for fact in facts if fact.id in kept]


def evenly(facts: Sequence[Fact], limit: int | None) -> Sequence[Fact]:
    """At most `limit` facts, taken in turn from the relations and spread over each."""
    if limit is None or limit >= len(facts):
        return facts
    by_relation: dict = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    quota = {name: limit // len(by_relation) + (i < limit % len(by_relation)) for i, name in enumerate(by_relation)}
    kept = {
        fact.id
        for name, group in by_relation.items()
        for fact in group[:: max(1, len(group) // max(1, quota[name]))][: quota[name]]
    }
    return tuple(fact for fact in facts if fact.id in kept)


def evenly_spaced(items: Sequence, n: int) -> list:
    """At most `n` of `items`, evenly spread."""
    return list(items) if len(items) <= n else [items[i * len(items) // n] for i in range(n)]
