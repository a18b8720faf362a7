"""Stage 6: two prompts, or one without and with the edits, side by side; and the page of what was looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..edit.edit import Edit
from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from ..report.page.html import gives, save_page
from .asking import fact_in
from .jobs import Report, put
from .locating import names
from .render import chapters, fill
from .tab import Tab, Told

SHOWN = ("prediction", "lens", "neurons")


def prompts(model: Model, tab: Tab, report: Report, prompt: str, subject: str, target: str) -> str:
    """What was asked beside another fact, both with the edits that were on. No edit is to be on `model`."""
    told = tab.asked
    with put(model, told.edits):
        other = Told(model, fact_in(model, prompt, subject, target), told.edits)
    return _beside(model, report, {"what was asked at the top": told, "the other": other})


def edits(model: Model, tab: Tab, report: Report) -> str:
    """What was asked, without edits and with those that are on now. No edit is to be on `model`."""
    if not tab.edits:
        raise InputError("no edit is on; put one on, or compare with another prompt")
    told = tab.asked
    sides = {"without the edits": (), "with the edits": tab.edits}
    return _beside(model, report, {
        title: told if told.edits == edits else _told(model, told.story.fact, edits) for title, edits in sides.items()
    })  # fmt: skip


def _told(model: Model, fact: Fact, edits: Sequence[Edit]) -> Told:
    """What is told with `edits` on is kept under the hash of the weights that it begins with: theirs."""
    with put(model, edits):
        return Told(model, fact, edits)


def _beside(model: Model, report: Report, sides: dict[str, Told]) -> str:
    columns = []
    unclaimed: list[str] = []
    for title, told in sides.items():
        with put(model, told.edits):
            for name in SHOWN:
                report(f"{title}: {name}")
                record = told.need(name)
        given = gives(record["prediction"])
        located = names(told.story.neurons) if given else []
        if not given:
            unclaimed.append(f"{told.story.fact.target!r} {title}")
        columns.append((title, told.story.fact, located, chapters(record, *SHOWN)))
    (_, _, first, _), (_, _, second, _) = columns
    return fill("compare", sides=columns, shared=[name for name in first if name in second], unclaimed=unclaimed)


def share(tab: Tab, folder: Path) -> Path:
    """The page of `knowedit explain` with the chapters that were looked at, as one file in `folder`."""
    told = tab.asked
    told.need("prediction")
    return save_page(told.record, folder / "knowedit-explain.html")
