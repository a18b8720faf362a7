"""Stage 5: the edits of a tab: set aside, taken off in any order, saved, loaded and exported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..answers import ask
from ..edit.apply import applied
from ..edit.edit import load_edit
from ..edit.fact_set.fact_set import FactSet
from ..edit.fact_set.store import HEADER
from ..errors import InputError, ModelError
from ..files import check_new
from ..models.adapter import Model
from ..serving.export import export as write
from ..serving.formats import FORMATS
from ..writing.counts import number_of
from .editing import name_of
from .jobs import Report
from .render import fill
from .tab import Entry, Tab


def kinds() -> list[tuple[str, str]]:
    """What edits can be exported as, (what people see, name)."""
    return [(f"{name}: {words}", name) for name, words in FORMATS.items()]


def entries(tab: Tab) -> list[tuple[str, int]]:
    """The stack as (what people see, place)."""
    return [(f"{place + 1}. {entry.name}", place) for place, entry in enumerate(tab.stack)]


def stack(model: Model, tab: Tab, unedited: str) -> str:
    """The stack, and the model with it: its weights beside the `unedited` hash, and the answer to what was asked."""
    answers = []
    if tab.told is not None:
        fact = tab.told.story.fact
        targets = [target for target in (fact.target, fact.target_new) if target]
        answers = list(zip(targets, ask(model, [model.query_of(fact, target) for target in targets]), strict=True))
    now = model.weights_hash()
    return fill("stack", stack=tab.stack, unedited=unedited, now=now, answers=answers, told=tab.told)


def set_aside(tab: Tab, on: Sequence[int]) -> None:
    """Let the edits at the places `on` be on, the others set aside."""
    for place, entry in enumerate(tab.stack):
        entry.on = place in on


def take_off(tab: Tab, place: int | None) -> None:
    """Take one edit off, whatever came after it. Raises `InputError` where none is chosen."""
    tab.stack.remove(_chosen(tab, place))


def load(model: Model, tab: Tab, report: Report, folder: str) -> None:
    """Put a saved edit, or a set of facts as one edit, on the stack.

    Raises `InputError` for a folder that holds neither and for what is there already, and what loading and applying
    raise.
    """
    path = _folder(folder)
    if (path / HEADER).is_file():
        report("solving the set of facts")
        facts = FactSet.load(model, path)
        edit, name = facts.edit(), f"{number_of(len(facts), 'fact')} of {path.name}"
    else:
        edit = load_edit(path)
        name = name_of(edit.facts[0]) if len(edit.facts) == 1 else f"{len(edit.facts)} facts by {edit.method}"
    if any(entry.edit.content_hash == edit.content_hash for entry in tab.stack):
        raise InputError(f"that edit is on the stack already: {name}")
    with applied(model, edit):
        pass  # whether it fits this model
    tab.stack.append(Entry(edit, name))


def save(model: Model, tab: Tab, place: int | None, folder: str) -> str:
    """Save one edit into a new folder; say where, and whether another has to be on where it is loaded.

    `model` is to be without edits.
    """
    edit = _chosen(tab, place).edit
    saved = edit.save(_folder(folder))
    try:
        with applied(model, edit):
            above = False
    except ModelError:
        above = True
    return fill("saved", folder=str(saved), above=above, gap=None)


def export(model: Model, tab: Tab, report: Report, folder: str, kind: str) -> str:
    """Export the edits that are on, together, in one of the `FORMATS`; say where, and what PEFT gave for its adapter.

    `model` is to be without edits. Raises `InputError` where none is on.
    """
    if not tab.edits:
        raise InputError("no edit is on; put one on, or load one")
    where = check_new(_folder(folder))
    report(f"writing {FORMATS[kind]}")
    gap = write(tab.edits, model, where, kind)
    return fill("saved", folder=str(where), above=False, gap=gap)


def _chosen(tab: Tab, place: int | None) -> Entry:
    if place is None or not 0 <= place < len(tab.stack):
        raise InputError("no edit is chosen; choose one of the stack")
    return tab.stack[place]


def _folder(text: str) -> Path:
    if not text.strip():
        raise InputError("where? Name a folder on this machine")
    return Path(text.strip()).expanduser()
