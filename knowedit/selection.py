"""Which facts? Those of a relation, those that a model knows, some of them evenly over the relations, or a sample.

    facts = known(model, of_relations(builtin_facts(), ["P36"]))
    facts = evenly(facts, 20)

What is chosen stands in the order of what it was chosen from. Nothing here depends on chance but for a sample, which
depends on its seed and the facts' ids alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from .answers import ask_facts, first_choice
from .errors import InputError, did_you_mean
from .facts import SLOT, Fact, templated
from .models.adapter import Model
from .sources import Source, builtin_facts, find_fact, load_source

AT_ONCE = 128  # facts of which `choose` asks whether they are to be kept

Keep = Callable[[Sequence[Fact]], Sequence[Fact]]
"""Some facts → those of them that are to be kept, such as `partial(known, model)`."""


def known(model: Model, facts: Sequence[Fact], *, chat: bool = False) -> list[Fact]:
    """The facts whose target (its first token) is the model's first choice after the main prompt."""
    return [fact for fact, answer in zip(facts, ask_facts(model, facts, chat=chat, top=0), strict=True) if answer.known]


def of_relations(facts: Sequence[Fact], relations: Sequence[str]) -> list[Fact]:
    """The facts of some relations, by name or id; all facts where none is named. Raises `InputError` for others."""
    names = sorted({name for fact in facts for name in (fact.relation, fact.relation_name) if name})
    for name in relations:
        if name not in names:
            raise InputError(f"no relation is called {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}")
    return [fact for fact in facts if not relations or {fact.relation, fact.relation_name} & set(relations)]


def by_relation(facts: Sequence[Fact]) -> dict[str | None, list[Fact]]:
    """The facts of each relation, in the order in which relations first occur."""
    groups: dict[str | None, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.relation, []).append(fact)
    return groups


def evenly(facts: Sequence[Fact], limit: int | None) -> list[Fact]:
    """At most `limit` facts, as many of each relation, spread over its facts by a whole stride. None for all facts.

    A relation with fewer facts than its share leaves the rest of it open. The facts of committed results are chosen so.
    """
    if limit is None or limit >= len(facts):
        return list(facts)
    groups = list(by_relation(facts).values())
    chosen: set[str | None] = set()
    for i, group in enumerate(groups):
        share = limit // len(groups) + (i < limit % len(groups))
        chosen |= {fact.id for fact in group[:: max(1, len(group) // max(1, share))][:share]}
    return [fact for fact in facts if fact.id in chosen]


def per_relation(facts: Sequence[Fact], most: int | None) -> list[Fact]:
    """At most `most` facts of each relation, evenly spaced. None for all facts."""
    if most is None:
        return list(facts)
    chosen = {fact.id for group in by_relation(facts).values() for fact in evenly_spaced(group, most)}
    return [fact for fact in facts if fact.id in chosen]


def evenly_spaced(items: Sequence, n: int) -> list:
    """At most `n` of `items`, the first of each n-th part of them."""
    return list(items) if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


def choose(
    facts: Sequence[Fact],
    *,
    skip: int = 0,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    keep: Keep | None = None,
) -> list[Fact]:
    """The first `limit` of the facts, or `sample` of them drawn by `seed`; with both the sample is drawn of the first.

    The first `skip` facts, which settings may have been chosen on, count for nothing. Limits count what `keep` leaves,
    so `limit=100` of known facts gives a hundred of them where there are as many. `keep` is asked about `AT_ONCE` facts
    at a time, until there are enough. Raises `InputError` for numbers below 1, and where none is left behind the
    skipped ones.
    """
    for option, number in (("limit", limit), ("sample", sample)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise InputError(f"the {option} is {number!r}, expected a number of records from 1 on")
    if not isinstance(skip, int) or isinstance(skip, bool) or skip < 0:
        raise InputError(f"{skip!r} records are to be skipped, expected a number from 0 on")
    if facts and skip >= len(facts):
        raise InputError(f"{skip} records are to be skipped of {len(facts)}, so none is left; skip fewer")
    facts = facts[skip:]
    enough = limit if limit is not None else sample
    order = list(facts) if limit is not None or sample is None else drawing_order(facts, seed)
    chosen: list[Fact] = []
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        chosen += part if keep is None else keep(part)
        if enough is not None and len(chosen) >= enough:
            break
    chosen = chosen[:enough]
    if limit is not None and sample is not None:
        chosen = drawing_order(chosen, seed)[:sample]
    ids = {fact.id for fact in chosen}
    return [fact for fact in facts if fact.id in ids]


def drawing_order(facts: Sequence[Fact], seed: int) -> list[Fact]:
    """The order in which samples are drawn: by the hash of seed and id, whatever the order of the source."""
    return sorted(facts, key=lambda fact: hashlib.sha256(f"{seed}/{fact.id}".encode()).hexdigest())


def build_fact(
    model: Model,
    prompt: str | None,
    subject: str | None,
    target: str | None,
    fact_id: str | None = None,
    separator: str | None = None,
) -> Fact:
    """The fact of that id, or the one that prompt, subject and target make.

    Without a target the model's first choice is the target. Raises `InputError` where the subject is the whole prompt.
    """
    if fact_id is not None:
        known = find_fact(fact_id)
        return replace(known, target=known.target if target is None else target, separator=separator)
    template = templated(prompt, subject)
    if template.strip() == SLOT:
        raise InputError(f"the subject {subject!r} is the whole prompt; write the prompt that asks something about it")
    fact = Fact(template=template, subject=subject, target=target or "?", separator=separator)
    if target is None:
        fact = replace(fact, target=first_choice(model, fact))
    same = [f for f in builtin_facts() if (f.subject, f.target) == (subject, fact.target)]
    return replace(fact, relation=same[0].relation, relation_name=same[0].relation_name) if same else fact


def source_of(config) -> Source:
    """The whole source of a study."""
    return load_source(config.source, format=config.format, revision=config.revision)
