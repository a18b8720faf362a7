"""`knowedit facts` and `knowedit probe`: which facts there are, and which of them a model knows."""

from __future__ import annotations

from typing import Annotated

import typer

from .shared.facts import choose_facts
from .shared.options import AsJson, Chat, ModelOptions, Separator
from .shared.output import line, print_json, table
from .shared.progress import progress

SCHEMA = "knowedit.probe/1"

FactsFile = Annotated[
    str | None, typer.Option("--facts", help="A file of facts (JSON, CSV, …); the built-in ones by default.")
]
Relation = Annotated[str | None, typer.Option("--relation", help="Only facts of this relation, by id (P36) or name.")]


def list_facts(facts: FactsFile = None, relation: Relation = None, as_json: AsJson = False) -> None:
    """List facts: the built-in ones, or those of a file."""
    chosen = choose_facts(facts, relation)
    if as_json:
        for fact in chosen:
            print_json({"id": fact.id, "relation": fact.relation, "prompt": fact.prompt, "target": fact.target})
        return
    table(
        ["id", "relation", "prompt", "target"],
        [(f.id, f.relation_name or f.relation, f.prompt, f.target) for f in chosen],
    )


def probe(
    facts: FactsFile = None,
    relation: Relation = None,
    separator: Separator = None,
    chat: Chat = False,
    as_json: AsJson = False,
    *,
    model: ModelOptions,
) -> None:
    """Which facts does the model know? Probability and rank of each target, and the model's own first choices.

    A fact counts as known when the target's first token is the model's first choice.
    """
    from ..answers import ask

    chosen = choose_facts(facts, relation, separator)
    loaded = model.load()
    queries = [loaded.query_of(f, chat=chat) for f in chosen]
    with progress("probing", len(queries), "fact") as step:
        answers = ask(loaded, queries, progress=step)
    if as_json:
        for fact, answer in zip(chosen, answers, strict=True):
            record = {"schema": SCHEMA, "model": loaded.name, "id": fact.id, "relation": fact.relation}
            record |= {
                "prompt": fact.prompt,
                "target": fact.target,
                "probability": answer.probability,
                "tokens": answer.tokens,
            }
            print_json(record | {"rank": answer.rank, "known": answer.known, "top": answer.top})
        return
    known: dict[str, list[bool]] = {}
    rows = []
    for fact, answer in zip(chosen, answers, strict=True):
        known.setdefault(fact.relation_name or fact.relation or "", []).append(answer.known)
        top = "  ".join(f"{word!r} {p:.2f}" for word, p in answer.top[:3])
        rows.append((fact.id, fact.target, f"{answer.probability:.3f}", answer.rank, top))
    table(["id", "target", "p", "rank", "first choices, p of the first token"], rows)
    for name, hits in known.items():
        line(f"{sum(hits)} of {len(hits)} known: {name}" if name else f"{sum(hits)} of {len(hits)} known")
