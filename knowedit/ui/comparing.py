"""Stage 6: two prompts, or one without and with the edits, side by side; and the page of what was looked at."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..models.adapter import Model
from ..report.page.html import save_page
from .asking import fact_in
from .jobs import Report, put
from .locating import names
from .render import chapters, fill
from .tab import Tab, Told

SHOWN = ("prediction", "lens", "neurons")


def prompts(model: Model, tab: Tab, report: Report, prompt: str, subject: str, target: str) -> str:
    """What was asked beside another fact, both with the edits that were on."""
    told = tab.asked
    other = Told(model, fact_in(model, prompt, subject.strip(), target.strip()), told.edits)
    return _beside(report, [("what was asked at the top", told), ("the other", other)])


def edits(model: Model, tab: Tab, report: Report) -> str:
    """What was asked, without edits and with those that are on now. No edit is to be on `model`."""
    if not tab.edits:
        raise InputError("no edit is on; put one on, or compare with another prompt")
    fact = tab.asked.story.fact
    without = Told(model, fact, ())
    for name in SHOWN:
        report(f"without the edits: {name}")
        without.tell(name)
    with put(model, tab.edits):
        return _beside(report, [("without the edits", without), ("with the edits", Told(model, fact, tab.edits))])


def _beside(report: Report, sides: list[tuple[str, Told]]) -> str:
    for title, told in sides:
        for name in SHOWN:
            report(f"{title}: {name}")
            told.need(name)
    (_, one), (_, other) = sides
    shared = [name for name in names(one.story.neurons) if name in names(other.story.neurons)]
    columns = [(title, told.story.fact, len(names(told.story.neurons)), told.record) for title, told in sides]
    shown = [(title, fact, number, chapters(record, *SHOWN)) for title, fact, number, record in columns]
    return fill("compare", sides=shown, shared=shared)


def share(tab: Tab, folder: Path) -> Path:
    """The page of `knowedit explain` with the chapters that were looked at, as one file in `folder`."""
    told = tab.asked
    told.need("prediction")
    return save_page(told.record, folder / "knowedit-explain.html")
