"""All rankings of neurons side by side: against exhaustive ablation, and by what their best neurons do elsewhere.

Facts are built-in ones that the model knows, evenly over the relations. Each ranking scores the fact's own prompt, by
its default settings; `ig, patch` starts its paths where another subject of the relation has the neurons. Agreement with
ablation is rank correlation and precision at 10. The proof is on held-out prompts: the best 5 and 10 neurons, as they
are ranked, and as a causal selection takes them from the best 64 on the locating prompts. Neurons that any answer needs
are passed over everywhere.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

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
from ..timing import Stopwatch

PATCH = "ig, patch"
WAYS = (*RANKINGS[:1], PATCH, *RANKINGS[1:])
SIZES = (5, 10)


@benchmark("quality.rankings", "How do rankings of neurons compare with ablating each, and on held-out prompts?")
def rankings(facts: int = 60) -> dict:
    model = knowedit.load()
    pool = ControlPool(model, knowedit.builtin_facts(), weights_hash=model.weights_hash())
    chosen = evenly(known(model), facts)
    watch, agreement, effects = Stopwatch(), defaultdict(list), defaultdict(list)
    for fact in tqdm(chosen, unit="fact"):
        scores = {way: watch(way, _scores, model, fact, way, pool) for way in WAYS}
        truth = scores["ablation"].flatten().numpy()
        best = set(np.argsort(-truth)[:10])
        prompts = FactPrompts.all_of(fact)
        locating, heldout = (
            [ScaledAnswers(model, prompts.query(model, text)) for text in texts]
            for texts in (prompts.locating[: LocateConfig().prompts], prompts.heldout)
        )
        general = pool.general_neurons(fact.subject, fact.target, fact.relation)
        effects["before"].append(float(np.mean([answers.probability for answers in heldout])))
        for way, values in scores.items():
            flat = values.flatten().numpy()
            agreement[way, "spearman"].append(float(spearmanr(flat, truth).statistic))
            agreement[way, "precision_at_10"].append(len(best & set(np.argsort(-flat)[:10])) / 10)
            ranked = [site for site in strongest(values, CANDIDATES) if site not in general]
            taken = [step.site for step in watch(f"select {way}", select, locating, ranked, MOST)]
            sets = [neurons[:size] for neurons in (ranked, taken) for size in SIZES]
            changed = np.mean([answers.suppressed_and_amplified(sets) for answers in heldout], axis=0)  # (2, sets)
            effects[way].append(changed)
    return {
        "model": model.name,
        "facts": [fact.id for fact in chosen],
        "against": "ablation",
        "rankings": {way: _summary(way, agreement, effects) | _seconds(watch, way) for way in WAYS},
    }


@rankings.row
def rankings_row(record: dict) -> list[str]:
    def line(way: str, values: dict) -> str:
        proofs = (values[name]["10"] for name in ("ranked", "selected"))
        ranked, selected = (" / ".join(f"{p[what]['value']:+.0%}" for what in ("suppress", "amplify")) for p in proofs)
        agrees = f"{values['spearman']['value']:.2f} / {values['precision_at_10']['value']:.2f}"
        return f"{way}: {agrees}; {ranked}; {selected}; {values['seconds_median']:.1f} s"

    return [
        f"{len(record['facts'])} facts, rank correlation / precision at 10; held out, the best 10 at zero / doubled; "
        "10 selected; time of a prompt",
        *(line(way, values) for way, values in record["rankings"].items()),
    ]


def _scores(model: Model, fact: Fact, way: str, pool: ControlPool) -> Tensor:
    query = model.query_of(fact)
    if way != PATCH:
        return rank(model, query, method=way)
    prompts = FactPrompts.all_of(fact)
    start = ablation_values("patch", pool, fact.prompt, prompts, chat=False, position="read")
    return attribute(model, query, config=AttributionConfig(baseline=start)).scores


def _summary(way: str, agreement: dict, effects: dict) -> dict:
    before, changed = np.array(effects["before"]), np.array(effects[way])  # (facts,), (facts, 2, sets)
    columns = [(name, size) for name in ("ranked", "selected") for size in SIZES]
    proofs: dict[str, dict] = {"ranked": {}, "selected": {}}
    for i, (name, size) in enumerate(columns):
        proofs[name][str(size)] = {
            what: ratio_of_means(before, changed[:, row, i]).as_dict()
            for row, what in enumerate(("suppress", "amplify"))
        }
    return {name: mean(agreement[way, name]).as_dict() for name in ("spearman", "precision_at_10")} | proofs


def _seconds(watch: Stopwatch, way: str) -> dict:
    return {"seconds_median": watch.median(way), "select_seconds_median": watch.median(f"select {way}")}
