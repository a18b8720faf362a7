"""Key covariances of all layers in one pass, beside one layer at a time, alternately in one run on the same text.

    python -m benchmarks.speed.covariance [--tokens 4096] [--rounds 3] [--layers 30]

One at a time is a whole forward pass for each layer, as with a hook on one module; `stopped` ends each of those passes
at its layer. Neither caches anything; all three read the same rows of the built-in facts' text. With fewer `--layers`,
evenly spread ones are measured one at a time and the others are taken to cost what their neighbours do.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

import knowedit
from knowedit.edit.covariance import _add
from knowedit.hooks import hooked, on_input
from knowedit.texts.corpus import corpus
from knowedit.texts.rows import text_of

from ..results import save

ROWS = 16  # in one forward pass, for all three


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=None, help="how many are measured one at a time")
    options = parser.parse_args()
    model = knowedit.load()
    batches = [part for rows in corpus("builtin").batches(model, options.tokens) for part in rows.split(ROWS)]
    every = range(model.n_layers)
    measured = sorted(
        {round(i) for i in torch.linspace(0, model.n_layers - 1, options.layers or model.n_layers).tolist()}
    )
    one_pass(model, batches[:1], every)  # warm up
    plain(model, batches[:1], 0)
    times = {"one pass": [], "one at a time": [], "one at a time, stopped": []}
    differences = []
    for _ in range(options.rounds):
        seconds, together = timed(one_pass, model, batches, every)
        times["one pass"].append(seconds)
        whole, stopped = [], []
        for layer in measured:
            seconds, C = timed(plain, model, batches, layer)
            whole.append(seconds)
            seconds, _ = timed(one_pass, model, batches, [layer])
            stopped.append(seconds)
            differences.append(((together[layer] - C).abs().max() / C.abs().max()).item())
        # a mean over evenly spread layers, whose cost grows evenly with their height
        times["one at a time"].append(statistics.mean(whole) * model.n_layers)
        times["one at a time, stopped"].append(statistics.mean(stopped) * model.n_layers)
    save(
        "speed/covariance",
        {
            "layers": model.n_layers,
            "neurons": model.n_neurons,
            "tokens": sum(batch[:, text_of(model)].numel() for batch in batches),
            "measured_one_at_a_time": measured,
            "seconds": times,
            "seconds_median": {name: statistics.median(values) for name, values in times.items()},
            "ratio_by_round": {name: ratios(values, times["one pass"]) for name, values in times.items()},
            "ratio_median": {
                name: statistics.median(ratios(values, times["one pass"])) for name, values in times.items()
            },
            "largest_relative_difference": max(differences),
        },
    )


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    return [a / b for a, b in zip(slow, fast, strict=True)]


def timed(fn, *args):
    started = time.perf_counter()
    result = fn(*args)
    return time.perf_counter() - started, result


def one_pass(model, batches, layers) -> dict[int, torch.Tensor]:
    """Σ k kᵀ by layer, as `covariance` adds it up: one pass that ends at the highest layer."""
    sums = {layer: torch.zeros(model.n_neurons, model.n_neurons) for layer in layers}
    for rows in batches:
        _add(model, list(layers), rows, rows.numel(), sums)
    return sums


@torch.no_grad()
def plain(model, batches, layer: int) -> torch.Tensor:
    """Σ k kᵀ of one layer by whole forward passes."""
    total = torch.zeros(model.n_neurons, model.n_neurons)

    def add(x):
        keys = x[:, text_of(model)].flatten(0, 1)
        total.addmm_(keys.T, keys)

    with hooked(on_input(model.down(layer), add)):
        for rows in batches:
            model.hf(input_ids=rows, use_cache=False)
    return total


if __name__ == "__main__":
    main()
