"""One edit on the default model: knowedit beside ROME's algorithm written plainly.

Covariance, contexts and preserved keys are given. Each pair is measured in turn, fact by fact; ratios are of the
times of one fact, the median over facts. "Equal steps" ends neither search before its last step, and compares the δ
that come out. "By default" is knowedit with its own settings against the plain loop with ROME's (6 or 21 prompts, 25
steps, ending below a loss of 0.05).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from knowedit.edit.edit import Edit
from knowedit.edit.methods.rome import SMOLLM2
from knowedit.edit.methods.search_rows import Request
from knowedit.edit.methods.v_star import Value, VStarSearch, find_v_star
from knowedit.facts import Fact
from knowedit.texts.corpus import contexts

from ..editing import Rome
from ..reference.rome import plain_v_star
from ..registry import benchmark
from ..samples import development
from ..timing import Stopwatch

LAYER = SMOLLM2.layer
PUBLISHED = VStarSearch(steps=25, lr=0.5, kl=0.0625, decay=0.5, clamp=4.0, stop_loss=0.05)
EQUAL = replace(PUBLISHED, stop_loss=None)


class Sides(Rome):
    """Both sides, with covariance, preserved keys and 20 contexts given."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.texts = contexts(self.model, 20)
        self.plain(self.request(development(1)[0], 5), replace(EQUAL, steps=2))  # warm up

    def request(self, fact: Fact, n: int) -> Request:
        """The fact's prompt, plain and behind each of `n` contexts."""
        return self.requests([fact], self.texts[:n])[0]

    def plain(self, request: Request, search: VStarSearch) -> Value:
        return plain_v_star(self.model, request, LAYER, search)

    def ours(self, requests: Sequence[Request]) -> list[Value]:
        """v* by the search that steps as often as the plain loop."""
        return find_v_star(self.model, requests, LAYER, EQUAL)

    def default(self, facts: Sequence[Fact], n: int) -> list[Edit]:
        """Edits by our settings, with as many contexts as the default takes, of both lengths, out of `n`."""
        half = SMOLLM2.contexts // 2
        chosen = (*self.texts[:half], *self.texts[n - (SMOLLM2.contexts - half) : n])
        return self.searched_edits(facts, replace(SMOLLM2, contexts=chosen))


@benchmark("speed.edit", "How much faster than ROME written plainly is one edit?")
def edit(facts: int = 4) -> dict:
    """`facts` are edited one by one with 6 and with 21 prompts."""
    sides, chosen = Sides(), development(16)[:facts]
    return {
        "layer": LAYER,
        "facts": [fact.id for fact in chosen],
        "equal_steps": {f"{n + 1} prompts": _equal_steps(sides, chosen, n) for n in (5, 20)},
        "by_default": {f"{n + 1} prompts": _by_default(sides, chosen, n) for n in (5, 20)},
    }


@edit.row
def edit_row(record: dict) -> list[str]:
    ways = {"equal_steps": "equal steps", "by_default": "each by its own settings"}
    return [
        f"{words}: "
        + ", ".join(f"{prompts} **{times['ratio_median']:.1f}×**" for prompts, times in record[way].items())
        for way, words in ways.items()
    ]


def _equal_steps(sides: Sides, facts: Sequence[Fact], n: int) -> dict:
    watch, gaps = Stopwatch(), []
    for fact in facts:
        fact_request = sides.request(fact, n)
        plain = watch("plain", sides.plain, fact_request, EQUAL)
        (ours,) = watch("ours", sides.ours, [fact_request])
        gaps.append(((ours.delta - plain.delta).norm() / plain.delta.norm()).item())
    return {"seconds": watch.seconds, **watch.ratio("plain", "ours"), "largest_gap_of_delta": max(gaps)}


def _by_default(sides: Sides, facts: Sequence[Fact], n: int) -> dict:
    watch, steps = Stopwatch(), []
    for fact in facts:
        plain = watch("plain", sides.plain, sides.request(fact, n), PUBLISHED)
        (ours,) = watch("ours", sides.default, [fact], n)
        steps.append([plain.steps, ours.notes["steps"]])
    return {"seconds": watch.seconds, **watch.ratio("plain", "ours"), "steps_plain_ours": steps}


@benchmark("speed.edit_batch", "How much faster than ROME written plainly is an edit that is made with others?")
def edit_batch(facts: int = 4, batch: int = 16) -> dict:
    """Seconds a fact: `batch` of them together, the plain loop on `facts` of these before and after."""
    sides, chosen = Sides(), development(batch)
    requests = [sides.request(fact, 5) for fact in chosen]
    ways = {
        "equal_steps": (EQUAL, partial(sides.ours, requests)),
        "by_default": (PUBLISHED, partial(sides.default, chosen, 5)),
    }
    record = {"layer": LAYER, "facts": [fact.id for fact in chosen[:facts]], "batch": batch}
    for way, (search, ours) in ways.items():
        watch = Stopwatch()
        plain = [("plain", partial(sides.plain, request, search)) for request in requests[:facts]]
        for name, run in (*plain, ("ours", ours), *plain):
            watch(name, run)
        each = watch.total("ours") / len(chosen)
        record[way] = {"plain": watch.seconds["plain"], "ours": each, "ratio": watch.median("plain") / each}
    return record


@edit_batch.row
def edit_batch_row(record: dict) -> list[str]:
    equal, default = (record[way]["ratio"] for way in ("equal_steps", "by_default"))
    return [f"{record['batch']} facts together: equal steps **{equal:.1f}×**, by default **{default:.1f}×**"]
