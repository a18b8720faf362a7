"""Follow a run from elsewhere: its figures go to an experiment tracker, if one is asked for and installed.

What a tracker prints goes to stderr, and one that fails in the middle is left alone: it must not end a run of hours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from typing import Protocol

from tqdm.auto import tqdm

from ...errors import InputError, did_you_mean
from ...writing.inert import inert

TRACKERS = ("trackio", "wandb", "mlflow")
PROJECT = "knowedit"


class Tracker(Protocol):
    """Where figures go: numbers by name at a step, and the end."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


def start_tracker(name: str, run: str, config: dict) -> Tracker:
    """Begin to follow the run called `run`, of the project "knowedit".

    Raises `InputError` for an unknown tracker and for one that is not installed or does not start.
    """
    if name not in TRACKERS:
        raise InputError(
            f"no tracker is called {name!r}{did_you_mean(name, TRACKERS)}; there are {', '.join(TRACKERS)}"
        )
    try:
        module = import_module(name)
    except ImportError:
        raise InputError(f"the tracker {name} is not installed: pip install {name}, or leave out --tracker") from None
    kind = _Mlflow if name == "mlflow" else _Wandb
    try:
        with redirect_stdout(sys.stderr):
            return _Careful(name, kind(module, run, config))
    except Exception as error:  # whatever it needs: a login, a server, a folder
        raise InputError(f"the tracker {name} does not start ({error}); set it up, or leave out --tracker") from None


class _Careful:
    """A tracker whose failures are told once and then cost nothing."""

    def __init__(self, name: str, tracker: Tracker):
        self.name, self.tracker = name, tracker
        self.lost = False

    def log(self, values: dict[str, float], step: int) -> None:
        named = {name.replace(":", "/"): value for name, value in values.items()}  # some allow no colon
        self._do(lambda: self.tracker.log(named, step))

    def finish(self) -> None:
        self._do(self.tracker.finish)

    def _do(self, call: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            with redirect_stdout(sys.stderr):
                call()
        except Exception as error:  # see above
            self.lost = True
            tqdm.write(inert(f"{self.name} no longer follows the run: {error}"), file=sys.stderr)


class _Wandb:
    """wandb, and trackio, which has its interface."""

    def __init__(self, module, run: str, config: dict):
        self.module = module
        module.init(project=PROJECT, name=run, config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        self.module.log(values, step=step)

    def finish(self) -> None:
        self.module.finish()


class _Mlflow:
    def __init__(self, module, run: str, config: dict):
        self.module = module
        module.set_experiment(PROJECT)
        module.start_run(run_name=run)
        module.log_params({name: str(value)[:500] for name, value in config.items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self.module.log_metrics(values, step=step)

    def finish(self) -> None:
        self.module.end_run()
