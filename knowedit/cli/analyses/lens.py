"""`knowedit lens`: what the residual stream predicts after each layer, and which parts make the logit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ...display.result import Table
from ..shared.command import run_command
from ..shared.facts import OneFact
from ..shared.options import Chat, DrawnOutput, EditFolders, ModelOptions


@dataclass(frozen=True)
class Question:
    """What is asked: a prompt, its subject and its answers; what is None, the model or nobody says."""

    prompt: str
    subject: str | None
    target: str | None
    foil: str | None
    separator: str | None


@dataclass(frozen=True)
class LensReport:
    """A lens and the parts of the logit, without edits and, where there are any, with them.

    - `lenses` and `parts` (`Contributions`, or None where the model has none): one each, or two.
    - `refused`: why there are no parts. `heads`, `neurons`: how many of the strongest are shown.
    """

    model: str
    question: Question
    edits: Sequence[str]
    lenses: Sequence[Any]
    parts: Sequence[Any]
    refused: str | None
    heads: int
    neurons: int

    def as_dict(self) -> dict:
        record: dict[str, Any] = {"model": self.model, "prompt": self.question.prompt, "subject": self.question.subject}
        record |= {"edits": list(self.edits), "contributions_refused": self.refused, "unedited": None, "edited": None}
        for name, lens, parts in zip(("unedited", "edited"), self.lenses, self.parts, strict=False):
            contributions = None if parts is None else parts.as_dict(self.heads, self.neurons)
            record[name] = {"lens": lens.as_dict(), "contributions": contributions}
        return record

    def table(self) -> Iterator[str | Table]:
        """The lens by layer, with edits beside without; then the parts of both."""
        from ...recall.lens.decomposition import attribution_tables
        from ...recall.lens.projection import by_layer, by_position, settled

        lenses = [lens.as_dict() for lens in self.lenses]
        target, foil = lenses[0]["target"], lenses[0]["foil"]
        yield f"{self.question.prompt} → {target!r}" + ("" if foil is None else f" (against {foil!r})")
        for when, lens in zip(("", "with the edit: "), lenses, strict=False):
            yield when + settled(lens)
        yield ""
        yield by_layer(lenses)
        if len(lenses[0]["positions"]) > 1:
            for when, lens in zip(("", ", with the edit"), lenses, strict=False):
                yield ""
                yield by_position(lens, when)
        yield ""
        if self.refused:
            yield f"No parts of the logit: {self.refused}"
            return
        for when, parts in zip(("", ", with the edit"), self.parts, strict=False):
            yield from ("",) if when else ()
            yield from attribution_tables(parts.as_dict(self.heads, self.neurons), when)

    def figure(self, path: Path) -> Path:
        """All of it in one picture."""
        from ...recall.lens.figure import lens_figure

        (lens, *edited), (parts, *edited_parts) = self.lenses, self.parts
        beside = {"edited": edited[0], "edited_parts": edited_parts[0]} if edited else {}
        return lens_figure(path, lens, parts, title=self.question.prompt, **beside)


def lens(
    fact: OneFact,
    foil: Annotated[
        str | None, typer.Option(help="Another answer: the parts then make the logits' difference.")
    ] = None,
    positions: Annotated[str, typer.Option(help="read, lookup, all, or token indices such as 0,4,-1.")] = "read",
    top: Annotated[int, typer.Option(help="First choices that are shown.")] = 5,
    heads: Annotated[int, typer.Option(help="The strongest heads that are shown.")] = 10,
    neurons: Annotated[int, typer.Option(help="The strongest neurons that are shown.")] = 10,
    edit: EditFolders = [],  # noqa: B006
    chat: Chat = False,
    *,
    model: ModelOptions,
    output: DrawnOutput,
) -> None:
    """What does the model predict after each layer, and what do layers, heads and neurons add to the answer's logit?

    With --edit and no PROMPT the edit's own fact is asked, its old answer against the new one.
    """
    from ...edit.apply import stacked
    from ...edit.edit import load_edit
    from ...errors import InputError, ModelError
    from ...recall.lens import logit_attribution, logit_lens
    from ...recall.lens.decomposition import check_additive
    from ...recall.lens.projection import aim

    for name, number, least in (("top", top, 1), ("heads", heads, 0), ("neurons", neurons, 0)):
        if number < least:
            raise InputError(f"--{name} is {number}, expected a number from {least} on")
    edits = [load_edit(folder) for folder in edit]
    question = _question(fact, foil, edits)
    places = _positions(positions)

    def run(model):
        refused = None
        try:
            check_additive(model)
        except ModelError as error:  # the lens works all the same
            refused = str(error)
        aimed = aim(
            model, question.prompt, question.target, question.foil, subject=question.subject, chat=chat,
            separator=question.separator,
        )  # fmt: skip
        lenses, parts = [], []
        with ExitStack() as stack:
            for applied in ([], edits)[: 1 + bool(edits)]:
                stack.enter_context(stacked(model, applied))
                lenses.append(logit_lens(model, aimed, positions=places, top=top))
                parts.append(None if refused else logit_attribution(model, aimed))
        hashes = [edit.content_hash for edit in edits]
        return LensReport(model.name, question, hashes, lenses, parts, refused, heads, neurons)

    run_command("knowedit.lens/1", run, model, output)


def _question(fact: OneFact, foil: str | None, edits: list) -> Question:
    """What is asked, before a model is there: a prompt, a built-in fact, or the fact of the only edit."""
    from ...errors import InputError
    from ...facts import SLOT, fill, templated
    from ...sources import find_fact

    if fact.prompt is None and fact.fact is None and len(edits) == 1 and len(edits[0].facts) == 1:
        (edited,) = edits[0].facts
        separator = edited.separator if fact.separator is None else fact.separator
        answers = fact.target or edited.target, foil or edited.target_new
        return Question(edited.prompt, edited.subject, *answers, separator)
    fact.check()
    if fact.fact is not None:
        built_in = find_fact(fact.fact)
        return Question(built_in.prompt, built_in.subject, fact.target or built_in.target, foil, fact.separator)
    prompt = fact.prompt
    if fact.subject is not None:
        prompt = fill(templated(prompt, fact.subject), fact.subject)
    elif SLOT in prompt:
        raise InputError(f"a prompt with {SLOT} needs --subject, which takes its place")
    return Question(prompt, fact.subject, fact.target, foil, fact.separator)


def _positions(text: str) -> str | list:
    """The positions that are looked at; the answer's is always one of them."""
    from ...errors import InputError

    if text == "all":
        return text
    try:
        places = [part if part in ("read", "lookup") else int(part) for part in text.replace(" ", "").split(",")]
    except ValueError:
        raise InputError(f"the positions are {text!r}, expected read, lookup, all or indices such as 0,4,-1") from None
    return [*places, "read"]
