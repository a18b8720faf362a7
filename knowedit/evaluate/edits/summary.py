"""What the records of `bench edit` say together: means with intervals, by relation, and at checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .metrics import Columns, summarise


def summary(rows: Iterable[dict], metrics: Sequence[str] = (), seed: int = 0) -> dict:
    """Means over the records of a run with intervals: `metrics` after the edit, `before`, `by_relation`, `checkpoints`.

    Only figures are kept of the records, in columns, so memory hardly grows with them.
    """
    after, before, relations, of, checkpoints = Columns(), Columns(), {}, [], {}
    for row in rows:
        rise = {} if row.get("perplexity") is None else {"perplexity": row["perplexity"]}
        after.add({**row["after"], **rise})
        before.add(row["before"])
        of.append(relations.setdefault(row["relation"], len(relations)))
        if "checkpoint" in row:
            checkpoints[str(row["checkpoint"]["edits"])] = row["checkpoint"]
    if not of:
        return {"metrics": {}, "before": {}, "by_relation": {}}

    def chosen(found: dict) -> dict:
        return {name: found[name] for name in found if not metrics or name in metrics}

    found = {
        "metrics": chosen(summarise(after, seed)),
        "before": chosen(summarise(before, seed)),
        "by_relation": {
            name: chosen(summarise(after, seed, np.array(of) == relations[name]))
            for name in sorted(filter(None, relations))
        },
    }
    if rises := _rises(after):
        found["perplexity"] = rises
    if checkpoints:
        found["checkpoints"] = checkpoints
    return found


def _rises(after: Columns) -> dict | None:
    """How many records leave the perplexity of plain text within some percent of what it was, the rise in the middle
    and the worst: a mean says little beside one record that wrecked the model."""
    rises = after.arrays().get("perplexity", np.array([]))
    rises = rises[~np.isnan(rises)]
    if not len(rises):
        return None
    within = {f"within_{p}_percent": float(np.mean(np.abs(rises) <= p / 100)) for p in (1, 2)}
    return {**within, "median": float(np.median(rises)), "worst": float(rises.max()), "n": len(rises)}
