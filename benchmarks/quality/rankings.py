"""All rankings against exhaustive ablation on the default model: rank correlation and precision at 10.

    python -m benchmarks.quality.rankings [--facts 10]

Facts are built-in ones that the model knows, evenly over the relations. `ig` is taken with its default settings.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import knowedit
from knowedit.answers import ask_facts
from knowedit.locate.rankings import RANKINGS, rank
from knowedit.selection import evenly
from knowedit.statistics import mean

from ..results import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--facts", type=int, default=10)
    options = parser.parse_args()
    model = knowedit.load()
    facts = knowedit.builtin_facts()
    known = tuple(fact for fact, answer in zip(facts, ask_facts(model, facts), strict=True) if answer.known)
    chosen = evenly(known, options.facts)
    rows = {method: {"spearman": [], "precision_at_10": [], "seconds": []} for method in RANKINGS}
    for fact in tqdm(chosen, unit="fact"):
        query = model.query(fact.prompt, fact.target, fact.subject)
        scores = {}
        for method in RANKINGS:
            started = time.perf_counter()
            scores[method] = rank(model, query, method=method).flatten().numpy()
            rows[method]["seconds"].append(time.perf_counter() - started)
        truth = scores["ablation"]
        best = set(np.argsort(-truth)[:10])
        for method, values in scores.items():
            rows[method]["spearman"].append(float(spearmanr(values, truth).statistic))
            rows[method]["precision_at_10"].append(len(best & set(np.argsort(-values)[:10])) / 10)
    table = {
        method: {
            "spearman": mean(r["spearman"]).as_dict(),
            "precision_at_10": mean(r["precision_at_10"]).as_dict(),
            "seconds_median": float(np.median(r["seconds"])),
        }
        for method, r in rows.items()
    }
    save(
        "quality/rankings",
        {"model": model.name, "facts": [f.id for f in chosen], "against": "ablation", "rankings": table},
    )


if __name__ == "__main__":
    main()
