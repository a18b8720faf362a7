"""From scores to neurons, as Dai et al. 2022 choose them (section 3.2).

*Coarse* neurons of a prompt score at least t times the prompt's largest score. *Refined* neurons of a fact are coarse
for at least a share p of its prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Site = tuple[int, int]  # (layer, index)


@dataclass(frozen=True)
class Refinement:
    """The neurons that the prompts of a fact share.

    - `coarse`: for each prompt its coarse neurons with their scores.
    - `p`: the share of prompts that was required, after the adjustment.
    - `rates`: the shared neurons with the share of prompts for which each is coarse.
    - `scores`: those that no negative prompt has too, strongest first, with their mean score over the prompts.
    """

    coarse: tuple[dict[Site, float], ...]
    p: float
    rates: dict[Site, float]
    scores: dict[Site, float]


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
    removed = {site for negative in negatives for site in coarse(negative, t, layers)}
    means = {site: sum(prompt[site].item() for prompt in scores) / len(scores) for site in rates if site not in removed}
    return Refinement(sets, p, rates, dict(sorted(means.items(), key=lambda item: -item[1])))


def coarse(scores: Tensor, t: float, layers: Sequence[int] | None = None) -> dict[Site, float]:
    """Neurons whose score is at least `t` times the largest, of all layers or of `layers`, with their scores."""
    if layers is not None:
        mask = torch.zeros(len(scores), 1)
        mask[list(layers)] = 1
        scores = scores * mask
    peak = scores.max()
    if not peak > 0:
        return {}
    sites = (scores >= t * peak).nonzero().tolist()
    return {(layer, index): scores[layer, index].item() for layer, index in sites}


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
