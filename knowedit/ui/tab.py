"""What one browser tab knows: the edits on its stack, and the fact that it looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from ..edit.edit import Edit
from ..edit.preflight import Preflight
from ..errors import InputError
from ..facts import Fact
from ..models.adapter import Model
from ..models.passes.scaled_answers import ScaledAnswers
from ..report.page.explain import record_of
from ..report.page.story import CHAPTERS, ExplainConfig, Story
from .jobs import Job

_CHAPTERS = {chapter.name: chapter for chapter in CHAPTERS}


@dataclass(eq=False)
class Entry:
    """An edit on a tab's stack, by name; one that is set aside stays on the stack without being on the model."""

    edit: Edit
    name: str
    on: bool = True


class Told:
    """The story of a fact, told chapter by chapter, with the edits that were on when it was asked."""

    def __init__(self, model: Model, fact: Fact, edits: Sequence[Edit]):
        self.edits = tuple(edits)
        self.story = Story(model, fact, None, ExplainConfig(quick=True))

    def tell(self, *names: str) -> dict:
        """Tell chapters, and return the record with all that are told."""
        for name in names:
            self.story.tell(_CHAPTERS[name])
        return self.record

    def need(self, *names: str) -> dict:
        """Tell those of the chapters that are not told yet."""
        return self.tell(*(name for name in names if name not in self.story.told | self.story.notes))

    @property
    def record(self) -> dict:
        return record_of(self.story)

    @cached_property
    def answers(self) -> ScaledAnswers:
        """The prompt, to be run again with neurons scaled."""
        return ScaledAnswers(self.story.model, [self.story.model.query_of(self.story.fact)])


@dataclass(eq=False)
class Tab:
    """One tab.

    - `stack`: its edits, in order. `told`: the fact that it asked for last. `running`: its jobs.
    - `proposal`: an edit of it that is not on the stack, with its pre-flight and the boxes (new answer, method, layer)
      that it was made from.
    """

    stack: list[Entry] = field(default_factory=list)
    told: Told | None = None
    proposal: tuple[Edit, Preflight, tuple[str, ...]] | None = None
    running: list[Job] = field(default_factory=list)

    @property
    def edits(self) -> tuple[Edit, ...]:
        """Those that are on."""
        return tuple(entry.edit for entry in self.stack if entry.on)

    @property
    def asked(self) -> Told:
        """What was asked last. Raises `InputError` where nothing was."""
        if self.told is None:
            raise InputError("no fact was asked yet; ask one at the top of the page")
        return self.told

    def stop(self) -> None:
        """Stop all that runs for this tab."""
        for job in self.running:
            job.stop()
