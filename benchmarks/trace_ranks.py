"""How well gradients rank what exact causal tracing finds, over known built-in facts.

    python -m benchmarks.trace_ranks [--facts 20] [--draws 10] [--figure FILE]

For every fact Spearman's rank correlation over all (token, layer) from the first corrupted token to the last of the
prompt, of the exact mean indirect effects with the fast ones: for states, MLP and attention windows. Beside it for
states the plain gradient of the probability at the corrupted prompt (attribution patching), the mean over the same
draws. What stands before the subject has no effect in either and is left out.
The average of the exact traces is kept as well, and drawn into `--figure`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import knowedit
from knowedit.cli.asking import known_facts
from knowedit.locate.readout import Readout
from knowedit.models.replay import record
from knowedit.prompts import Query
from knowedit.recall import tracing_fast
from knowedit.recall.corruption import Corruption
from knowedit.recall.noise import draw_noise, embedding_spread
from knowedit.recall.trace_average import average_traces
from knowedit.recall.tracing import KINDS, Trace, TraceConfig, trace
from knowedit.report.figures.trace import average_figure

from .results import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--figure", help="draw the average of the exact traces into this file")
    options = parser.parse_args()
    model = knowedit.load()
    level = TraceConfig().noise * embedding_spread(model)
    rows, traces = [], []
    for fact in tqdm(known_facts(model, "builtin", None, options.facts), desc="tracing", unit="fact"):
        exact, fast = (
            trace(model, fact.prompt, fact.target, fact.subject, TraceConfig(draws=options.draws, fast=f), level=level)
            for f in (False, True)
        )
        ranks = {kind: _rank(exact, fast.indirect(kind), kind) for kind in KINDS}
        ranks["state, plain gradient"] = _rank(exact, _plain_gradient(model, exact), "state")
        traces.append(exact)
        rows.append({"fact": fact.id, "high": exact.high, "low": exact.low} | ranks)
    names = [*KINDS, "state, plain gradient"]
    summary = {name: _summary([row[name] for row in rows]) for name in names}
    average = average_traces(traces)
    if options.figure:
        average_figure(options.figure, average)
    peaks = {kind: found["peak"] for kind, found in average.as_dict()["maps"].items()}
    averages = {"total_effect": average.total_effect.as_dict(), "peaks": peaks}
    record = {"draws": options.draws, "points": tracing_fast.POINTS, "spearman": summary}
    save("trace_ranks", record | {"average": averages, "facts": rows})


def _rank(exact: Trace, other: np.ndarray, kind: str) -> float:
    start = exact.subject_tokens[0]
    return float(spearmanr(exact.indirect(kind)[start:].ravel(), other[start:].ravel())[0])


def _plain_gradient(model, exact: Trace) -> np.ndarray:
    """∂P/∂h · (h clean − h corrupted) at the corrupted prompt, (tokens, layers)."""
    query = model.query(exact.prompt, exact.target, exact.subject)
    start, end = exact.subject_tokens
    query = Query(query.steps[:1], query.target_ids[:1])
    noise = draw_noise(model, exact.level, exact.config.draws, end - start, exact.config.seed)
    corruption = Corruption(model, query.steps[-1].ids, start, noise)
    readouts = [Readout("probability", token) for token in query.target_ids]
    reads = [step.read for step in query.steps]
    gains = tracing_fast.gains(
        corruption, record(model, corruption.ids, start), reads, readouts, torch.zeros(len(noise)), ["state"]
    )["state"]
    p = torch.tensor(exact.corrupted)[:, None, None]  # from log-odds back to the probability
    return (gains * p * (1 - p)).mean(0).numpy()[: len(exact.tokens)]


def _summary(values: list[float]) -> dict:
    return {"median": float(np.median(values)), "least": min(values), "most": max(values), "n": len(values)}


if __name__ == "__main__":
    main()
