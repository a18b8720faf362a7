"""Proof on built-in facts that the default model knows: suppression and amplification on held-out prompts.

    python -m benchmarks.proof --method ig --layers 2-29 --adjust --facts 50
    python -m benchmarks.proof --method gradient --p 0.5 --strongest

Proved are all located neurons of a fact (with `--adjust` 2 to 5, as Dai et al. choose them), or its five strongest with
`--strongest`. Thresholds were chosen on 20 other facts (four of each relation); the facts reported here are spread
`evenly` over the relations and were not looked at.
"""

from __future__ import annotations

import argparse

from tqdm.auto import tqdm

import knowedit
from knowedit.answers import answers
from knowedit.cli.locate_many import evenly
from knowedit.facts import fill
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.kinds import ControlPool
from knowedit.locate.locating import LocateConfig, locate_fact
from knowedit.locate.proof import measure, summarise

from .results import save

SPLIT = 60  # the known facts that are reported; the development facts are others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="ig")
    parser.add_argument("--facts", type=int, default=SPLIT)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--layers", default=None)
    parser.add_argument("--p", type=float, default=0.7)
    parser.add_argument("--strongest", action="store_true")
    parser.add_argument("--adjust", action="store_true")
    options = parser.parse_args()
    first, _, last = (options.layers or "").partition("-")
    config = LocateConfig(
        method=options.method,
        attribution=AttributionConfig(nodes=options.nodes),
        p=options.p,
        adjust=options.adjust,
        layers=tuple(range(int(first), int(last) + 1)) if options.layers else None,
    )
    model = knowedit.load()
    facts = knowedit.builtin_facts()
    found = dict(answers(model, [model.query(f.prompt, f.target, f.subject) for f in facts]))
    known = tuple(f for i, f in enumerate(facts) if found[i].known)
    chosen = evenly(evenly(known, SPLIT), options.facts)
    pool, weights_hash = ControlPool(model, facts), model.weights_hash()
    effects = []
    rows = []
    for fact in tqdm(chosen, unit="fact"):
        located = locate_fact(model, fact, config, pool=pool, weights_hash=weights_hash)
        kinds = [n.kind for n in located.neurons]
        rows.append({"id": fact.id, "neurons": len(located), "kinds": {k: kinds.count(k) for k in sorted(set(kinds))}})
        if not len(located):
            continue
        queries = [model.query(fill(t, fact.subject), fact.target, fact.subject) for t in fact.heldout]
        controls = pool.controls(fact.subject, fact.target, fact.relation)
        others = {"same_relation": controls.relation, "other_relations": controls.general}
        effects.append(measure(model, located.top(5) if options.strongest else located, queries, others=others))
    record = {"model": model.name, "known": len(known), "facts": len(chosen), "config": config.as_dict()}
    record |= {"proof": summarise(effects).as_dict(), "by_fact": rows}
    suffix = "_adjusted" if options.adjust else "_strongest" if options.strongest else ""
    save(f"proof_{options.method}{suffix}", record)


if __name__ == "__main__":
    main()
