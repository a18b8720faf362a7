"""Key covariances of all layers in one pass, beside one layer at a time, alternately in one run on the same text.

One at a time is a whole forward pass for each layer, as with a hook on one module; `stopped` ends each of those passes
at its layer. Neither caches anything; all three read the same rows of the built-in facts' text.
"""

from __future__ import annotations

import statistics

import torch

import knowedit
from knowedit.edit.covariance import _keys
from knowedit.models.adapter import Model
from knowedit.texts.corpus import corpus
from knowedit.texts.rows import text_of

from ..reference.covariance import plain_covariance
from ..registry import benchmark
from ..timing import Stopwatch

ROWS = 16  # in one forward pass, for all three
WAYS = ("one pass", "one at a time", "one at a time, stopped")


@benchmark("speed.covariance", "How much faster is one pass for all layers' covariances than one layer at a time?")
def covariance(tokens: int = 4096, rounds: int = 3, layers: int | None = None) -> dict:
    """`layers`: how many, evenly spread, are measured one at a time; the others cost what their neighbours do."""
    model = knowedit.load()
    batches = [part for rows in corpus("builtin").batches(model, tokens) for part in rows.split(ROWS)]
    last = model.n_layers - 1
    measured = sorted({round(layer) for layer in torch.linspace(0, last, layers or model.n_layers).tolist()})
    one_pass(model, batches[:1], range(model.n_layers))  # warm up
    plain_covariance(model, batches[:1], 0)
    watch, differences = Stopwatch(), []
    for _ in range(rounds):
        sums = watch("one pass", one_pass, model, batches, range(model.n_layers))
        by_layer = Stopwatch()
        for layer in measured:
            C = by_layer("one at a time", plain_covariance, model, batches, layer)
            by_layer("one at a time, stopped", one_pass, model, batches, [layer])
            differences.append(((sums[layer] - C).abs().max() / C.abs().max()).item())
        for (
            name,
            seconds,
        ) in by_layer.seconds.items():  # evenly spread layers, whose cost grows evenly with their height
            watch.seconds[name].append(statistics.mean(seconds) * model.n_layers)
    ratios = {name: watch.ratio(name, "one pass") for name in WAYS}
    return {
        "layers": model.n_layers,
        "neurons": model.n_neurons,
        "tokens": sum(batch[:, text_of(model)].numel() for batch in batches),
        "measured_one_at_a_time": measured,
        "seconds": watch.seconds,
        "seconds_median": {name: watch.median(name) for name in WAYS},
        **{key: {name: ratio[key] for name, ratio in ratios.items()} for key in ("ratio_by_round", "ratio_median")},
        "largest_relative_difference": max(differences),
    }


@covariance.row
def covariance_row(record: dict) -> list[str]:
    ratios = record["ratio_median"]
    return [f"**{ratios['one at a time']:.1f}×** whole passes, {ratios['one at a time, stopped']:.1f}× ended early"]


def one_pass(model: Model, batches: list[torch.Tensor], layers) -> dict[int, torch.Tensor]:
    """Σ k kᵀ by layer, as `covariance` adds it up: one pass that ends at the highest layer."""
    sums = {layer: torch.zeros(model.n_neurons, model.n_neurons) for layer in layers}
    for rows in batches:
        for layer, keys in _keys(model, list(layers), list(rows)).items():
            sums[layer].addmm_(keys.T, keys)
    return sums
