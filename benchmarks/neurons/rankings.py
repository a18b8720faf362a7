"""Rankings of neurons side by side: by what their best neurons do elsewhere, and against ablating each neuron.

Facts are built-in ones that the model knows, evenly over the relations. Each ranking scores the fact's own prompt, by
its default settings; `ig, patch` starts its paths where another subject of the relation has the neurons. The proof is
on held-out prompts: the best 5 and 10 neurons, as they are ranked, and as a causal selection takes them from the best
64 on the locating prompts. Neurons that any answer needs are passed over everywhere. Agreement with ablation is rank
correlation and precision at 10.

To ablate each neuron takes minutes a fact, and so does `logp`: these two are asked of fewer facts (`--exhaustive`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

import knowedit
from knowedit import AttributionConfig, Fact, Model
from knowedit.locate.attribution import attribute
from knowedit.locate.config import CANDIDATES, MOST, LocateConfig
from knowedit.locate.fact_prompts import FactPrompts
from knowedit.locate.proof.ablation import ablation_values
from knowedit.locate.proof.neuron_kinds import ControlPool
from knowedit.locate.rankings import RANKINGS, rank
from knowedit.locate.refinement import select, strongest
from knowedit.models.passes.scaled_answers import ScaledAnswers
from knowedit.selection import evenly
from knowedit.statistics import mean, ratio_of_means

from ..registry import benchmark
from ..samples import known
from ..studies import RecordStudy, summary_of
from ..timing import Stopwatch

PATCH = "ig, patch"
WAYS = (*RANKINGS[:1], PATCH, *RANKINGS[1:])
SLOW = ("logp", "ablation")
SIZES = (5, 10)


@benchmark("neurons.rankings", "How do rankings of neurons compare on held-out prompts, and with ablating each?")
def rankings(
    facts: int = 80, exhaustive: bool = False, folder: Path = Path("runs/rankings")
) -> Iterator[tuple[str, dict]]:
    """`facts`: of which some are left out, as relations have unlike many; 62 are left of 80. A study of one record a
    fact in `folder`: the same command goes on where it was stopped."""
    model = knowedit.load()
    pool = ControlPool(model, knowedit.builtin_facts(), weights_hash=model.weights_hash())
    chosen = {fact.id: fact for fact in evenly(known(model), facts)}
    ways = [way for way in WAYS if exhaustive or way not in SLOW]

    def measure(name: str) -> dict:
        return _of_fact(model, chosen[name], ways, pool)

    study = RecordStudy("rankings", model, {"ways": ways}, list(chosen), measure, _summary)
    record = {"model": model.name, "facts": list(chosen), "rankings": summary_of(study, folder)}
    yield "exhaustive" if exhaustive else "", record


@rankings.row
def rankings_row(record: dict) -> list[str]:
    def line(way: str, values: dict) -> str:
        proofs = (values[name]["10"] for name in ("ranked", "selected"))
        ranked, selected = (" / ".join(f"{p[what]['value']:+.0%}" for what in ("suppress", "amplify")) for p in proofs)
        agrees = [f"{values[name]['value']:.2f}" for name in ("spearman", "precision_at_10") if name in values]
        return f"{way}: {'; '.join(filter(None, (' / '.join(agrees), ranked, selected)))}; {values['seconds']:.1f} s"

    compared = any("spearman" in values for values in record["rankings"].values())
    return [
        f"{len(record['facts'])} facts{', rank correlation / precision at 10 with ablation' if compared else ''}; "
        "held out, the best 10 at zero / doubled; 10 selected; time of a prompt",
        *(line(way, values) for way, values in record["rankings"].items()),
    ]


def _of_fact(model: Model, fact: Fact, ways: Sequence[str], pool: ControlPool) -> dict:
    """What a record says: `before`, the mean probability on held-out prompts, and of each way `proof`, the same with
    its sets at zero and doubled (2, sets: 5 and 10 as ranked, 5 and 10 as selected)."""
    watch = Stopwatch()
    scores = {way: watch(way, _scores, model, fact, way, pool) for way in ways}
    prompts = FactPrompts.all_of(fact)
    locating, heldout = (
        ScaledAnswers(model, [prompts.query(model, text) for text in texts])
        for texts in (prompts.locating[: LocateConfig().prompts], prompts.heldout)
    )
    general = pool.general_neurons(fact.subject, fact.target, fact.relation)
    record: dict = {"before": float(heldout.probability.mean()), "ways": {}}
    for way, values in scores.items():
        ranked = [site for site in strongest(values, CANDIDATES) if site not in general]
        taken = [step.site for step in watch(f"select {way}", select, locating, ranked, MOST)]
        sets = [neurons[:size] for neurons in (ranked, taken) for size in SIZES]
        proof = np.stack(heldout.suppressed_and_amplified(sets)).mean(1)
        agreement = _agreement(values, scores["ablation"]) if "ablation" in scores else {}
        seconds = {"seconds": watch.total(way), "select_seconds": watch.total(f"select {way}")}
        record["ways"][way] = agreement | {"proof": proof.tolist()} | seconds
    return record


def _scores(model: Model, fact: Fact, way: str, pool: ControlPool) -> Tensor:
    query = model.query_of(fact)
    if way != PATCH:
        return rank(model, query, method=way)
    prompts = FactPrompts.all_of(fact)
    start = ablation_values("patch", pool, fact.prompt, prompts, chat=False, position="read")
    return attribute(model, query, config=AttributionConfig(baseline=start)).scores


def _agreement(scores: Tensor, ablation: Tensor) -> dict:
    found, truth = (values.flatten().numpy() for values in (scores, ablation))
    best = [set(np.argsort(-values)[:10]) for values in (found, truth)]
    return {"spearman": float(spearmanr(found, truth).statistic), "precision_at_10": len(best[0] & best[1]) / 10}


def _summary(records: dict[str, dict]) -> dict:
    before = np.array([record["before"] for record in records.values()])
    return {
        way: _of_way(before, [record["ways"][way] for record in records.values()])
        for way in next(iter(records.values()))["ways"]
    }


def _of_way(before: np.ndarray, of_facts: Sequence[dict]) -> dict:
    changed = np.array([of_fact["proof"] for of_fact in of_facts])  # (facts, 2, sets)
    columns = [(name, size) for name in ("ranked", "selected") for size in SIZES]
    summary: dict[str, dict] = {"ranked": {}, "selected": {}}
    for i, (name, size) in enumerate(columns):
        summary[name][str(size)] = {
            what: ratio_of_means(before, changed[:, row, i]).as_dict()
            for row, what in enumerate(("suppress", "amplify"))
        }
    agreement = [name for name in ("spearman", "precision_at_10") if name in of_facts[0]]
    return (
        summary
        | {name: mean([of_fact[name] for of_fact in of_facts]).as_dict() for name in agreement}
        | {name: float(np.median([of_fact[name] for of_fact in of_facts])) for name in ("seconds", "select_seconds")}
    )
