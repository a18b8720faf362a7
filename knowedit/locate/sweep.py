"""One sweep upward through the layers in which the batch grows.

Rows are altered copies of a recorded suffix. A row that is altered first in layer `l` joins at layer `l`, so
nothing below its first change is computed again. `sweep` is the forward half, `read_out` looks at the rows'
answers without ever holding many rows of logits, and gives the gradient of the head analytically.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..hooks import hooked, on_input
from ..models.adapter import Model
from ..models.replay import Recording

LOGIT_ROWS = 64  # rows of logits that are held at once

Patch = Callable[[int, Tensor], Tensor]
"""(layer, neurons (rows so far, suffix, n_neurons)) → altered neurons; the rows of the layer are the last ones."""


def sweep(recording: Recording, joining: Sequence[int], patch: Patch) -> Tensor:
    """Run rows upward, `joining[l]` of them from layer `l` on, and return the last block's output (rows, suffix, d_model).

    `patch` is called at the down-projection of every layer that has rows, with the neurons of all rows so far.
    Rows come out in the order in which they joined.
    """
    model = recording.model
    hidden = None
    for layer in range(model.n_layers):
        if joining[layer]:
            new = recording.inputs[layer].expand(joining[layer], -1, -1)
            hidden = new if hidden is None else torch.cat([hidden, new.to(hidden.device)])
        if hidden is None:
            continue

        def patched(neurons: Tensor, layer=layer) -> Tensor:
            shape = neurons.shape  # some families flatten rows and tokens
            return patch(layer, neurons.reshape(-1, recording.length, shape[-1])).reshape(shape)

        with hooked(on_input(model.down(layer), patched)):
            hidden = recording.block(layer, hidden)
    return hidden


def chunks(entries: Sequence[int], n_layers: int, budget: int) -> Iterator[slice]:
    """Cut rows, sorted by the layer they join at, into slices that cost at most `budget` row-layers each."""
    start, cost = 0, 0
    for i, entry in enumerate(entries):
        if i > start and cost + n_layers - entry > budget:
            yield slice(start, i)
            start, cost = i, 0
        cost += n_layers - entry
    if len(entries) > start:
        yield slice(start, len(entries))


def counts(entries: Sequence[int], n_layers: int) -> list[int]:
    """How many rows join at each layer."""
    joining = [0] * n_layers
    for entry in entries:
        joining[entry] += 1
    return joining


@dataclass(frozen=True)
class Readout:
    """What is read from logits: the quantity F that is attributed, by name.

    `probability`, `log_probability` and `logit` of the target token, or `logit_difference` between it and `foil`.
    """

    kind: str
    target: int
    foil: int | None = None

    KINDS = ("probability", "log_probability", "logit", "logit_difference")

    def value(self, logits: Tensor) -> Tensor:
        """F of logits (rows, vocabulary), in at least float32."""
        logits = at_least_float(logits)
        if self.kind == "logit":
            return logits[:, self.target]
        if self.kind == "logit_difference":
            return logits[:, self.target] - logits[:, self.foil]
        log_p = logits[:, self.target] - logits.logsumexp(-1)
        return log_p.exp() if self.kind == "probability" else log_p

    def value_and_gradient(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """F and dF/dlogits, (rows,) and (rows, vocabulary)."""
        logits = at_least_float(logits)
        if self.kind in ("logit", "logit_difference"):
            gradient = torch.zeros_like(logits)
            gradient[:, self.target] = 1
            if self.foil is not None and self.kind == "logit_difference":
                gradient[:, self.foil] -= 1
            return self.value(logits), gradient
        p = logits.softmax(-1)
        p_target = p[:, self.target].clone()
        gradient = p.neg_()
        gradient[:, self.target] += 1
        if self.kind == "log_probability":
            return p_target.log(), gradient
        return p_target, gradient.mul_(p_target[:, None])


def at_least_float(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@torch.no_grad()
def read_out(model: Model, normed: Tensor, readout: Readout, gradient: bool = False) -> tuple[Tensor, Tensor | None]:
    """F of each row of `normed` (rows, d_model), and dF/dnormed if `gradient`, at most `LOGIT_ROWS` rows at a time."""
    values, gradients = [], []
    weight = model.unembedding.weight
    for rows in normed.split(LOGIT_ROWS):
        logits = model.logits(rows)
        if not gradient:
            values.append(readout.value(logits))
            continue
        value, slope = readout.value_and_gradient(logits)
        slope *= model.logits_slope(logits)
        values.append(value)
        gradients.append(slope.to(weight.dtype) @ weight)
    return torch.cat(values), torch.cat(gradients) if gradient else None
