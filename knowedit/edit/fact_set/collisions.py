"""Facts that one change cannot hold together: found before anything is solved, each with what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from ...facts import Fact
from .rows import Row, content_hash, row_name

ALIKE = 0.98
"""Cosine of two keys from which on one weight cannot tell them apart well."""


@dataclass(frozen=True)
class Collision:
    """Two facts by id, `why` they collide and what to do; `cosine` of their keys where that is why.

    Facts that say the `same` are no contradiction: the first of them may stay.
    """

    one: str
    other: str
    why: str
    cosine: float | None = None
    same: bool = False

    @property
    def refused(self) -> list[tuple[str, str]]:
        """The facts that cannot be added, each with the one that it collides with."""
        return [(self.other, self.one)] if self.same else [(self.one, self.other), (self.other, self.one)]

    def __str__(self) -> str:
        return f"{self.one} and {self.other}: {self.why}"


def contradictions(members: Sequence[Fact], new: Sequence[Fact]) -> list[Collision]:
    """Pairs of a new fact and a member, or of two new facts, that say the same, or two answers to one question."""
    found: list[Collision] = []
    seen: dict[tuple, list[Fact]] = {}
    fresh = {fact.id for fact in new}
    for fact in (*members, *sorted(new, key=lambda fact: (content_hash(fact), str(fact.id)))):
        for question in _questions(fact):
            for other in seen.setdefault(question, []):
                if fact.id not in fresh or any({c.one, c.other} == {fact.id, other.id} for c in found):
                    continue
                ids = str(other.id), str(fact.id)
                if row_name(fact) == row_name(other):
                    found.append(Collision(*ids, "both say the same; leave one out", same=True))
                elif _answer(fact) != _answer(other):
                    found.append(
                        Collision(
                            *ids,
                            f"{fact.subject!r} gets two answers, {other.target_new!r} and {fact.target_new!r}; "
                            "replace one, or leave it out",
                        )
                    )
            seen[question].append(fact)
    return found


def alike(
    facts: Sequence[Fact], rows: Mapping[str, Row], bound: float = ALIKE, new: Collection[str] | None = None
) -> list[Collision]:
    """Pairs of facts with other answers whose keys have a cosine above `bound`; one of each is in `new`, if given."""
    first = [i for i, fact in enumerate(facts) if new is None or fact.id in new]
    if len(facts) < 2 or not first:
        return []
    keys = torch.stack([rows[row_name(fact)].key for fact in facts]).double()
    keys = keys / keys.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines = keys[first] @ keys.T
    pairs = {
        (min(first[k], j), max(first[k], j)): cosines[k, j].item() for k, j in (cosines > bound).nonzero().tolist()
    }
    return [
        Collision(
            str(facts[i].id),
            str(facts[j].id),
            "their keys are nearly alike and their answers are not; put other words before the subject, or drop one",
            round(cosine, 4),
        )
        for (i, j), cosine in sorted(pairs.items())
        if i != j and _answer(facts[i]) != _answer(facts[j])
    ]


def _questions(fact: Fact) -> list[tuple]:
    """What a fact answers: its prompt, and its relation where that is told."""
    subject = (fact.subject or "").casefold()
    return [(subject, "prompt", fact.template), *([(subject, "relation", fact.relation)] if fact.relation else [])]


def _answer(fact: Fact) -> str:
    return (fact.target_new or "").strip()
