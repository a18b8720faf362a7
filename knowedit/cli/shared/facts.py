"""Which facts a command is about: one in the user's own words or by id, or many that the model knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Prompt = Annotated[str | None, typer.Argument(help="A prompt that the target continues; {} stands for the subject.")]
Subject = Annotated[str | None, typer.Option("--subject", help="The subject, as it stands in the prompt.")]
Target = Annotated[str | None, typer.Option("--target", help="The answer; by default the model's own first choice.")]
FactId = Annotated[str | None, typer.Option("--fact", help="A built-in fact by id, instead of a prompt.")]
Facts = Annotated[
    str | None, typer.Option("--facts", help="Many facts: a JSONL file, or `builtin`; those that the model knows.")
]
Limit = Annotated[int | None, typer.Option("--limit", help="With --facts: at most so many, evenly over the relations.")]
Relation = Annotated[str | None, typer.Option("--relation", help="With --facts: only this relation, by id or name.")]
FigurePath = Annotated[
    Path | None, typer.Option("--figure", help="Draw it into this file: .png, .svg or .pdf.", dir_okay=False)
]


def check_asked(prompt: str | None, fact: str | None, facts: str | None = None, *, many: bool = False) -> None:
    """Raise `InputError` unless exactly one of them is given. To be called before a model is loaded."""
    from ...errors import InputError

    if sum(given is not None for given in (prompt, fact, facts)) != 1:
        raise InputError(
            "give one of: a PROMPT with --subject, --fact ID" + (", or --facts FILE (or builtin)" if many else "")
        )


def one_fact(model, prompt: str | None, subject: str | None, target: str | None, fact: str | None):
    """The fact that a command is about. Without a target the model's first choice is the target.

    Raises `InputError` where there is no subject, or it is the whole prompt.
    """
    from dataclasses import replace

    from ...answers import ask
    from ...errors import InputError
    from ...facts import SLOT, Fact, templated
    from ...prompts import with_target_ids
    from ...sources import builtin_facts, find_fact

    if fact is not None:
        return find_fact(fact)
    if subject is None:
        raise InputError(f"which part of {prompt!r} is the subject? Name it with --subject")
    template = templated(prompt, subject)
    if template.strip() == SLOT:
        raise InputError(f"the subject {subject!r} is the whole prompt; write the prompt that asks something about it")
    asked = Fact(template=template, subject=subject, target=target or "?")
    if target is None:
        mask = model.tokenizer.mask_token_id if model.masked else None
        asking = with_target_ids(model.encode(asked.prompt, subject), (0,), mask)  # any token: only the answer counts
        (found,) = ask(model, [asking])
        asked = replace(asked, target=found.top[0][0].strip() or found.top[0][0])
    same = [f for f in builtin_facts() if (f.subject, f.target) == (subject, asked.target)]
    return replace(asked, relation=same[0].relation, relation_name=same[0].relation_name) if same else asked


def known_facts(model, facts: str, relation: str | None = None, limit: int | None = None) -> list:
    """Facts of a file, or the built-in ones, whose target is the model's first choice, evenly over the relations.

    Raises `InputError` where the model knows none.
    """
    from ...answers import ask_facts
    from ...errors import InputError
    from ..facts import choose
    from ..locate_many import evenly

    chosen = choose(None if facts == "builtin" else Path(facts), relation)
    known = [fact for fact, answer in zip(chosen, ask_facts(model, chosen), strict=True) if answer.known]
    if not known:
        raise InputError(f"{model.name} knows none of the {len(chosen)} facts; choose others")
    return known if limit is None else evenly(known, limit)
