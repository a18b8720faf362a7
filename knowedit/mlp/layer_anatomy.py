"""The anatomy of an MLP: what its numbers are at real tokens, from its input to its output.

For each layer and stage (activations.py) the distribution of values over tokens and coordinates, and the effective
dimension of the tokens' vectors, centred; for the nonlinearity, the function itself with where the data lie on it. The
first token of each text and padding are left out: the first holds massive activations (Sun et al. 2024) that are like
nothing else. Geva et al. 2021 (arXiv 2012.14913) read the two projections as keys and values of a memory:

    output = W_down · (act(W_gate x) ⊙ W_up x)    gated,        output = W_down · act(W_up x)    plain
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..display.result import Record, Table
from ..errors import InputError
from ..models.adapter import Model
from ..models.expansion import Expansion, expansion, expansions
from ..progress import Progress, counted, silent
from ..prompts import Prompt
from ..statistics import Estimate, mean
from ..writing.counts import number_of
from .activations import collect, text_positions
from .probing import RelationProbe
from .value_geometry import effective_dimension

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
BINS = 80
CURVE = 121  # points of the nonlinearity
BUDGET = 1 << 29  # bytes of values held at once: more layers than fit are looked at in several passes
SAMPLE = 16  # texts from which the bins are chosen


@dataclass(frozen=True)
class Stage:
    """One stage of one layer.

    - `values`: how many numbers (tokens × width); `quantiles`: at `QUANTILES`; `least`, `most`: the extremes.
    - `histogram`: the share of values in each bin of the stage's edges, which all layers share; values beyond them are
      in the outer bins.
    - `dimension`: effective dimension of the tokens' vectors, centred: at most the number of tokens.
    """

    name: str
    width: int
    values: int
    quantiles: tuple[float, ...]
    least: float
    most: float
    histogram: tuple[float, ...]
    dimension: float


@dataclass(frozen=True)
class LayerAnatomy:
    """The stages of one layer, and the share of its pre-activations below zero, with its interval over texts."""

    layer: int
    stages: tuple[Stage, ...]
    below_zero: Estimate

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)


@dataclass(frozen=True)
class Anatomy(Record):
    """MLPs on some texts.

    - `flow`: (stage, width) from d_model over n_neurons to d_model; `nonlinear`: the stage that goes into the
      nonlinearity, `gate` or `up`; `activation`: its name.
    - `edges`: by stage, the bins of the histograms: even in asinh, so that small and huge values are both seen.
    - `curve`: points (x, act(x)) over the range where the data lie.
    - `probe`: how well relations are told apart at each stage, where that was measured too.
    """

    model: str
    texts: int
    tokens: int
    flow: tuple[tuple[str, int], ...]
    nonlinear: str
    activation: str
    layers: tuple[LayerAnatomy, ...]
    edges: dict[str, tuple[float, ...]]
    curve: tuple[tuple[float, float], ...]
    probe: RelationProbe | None = None

    def layer(self, layer: int) -> LayerAnatomy:
        return next(anatomy for anatomy in self.layers if anatomy.layer == layer)

    def as_dict(self) -> dict:
        return super().as_dict() | {"quantiles": list(QUANTILES)}

    def table(self, layer: int | None = None) -> Iterator[str | Table]:
        """The stages of one layer, by default the middle one, and the probe there."""
        anatomy = self.layers[len(self.layers) // 2] if layer is None else self.layer(layer)
        layer, below = anatomy.layer, anatomy.below_zero.text("share")
        texts = number_of(self.texts, "text")
        yield f"Anatomy of {self.model} on {self.tokens} tokens of {texts}, without each text's first token"
        yield "Shape flow: " + " → ".join(f"{width} {stage}" for stage, width in self.flow)
        yield f"Layer {layer}; {self.activation} reads {self.nonlinear}, {below} of it below zero"
        rows = []
        for stage in anatomy.stages:
            values = (stage.least, *(stage.quantiles[i] for i in (1, 4, 7)), stage.most)
            rows.append((stage.name, stage.width, *(f"{value:.3g}" for value in values), f"{stage.dimension:.1f}"))
        columns = ("stage", "width", "least", "1 %", "median", "99 %", "most", "effective dimension")
        yield Table(columns, rows)
        if self.probe is None:
            yield "No linear probe: that takes facts of two relations or more, each with three subjects and templates."
        else:
            yield from self.probe.table(layer)

    def figure(self, path: str | Path, layer: int | None = None) -> Path:
        """Draw all layers, and one of them, by default the middle one, closely."""
        from .figure import anatomy_figure

        return anatomy_figure(path, self, self.layers[len(self.layers) // 2].layer if layer is None else layer)


def anatomy(
    model: Model,
    prompts: Sequence[Prompt],
    layers: Sequence[int] | None = None,
    progress: Progress = silent,
) -> Anatomy:
    """Look at the MLPs of `layers` (all by default) on `prompts`. `progress` counts layers.

    Raises `InputError` where the prompts have no token but the first, `LayoutError` where the MLP is not understood.
    """
    chosen = [model.check_layer(layer) for layer in (range(model.n_layers) if layers is None else layers)]
    counts = [len(text_positions(model, prompt)) for prompt in prompts]
    if not sum(counts) or not chosen:
        raise InputError("there is no token to look at: the first of each text is left out; give longer texts")
    how_made = expansions(model) if layers is None else {layer: expansion(model, layer) for layer in chosen}
    first = how_made[chosen[0]]
    nonlinear = "gate" if first.gated else "up"
    edges = _edges(values for _, values in _values(model, prompts[:SAMPLE], how_made))
    texts = np.repeat(np.arange(len(prompts)), counts)
    anatomies = []
    for layer, values in counted(_values(model, prompts, how_made), progress):
        negative = (values[nonlinear] < 0).double().mean(1).numpy()
        below = mean([negative[texts == i].mean() for i in range(len(prompts)) if counts[i]])
        anatomies.append(LayerAnatomy(layer, tuple(_stage(name, v, edges[name]) for name, v in values.items()), below))
    return Anatomy(
        model=model.name,
        texts=len(prompts),
        tokens=sum(counts),
        flow=tuple((stage.name, stage.width) for stage in anatomies[0].stages),
        nonlinear=nonlinear,
        activation=_name(first),
        layers=tuple(anatomies),
        edges={stage: tuple(values.tolist()) for stage, values in edges.items()},
        curve=_curve(first, [anatomy.stage(nonlinear) for anatomy in anatomies]),
    )


def _values(
    model: Model, prompts: Sequence[Prompt], how_made: dict[int, Expansion]
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Each layer with its stages' values, in passes of as many layers as fit into `BUDGET` together."""
    positions = {id(prompt): text_positions(model, prompt) for prompt in prompts}
    of_a_layer = 4 * sum(map(len, positions.values())) * (3 * model.n_neurons + 2 * model.d_model)
    size, layers = max(1, BUDGET // max(1, of_a_layer)), list(how_made)
    for start in range(0, len(layers), size):
        group = {layer: how_made[layer] for layer in layers[start : start + size]}
        yield from collect(model, prompts, lambda prompt: positions[id(prompt)], group).items()


def _edges(layers: Iterable[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """By stage, bin edges for all layers: even in asinh(x / the typical size), out to where 99.8 % of values lie."""
    typical, reach = defaultdict(list), defaultdict(list)
    for values in layers:
        for stage, v in values.items():
            sizes = v.double().abs().flatten().numpy()
            typical[stage].append(np.median(sizes))
            reach[stage].append(np.quantile(sizes, 0.998))
    edges = {}
    for stage, sizes in typical.items():
        size = np.median([s for s in sizes if s > 0] or [1.0])
        limit = np.arcsinh((max(reach[stage]) or 1.0) / size)
        edges[stage] = size * np.sinh(np.linspace(-limit, limit, BINS + 1))
    return edges


def _stage(name: str, values: Tensor, edges: np.ndarray) -> Stage:
    flat = values.double().flatten().numpy()
    shares = np.histogram(np.clip(flat, edges[0], edges[-1]), edges)[0] / flat.size
    return Stage(
        name=name,
        width=values.shape[1],
        values=flat.size,
        quantiles=tuple(np.quantile(flat, QUANTILES).tolist()),
        least=float(flat.min()),
        most=float(flat.max()),
        histogram=tuple(shares.tolist()),
        dimension=effective_dimension(values - values.mean(0)),
    )


def _curve(expansion: Expansion, stages: list[Stage]) -> tuple[tuple[float, float], ...]:
    low = min(-1.0, *(stage.quantiles[0] for stage in stages))
    high = max(1.0, *(stage.quantiles[-1] for stage in stages))
    x = torch.linspace(low, high, CURVE)
    return tuple(zip(x.tolist(), expansion.act(x).tolist(), strict=True))


def _name(expansion: Expansion) -> str:
    return getattr(expansion.act, "__name__", None) or type(expansion.act).__name__.removesuffix("Activation")
