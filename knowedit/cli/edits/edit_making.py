"""How `knowedit edit` makes its edit: the method's settings, what it needs, and bars for what takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..shared.output import note


def make(wrapped, fact, method: str, layer: int | str | None, given: dict, seconds: dict):
    """The edit by `method`, and the keys of other subjects if it needed them; times go into `seconds`."""
    from ...edit.methods.fine_tune import FineTuneConfig, fine_tune
    from ...edit.methods.knowledge_neurons import knowledge_neurons

    clock = Clock()
    if method == "rome":
        return _rome(wrapped, fact, layer, given, seconds)
    seconds["covariance"] = 0.0
    if method == "knowledge_neurons":
        note("locating the neurons of the fact") if sys.stderr.isatty() else None
        made = knowledge_neurons(wrapped, fact)
    else:
        note("training") if sys.stderr.isatty() else None
        config = FineTuneConfig(norm_constraint=given["norm_constraint"])
        made = fine_tune(wrapped, fact, config if layer is None else replace(config, layer=layer))
    seconds["edit"] = clock.lap()
    return made, None


def _rome(wrapped, fact, layer: int | str | None, given: dict, seconds: dict):
    from tqdm.auto import tqdm

    from ...edit.covariance import covariance, default_tokens
    from ...edit.methods.rome import rome_many
    from ...edit.preserved_keys import preserved_keys

    clock = Clock()
    if layer == "auto":
        layer = _best_layer(wrapped)
        seconds["layer"] = clock.lap()
    config = _rome_config(wrapped, layer, given["contexts"], given["seed"])
    with progress("covariance", given["tokens"] or default_tokens(wrapped), "token") as step:
        C = covariance(wrapped, [config.layer], source=given["text"], tokens=given["tokens"], progress=step)
    seconds["covariance"] = clock.lap()
    preserved = preserved_keys(wrapped, config.layer)
    seconds["keys"] = clock.lap()
    with tqdm(total=1, desc="searching", unit="edit", leave=False) as bar:
        (made,) = rome_many(
            wrapped, [fact], config, covariance=C[config.layer], preserved=preserved,
            progress=lambda done: bar.update(done - bar.n),
        )  # fmt: skip
    seconds["edit"] = clock.lap()
    return made, preserved


def _best_layer(wrapped) -> int:
    from ...edit.methods.best_layer import best_layer

    note("trying layers: first their covariances, then a few facts each") if sys.stderr.isatty() else None
    with progress("trying layers", None, "layer") as step:
        return best_layer(wrapped, progress=step)


def _rome_config(wrapped, layer: int | None, contexts: int | None, seed: int):
    """The model's own settings where a table has them, in the layer that was asked for."""
    from ...edit.methods.rome import RomeConfig, rome_config
    from ...errors import InputError

    try:
        config = rome_config(wrapped)
    except InputError:
        if layer is None:
            raise
        config = RomeConfig()
    config = replace(config, seed=seed, layer=config.layer if layer is None else wrapped.check_layer(layer))
    return config if contexts is None else replace(config, contexts=contexts)


@contextmanager
def progress(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr that is told how much is done, and is not there where nothing is to do."""
    from tqdm.auto import tqdm

    bars = []

    def step(done: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, desc=what, unit=unit, leave=False))
        bars[0].update(done - bars[0].n)

    try:
        yield step
    finally:
        for bar in bars:
            bar.close()


class Clock:
    """Seconds since it was made, or since the last lap."""

    def __init__(self):
        self._last = time.perf_counter()

    def lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last
