"""Follow a run from elsewhere: its figures go to an experiment tracker, if one is asked for and installed."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from ..errors import InputError, did_you_mean

TRACKERS = ("trackio", "wandb", "mlflow")


class Tracker(Protocol):
    """Where figures go: numbers by name at a step, and the end."""

    def log(self, values: dict[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


def start_tracker(name: str, run: str, config: dict) -> Tracker:
    """Begin to follow the run called `run`, of the project "knowedit".

    Raises `InputError` for an unknown tracker and for one that is not installed.
    """
    if name not in TRACKERS:
        raise InputError(
            f"no tracker is called {name!r}{did_you_mean(name, TRACKERS)}; there are {', '.join(TRACKERS)}"
        )
    try:
        module = import_module(name)
    except ImportError:
        raise InputError(f"the tracker {name} is not installed: pip install {name}, or leave out --tracker") from None
    return _Mlflow(module, run, config) if name == "mlflow" else _Wandb(module, run, config)


class _Wandb:
    """wandb, and trackio, which has its interface."""

    def __init__(self, module, run: str, config: dict):
        self.module = module
        module.init(project="knowedit", name=run, config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        self.module.log(values, step=step)

    def finish(self) -> None:
        self.module.finish()


class _Mlflow:
    def __init__(self, module, run: str, config: dict):
        self.module = module
        module.set_experiment("knowedit")
        module.start_run(run_name=run)
        module.log_params({name: str(value)[:500] for name, value in config.items()})

    def log(self, values: dict[str, float], step: int) -> None:
        self.module.log_metrics(values, step=step)

    def finish(self) -> None:
        self.module.end_run()
