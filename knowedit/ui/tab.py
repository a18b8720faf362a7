"""What one browser tab knows: the edits on its stack, and the fact that it looks at."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..edit.edit import Edit
from ..errors import InputError, ModelError
from ..facts import Fact
from ..models.adapter import Model
from ..models.passes.scaled_answers import ScaledAnswers
from ..report.page.explain import record_of
from ..report.page.story import CHAPTERS, ExplainConfig, Story
from .jobs import Job

_TELL = {chapter.name: chapter.tell for chapter in CHAPTERS}


@dataclass(eq=False)
class Entry:
    """An edit on a tab's stack, by name; one that is set aside stays on the stack without being on the model."""

    edit: Edit
    name: str
    on: bool = True


class Told:
    """A fact, the edits that were on when it was asked, and what has been told of it since: chapters of its story."""

    def __init__(self, model: Model, fact: Fact, edits: Sequence[Edit]):
        self.edits = tuple(edits)
        self.story = Story(model, fact, None, ExplainConfig(quick=True))
        self.answers: ScaledAnswers | None = None  # the prompt, to be run again with neurons scaled
        self._told: dict[str, Any] = {}
        self._notes: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def tell(self, *names: str) -> dict:
        """Tell chapters, and return the record with all that are told. One that cannot be told leaves a note."""
        for name in names:
            started = time.perf_counter()
            try:
                self._told[name] = _TELL[name](self.story)
            except (InputError, ModelError) as error:
                self._notes[name] = str(error)
            self._seconds[name] = time.perf_counter() - started
        return self.record

    def need(self, *names: str) -> None:
        """Tell those of the chapters that are not told yet."""
        self.tell(*(name for name in names if name not in self._told and name not in self._notes))

    @property
    def record(self) -> dict:
        return record_of(self.story, self._told, self._notes, self._seconds)


@dataclass(eq=False)
class Tab:
    """One tab.

    - `stack`: its edits, in order. `told`: the fact that it asked for last. `proposal`: an edit of it that was made and
      looked at, and is not on the stack. `running`: its jobs.
    """

    stack: list[Entry] = field(default_factory=list)
    told: Told | None = None
    proposal: Edit | None = None
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
