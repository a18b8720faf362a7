"""Gradients along straight paths, for all layers and many prompts in one growing sweep.

A path in layer `l` goes from a baseline to the clean neurons of that layer at the patched positions, all neurons
together, other layers free. `IntegrationPaths.integrate` evaluates any mix of prompts, layers and points of such
paths: F at each point, and the scores of a weighted sum of points, which a quadrature asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..models.adapter import Model, frozen
from ..models.passes.batch import Batch, record_batch
from ..models.passes.batches import halving, room
from ..models.passes.objective import Objective, Read, at_least_float, read_states
from ..models.passes.replay import record
from ..models.passes.sweep import chunks, counts, sweep
from ..sources import builtin_facts

BASELINES = ("zero", "mean", "patch")
EVERY = 10  # built-in facts from one whose prompt counts in the mean to the next
DEVICE_BYTES = 8 << 30  # of rows at once on an accelerator: enough to keep any busy


@dataclass(frozen=True)
class Reading:
    """Token `ids` whose neurons at `positions` are scaled together, with F read at `reads`, one `Objective` each.

    Several objectives multiply (probability) or add up. `baseline`: where the paths start, (n_layers, n_neurons).
    """

    ids: tuple[int, ...]
    positions: Sequence[int]
    reads: Sequence[int]
    objectives: Sequence[Objective]
    baseline: Tensor | None = None


@dataclass(frozen=True, order=True)
class Node:
    """One row: point `alpha` on the path of `layer` of a prompt; its gradient counts in `segment` with `weight`.

    Without a weight only F is computed there.
    """

    layer: int
    prompt: int
    segment: int
    alpha: float
    weight: float = 0.0


@dataclass
class IntegrationPaths:
    """The paths of all layers for prompts that were recorded together; each has as many positions, and as many reads.

    - `baseline`: where the paths start, (n_layers, prompts or one for all, n_neurons).
    - `budget`: row-layers that may be alive at once; bounds memory.
    - `delta`: clean neurons minus baseline, (n_layers, prompts, positions, n_neurons).
    - `rows`, `row_layers`: forward and backward work so far, by prompt.
    """

    readings: Sequence[Reading]
    batch: Batch
    baseline: Tensor
    budget: int
    delta: Tensor = field(init=False)
    rows: list[int] = field(init=False)
    row_layers: list[int] = field(init=False)

    def __post_init__(self):
        offsets = self.batch.offsets.tolist()
        self.positions, self.reads = (
            torch.tensor([[at + offset for at in places] for places, offset in zip(column, offsets, strict=True)])
            for column in zip(*((reading.positions, reading.reads) for reading in self.readings), strict=True)
        )
        rows = torch.arange(len(self.readings))[:, None]
        neurons = [at_least_float(n[rows, self.positions]).to(self.model.device) for n in self.batch.neurons]
        end = torch.stack(neurons)
        self.baseline = self.baseline.to(end)
        self.delta = end - self.baseline[:, :, None]
        self.rows, self.row_layers = ([0] * len(self.readings) for _ in range(2))

    @property
    def model(self) -> Model:
        return self.batch.model

    @cached_property
    def _clean(self) -> Tensor:
        with torch.no_grad():
            return self._read(self.batch.output, range(len(self.readings))).value

    @cached_property
    def clean(self) -> list[float]:
        """F of the unaltered prompts; `integrate` reads it with the rest, without waiting once more."""
        return self._clean.tolist()

    @property
    def activations(self) -> Tensor:
        """The clean neurons, averaged over the positions, (n_layers, prompts, n_neurons)."""
        return self.baseline + self.delta.mean(2)

    def integrate(self, nodes: Sequence[Node]) -> tuple[dict[Node, float], dict[int, Tensor], dict[int, float]]:
        """F at every node, and by segment the scores (n_neurons,) and their sum.

        A segment's nodes are of one layer and prompt. Its scores are (clean − baseline) · the weighted sum of
        dF/dneurons at them, added up over positions. Nodes may come in any order; the budget changes results by
        rounding only.
        """
        ordered: list[Node] = []
        values: list[Tensor] = []
        scores: dict[int, Tensor] = {}
        with frozen(self.model):
            for gradient, budget in ((True, self.budget), (False, 4 * self.budget)):  # a value alone keeps no graph
                rows = sorted(n for n in nodes if self._with_gradient(n) == gradient)
                parts = (rows[part] for part in chunks([n.layer for n in rows], self.model.n_layers, budget))
                work = partial(self._integrate, gradient=gradient)
                for _, (value, of_segments) in halving(self.model, parts, work, "points of paths"):
                    values.append(value)
                    for segment, score in of_segments:
                        scores[segment] = scores[segment] + score if segment in scores else score
                ordered += rows
        stacked = torch.stack(list(scores.values()))
        sums = stacked.double().sum(1)
        read = torch.cat([self._clean.to(sums), *(value.to(sums) for value in values), sums]).tolist()  # once: it waits
        self.clean, read = read[: len(self.readings)], read[len(self.readings) :]
        by_segment = dict(zip(scores, read[len(ordered) :], strict=True))
        return dict(zip(ordered, read, strict=False)), dict(zip(scores, stacked, strict=True)), by_segment

    def _with_gradient(self, node: Node) -> bool:
        """Whether a node goes where gradients are taken. On an accelerator all do: one sweep is launched, not two."""
        return bool(node.weight) or self.model.device.type == "cuda"

    def gradients(self) -> Tensor:
        """dF/dneurons of the unaltered prompts, (n_layers, prompts, positions, n_neurons): one pass for all."""
        prompts = range(len(self.readings))
        of = torch.tensor(prompts, device=self.model.device)
        moved: list[Tensor] = []

        def patch(layer: int, neurons: Tensor) -> Tensor:
            moved.append(torch.zeros_like(self.delta[layer]).requires_grad_())
            clean = neurons[torch.arange(len(prompts))[:, None], self.positions]
            return self._placed(neurons, clean + moved[-1].to(neurons), prompts)

        joining = [len(prompts), *[0] * (self.model.n_layers - 1)]
        with frozen(self.model), torch.enable_grad():
            read = self._read(sweep(self.batch, joining, patch, of=of), prompts, gradient=True)
            gradients = torch.autograd.grad(read.normed, moved, read.gradient)
        return torch.stack([gradient.to(self.delta) for gradient in gradients])

    @torch.no_grad()
    def without(self, prompt: int, layer: int, indices: Sequence[int]) -> Tensor:
        """F of a prompt with each neuron of a layer set to zero at the first position, (indices,)."""
        of = torch.full((len(indices),), prompt, device=self.model.device)
        joining = [len(indices) if at == layer else 0 for at in range(self.model.n_layers)]
        rows, position = torch.arange(len(indices)), self.positions[prompt, 0]

        def patch(at: int, neurons: Tensor) -> Tensor:
            if at != layer:
                return neurons
            neurons = neurons.clone()
            neurons[rows, position, torch.tensor(indices, device=neurons.device)] = 0
            return neurons

        return self._read(sweep(self.batch, joining, patch, of=of), [prompt] * len(indices)).value

    def _integrate(self, nodes: list[Node], gradient: bool) -> tuple[Tensor, list[tuple[int, Tensor]]]:
        """F at the nodes, a chunk of rows; where gradients are asked for, their part of the scores of segments."""
        joining = counts([n.layer for n in nodes], self.model.n_layers)
        first = [sum(joining[:layer]) for layer in range(self.model.n_layers)]
        prompts = [n.prompt for n in nodes]
        of = torch.tensor(prompts, device=self.model.device)
        alphas = self.delta.new_tensor([n.alpha for n in nodes])[:, None, None]
        points: dict[int, Tensor] = {}

        def patch(layer: int, neurons: Tensor) -> Tensor:
            if not joining[layer]:
                return neurons
            part = slice(first[layer], first[layer] + joining[layer])
            start, delta = (
                tensor if len(tensor) == 1 else tensor.index_select(0, of[part])
                for tensor in (self.baseline[layer, :, None], self.delta[layer])
            )
            point = points[layer] = (start + alphas[part] * delta).requires_grad_(gradient)
            old, new = neurons.split([len(neurons) - len(point), len(point)])
            return torch.cat([old, self._placed(new.detach(), point.to(neurons), prompts[part])])

        with torch.set_grad_enabled(gradient):
            read = self._read(sweep(self.batch, joining, patch, of=of), prompts, gradient=gradient)
            slopes = torch.autograd.grad(read.normed, list(points.values()), read.gradient) if gradient else ()
        scores = self._scores(
            {
                layer: (nodes[first[layer] : first[layer] + joining[layer]], slope)
                for layer, slope in zip(points if gradient else (), slopes, strict=True)
            }
        )
        for node in nodes:
            self.rows[node.prompt] += 1
            self.row_layers[node.prompt] += self.model.n_layers - node.layer
        return read.value, scores

    def _scores(self, of_layers: dict[int, tuple[list[Node], Tensor]]) -> list[tuple[int, Tensor]]:
        """The scores of segments, from the nodes of each layer and dF/dneurons (nodes, positions, n_neurons) there."""
        prompts = [{n.segment: n.prompt for n in nodes if n.weight} for nodes, _ in of_layers.values()]
        segments = zip(of_layers.values(), prompts, strict=True)
        weights = _sent([_weights(nodes, list(of)).to(self.delta.dtype) for (nodes, _), of in segments], self.delta)
        rows = _sent([torch.tensor(list(of.values()), dtype=torch.long) for of in prompts], self.delta)
        scores: list[tuple[int, Tensor]] = []
        for (layer, (_, slope)), of, weight, row in zip(of_layers.items(), prompts, weights, rows, strict=True):
            sums = (weight.to(slope) @ slope.flatten(1)).unflatten(1, slope.shape[1:])
            scores += zip(of, (sums * self.delta[layer].index_select(0, row).to(slope)).sum(1), strict=True)
        return scores

    def _placed(self, neurons: Tensor, points: Tensor, prompts: Sequence[int]) -> Tensor:
        """`neurons` (rows, suffix, n_neurons) of `prompts` with `points` (rows, positions, n_neurons) put in."""
        if points.shape[1] == self.batch.length:
            return points
        return neurons.index_put((torch.arange(len(prompts))[:, None], self.positions[prompts]), points)

    def _read(self, hidden: Tensor, prompts: Sequence[int], gradient: bool = False) -> Read:
        """F of the rows of `hidden` (rows, suffix, d_model) of `prompts`."""
        if self.batch.length > 1:
            hidden = hidden[torch.arange(len(prompts))[:, None], self.reads[prompts]]
        columns = list(zip(*(self.readings[prompt].objectives for prompt in prompts), strict=True))
        return read_states(self.model, hidden, columns, gradient)


def _weights(nodes: Sequence[Node], segments: list[int]) -> Tensor:
    """What each node counts in each segment, (segments, nodes)."""
    weights = np.zeros((len(segments), len(nodes)))
    for column, node in enumerate(nodes):
        if node.weight:
            weights[segments.index(node.segment), column] = node.weight
    return torch.from_numpy(weights)


def _sent(tensors: Sequence[Tensor], where: Tensor) -> list[Tensor]:
    """Tensors as they are on the device of another: one copy brings all, and each that comes alone is waited for."""
    if where.device.type == "cpu" or not tensors:
        return list(tensors)
    parts = torch.cat([tensor.flatten() for tensor in tensors]).to(where.device).split([t.numel() for t in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def integration_paths(
    model: Model, readings: Sequence[Reading], baseline: str | Tensor, budget: int | None = None
) -> IntegrationPaths:
    """Record prompts from the first position that is altered on, and lay the paths of all layers through them.

    `baseline`: of the readings that have none of their own.
    """
    batch = record_batch(model, [reading.ids for reading in readings], [min(r.positions) for r in readings])
    shared = baseline_tensor(model, baseline) if any(r.baseline is None for r in readings) else None
    starts = [shared if r.baseline is None else baseline_tensor(model, r.baseline) for r in readings]
    if all(start is starts[0] for start in starts):
        del starts[1:]
    return IntegrationPaths(readings, batch, torch.stack(starts, 1), budget or row_budget(model, batch))


def row_budget(model: Model, batch: Batch) -> int:
    """Row-layers that may be alive at once, at least those of one row.

    On a CPU their graphs take somewhat less than half of the weights' bytes, which is what suits its caches. On an
    accelerator it is `DEVICE_BYTES`, or half of what is free: launches count there, and they are fewer.
    """
    bytes_alive = int(0.4 * sum(p.numel() for p in model.hf.parameters()) * model.dtype.itemsize)
    if model.device.type == "cuda":
        bytes_alive = min(DEVICE_BYTES, room(model.device))
    return max(model.n_layers, bytes_alive // batch.bytes_per_row())


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
