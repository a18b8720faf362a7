"""Neurons that a model needs for whatever it answers: massive activations, neurons of any next word.

Such a neuron says nothing of a fact (Sun et al. 2024). Found once a model, on a *panel* of facts that it knows, of
unlike relations: a neuron is general where setting it to zero, or doubling it, changes the panel's mean probability by
at least `GENERAL` of itself. Tried are the neurons whose gradient × activation tells a tenth of that, and the few with
the largest activations of each layer, of which a gradient tells little.
"""

from __future__ import annotations

import numpy as np

from ...models.passes.scaled_answers import ScaledAnswers
from ..attribution import AttributionConfig
from ..rankings import rank_many

GENERAL = 0.2  # of the probability; at a tenth, neurons are passed over that make the answer of a fact, too
FIRST_ORDER = GENERAL / 10  # of the probability, by gradient × activation: neurons that are tried
MASSIVE = 4  # neurons of each layer with the largest activations are tried as well


def changes_of_panel(panel: ScaledAnswers) -> dict[tuple[int, int], list[list[float]]]:
    """By neuron that may be general, the probabilities of the panel's answers without it and with it doubled, two rows.

    Neurons are scaled where the answers are asked.
    """
    model, config = panel.model, AttributionConfig(position=panel.position)
    slopes = sum(abs(scores) for scores in rank_many(model, panel.queries, "gradient", config))
    first_order = slopes / panel.probability.sum()
    activations = panel.activations.abs().sum(0)
    massive = activations >= activations.topk(min(MASSIVE, model.n_neurons)).values[:, -1:]
    tried = [(layer, index) for layer, index in ((first_order >= FIRST_ORDER) | massive).nonzero().tolist()]
    after = np.stack(panel.suppressed_and_amplified([[site] for site in tried]))
    return {site: after[:, :, i].tolist() for i, site in enumerate(tried)}  # (2, panel)
