"""Quality of single edits on the default model: ES, PS, NS, their argmax forms, Score and perplexity, with intervals.

Each edit is applied, asked and reverted. Beside our default stand, on the same records and from the same δ, ROME
without preserved keys and with the original's mixed keys; fine-tuning and knowledge neurons are compared in studies
(`reports`). Edits of a subject that is the prompt's first token are counted apart. Perplexity is that of the plain text
that ships with knowedit, the one that `--guard` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest, wilcoxon
from tqdm.auto import tqdm

from knowedit.edit.edit import Edit
from knowedit.edit.methods.rome import SMOLLM2
from knowedit.edit.rewrite_quality import PARTS, RewriteQuality, rates, rewrite_quality
from knowedit.facts import Fact
from knowedit.selection import choose
from knowedit.sources import load_source
from knowedit.statistics import mean

from ..editing import Rome
from ..registry import benchmark
from ..samples import reported

CHANGES = {  # of our default
    "rome": {},
    "rome, no preserved keys": {"preserve": 0.0},
    "rome, mixed keys": {"preserve": 0.0, "key": "mixed"},
}
NAMES = ("ES", "PS", "NS", "ES_argmax", "PS_argmax", "NS_argmax", "EM", "PM", "NM")


@benchmark("quality.edits", "How good are single edits of built-in facts?")
def edits(facts: int = 200, others: int | None = None) -> dict:
    """Facts that no setting was chosen on; `others`: how many for no preserved and for mixed keys (all)."""
    return _measured(list(reported(facts)), others)


@benchmark("quality.edits_counterfact_lite", "How good are single edits of CounterFact-lite records?")
def edits_counterfact_lite(source: str, facts: int = 200, others: int | None = None) -> dict:
    """The first records of a file, which have one paraphrase and one neighbour each."""
    return _measured(choose(load_source(source).facts, limit=facts), others)


@edits.row
@edits_counterfact_lite.row
def edits_row(record: dict) -> list[str]:
    lines = []
    for method, measured in record["methods"].items():
        means = measured["rates"]
        parts = ", ".join(f"{name} {100 * means[name]['mean']:.1f}" for name in PARTS)
        harm = measured.get("perplexity")
        tail = "" if harm is None else f"; perplexity within 1 % in {harm['within_1_percent']:.0%}"
        lines.append(f"{method}, {means['n']} facts: {parts}, Score {100 * means['score']:.1f}{tail}")
    return lines


def _measured(facts: list[Fact], others: int | None) -> dict:
    rome = Rome()
    model, config = rome.model, rome.with_contexts()
    before = [rewrite_quality(model, [fact], heldout=False)[0] for fact in tqdm(facts, desc="unedited")]
    known = [pair for pair in before if pair.prompt.says_true]
    methods = {"unedited": {"rates": _summary(before), "known_facts": {"n": len(known), "rates": _summary(known)}}}
    values, rows = rome.searched(facts, config), {}
    for name, changes in CHANGES.items():
        n = len(facts) if name == "rome" else others
        edits = rome.edits(facts[:n], values[:n], replace(config, **changes))
        methods[name], rows[name] = _measured_edits(rome, facts[:n], tqdm(edits, desc=name))
        if name != "rome":
            methods[name]["against_rome"] = _paired(rows["rome"], rows[name])
    return {"model": model.name, "facts": len(facts), "config": SMOLLM2.as_dict(), "methods": methods}


def _measured_edits(rome: Rome, facts: Sequence[Fact], edits: Sequence[Edit]) -> tuple[dict, list[dict]]:
    """What edits are worth, and the rates of each."""
    each = rome.each_applied(edits, lambda i: rewrite_quality(rome.model, [facts[i]], heldout=False)[0])
    after, rises = zip(*each, strict=True)
    first = [rome.model.encode(fact.prompt, fact.subject).lookup == 0 for fact in facts]
    parts = {at_start: [i for i in range(len(facts)) if first[i] == at_start] for at_start in (True, False)}
    later = [rises[i] for i in parts[False]]
    return {
        "rates": _summary(after),
        "not_first": _summary([after[i] for i in parts[False]]) if any(first) else None,
        "first": _summary([after[i] for i in parts[True]]),
        "perplexity": {
            "within_1_percent": float(np.mean(np.abs(rises) <= 0.01)),
            "within_2_percent": float(np.mean(np.abs(rises) <= 0.02)),
            "worst": max(rises),
            "within_1_percent_not_first": float(np.mean(np.abs(later) <= 0.01)),
            "worst_not_first": max(later, default=None),
        },
    }, [{name: values[0] for name, values in rates([pair]).items()} for pair in after]


def _summary(pairs: Sequence[RewriteQuality]) -> dict | None:
    """Means with their intervals, and the Score; None without facts."""
    if not pairs:
        return None
    by_name = rates(pairs)
    summary = {"n": len(pairs)}
    for name in NAMES:
        values = np.array(by_name[name])
        there = values[~np.isnan(values)]
        if name.startswith("ES"):
            interval = binomtest(int(there.sum()), len(there)).proportion_ci(method="wilson")
            summary[name] = {"mean": float(there.mean()), "low": interval.low, "high": interval.high}
        else:
            estimate = mean(there)
            summary[name] = {"mean": estimate.value, "low": estimate.low, "high": estimate.high}
    parts = [summary[name]["mean"] for name in PARTS]
    summary["score"] = 3 / sum(1 / part for part in parts) if min(parts) > 0 else 0.0
    return summary


def _paired(rome: list[dict], other: list[dict]) -> dict:
    """Mean difference (ROME minus the other) on the same records, with a Wilcoxon signed-rank p."""
    result = {"n": len(other)}
    for name in PARTS:
        gap = np.array([a[name] - b[name] for a, b in zip(rome, other, strict=False)])
        p = float(wilcoxon(gap, zero_method="zsplit").pvalue) if np.any(gap) else 1.0
        result[name] = {"difference": float(gap.mean()), "p": p}
    return result
