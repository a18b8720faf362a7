"""Attention knockout of all layers of one fact: the growing sweep against the plain loop of the paper.

Both block the same edges in the same windows, for each of the sets subject, relation, last and first: every window of
every set is one row.
"""

from __future__ import annotations

import knowedit
from knowedit.recall.flow.knockout import attention_knockout

from ..reference.knockout import plain_knockout
from ..registry import benchmark
from ..samples import PROMPT, SUBJECT, TARGET
from ..timing import alternated


@benchmark("speed.knockout", "How much faster than the paper's loop is attention knockout?")
def knockout(rounds: int = 3) -> dict:
    model = knowedit.load()
    query = model.query(PROMPT, TARGET, SUBJECT)
    window = attention_knockout(model, query).window  # warm up, and the windows that both have
    ways = {
        "sweep": lambda: attention_knockout(model, query).after,
        "loop": lambda: plain_knockout(model, query, window),
    }
    watch, results = alternated(rounds, ways)
    sweep, loop = results["sweep"], results["loop"]
    gap = max(abs(a - b) for name in loop for a, b in zip(loop[name], sweep[name], strict=True))
    return {
        "prompt": PROMPT,
        "tokens": len(query.prompt.ids),
        "layers": model.n_layers,
        "window": window,
        "knockouts": sum(map(len, loop.values())),
        "seconds": watch.seconds,
        **watch.ratio("loop", "sweep"),
        "largest_difference_of_probability": gap,
    }


@knockout.row
def knockout_row(record: dict) -> list[str]:
    gap = record["largest_difference_of_probability"]
    return [
        f"{record['knockouts']} windows and sets: **{record['ratio_median']:.1f}×**, largest difference of a "
        f"probability {gap:.0e}"
    ]
