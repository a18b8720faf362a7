"""One sweep upward through the layers in which the batch grows.

Rows are altered copies of recorded suffixes, of one prompt or of several. A row that is altered first in layer `l`
joins at layer `l`, so nothing below its first change is computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ...hooks import hooked, on_input
from .batch import Batch
from .replay import Recording

SPARE = 0.15

Patch = Callable[[int, Tensor], Tensor]
"""(layer, neurons (rows so far, suffix, n_neurons)) → altered neurons; the rows of the layer are the last ones."""


def sweep(
    recording: Recording | Batch,
    joining: Sequence[int],
    patch: Patch,
    site: Callable = on_input,
    of: Tensor | None = None,
) -> Tensor:
    """Run rows upward, `joining[l]` of them from layer `l` on; return the last block's output (rows, suffix, d_model).

    `patch` is called at the down-projection of every layer that has rows, with the neurons of all rows so far.
    Rows come out in the order in which they joined. With `on_output` as `site` it is given, and alters, what the
    down-projection puts out, (rows so far, suffix, d_model). `of`: the row of a `Batch` that each row is a copy of.
    """
    model = recording.model
    hidden, n = None, 0
    for layer in range(model.n_layers):
        if joining[layer]:
            inputs, chosen = recording.inputs[layer], slice(n, n + joining[layer])
            new = inputs.expand(joining[layer], -1, -1) if of is None else inputs[of[chosen].to(inputs.device)]
            hidden = new if hidden is None else torch.cat([hidden, new.to(hidden.device)])
            n += joining[layer]
        if hidden is None:
            continue

        def patched(neurons: Tensor, layer=layer) -> Tensor:
            shape = neurons.shape  # some families flatten rows and tokens
            return patch(layer, neurons.reshape(-1, recording.length, shape[-1])).reshape(shape)

        with hooked(site(model.down(layer), patched)):
            hidden = recording.block(layer, hidden, None if of is None else of[:n])
    return hidden


def chunks(entries: Sequence[int], n_layers: int, budget: int) -> Iterator[slice]:
    """Cut rows, sorted by the layer they join at, into slices of about equal cost, some `budget` row-layers each.

    A row costs the layers that it goes through; a row that alone costs more than the budget makes a slice. Each slice
    reads all weights once, so what is left over has no slice of its own while it is less than `SPARE` of a budget.
    """
    costs = [n_layers - entry for entry in entries]
    parts = max(1, math.ceil(sum(costs) / budget - SPARE))
    limit = min(int((1 + SPARE) * budget), -(-sum(costs) // parts) + n_layers)
    start, cost = 0, 0
    for i, more in enumerate(costs):
        if i > start and cost + more > limit:
            yield slice(start, i)
            start, cost = i, 0
        cost += more
    if len(entries) > start:
        yield slice(start, len(entries))


def counts(entries: Sequence[int], n_layers: int) -> list[int]:
    """How many rows join at each layer."""
    joining = [0] * n_layers
    for entry in entries:
        joining[entry] += 1
    return joining
