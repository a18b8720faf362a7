"""Gradients along straight paths, for all layers in one growing sweep.

A path in layer `l` goes from a baseline to the clean neurons of that layer at the patched positions, all neurons
together, other layers free. `IntegrationPath.integrate` evaluates any mix of layers and points of such paths: F at
each point, and the weighted sum of dF/dneurons that a quadrature asks for.

`rule` gives the points and weights of a quadrature by name. `left`, `right`, `midpoint`, `trapezoid` and
`gauss-legendre` are the textbook rules. Two more reproduce published code exactly: `dai` is the left Riemann sum of the
knowledge-neurons paper's code (α = k/m, k = 0 … m−1), and `eleuther` is that of the PyPI package `knowledge-neurons`,
which weighs both ends of an inclusive grid fully.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, did_you_mean
from ..models.adapter import Model, frozen
from ..models.passes.objective import Objective, at_least_float, read_rows
from ..models.passes.replay import Recording
from ..models.passes.sweep import chunks, counts, sweep

RULES = ("gauss-legendre", "midpoint", "trapezoid", "left", "right", "dai", "eleuther")


def rule(name: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` points in [0, 1] and their weights, as float64 arrays; raises `InputError` for an unknown rule or n < 1."""
    if name not in RULES:
        raise InputError(f"no quadrature is called {name!r}{did_you_mean(name, RULES)}; there are {', '.join(RULES)}")
    if not isinstance(n, int) or n < (2 if name in ("trapezoid", "eleuther") else 1):
        raise InputError(f"{n!r} nodes are too few for the {name} rule; give at least 2 (1 for the others)")
    steps = np.arange(n)
    equal = np.full(n, 1 / n)
    if name == "gauss-legendre":
        x, w = np.polynomial.legendre.leggauss(n)
        return (x + 1) / 2, w / 2
    if name in ("left", "dai"):
        return steps / n, equal
    if name == "right":
        return (steps + 1) / n, equal
    if name == "midpoint":
        return (steps + 0.5) / n, equal
    if name == "eleuther":
        return np.linspace(0, 1, n), equal
    weights = np.full(n, 1 / (n - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, n), weights


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
