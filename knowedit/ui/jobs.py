"""Work on the model of the process: one job after the other, in one thread, each with the edits of its tab on.

    job = desk.job(lambda report: ask(desk.model, …), lambda: edits)
    for doing in job:
        ...                  # what it is doing
    job.value

Between jobs the model is as it was loaded, whatever the tabs have on their stacks: an edit is a value, put on for the
length of a job and taken off again, bit for bit. So no tab can see or disturb the edits of another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from typing import Any
from weakref import WeakSet

from ..edit.apply import applied
from ..edit.edit import Edit
from ..errors import KnoweditError, KnoweditWarning
from ..hooks import hooked, on_call
from ..models.adapter import Model
from ..progress import Progress

STOPPED = "stopped; nothing was changed"
SOON = 0.3  # seconds in which a job that has to wait for none has begun


@contextmanager
def put(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """The edits of a tab are on `model` while the context lasts.

    Each was checked when it came to the tab; those that it was made on may be set aside now.
    """
    with ExitStack() as on:
        for edit in edits:
            on.enter_context(applied(model, edit, any_base=True))
        yield


class Stopped(KnoweditError):
    """A job that was stopped; the model is as it was."""


@dataclass(frozen=True)
class Doing:
    """What a job is doing, and how many of `total` items are done."""

    what: str
    done: int = 0
    total: int | None = None


class Report:
    """What a job says about itself while it runs."""

    def __init__(self, say: Callable[[Doing], None], stop: Event):
        self._say, self._stop = say, stop

    def __call__(self, what: str, total: int | None = None) -> Progress:
        """Say what is being done, and return the callback that counts its items."""

        def step(done: int) -> None:
            check(self._stop)
            self._say(Doing(what, done, total))

        step(0)
        return step

    @contextmanager
    def bars(self, what: str, total: int | None, unit: str) -> Iterator[Progress]:
        """`Bars` for an editing method."""
        yield self(what, total)


def check(stop: Event) -> None:
    """Raise `Stopped` where a job is to stop."""
    if stop.is_set():
        raise Stopped(STOPPED)


class Job:
    """One job: iterating runs it and yields what it is `Doing`; then `value` and `notes` are there.

    Its edits are asked for when it begins: what ran before it may have changed them. What the work raises is raised by
    the iteration. One that is given up in the middle stops the work.
    """

    def __init__(self, desk: Desk, work: Callable[[Report], Any], edits: Callable[[], Sequence[Edit]]):
        self.value: Any = None
        self.notes: list[str] = []  # what the library warned of
        self._desk, self._work, self._edits = desk, work, edits
        self._stop = Event()
        self._future: Future | None = None  # once it was asked to run
        desk.jobs.add(self)

    def stop(self) -> None:
        """Let the job end at the next block of the model; one that waits for others ends at once."""
        self._stop.set()
        if self._future is not None:
            self._future.cancel()

    def __iter__(self) -> Iterator[Doing]:
        said: SimpleQueue[Doing | None] = SimpleQueue()
        try:
            future = self._future = self._desk.worker.submit(self._run, said.put)
        except RuntimeError:  # the desk was closed
            raise Stopped("the dashboard is closed; nothing was changed") from None
        future.add_done_callback(lambda _: said.put(None))
        try:
            wait([future], SOON)
            if not future.running() and not future.done():
                yield Doing("waiting for what was asked before, here or in another tab")
            while (doing := _latest(said)) is not None:
                yield doing
        finally:
            if not future.done():
                self.stop()
        if future.cancelled():
            raise Stopped(STOPPED)
        self.value = future.result()

    def _run(self, say: Callable[[Doing], None]) -> Any:
        model = self._desk.model
        check(self._stop)
        with warnings.catch_warnings(record=True) as caught, ExitStack() as on:
            warnings.simplefilter("always")
            on.enter_context(put(model, self._edits()))
            on.enter_context(hooked(*(on_call(block, lambda *_: check(self._stop)) for block in model.blocks)))
            value = self._work(Report(say, self._stop))
        self.notes = [str(w.message) for w in caught if issubclass(w.category, KnoweditWarning)]
        return value


def _latest(said: SimpleQueue[Doing | None]) -> Doing | None:
    """The last thing said, waiting for one; None at the end."""
    doing = said.get()
    while doing is not None and not said.empty():
        doing = said.get()
    return doing


class Desk:
    """The model, and the thread in which all work on it is done."""

    def __init__(self, model: Model):
        self.model = model
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="knowedit")
        self.jobs: WeakSet[Job] = WeakSet()

    def job(self, work: Callable[[Report], Any], edits: Callable[[], Sequence[Edit]] = tuple) -> Job:
        """`work` with `edits` on the model, none by default, to be iterated over."""
        return Job(self, work, edits)

    def close(self) -> None:
        """Stop all jobs, of all tabs, and take no more."""
        for job in list(self.jobs):
            job.stop()
        self.worker.shutdown(cancel_futures=True)
