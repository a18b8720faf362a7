"""Which facts of a source a study is about: those that can be used, that the model knows, and as many as are asked for.

    facts = choose(source.facts, limit=100, known=lambda some: [...])

Limits count what is left by all that stands before them, so `limit=100` of known facts gives a hundred of them where
the source has so many, and the model is asked no further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .answers import ask_facts
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


def known_to(model: Model) -> Known:
    """What `choose` asks: whether the model's first choice is each fact's target (the first token of it)."""
    return lambda facts: [answer.known for answer in ask_facts(model, facts)]
