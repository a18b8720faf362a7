"""How well gradients rank what exact causal tracing finds, over known built-in facts.

For every fact Spearman's rank correlation over all (token, layer) from the first corrupted token to the last of the
prompt, of the exact mean indirect effects with the fast ones: for states, MLP and attention windows. Beside it for
states the plain gradient of the probability at the corrupted prompt (attribution patching), the mean over the same
draws. What stands before the subject has no effect in either and is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

import knowedit
from knowedit.models.adapter import Model
from knowedit.models.passes.objective import Objective
from knowedit.models.passes.replay import record as record_pass
from knowedit.prompts import Query
from knowedit.recall.trace import gradients
from knowedit.recall.trace.corruption import Corruption
from knowedit.recall.trace.exact import KINDS, Trace, TraceConfig, trace
from knowedit.recall.trace.noise import draw_noise, embedding_spread

from ..registry import benchmark
from ..samples import evenly, known
from ..studies import RecordStudy, summary_of

PLAIN = "state, plain gradient"


@benchmark("quality.trace_ranks", "How well do gradients rank what exact causal tracing finds?")
def trace_ranks(facts: int = 20, draws: int = 10, folder: Path = Path("runs/trace_ranks")) -> dict:
    """A study of one record a fact in `folder`: the same command goes on where it was stopped."""
    model = knowedit.load()
    chosen = [fact.id for fact in evenly(known(model), facts + 2)][:facts]
    level = TraceConfig().noise * embedding_spread(model)

    def measure(name: str) -> dict:
        fact = knowedit.find_fact(name)
        question = model, fact.prompt, fact.target, fact.subject
        exact, fast = (trace(*question, TraceConfig(draws=draws, fast=fast), level=level) for fast in (False, True))
        ranks = {kind: _rank(exact, fast.indirect(kind), kind) for kind in KINDS}
        ranks[PLAIN] = _rank(exact, _plain_gradient(model, exact), "state")
        return {"high": exact.high, "low": exact.low, **ranks}

    config = {"draws": draws, "points": gradients.POINTS}
    study = RecordStudy("trace_ranks", model, config, chosen, measure, _summary)
    return config | {"chosen": chosen} | summary_of(study, folder)


@trace_ranks.row
def trace_ranks_row(record: dict) -> list[str]:
    medians = ", ".join(f"{name} {ranks['median']:.2f}" for name, ranks in record["spearman"].items())
    return [f"{len(record['facts'])} facts, median rank correlation: {medians}"]


def _rank(exact: Trace, other: np.ndarray, kind: str) -> float:
    start = exact.subject_tokens[0]
    return float(spearmanr(exact.indirect(kind)[start:].ravel(), other[start:].ravel())[0])


def _plain_gradient(model: Model, exact: Trace) -> np.ndarray:
    """∂P/∂h · (h clean − h corrupted) at the corrupted prompt, (tokens, layers)."""
    query = model.query(exact.prompt, exact.target, exact.subject)
    query = Query(query.steps[:1], query.target_ids[:1])
    start, end = exact.subject_tokens
    noise = draw_noise(model, exact.level, exact.config.draws, end - start, exact.config.seed)
    corruption = Corruption(model, query.prompt.ids, start, noise)
    gains = gradients.gains(
        corruption,
        record_pass(model, corruption.ids, start),
        [query.prompt.read],
        [Objective("probability", token) for token in query.target_ids],
        torch.zeros(len(noise)),
        ["state"],
    )["state"]
    p = torch.tensor(exact.corrupted)[:, None, None]  # from log-odds back to the probability
    return (gains * p * (1 - p)).mean(0).numpy()


def _summary(rows: dict[str, dict]) -> dict:
    ranks = {name: [row[name] for row in rows.values()] for name in (*KINDS, PLAIN)}
    return {
        "spearman": {
            name: {"median": float(np.median(r)), "least": min(r), "most": max(r), "n": len(r)}
            for name, r in ranks.items()
        },
        "facts": rows,
    }
