"""The facts that a command is about: one in the user's own words or by id, or many of a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .options import FactId, Facts, Limit, Prompt, Relation, Separator, Subject, Target


@dataclass(frozen=True)
class OneFact:
    """One fact: a prompt with its subject and target, or a built-in fact by id."""

    panel: ClassVar[str] = "Facts"

    prompt: Prompt = None
    subject: Subject = None
    target: Target = None
    fact: FactId = None
    separator: Separator = None

    def check(self) -> None:
        """Raise `InputError` unless there is exactly one fact. Call it before a model is loaded."""
        check_choice(self.prompt, self.fact, separator=self.separator)
        refuse("a PROMPT", self.prompt is None, subject=self.subject)

    def build(self, model):
        """The fact; without a target the model's first choice is the target."""
        from ...selection import build_fact

        return build_fact(model, self.prompt, self.subject, self.target, self.fact, self.separator)


@dataclass(frozen=True)
class ManyFacts:
    """Facts of a file, or the built-in ones, that the model knows."""

    panel: ClassVar[str] = "Facts"

    facts: Facts = None
    relation: Relation = None
    limit: Limit = None
    separator: Separator = None

    def known(self, model, limit: int | None = None) -> list:
        """The facts, the built-in ones where none are named; at most `limit` where --limit does not say."""
        limit = limit if self.limit is None else self.limit
        return known_facts(model, self.facts or "builtin", self.relation, limit, self.separator)


@dataclass(frozen=True)
class FactChoice(ManyFacts, OneFact):
    """One fact, or many."""

    def check(self) -> None:
        """Raise `InputError` unless exactly one of a prompt, a fact and many facts is named."""
        check_choice(self.prompt, self.fact, self.facts, many=True, separator=self.separator)
        self.check_options()

    def check_options(self) -> None:
        """Raise `InputError` for an option that says nothing about what is named."""
        one = self.prompt is not None or self.fact is not None
        refuse("many facts (--facts)", one, relation=self.relation, limit=self.limit)
        refuse("a PROMPT", self.prompt is None, subject=self.subject)
        refuse("one fact", not one, target=self.target)


def refuse(needed: str, missing: bool, **options) -> None:
    """Raise `InputError` for the first of the options that is set where what it is about is `missing`."""
    from ...errors import InputError

    for name, value in options.items():
        if missing and value is not None and value is not False and value != []:
            raise InputError(f"--{name.replace('_', '-')} is about {needed}; leave it out, or give that")


def check_choice(
    prompt: str | None,
    fact: str | None,
    facts: str | None = None,
    *,
    many: bool = False,
    separator: str | None = None,
) -> None:
    """Raise `InputError` unless exactly one of the three is given, and for a separator that is none.

    Call it before a model is loaded.
    """
    from ...errors import InputError
    from ...writing.separators import check_separator

    check_separator(separator)

    if sum(choice is not None for choice in (prompt, fact, facts)) != 1:
        raise InputError(
            "give one of: a PROMPT with --subject, --fact ID" + (", or --facts FILE (or builtin)" if many else "")
        )


def choose_facts(facts: str | Path | None, relation: str | None = None, separator: str | None = None):
    """The facts of a file, or the built-in ones (None or "builtin"), of one relation if named.

    `separator` is that of all of them, if it is said. Raises `InputError` where no fact is of the relation.
    """
    from dataclasses import replace

    from ...selection import of_relations
    from ...sources import builtin_facts, read_facts

    source = builtin_facts() if facts in (None, "builtin") else read_facts(Path(facts))
    chosen = of_relations(source, () if relation is None else (relation,))
    return chosen if separator is None else [replace(fact, separator=separator) for fact in chosen]


def known_facts(
    model, facts: str, relation: str | None = None, limit: int | None = None, separator: str | None = None
) -> list:
    """The chosen facts whose target is the model's first choice, at most `limit`, evenly over the relations.

    Raises `InputError` where the model knows none.
    """
    from ...errors import InputError
    from ...selection import evenly, known

    source = choose_facts(facts, relation, separator)
    chosen = evenly(known(model, source), limit)
    if not chosen:
        raise InputError(f"{model.name} knows none of the facts that were chosen ({len(source)}); choose others")
    return chosen
