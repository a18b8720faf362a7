"""`knowedit facts` and `knowedit probe`: which facts there are, and which of them a model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .shared.options import DEFAULT_MODEL, AsJson, Chat, Device, Dtype, ModelName, RemoteCode, load
from .shared.output import line, print_json, table

SCHEMA = "knowedit.probe/1"

FactsFile = Annotated[Path | None, typer.Option("--facts", help="A JSONL file of facts; the built-in ones by default.")]
Relation = Annotated[str | None, typer.Option("--relation", help="Only facts of this relation, by id (P36) or name.")]


def list_facts(facts: FactsFile = None, relation: Relation = None, as_json: AsJson = False) -> None:
    """List facts: the built-in ones, or those of a file."""
    chosen = choose(facts, relation)
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
    model: ModelName = DEFAULT_MODEL,
    dtype: Dtype = None,
    device: Device = None,
    trust_remote_code: RemoteCode = False,
    chat: Chat = False,
    as_json: AsJson = False,
) -> None:
    """Which facts does the model know? Probability and rank of each target, and the model's own first choices.

    A fact counts as known when the target's first token is the model's first choice.
    """
    from tqdm.auto import tqdm

    from ..answers import answers

    chosen = choose(facts, relation)
    wrapped = load(model, dtype, device, trust_remote_code)
    queries = [wrapped.query(f.prompt, f.target, f.subject, chat=chat) for f in chosen]
    found = dict(tqdm(answers(wrapped, queries), total=len(queries), desc="probing", unit="fact"))
    known: dict[str, list[bool]] = {}
    rows = []
    for i, fact in enumerate(chosen):
        answer = found[i]
        known.setdefault(fact.relation_name or fact.relation or "", []).append(answer.known)
        if as_json:
            record = {"schema": SCHEMA, "model": wrapped.name, "id": fact.id, "relation": fact.relation}
            record |= {"prompt": fact.prompt, "target": fact.target, "probability": answer.probability}
            print_json(record | {"rank": answer.rank, "known": answer.known, "top": [list(t) for t in answer.top]})
        top = "  ".join(f"{word!r} {p:.2f}" for word, p in answer.top[:3])
        rows.append((fact.id, fact.target, f"{answer.probability:.3f}", answer.rank, top))
    if as_json:
        return
    table(["id", "target", "p", "rank", "first choices"], rows)
    for name, hits in known.items():
        line(f"{sum(hits)} of {len(hits)} known: {name}" if name else f"{sum(hits)} of {len(hits)} known")


def choose(path: Path | None, relation: str | None):
    """The facts of a file, or the built-in ones, of one relation if named."""
    from ..errors import InputError, did_you_mean
    from ..sources import builtin_facts, read_facts

    facts = builtin_facts() if path is None else read_facts(path)
    if relation is None:
        return facts
    chosen = tuple(f for f in facts if relation in (f.relation, f.relation_name))
    if not chosen:
        names = {n for f in facts for n in (f.relation, f.relation_name) if n}
        raise InputError(
            f"no fact is of the relation {relation!r}{did_you_mean(relation, names)}; "
            f"there are {', '.join(sorted(names))}"
        )
    return chosen
