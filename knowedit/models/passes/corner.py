"""Does a norm stand behind an MLP? Then what it adds does not fall with its neurons until these are tiny.

Gemma 2 and 3, OLMo 2 and 3, GLM-4 and EXAONE-4 normalise the MLP's output y. With all neurons scaled by α a block adds

    norm(α y) ∝ α / √(α² + c²),      c = √ε / rms(y)

which is constant but for an end at zero as narrow as c: the *corner*, as that of a filter. It is measured on the block
itself, so no family is known by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...hooks import hooked, on_input
from .replay import Recording

ALPHAS = [2.0**-power for power in range(4, 32, 4)]
NORMALISED = 1 / 32  # corners below are a norm's; a sum with a residual that is normalised bends far above


@torch.no_grad()
def corner(recording: Recording, layer: int, positions: Sequence[int]) -> float:
    """The corner c of a layer whose neurons at the suffix `positions` are scaled; infinite where no norm follows."""
    model, positions = recording.model, list(positions)
    scales = torch.tensor([0.0, 1.0, *ALPHAS], device=recording.neurons[layer].device)[:, None, None]

    def scaled(neurons: Tensor) -> Tensor:
        rows = neurons.reshape(len(scales), recording.length, -1).clone()
        rows[:, positions] *= scales.to(rows)
        return rows.reshape(neurons.shape)

    with hooked(on_input(model.down(layer), scaled)):
        output = recording.block(layer, recording.inputs[layer].repeat(len(scales), 1, 1))[:, positions].double()
    added = (output - output[:1]).flatten(1).norm(dim=1)
    if not added[1] > 0:
        return math.inf
    for alpha, share in zip(ALPHAS, (added[2:] / added[1]).tolist(), strict=True):
        if share < 0.9:
            bent = share**2 - alpha**2
            return alpha * math.sqrt((1 - share**2) / bent) if bent > 0.1 * alpha**2 else math.inf
    return ALPHAS[-1]
