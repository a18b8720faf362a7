"""Does a norm stand behind an MLP? Then what it adds does not fall with its neurons until these are tiny, and is turned
by the norm's weights.

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

from ...hooks import hooked, on_input, on_output
from ..adapter import Model
from .batch import Batch
from .replay import Recording, record

ALPHAS = [2.0**-power for power in range(4, 32, 4)]
NORMALISED = 1 / 32  # corners below are a norm's; a sum with a residual that is normalised bends far above


@torch.no_grad()
def corners(recording: Recording | Batch, layer: int, positions: Sequence[Sequence[int]]) -> list[float]:
    """The corner c of a layer whose neurons at `positions` of the suffix are scaled, of each recorded row.

    It is infinite where no norm follows.
    """
    model, scales = recording.model, [0.0, 1.0, *ALPHAS]
    inputs = recording.inputs[layer].repeat_interleave(len(scales), 0)
    of = torch.arange(len(positions), device=inputs.device).repeat_interleave(len(scales))
    rows, columns = torch.arange(len(of))[:, None], torch.tensor(positions).repeat_interleave(len(scales), 0)

    def scaled(neurons: Tensor) -> Tensor:
        altered = neurons.reshape(len(of), recording.length, -1).clone()
        altered[rows, columns] *= altered.new_tensor(scales).repeat(len(positions))[:, None, None]
        return altered.reshape(neurons.shape)

    with hooked(on_input(model.down(layer), scaled)):
        output = recording.block(layer, inputs, of)[rows, columns].double()
    output = output.flatten(1).unflatten(0, (len(positions), len(scales)))
    added = (output - output[:, :1]).norm(dim=2)
    return [_corner(*row) for row in added.tolist()]


@torch.no_grad()
def added(model: Model, layer: int, outputs: Tensor) -> Tensor:
    """What a block adds to the stream for each of `outputs` of its down-projection alone, both (n, d_model).

    These themselves where no norm follows: factors of a family are left out.
    """
    if not model.normalised:
        return outputs
    rows = torch.cat([torch.zeros_like(outputs[:1]), outputs])[:, None]
    recording = record(model, [0])
    with hooked(on_output(model.down(layer), lambda out: rows.to(out).reshape(out.shape))):
        output = recording.block(layer, torch.zeros_like(rows))[:, 0]
    return (output[1:] - output[:1]).to(outputs)


def _corner(_: float, whole: float, *parts: float) -> float:
    """From the size of what the block adds with its neurons as they are, and scaled by `ALPHAS`."""
    if not whole > 0:
        return math.inf
    for alpha, part in zip(ALPHAS, parts, strict=True):
        share = part / whole
        if share < 0.9:
            bent = share**2 - alpha**2
            return alpha * math.sqrt((1 - share**2) / bent) if bent > 0.1 * alpha**2 else math.inf
    return ALPHAS[-1]
