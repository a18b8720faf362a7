"""The imputation experiment on the default model, all layers of one fact: knowedit beside the plain loop.

    python -m benchmarks.speed.imputation

The plain loop runs the whole model once for each layer and each set of dimensions, as the experiment is written down.
Both see the same sets and must give the same log-probabilities. Measured in turn, the median over facts; loading and
the interval over draws are left out of both.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import knowedit
from knowedit.mlp.imputation import ImputationConfig, _random, impute

from ..reference.imputation import plain_imputation
from ..results import save

FACTS = ("landmark-city/eiffel-tower", "capital/japan", "capital/italy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 4])
    options = parser.parse_args()
    model = knowedit.load()
    facts = [knowedit.find_fact(name) for name in FACTS]
    queries = [model.query(fact.prompt, fact.target, fact.subject) for fact in facts]
    impute(model, queries[0])  # warm up
    record = {"facts": list(FACTS), "tokens": [len(q.prompt.ids) for q in queries], "layers": model.n_layers}
    record["by_draws"] = {str(n): _compared(model, queries, ImputationConfig(draws=n)) for n in options.draws}
    save("speed/imputation", record)


def _compared(model, queries, config: ImputationConfig) -> dict:
    sets = [[None, *drawn] for drawn in _random(model, config.dimensions(model.d_model), config)]
    ours, plain, gap = [], [], 0.0
    for query in queries:
        start = time.perf_counter()
        found = impute(model, query, config=config)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        wanted = plain_imputation(model, query.prompt.ids, query.prompt.read, query.target_ids[0], sets)
        plain.append(time.perf_counter() - start)
        rows = [[top, *random] for top, random in zip(found.highest, found.random, strict=True)]
        gap = max(gap, *(abs(a - b) for r, w in zip(rows, wanted, strict=True) for a, b in zip(r, w, strict=True)))
    return {
        "runs_a_layer": 1 + config.draws,
        "seconds": median(ours),
        "plain_seconds": median(plain),
        "share_of_plain": median(o / p for o, p in zip(ours, plain, strict=True)),
        "times_as_fast": median(p / o for o, p in zip(ours, plain, strict=True)),
        "largest_gap": gap,
    }


if __name__ == "__main__":
    main()
