"""How well gradients rank what exact causal tracing finds, over known built-in facts.

    python -m benchmarks.quality.trace_ranks [--facts 20] [--draws 10] [--kinds state] [--most N]

For every fact Spearman's rank correlation over all (token, layer) from the first corrupted token to the last of the
prompt, of the exact mean indirect effects with the fast ones: for states, MLP and attention windows. Beside it for
states the plain gradient of the probability at the corrupted prompt (attribution patching), the mean over the same
draws. What stands before the subject has no effect in either and is left out. The same command goes on where another
one ended, and adds the kinds that a fact lacks; `--most` ends it after so many facts.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import knowedit
from knowedit.cli.shared.facts import known_facts
from knowedit.models.passes.objective import Objective
from knowedit.models.passes.replay import record
from knowedit.prompts import Query
from knowedit.recall.trace import gradients as tracing_fast
from knowedit.recall.trace.corruption import Corruption
from knowedit.recall.trace.exact import KINDS, Trace, TraceConfig, trace
from knowedit.recall.trace.noise import draw_noise, embedding_spread

from ..results import FOLDER, save

NAME = "quality/trace_ranks"
NAMES = (*KINDS, "state, plain gradient")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--most", type=int, help="end after so many facts, to be gone on with")
    options = parser.parse_args()
    model = knowedit.load()
    kinds = tuple(options.kinds.split(","))
    chosen, rows = _begun(model, options.facts, options.draws)
    level = TraceConfig().noise * embedding_spread(model)
    missing = {name: tuple(kind for kind in kinds if kind not in rows.get(name, ())) for name in chosen}
    for name in tqdm([name for name in chosen if missing[name]][: options.most], desc="tracing", unit="fact"):
        fact = knowedit.find_fact(name)
        exact, fast = (
            trace(
                model, fact.prompt, fact.target, fact.subject,
                TraceConfig(missing[name], options.draws, fast=fast), level=level,
            )
            for fast in (False, True)
        )  # fmt: skip
        ranks = {kind: _rank(exact, fast.indirect(kind), kind) for kind in missing[name]}
        if "state" in ranks:
            ranks["state, plain gradient"] = _rank(exact, _plain_gradient(model, exact), "state")
        rows[name] = {"high": exact.high, "low": exact.low} | rows.get(name, {}) | ranks
    summary = {name: _summary([row[name] for row in rows.values() if name in row]) for name in NAMES}
    shared = {"draws": options.draws, "points": tracing_fast.POINTS, "chosen": chosen}
    save(NAME, shared | {"spearman": summary, "facts": rows})


def _begun(model, facts: int, draws: int) -> tuple[list[str], dict[str, dict]]:
    """The facts, and the rows that are there already."""
    path = FOLDER / f"{NAME}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    if len(kept.get("chosen", ())) == facts and (kept["draws"], kept["points"]) == (draws, tracing_fast.POINTS):
        return kept["chosen"], kept["facts"]
    return [fact.id for fact in known_facts(model, "builtin", None, facts + 2)][:facts], {}


def _rank(exact: Trace, other: np.ndarray, kind: str) -> float:
    start = exact.subject_tokens[0]
    return float(spearmanr(exact.indirect(kind)[start:].ravel(), other[start:].ravel())[0])


def _plain_gradient(model, exact: Trace) -> np.ndarray:
    """∂P/∂h · (h clean − h corrupted) at the corrupted prompt, (tokens, layers)."""
    query = model.query(exact.prompt, exact.target, exact.subject)
    query = Query(query.steps[:1], query.target_ids[:1])
    start, end = exact.subject_tokens
    noise = draw_noise(model, exact.level, exact.config.draws, end - start, exact.config.seed)
    corruption = Corruption(model, query.prompt.ids, start, noise)
    objectives = [Objective("probability", token) for token in query.target_ids]
    gains = tracing_fast.gains(
        corruption,
        record(model, corruption.ids, start),
        [query.prompt.read],
        objectives,
        torch.zeros(len(noise)),
        ["state"],
    )["state"]
    p = torch.tensor(exact.corrupted)[:, None, None]  # from log-odds back to the probability
    return (gains * p * (1 - p)).mean(0).numpy()


def _summary(values: list[float]) -> dict:
    if not values:
        return {"median": None, "least": None, "most": None, "n": 0}
    return {"median": float(np.median(values)), "least": min(values), "most": max(values), "n": len(values)}


if __name__ == "__main__":
    main()
