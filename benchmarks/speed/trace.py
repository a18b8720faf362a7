"""Speed of causal tracing, exact and by gradients, beside the paper's loop, in one run.

The three maps (states, MLP and attention windows) of a prompt of 10 tokens with 10 draws of noise, the same noise for
all. The noise's σ is measured before and not counted.
"""

from __future__ import annotations

import numpy as np

import knowedit
from knowedit.recall.trace.exact import KINDS, TraceConfig, trace
from knowedit.recall.trace.noise import draw_noise, embedding_spread

from ..reference.trace import tables
from ..registry import benchmark
from ..samples import PROMPT, SUBJECT, TARGET
from ..timing import Stopwatch


@benchmark("speed.trace", "How much faster than the paper's loop is causal tracing?")
def trace_speed(rounds: int = 1) -> dict:
    """`rounds` of exact traces, three times as many of fast ones; the loop runs once."""
    model = knowedit.load()
    level = TraceConfig().noise * embedding_spread(model)
    query = model.query(PROMPT, TARGET, SUBJECT)

    def traced(**config):
        return trace(model, PROMPT, TARGET, SUBJECT, TraceConfig(**config), level=level)

    traced(kinds=("state",), draws=2)  # warm up
    watch, loop = Stopwatch(), Stopwatch()
    for kind in KINDS:
        for _ in range(rounds):
            watch(kind, traced, kinds=(kind,))
    for _ in range(3 * rounds):
        fast = watch("fast", traced, fast=True)
    exact = traced()
    start, end = query.prompt.subject
    noise = draw_noise(model, level, exact.config.draws, end - start, exact.config.seed)
    position = query.prompt.ids, [query.prompt.read], query.target_ids, noise, start, exact.window
    difference = {}
    for kind in KINDS:
        clean, low, restored = loop(kind, tables, model, *position, [kind])
        difference[kind] = float(np.abs(exact.scores(kind) - restored[kind].numpy()).max())
    whole, sweeps = sum(map(loop.total, KINDS)), sum(map(watch.median, KINDS))
    return {
        "prompt": PROMPT,
        "tokens": len(query.prompt.ids),
        "subject_tokens": [start, end],
        "layers": model.n_layers,
        "draws": exact.config.draws,
        "window": exact.window,
        "loop_seconds": {kind: loop.total(kind) for kind in KINDS},
        "exact_seconds": {kind: watch.seconds[kind] for kind in KINDS},
        "fast_seconds": watch.seconds["fast"],
        "exact_ratio": whole / sweeps,
        "exact_ratio_by_kind": {kind: loop.total(kind) / watch.median(kind) for kind in KINDS},
        "fast_ratio": whole / watch.median("fast"),
        "high": [clean, exact.high],
        "low": [low, exact.low],
        "largest_difference": difference,
        "fast_low_difference": abs(fast.low - low),
    }


@trace_speed.row
def trace_row(record: dict) -> list[str]:
    by_kind = ", ".join(f"{kind} {ratio:.1f}×" for kind, ratio in record["exact_ratio_by_kind"].items())
    gap = max(record["largest_difference"].values())
    return [
        f"three maps, {record['tokens']} tokens, {record['draws']} draws: exact **{record['exact_ratio']:.1f}×** "
        f"({by_kind}), largest difference {gap:.0e}",
        f"by gradients **{record['fast_ratio']:.0f}×**",
    ]
