"""Stage 1: a fact is asked, and what the model answers."""

from __future__ import annotations

from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from ..selection import build_fact
from ..sources import builtin_facts, find_fact
from .jobs import Report
from .render import chapters, fill
from .tab import Tab, Told

START = "landmark-city/eiffel-tower"


def choices() -> list[tuple[str, str]]:
    """The built-in facts as (what people see, id)."""
    return [(f"{fact.prompt} {fact.target}", str(fact.id)) for fact in builtin_facts()]


def words(name: str) -> tuple[str, str, str]:
    """Prompt, subject and answer of a built-in fact, as a user would write them."""
    fact = find_fact(name)
    return fact.prompt, fact.subject or "", fact.target


def fact_in(model: Model, prompt: str, subject: str, target: str) -> Fact:
    """The fact that a user wrote: the built-in one, with its other ways to ask, where the words are its own.

    An empty answer is the model's first choice. Raises `InputError` for what cannot be asked.
    """
    if not prompt.strip():
        raise InputError("there is no prompt; write the beginning of a sentence that the answer ends")
    written = (prompt, subject.strip() or None, target.strip() or None)
    for fact in builtin_facts():
        if (fact.prompt, fact.subject, fact.target) == written:
            return fact
    return build_fact(model, *written)


def ask(model: Model, tab: Tab, report: Report, prompt: str, subject: str, target: str) -> tuple[str, str | None]:
    """Ask with the tab's edits on: the tokens, and the first chapter of the fact's story; the id of a built-in fact.

    What was asked before is forgotten first: nothing is to be said of it below a question that failed.
    """
    tab.told = tab.proposal = None
    report("asking")
    told = Told(model, fact_in(model, prompt, subject, target), tab.edits)
    record = told.tell("prediction")
    tab.told = told
    return fill("ask", record, edits=len(told.edits)) + chapters(record, "prediction"), told.story.fact.id
