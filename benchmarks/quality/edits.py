"""Quality of single edits on the default model: ES, PS, NS, their argmax forms, Score and perplexity, with intervals.

    python -m benchmarks.quality.edits
    python -m benchmarks.quality.edits --counterfact-lite FILE

Facts: 200 built-in ones that no setting was chosen on, or the first 200 records of a CounterFact-lite file (one
paraphrase and one neighbour each). Each edit is applied, asked and reverted. Beside our default stand, on the same
records and from the same δ, ROME without preserved keys and with the original's mixed keys; fine-tuning and knowledge
neurons are compared in studies (`configs/`). Edits of a subject that is the prompt's first token are counted apart.
Perplexity is that of the plain text that ships with knowedit, the one that `--guard` measures.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest, wilcoxon
from tqdm.auto import tqdm

import knowedit
from knowedit.edit.apply import applied
from knowedit.edit.methods.rome import SMOLLM2, edit_of
from knowedit.edit.methods.v_star import find_v_star, request
from knowedit.edit.preflight import perplexity
from knowedit.edit.preserved_keys import preserved_keys
from knowedit.edit.rewrite_quality import PARTS, RewriteQuality, rates, rewrite_quality
from knowedit.sources import load_source
from knowedit.statistics import mean
from knowedit.texts.corpus import contexts as sample_contexts

from ..results import save
from .edit_facts import reported

PASS = 0.01, 0.02  # rise of perplexity: in 98 % of edits, in all
NAMES = ("ES", "PS", "NS", "ES_argmax", "PS_argmax", "NS_argmax", "EM", "PM", "NM")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counterfact-lite")
    parser.add_argument("--facts", type=int, default=200)
    parser.add_argument("--others", type=int, help="records for unprotected and for mixed keys (default: all)")
    options = parser.parse_args()
    model = knowedit.load()
    lite = options.counterfact_lite
    facts = list(reported(options.facts) if lite is None else load_source(lite, limit=options.facts).facts)
    bench = _Bench(model)
    before = [bench.ask(fact) for fact in tqdm(facts, desc="unedited")]
    found = {"unedited": {"rates": _summary(before)}}
    for name, edits in bench.edits(facts).items():
        n = len(facts) if name == "rome" else options.others
        found[name] = bench.measured(name, facts[:n], edits[:n])
        print(name, json.dumps(found[name]["rates"]), flush=True)
    for name, other in found.items():
        if name not in ("unedited", "rome"):
            other["against_rome"] = _paired(bench.rows["rome"], bench.rows[name])
    known = [i for i, asked in enumerate(before) if asked.prompt.says_true]
    found["unedited"]["known_facts"] = {
        "n": len(known),
        "rates": _summary([before[i] for i in known]) if known else None,
    }
    name = "quality/edits" if lite is None else "quality/edits_counterfact_lite"
    save(name, {"model": model.name, "facts": len(facts), "config": SMOLLM2.as_dict(), "methods": found})


class _Bench:
    def __init__(self, model):
        self.model = model
        self.perplexity = perplexity(model)
        self.rows: dict[str, list[dict]] = {}

    def ask(self, fact) -> RewriteQuality:
        return rewrite_quality(self.model, [fact], heldout=False)[0]

    def edits(self, facts) -> dict:
        """Our default; unprotected and mixed keys from the same δ."""
        model, layer = self.model, SMOLLM2.layer
        C = knowedit.covariance(model, [layer])[layer]
        preserved = preserved_keys(model, layer)
        contexts = sample_contexts(model, SMOLLM2.contexts, SMOLLM2.lengths, seed=SMOLLM2.seed)
        bar = tqdm(total=len(facts), desc="rome")
        requests = [request(model, fact, fact.target_new, contexts) for fact in facts]
        values = find_v_star(model, requests, layer, SMOLLM2.search, lambda done: bar.update(done - bar.n))
        config = replace(SMOLLM2, contexts=contexts)

        def edits(**changed):
            settings = replace(config, **changed)
            pairs = zip(facts, values, strict=True)
            return [edit_of(model, fact, value, C, preserved, settings) for fact, value in pairs]

        return {
            "rome": edits(),
            "rome, no preserved keys": edits(preserve=0.0),
            "rome, mixed keys": edits(preserve=0.0, key="mixed"),
        }

    def measured(self, name, facts, edits) -> dict:
        after, rises, rows = [], [], []
        for fact, edit in zip(facts, tqdm(edits, desc=name), strict=True):
            with applied(self.model, edit):
                after.append(self.ask(fact))
                rises.append(perplexity(self.model) / self.perplexity - 1)
            first = self.model.encode(fact.prompt, fact.subject).lookup == 0
            rows.append({n: v[0] for n, v in rates(after[-1:]).items()} | {"first": first, "perplexity": rises[-1]})
        self.rows[name] = rows
        later = [i for i, row in enumerate(rows) if not row["first"]]
        return {
            "rates": _summary(after),
            "not_first": _summary([after[i] for i in later]) if len(later) < len(rows) else None,
            "first": _summary([after[i] for i in range(len(rows)) if i not in set(later)])
            if len(later) < len(rows)
            else None,
            "perplexity": {
                "within_1_percent": float(np.mean(np.abs(rises) <= PASS[0])),
                "within_2_percent": float(np.mean(np.abs(rises) <= PASS[1])),
                "worst": max(rises),
                "within_1_percent_not_first": float(np.mean([abs(rises[i]) <= PASS[0] for i in later])),
                "worst_not_first": max((rises[i] for i in later), default=None),
            },
        }


def _summary(found) -> dict:
    by_name = rates(found)
    summary = {"n": len(found)}
    for name in NAMES:
        values = np.array(by_name[name])
        kept = values[~np.isnan(values)]
        if name.startswith("ES"):
            interval = binomtest(int(kept.sum()), len(kept)).proportion_ci(method="wilson")
            summary[name] = {"mean": float(kept.mean()), "low": interval.low, "high": interval.high}
        else:
            e = mean(kept)
            summary[name] = {"mean": e.value, "low": e.low, "high": e.high}
    rate = [summary[name]["mean"] for name in PARTS]
    summary["score"] = 3 / sum(1 / r for r in rate) if min(rate) > 0 else 0.0
    return summary


def _paired(rome: list[dict], other: list[dict]) -> dict:
    """Mean difference (ROME minus the other) on the same records, with a Wilcoxon signed-rank p."""
    result = {"n": len(other)}
    for name in PARTS:
        gap = np.array([a[name] - b[name] for a, b in zip(rome, other, strict=False)])
        p = float(wilcoxon(gap, zero_method="zsplit").pvalue) if np.any(gap) else 1.0
        result[name] = {"difference": float(gap.mean()), "p": p}
    return result


if __name__ == "__main__":
    main()
