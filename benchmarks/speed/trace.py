"""Speed of causal tracing, exact and by gradients, beside the paper's loop, in one run.

    python -m benchmarks.speed.trace

The three maps (states, MLP and attention windows) of a prompt of 10 tokens with 10 draws of noise, the same noise for
all. Exact traces are run `--rounds` times, the loop once; the noise's σ is measured before and not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

import knowedit
from knowedit.recall.trace.exact import KINDS, TraceConfig, trace
from knowedit.recall.trace.noise import draw_noise, embedding_spread

from ..reference.trace import tables
from ..results import save

PROMPT, SUBJECT, TARGET = "The Eiffel Tower is located in the city of", "Eiffel Tower", "Paris"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="of exact traces (fast ones: three times as many)")
    options = parser.parse_args()
    model = knowedit.load()
    level = TraceConfig().noise * embedding_spread(model)
    query = model.query(PROMPT, TARGET, SUBJECT)
    exact, by_kind = _exact(model, level, options.rounds)
    fast, fast_seconds = _timed(lambda: _trace(model, level, fast=True), 3 * options.rounds)
    start, end = query.prompt.subject
    noise = draw_noise(model, level, exact.config.draws, end - start, exact.config.seed)
    asked = (query.prompt.ids, [query.prompt.read], query.target_ids, noise, start, exact.window)
    plain, loop = {}, {}
    for kind in KINDS:
        (clean, low, found), (loop[kind],) = _timed(lambda kind=kind: tables(model, *asked, [kind]), 1)
        plain |= found
    whole, sweeps = sum(loop.values()), sum(statistics.median(s) for s in by_kind.values())
    save(
        "speed/trace",
        {
            "prompt": PROMPT,
            "tokens": len(query.prompt.ids),
            "subject_tokens": [start, end],
            "layers": model.n_layers,
            "draws": exact.config.draws,
            "window": exact.window,
            "loop_seconds": loop,
            "exact_seconds": by_kind,
            "fast_seconds": fast_seconds,
            "exact_ratio": whole / sweeps,
            "exact_ratio_by_kind": {kind: loop[kind] / statistics.median(by_kind[kind]) for kind in KINDS},
            "fast_ratio": whole / statistics.median(fast_seconds),
            "high": [clean, exact.high],
            "low": [low, exact.low],
            "largest_difference": {k: float(np.abs(exact.scores(k) - plain[k].numpy()).max()) for k in KINDS},
            "fast_low_difference": abs(fast.low - low),
        },
    )


def _exact(model, level: float, rounds: int):
    """A trace of all kinds, and the seconds of every kind by itself."""
    _trace(model, level, kinds=("state",), draws=2)  # warm up
    seconds = {kind: _timed(lambda kind=kind: _trace(model, level, kinds=(kind,)), rounds)[1] for kind in KINDS}
    return _trace(model, level), seconds


def _trace(model, level: float, **config):
    return trace(model, PROMPT, TARGET, SUBJECT, TraceConfig(**config), level=level)


def _timed(run, rounds: int):
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        found = run()
        seconds.append(time.perf_counter() - started)
    return found, seconds


if __name__ == "__main__":
    main()
