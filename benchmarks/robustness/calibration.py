"""Is a proof calibrated? Random sets put through it should be called significant at 5 % about 5 % of the time.

    python -m benchmarks.robustness.calibration [--runs 200]
    python -m benchmarks.robustness.calibration --random-weights

Each run takes a known built-in fact and a random set of 1 to 5 neurons in its place, matched by stratum to
randomly chosen strong neurons, and proves it on the fact's first held-out prompt. With `--random-weights` the sets are
located as usual, on a model of the default one's shape and random weights: none should be called significant.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from scipy.stats import binomtest
from tqdm.auto import tqdm

import knowedit
from knowedit.answers import ask_facts
from knowedit.facts import fill
from knowedit.locate.locate import LocateConfig, locate_fact
from knowedit.locate.neuron_kinds import ControlPool
from knowedit.locate.proof import draw, prove
from knowedit.locate.scaled_answers import ScaledAnswers

from ..results import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--random-weights", action="store_true")
    options = parser.parse_args()
    model = knowedit.load()
    if options.random_weights:
        save("robustness/calibration_random_weights", located_on_noise(model, options.runs))
    else:
        save("robustness/calibration", matched_sets(model, options.runs))


def matched_sets(model, runs: int) -> dict:
    facts = knowedit.builtin_facts()
    known = [fact for fact, answer in zip(facts, ask_facts(model, facts), strict=True) if answer.known]
    rng = np.random.default_rng(0)
    p = {"suppress": [], "amplify": []}
    for run in tqdm(range(runs), unit="proof"):
        fact = known[int(rng.integers(len(known)))]
        queries = [model.query(fill(fact.heldout[0], fact.subject), fact.target, fact.subject)]
        activations = sum(ScaledAnswers(model, q).activations.abs() for q in queries) / len(queries)
        strong = []
        for layer in rng.choice(model.n_layers, int(rng.integers(1, 6)), replace=False):
            strongest = activations[layer].argsort(descending=True)
            strong.append((int(layer), int(strongest[int(rng.integers(64))])))
        (candidate,) = draw(strong, activations, 1, rng, by_activation=True)
        proof = prove(model, candidate, queries, seed=run + 1)
        p["suppress"].append(proof.p_suppress)
        p["amplify"].append(proof.p_amplify)
    return {"model": model.name, "runs": runs, "draws": 200, **{name: _rate(values) for name, values in p.items()}}


def located_on_noise(model, runs: int) -> dict:
    """Locate on random weights: held-out prompts share nothing with the ones that located, so nothing should show."""
    torch.manual_seed(0)
    noise = knowedit.wrap(type(model.hf)(model.hf.config), model.tokenizer, name="random weights")
    config = LocateConfig(method="gradient", p=0.3)
    pool = ControlPool(noise, ())  # kinds are not wanted, and no fact is known
    facts = knowedit.builtin_facts()
    rng = np.random.default_rng(0)
    p, sizes = {"suppress": [], "amplify": []}, []
    significant, changes = {"suppress": 0, "amplify": 0}, {"suppress": [], "amplify": []}
    for i in tqdm(rng.choice(len(facts), runs, replace=False), unit="fact"):
        fact = facts[int(i)]
        located = locate_fact(noise, fact, config, pool=pool, weights_hash="random")
        sizes.append(len(located))
        if not len(located):
            continue
        queries = [noise.query(fill(fact.heldout[0], fact.subject), fact.target, fact.subject)]
        proof = prove(noise, located.top(5), queries)
        p["suppress"].append(proof.p_suppress)
        p["amplify"].append(proof.p_amplify)
        for name in significant:
            significant[name] += proof.significant[name]
            changes[name].append(getattr(proof, name).value)
    record = {"facts": runs, "with_neurons": len(p["suppress"]), "neurons": sizes, "significant": significant}
    record["largest_change"] = {name: max(values, key=abs, default=None) for name, values in changes.items()}
    return record | {"p_at_most_0.05": {name: _rate(values) for name, values in p.items()}}


def _rate(values: list[float]) -> dict:
    hits = sum(v <= 0.05 for v in values)
    if not values:
        return {"significant": 0, "n": 0, "rate": None, "low": None, "high": None}
    interval = binomtest(hits, len(values)).proportion_ci(method="wilson")
    return {
        "significant": hits,
        "n": len(values),
        "rate": hits / len(values),
        "low": interval.low,
        "high": interval.high,
    }


if __name__ == "__main__":
    main()
