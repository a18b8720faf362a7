"""Random sets of neurons that are like located ones: as many in each layer, or in each layer and stratum of activation.

A stratum holds neurons of one layer whose |activation| has about the same rank.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from ...errors import InputError

FIRST_STRATUM = 32  # neurons; each further stratum, of weaker ones, is twice as large

Sites = Sequence[tuple[int, int]]  # (layer, index)


def strata(activations: Tensor) -> np.ndarray:
    """The stratum of every neuron of a layer (n_neurons,), by rank of |activation|: the first 32, 64, 128, …"""
    rank = np.empty(len(activations), dtype=int)
    rank[np.argsort(-activations.abs().numpy(), kind="stable")] = np.arange(len(activations))
    return np.floor(np.log2(rank / FIRST_STRATUM + 1)).astype(int)


def draw(
    located: Sites,
    activations: Tensor,
    draws: int,
    rng: np.random.Generator,
    *,
    by_activation: bool,
    left_out: Collection[tuple[int, int]] = (),
) -> list[list[tuple[int, int]]]:
    """Random sets with as many neurons in each layer (and stratum) as `located`, none of them located or `left_out`."""
    labels = {
        layer: strata(activations[layer]) if by_activation else np.zeros(len(activations[layer]), dtype=int)
        for layer, _ in located
    }
    cells: dict[tuple[int, int], list[int]] = {}
    for layer, index in located:
        cells.setdefault((layer, labels[layer][index]), []).append(index)
    sets: list[list[tuple[int, int]]] = [[] for _ in range(draws)]
    for (layer, label), indices in sorted(cells.items()):
        taken = [*indices, *(index for at, index in left_out if at == layer)]
        choices = np.setdiff1d(np.flatnonzero(labels[layer] == label), taken)
        if len(choices) < len(indices):  # a set that fills its stratum is matched from the layer
            choices = np.setdiff1d(np.arange(len(labels[layer])), taken)
        if len(choices) < len(indices):
            raise InputError(f"{len(indices)} neurons of layer {layer} leave too few others to draw from")
        for neurons in sets:
            neurons.extend((layer, int(i)) for i in rng.choice(choices, len(indices), replace=False))
    return sets
