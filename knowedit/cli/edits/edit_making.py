"""How `knowedit edit` makes its edit: the method's settings, what it needs, and bars for what takes long."""

from __future__ import annotations

import sys
from dataclasses import replace

from ..shared.output import note
from ..shared.progress import Clock, progress


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
    with progress("searching", 1, "edit") as step:
        (made,) = rome_many(
            wrapped, [fact], config, covariance=C[config.layer], preserved=preserved, progress=step,
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
