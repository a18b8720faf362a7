"""What the benchmarks are about: one prompt, the facts that a model knows, and those that edits are tried on.

Settings of edits are chosen on `development` facts, results are of the `reported` ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import knowedit
from knowedit import selection
from knowedit.facts import Fact, fill
from knowedit.models.adapter import Model
from knowedit.prompts import Query
from knowedit.selection import evenly

PROMPT, SUBJECT, TARGET = "The Eiffel Tower is located in the city of", "Eiffel Tower", "Paris"
REPORTED = 200
PLACES = ("P36", "P37", "P30", "P131", "P17")  # relations about places, which the settings were chosen on


def known(model: Model, facts: Sequence[Fact] | None = None) -> list[Fact]:
    """Those of the facts, by default of the built-in ones, whose target is the model's first choice."""
    return selection.known(model, knowedit.builtin_facts() if facts is None else facts)


def reported(n: int = REPORTED) -> list[Fact]:
    """Built-in facts, evenly over the relations, known to the model or not."""
    return evenly(evenly(_places(), REPORTED), n)


def development(n: int) -> list[Fact]:
    """Other built-in facts, evenly over the relations."""
    kept_back = set(reported())
    return evenly([fact for fact in _places() if fact not in kept_back], n)


def editable(source: str) -> list[Fact]:
    """The facts of a file that have a new target."""
    return [fact for fact in knowedit.read_facts(source) if fact.target_new is not None]


def heldout_queries(model: Model, fact: Fact) -> list[Query]:
    """What the prompts ask that a fact holds out for proofs."""
    return [model.query_of(fact, prompt=fill(template, fact.subject)) for template in fact.heldout]


def _places() -> list[Fact]:
    return [fact for fact in knowedit.builtin_facts() if fact.relation in PLACES]
