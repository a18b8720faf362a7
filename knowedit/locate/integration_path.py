"""Gradients along straight paths, for all layers in one growing sweep.

A path in layer `l` goes from a baseline to the clean neurons of that layer at the patched positions, all neurons
together, other layers free. `IntegrationPath.integrate` evaluates any mix of layers and points of such paths: F at
each point, and the weighted sum of dF/dneurons that a quadrature asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..errors import InputError
from ..models.adapter import Model, frozen
from ..models.passes.objective import Objective, at_least_float, read_rows
from ..models.passes.replay import Recording, record
from ..models.passes.sweep import chunks, counts, sweep
from ..sources import builtin_facts

BASELINES = ("zero", "mean", "patch")
EVERY = 10  # built-in facts from one whose prompt counts in the mean to the next


@dataclass(frozen=True, order=True)
class Node:
    """One row: point `alpha` on the path of `layer`, its gradient to be added to sum `segment` with `weight`.

    Without a weight only F is computed there.
    """

    layer: int
    segment: int
    alpha: float
    weight: float = 0.0


@dataclass
class IntegrationPath:
    """The paths of all layers for one recorded prompt.

    - `positions`: indices in the suffix whose neurons are scaled together.
    - `reads`: indices in the suffix where F is read, one `Objective` each; several multiply (probability) or add up.
    - `baseline`: where the paths start, (n_layers, n_neurons).
    - `budget`: row-layers that may be alive at once; bounds memory.
    """

    recording: Recording
    positions: Sequence[int]
    reads: Sequence[int]
    objectives: Sequence[Objective]
    baseline: Tensor
    budget: int
    start: Tensor = field(init=False)
    delta: Tensor = field(init=False)
    rows: int = field(init=False, default=0)
    row_layers: int = field(init=False, default=0)

    def __post_init__(self):
        neurons = [at_least_float(n[list(self.positions)]).to(self.model.device) for n in self.recording.neurons]
        end = torch.stack(neurons)  # (layers, positions, n_neurons)
        self.start = self.baseline.to(end)[:, None].expand_as(end)
        self.delta = end - self.start

    @property
    def model(self) -> Model:
        return self.recording.model

    @cached_property
    def clean(self) -> float:
        """F of the unaltered prompt."""
        with torch.no_grad():
            return read_rows(self.model, self.recording.output, self.reads, self.objectives).value.item()

    def integrate(self, nodes: Sequence[Node]) -> tuple[dict[Node, float], dict[int, Tensor]]:
        """F at every node, and by segment the weighted sum of dF/dneurons (positions, n_neurons).

        Nodes may come in any order; results do not depend on the budget but for rounding.
        """
        values: dict[Node, float] = {}
        sums: dict[int, Tensor] = {}
        with frozen(self.model):
            for gradient, budget in ((True, self.budget), (False, 4 * self.budget)):  # a value alone keeps no graph
                rows = sorted(n for n in nodes if bool(n.weight) == gradient)
                for part in chunks([n.layer for n in rows], self.model.n_layers, budget):
                    self._integrate(rows[part], gradient, values, sums)
        return values, sums

    def _integrate(self, nodes: list[Node], gradient: bool, values: dict[Node, float], sums: dict[int, Tensor]) -> None:
        joining = counts([n.layer for n in nodes], self.model.n_layers)
        by_layer = {layer: [n for n in nodes if n.layer == layer] for layer, n in enumerate(joining) if n}
        points = {}

        def patch(layer: int, neurons: Tensor) -> Tensor:
            if layer not in by_layer:
                return neurons
            alphas = self.start.new_tensor([n.alpha for n in by_layer[layer]])[:, None, None]
            point = points[layer] = (self.start[layer] + alphas * self.delta[layer]).requires_grad_(gradient)
            placed = point.to(neurons)
            old, new = neurons.split([len(neurons) - len(placed), len(placed)])
            if len(self.positions) != self.recording.length:
                placed = new.detach().index_copy(1, torch.tensor(self.positions, device=new.device), placed)
            return torch.cat([old, placed])

        with torch.set_grad_enabled(gradient):
            hidden = sweep(self.recording, joining, patch)
            read = read_rows(self.model, hidden, self.reads, self.objectives, gradient=gradient)
            gradients = torch.autograd.grad(read.normed, list(points.values()), read.gradient) if gradient else []
        self.rows += len(nodes)
        self.row_layers += sum(self.model.n_layers - n.layer for n in nodes)
        values.update(zip(nodes, read.value.tolist(), strict=True))
        for layer, slope in zip(points if gradient else (), gradients, strict=True):
            for segment in {n.segment for n in by_layer[layer]}:
                weights = [n.weight if n.segment == segment else 0.0 for n in by_layer[layer]]
                total = torch.einsum("r,rpn->pn", slope.new_tensor(weights), slope)
                sums[segment] = sums[segment] + total if segment in sums else total


def baseline_tensor(model: Model, baseline: str | Tensor) -> Tensor:
    """The baseline (n_layers, n_neurons) that a name stands for; a tensor is returned as it is.

    `"mean"` runs the model on a tenth of the built-in prompts. Raises `InputError` for a tensor of another shape.
    """
    if isinstance(baseline, str):
        if baseline == "zero":
            return torch.zeros(model.n_layers, model.n_neurons)
        if baseline == "patch":
            raise InputError("a patch needs a fact with others of its relation: locate it, or give the baseline itself")
        return mean_activation(model, [fact.prompt for fact in builtin_facts()[::EVERY]])
    if tuple(baseline.shape) != (model.n_layers, model.n_neurons):
        raise InputError(f"the baseline is {tuple(baseline.shape)}, expected {(model.n_layers, model.n_neurons)}")
    return baseline


def mean_activation(model: Model, texts: Sequence[str]) -> Tensor:
    """The mean of every neuron over all tokens of `texts` but their first: a baseline, (n_layers, n_neurons)."""
    if not texts:
        raise InputError("a mean activation needs at least one text")
    total, tokens = torch.zeros(model.n_layers, model.n_neurons, dtype=torch.float64), 0
    for text in texts:
        neurons = record(model, model.encode(text).ids).neurons
        activations = torch.stack([layer[1:].double().cpu() for layer in neurons])
        total += activations.sum(1)
        tokens += activations.shape[1]
    return (total / max(tokens, 1)).float()
