"""The imputation experiment on the default model, all layers of one fact: knowedit beside the plain loop.

The plain loop runs the whole model once for each layer and each set of dimensions, as the experiment is written down.
Both see the same sets and must give the same log-probabilities. Loading and the interval over draws are left out.
"""

from __future__ import annotations

import knowedit
from knowedit.mlp.imputation import ImputationConfig, _random, impute
from knowedit.models.adapter import Model
from knowedit.prompts import Query

from ..reference.imputation import plain_imputation
from ..registry import benchmark
from ..timing import Stopwatch

FACTS = ("landmark-city/eiffel-tower", "capital/japan", "capital/italy")


@benchmark("speed.imputation", "How much faster than the plain loop is the imputation experiment?")
def imputation(draws: tuple[int, ...] = (0, 4)) -> dict:
    """`draws`: random sets of dimensions a layer; the median is over three facts."""
    model = knowedit.load()
    queries = [model.query_of(knowedit.find_fact(name)) for name in FACTS]
    impute(model, queries[0])  # warm up
    return {
        "facts": list(FACTS),
        "tokens": [len(query.prompt.ids) for query in queries],
        "layers": model.n_layers,
        "by_draws": {str(n): _compared(model, queries, ImputationConfig(draws=n)) for n in draws},
    }


@imputation.row
def imputation_row(record: dict) -> list[str]:
    return [
        f"with {draws} random sets: **{compared['ratio_median']:.1f}×**"
        for draws, compared in record["by_draws"].items()
    ]


def _compared(model: Model, queries: list[Query], config: ImputationConfig) -> dict:
    sets = [[None, *drawn] for drawn in _random(model, config.dimensions(model.d_model), config)]
    watch, gap = Stopwatch(), 0.0
    for query in queries:
        sweep = watch("sweep", impute, model, query, config=config)
        loop = watch("loop", plain_imputation, model, query.prompt.ids, query.prompt.read, query.target_ids[0], sets)
        layers = zip(sweep.highest, sweep.random, loop, strict=True)
        gap = max(
            gap, *(abs(a - b) for top, random, plain in layers for a, b in zip((top, *random), plain, strict=True))
        )
    about = {"runs_a_layer": 1 + config.draws, "seconds": watch.seconds}
    return about | watch.ratio("loop", "sweep") | {"largest_gap": gap}
