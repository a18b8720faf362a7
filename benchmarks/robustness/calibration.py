"""Is a proof calibrated? Random sets put through it should be called significant at 5 % about 5 % of the time.

Each run takes a known built-in fact and a random set of 1 to 5 neurons in its place, matched by stratum to
randomly chosen strong neurons, and proves it on the fact's first held-out prompt. On random weights sets are located as
usual, on a model of the default one's shape: none should be called significant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

import knowedit
from knowedit.locate.config import LocateConfig
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.draws import draw
from knowedit.locate.proof.neuron_kinds import ControlPool
from knowedit.locate.proof.proof import prove
from knowedit.models.passes.scaled_answers import ScaledAnswers
from knowedit.statistics import rate

from ..registry import benchmark
from ..samples import heldout_queries, known

WAYS = ("suppress", "amplify")


@benchmark("robustness.calibration", "How often are random sets of neurons called significant at 5 %?")
def calibration(runs: int = 200) -> dict:
    model = knowedit.load()
    facts = known(model)
    rng = np.random.default_rng(0)
    p = {way: [] for way in WAYS}
    for run in tqdm(range(runs), unit="proof"):
        queries = heldout_queries(model, facts[int(rng.integers(len(facts)))])[:1]
        activations = ScaledAnswers(model, queries[:1]).activations[0].abs()
        strong = []
        for layer in rng.choice(model.n_layers, int(rng.integers(1, 6)), replace=False):
            strongest = activations[layer].argsort(descending=True)
            strong.append((int(layer), int(strongest[int(rng.integers(64))])))
        (candidate,) = draw(strong, activations, 1, rng, by_activation=True)
        proof = prove(model, candidate, queries, seed=run + 1)
        for way in WAYS:
            p[way].append(getattr(proof, f"p_{way}"))
    return {"model": model.name, "runs": runs, "draws": 200, **{way: _below(values) for way, values in p.items()}}


@calibration.row
def calibration_row(record: dict) -> list[str]:
    counts = ", ".join(f"{way} {record[way]['significant']} of {record[way]['n']}" for way in WAYS)
    return [f"p ≤ 0.05 and a change of a tenth: {counts}"]


@benchmark("robustness.calibration_random_weights", "Does locating on random weights prove anything?")
def calibration_random_weights(runs: int = 200) -> dict:
    """Held-out prompts share nothing there with the ones that located, so nothing should show."""
    default = knowedit.load()
    torch.manual_seed(0)
    model = knowedit.wrap(type(default.hf)(default.hf.config), default.tokenizer, name="random weights")
    config = LocateConfig(method="gradient", select="refined", p=0.3)
    pool = ControlPool(model, ())  # kinds are not wanted, and no fact is known
    facts = knowedit.builtin_facts()
    proofs, sizes = [], []
    for i in tqdm(np.random.default_rng(0).choice(len(facts), runs, replace=False), unit="fact"):
        fact = facts[int(i)]
        located = locate_fact(model, fact, config, pool=pool, weights_hash="random")
        sizes.append(len(located))
        if len(located):
            proofs.append(prove(model, located.top(5), heldout_queries(model, fact)[:1]))
    changes = {way: [getattr(proof, way).value for proof in proofs] for way in WAYS}
    return {
        "facts": runs,
        "with_neurons": len(proofs),
        "neurons": sizes,
        "significant": {way: sum(proof.significant[way] for proof in proofs) for way in WAYS},
        "largest_change": {way: max(values, key=abs, default=None) for way, values in changes.items()},
        "p_at_most_0.05": {way: _below([getattr(proof, f"p_{way}") for proof in proofs]) for way in WAYS},
    }


@calibration_random_weights.row
def calibration_random_weights_row(record: dict) -> list[str]:
    return [
        f"{way} {record['significant'][way]} of {record['with_neurons']}, largest change "
        f"{record['largest_change'][way]:+.1%}"
        for way in WAYS
    ]


def _below(p: Sequence[float]) -> dict:
    """How many are significant at 5 %, with Wilson's interval."""
    hits = [value <= 0.05 for value in p]
    share = rate(hits)
    return {"significant": sum(hits), "n": share.n, "rate": share.value, "low": share.low, "high": share.high}
