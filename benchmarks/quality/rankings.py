"""All rankings against exhaustive ablation on the default model: rank correlation and precision at 10.

Facts are built-in ones that the model knows, evenly over the relations. `ig` is taken with its default settings.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import knowedit
from knowedit.locate.rankings import RANKINGS, rank
from knowedit.selection import evenly
from knowedit.statistics import mean

from ..registry import benchmark
from ..samples import known
from ..timing import Stopwatch


@benchmark("quality.rankings", "How well do rankings of neurons agree with ablating each of them?")
def rankings(facts: int = 10) -> dict:
    model = knowedit.load()
    chosen = evenly(known(model), facts)
    watch, spearman, precision = Stopwatch(), defaultdict(list), defaultdict(list)
    for fact in tqdm(chosen, unit="fact"):
        query = model.query_of(fact)
        scores = {way: watch(way, rank, model, query, method=way).flatten().numpy() for way in RANKINGS}
        truth = scores["ablation"]
        strongest = set(np.argsort(-truth)[:10])
        for way, values in scores.items():
            spearman[way].append(float(spearmanr(values, truth).statistic))
            precision[way].append(len(strongest & set(np.argsort(-values)[:10])) / 10)
    table = {
        way: {
            "spearman": mean(spearman[way]).as_dict(),
            "precision_at_10": mean(precision[way]).as_dict(),
            "seconds_median": watch.median(way),
        }
        for way in RANKINGS
    }
    return {"model": model.name, "facts": [fact.id for fact in chosen], "against": "ablation", "rankings": table}


@rankings.row
def rankings_row(record: dict) -> list[str]:
    agreement = ", ".join(
        f"{way} {values['spearman']['value']:.2f} / {values['precision_at_10']['value']:.2f}"
        for way, values in record["rankings"].items()
    )
    return [f"{len(record['facts'])} facts, rank correlation / precision at 10: {agreement}"]
