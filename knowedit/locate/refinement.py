"""From scores to neurons: by their joint effect, or by what the prompts of a fact share.

*Causal selection* (`select`) is greedy forward selection. Scores say what each neuron does alone and to first order;
what a *set* does is measured. Candidates are the neurons with the largest mean scores. They are taken one after
another: in each round the neuron that brings the joint effect of the set highest,

    effect(S) = (Σ P(target | S doubled) − Σ P(target | S set to zero)) / Σ P(target),    Σ over the locating prompts,

the gain by amplifying and the loss by suppressing, which are Dai et al.'s measures (2022, section 4.1). Components of
a circuit are chosen in this way, by what an intervention does (Conmy et al. 2023). Held-out prompts decide afterwards
(`proof.py`). A neuron that every prompt needs is seldom taken: to double it hurts the answer as setting it to zero
does. To be *specific*, a selection takes off what the set does to other facts of the relation, on average

    2 · Σ over them (|P(target | S doubled) − P| + |P − P(target | S set to zero)|) / Σ P.

Rounds after the first try only the candidates with the largest gains so far (Minoux 1978, as a heuristic, since
effects are not submodular), so that a selection costs a few sweeps.

*Refinement* (`refine`) is Dai et al.'s own choice (section 3.2). *Coarse* neurons of a prompt score at least t times
the prompt's largest score. *Refined* neurons of a fact are coarse for at least a share p of its prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..models.passes.scaled_answers import ScaledAnswers

Site = tuple[int, int]  # (layer, index)
TRIED = 8  # candidates of each round of a selection after the first
ENOUGH = 0.98  # of the effect of all that were taken; the last ones that add less are left out again


@dataclass(frozen=True)
class Refinement:
    """The neurons that the prompts of a fact share.

    - `coarse`: for each prompt its coarse neurons with their scores.
    - `p`: the share of prompts that was required, after the adjustment; None of a causal selection.
    - `rates`: the shared neurons with the share of prompts for which each is coarse.
    - `scores`: those that no negative prompt has too, strongest first, with their mean score over the prompts.
    - `candidates`: among how many a causal selection chose.
    """

    coarse: tuple[dict[Site, float], ...]
    p: float | None
    rates: dict[Site, float]
    scores: dict[Site, float]
    candidates: int | None = None


def refine(
    scores: Sequence[Tensor],
    t: float,
    p: float,
    *,
    adjust: bool = False,
    layers: Sequence[int] | None = None,
    negatives: Sequence[Tensor] = (),
) -> Refinement:
    """The neurons that prompts share, from the scores (n_layers, n_neurons) of each; `adjust` moves p to 2 to 5."""
    sets = tuple(coarse(prompt, t, layers) for prompt in scores)
    p = adjusted_p(sets, p) if adjust else p
    rates = shared(sets, p)
    removed = coarse_of_any(negatives, t, layers)
    means = {site: sum(prompt[site].item() for prompt in scores) / len(scores) for site in rates if site not in removed}
    return Refinement(sets, p, rates, dict(sorted(means.items(), key=lambda item: -item[1])))


def coarse(scores: Tensor, t: float, layers: Sequence[int] | None = None) -> dict[Site, float]:
    """Neurons whose score is at least `t` times the largest, of all layers or of `layers`, with their scores."""
    scores = _in_layers(scores, layers)
    peak = scores.max()
    if not peak > 0:
        return {}
    sites = (scores >= t * peak).nonzero().tolist()
    return {(layer, index): scores[layer, index].item() for layer, index in sites}


def coarse_of_any(scores: Sequence[Tensor], t: float, layers: Sequence[int] | None = None) -> set[Site]:
    """Neurons that are coarse for one of several prompts."""
    return {site for prompt in scores for site in coarse(prompt, t, layers)}


def shared(sets: Sequence[dict[Site, float]], p: float) -> dict[Site, float]:
    """Neurons that are in at least a share `p` of the coarse sets, with that share."""
    counts = Counter(site for sites in sets for site in sites)
    return {site: n / len(sets) for site, n in counts.items() if n >= p * len(sets) - 1e-9}


def adjusted_p(sets: Sequence[dict[Site, float]], p: float) -> float:
    """Dai et al.'s adjustment: move p by 0.05, up to six times, towards 2 to 5 neurons, and not above all prompts."""
    for _ in range(6):
        n = len(shared(sets, p))
        if 2 <= n <= 5:
            break
        p = min(1.0, round(p + (0.05 if n > 5 else -0.05), 2))
    return p


# ---------------------------------------------------------------- by their joint effect


@dataclass(frozen=True)
class Taken:
    """A neuron as it was taken, and what it and all that were taken before it do together on the locating prompts.

    `suppress`, `amplify`: the change of the target's probability, a ratio of means over the prompts, with the neurons
    set to zero, and doubled.
    """

    site: Site
    suppress: float
    amplify: float


def strongest(scores: Tensor, n: int, layers: Sequence[int] | None = None) -> list[Site]:
    """The `n` neurons with the largest scores (n_layers, n_neurons) above 0, of all layers or of `layers`."""
    values, places = _in_layers(scores, layers).flatten().topk(min(n, scores.numel()))
    return [
        divmod(place, scores.shape[1])
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
        if value > 0
    ]


def select(
    answers: ScaledAnswers, candidates: Sequence[Site], most: int, against: ScaledAnswers | None = None
) -> list[Taken]:
    """At most `most` of the candidates, in the order in which they were taken.

    `answers`: the locating prompts; `against`: other facts that are to stay as they are. The selection ends where no
    candidate raises the effect, and keeps the fewest neurons that have `ENOUGH` of the effect of all that were taken.
    """
    before = answers.probability.sum()
    taken: list[Taken] = []
    effects = [0.0]
    gains = dict.fromkeys(candidates, np.inf)
    while before > 0 and len(taken) < min(most, len(gains)):
        chosen = [neuron.site for neuron in taken]
        waiting = sorted((site for site in gains if site not in chosen), key=lambda site: -gains[site])
        tried = waiting[:TRIED] if taken else waiting
        sets = [[*chosen, site] for site in tried]
        suppressed, amplified = (values.sum(0) for values in answers.suppressed_and_amplified(sets))
        joint = (amplified - suppressed) / before - _disturbance(against, sets)
        gains.update(zip(tried, joint - effects[-1], strict=True))
        best = int(joint.argmax())
        if not joint[best] > effects[-1]:
            break
        effects.append(float(joint[best]))
        taken.append(Taken(tried[best], float(suppressed[best] / before - 1), float(amplified[best] / before - 1)))
    enough = next(n for n, effect in enumerate(effects) if effect >= ENOUGH * effects[-1])
    return taken[:enough]


def _disturbance(others: ScaledAnswers | None, sets: Sequence[Sequence[Site]]) -> np.ndarray:
    """Twice how much each set changes other facts' probabilities, both ways together, over their sum."""
    if others is None:
        return np.zeros(len(sets))
    before = others.probability[:, None]
    changed = sum(abs(scaled - before).sum(0) for scaled in others.suppressed_and_amplified(sets))
    return 2 * changed / max(before.sum(), 1e-30)


def _in_layers(scores: Tensor, layers: Sequence[int] | None) -> Tensor:
    """The scores with 0 in all layers but `layers`."""
    if layers is None:
        return scores
    mask = scores.new_zeros(len(scores), 1)
    mask[list(layers)] = 1
    return scores * mask
