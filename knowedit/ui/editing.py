"""Stage 4: another answer. First what an edit may do wrong, then the edit, then what it did."""

from __future__ import annotations

from dataclasses import replace

from ..display.result import plain
from ..edit.apply import applied
from ..edit.edit import check_request
from ..edit.guard import Guard, GuardError, check, checked
from ..edit.methods.table import METHODS, method_config, prepare
from ..edit.preflight import Outcome, Preflight, preflight
from ..errors import InputError
from ..evaluate.edits.drift import Drift
from ..evaluate.edits.generation import generate
from ..facts import Fact
from ..models.adapter import Model
from ..sources import builtin_facts
from .jobs import Report
from .render import chapters, fill
from .tab import Entry, Tab, Told

OWN_LAYER = "the method's own"
WORDS = 20  # tokens that are written freely


def methods() -> list[tuple[str, str]]:
    """The methods of the table as (what people see, name)."""
    return [(f"{name}: {row.words.partition(' (')[0]}", name) for name, row in METHODS.items() if row.edits]


def propose(model: Model, tab: Tab, report: Report, target_new: str, method: str, layer: str) -> str:
    """Make the edit and look at what it may do wrong. Nothing is changed."""
    told = _asked_now(tab)
    tab.proposal = None
    if not target_new.strip():
        raise InputError("there is no new answer; write one into the box")
    fact = replace(told.story.fact, target_new=target_new.strip())
    check_request(fact)
    config = method_config(method, {}, None if layer == OWN_LAYER else int(layer), model)
    editor = prepare(model, method, config, builtin_facts(), report.bars)
    report(f"making the edit by {method}")
    (edit,) = editor([fact])
    if edit is None:
        raise InputError(f"{method} keeps this fact out, since no value gives the new answer; ask in other words")
    report("looking at other subjects")
    before = preflight(model, edit, preserved=editor.preserved)
    tab.proposal = edit, before, (target_new, method, layer)
    layers = sorted(model.down_layers()[path] for path in edit.deltas)
    record = plain({"preflight": before.fact_dict()})
    return fill("preflight", record, edit=edit, fact=fact, layers=layers, refused=_verdict(before, None))


def put_on(model: Model, tab: Tab, report: Report, *wanted: str) -> str:
    """Put the proposal on the tab's stack: what the model says, and writes, without and with it.

    `wanted`: the answer, method and layer that the page shows now, which are to be those of the proposal.
    """
    told = _asked_now(tab)
    if tab.proposal is None:
        raise InputError("there is no edit to put on; make one first, which shows what it may do wrong")
    edit, before, looked_at = tab.proposal
    if wanted != looked_at:
        raise InputError("the answer, method or layer is another one than the pre-flight looked at; run it again")
    with applied(model, edit):
        pass  # whether it can be, before anything else is done
    report("asking without and with the edit")
    (fact,) = edit.facts
    told.story.edit, told.story.before, told.story.fact = edit, before, fact
    record = told.tell("edit")
    report("writing freely without and with it")
    written = written_freely(model, told)
    report("measuring what the subject is")
    (drift,) = Drift(model).essence([fact], [edit])
    after = told.story.after
    tab.stack.append(Entry(checked(edit, before, after, command="knowedit ui"), name_of(fact)))
    tab.proposal = None
    shown = {"edit": record["edit"], "drift": drift}
    refused = _verdict(before, after)
    return fill("outcome", shown, written=written, refused=refused) + chapters(record, "edit")


def written_freely(model: Model, told: Told) -> list[tuple[str, str, str]]:
    """(prompt, what the model writes without the edit, and with it); nothing of a masked model."""
    if model.masked:
        return []
    fact = told.story.fact
    prompts = [fact.prompt, *([f"{fact.subject} is"] if fact.subject else [])]
    sides = [generate(model, prompts, tokens=WORDS, edits=[edit] * len(prompts)) for edit in (None, told.story.edit)]
    return list(zip(prompts, *sides, strict=True))


def name_of(fact: Fact) -> str:
    """What an edit is called on the stack."""
    return f"{fact.prompt} {fact.target_new}"


def _asked_now(tab: Tab) -> Told:
    """What was asked last, with the edits on that are on now."""
    told = tab.asked
    if told.edits != tab.edits:
        raise InputError("other edits are on than when this fact was asked; ask it again, so that before is before")
    return told


def _verdict(before: Preflight, after: Outcome | None) -> str | None:
    """Why the guard would refuse the edit."""
    try:
        check(before, after, Guard())
    except GuardError as error:
        return str(error)
    return None
