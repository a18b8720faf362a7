"""Functional groups: neurons of one layer that are active together.

Over the tokens of a corpus every neuron is a row of yes and no (active or not, as recall/scan.py says). Two neurons
are as far apart as 1 − φ, φ the correlation of their rows; average linkage joins what is near, and the tree is cut
where groups are further apart than `distance` on average. As a control every row is shifted along the corpus by a
random number of tokens, which keeps how often each neuron is active and undoes what they have in common.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import align_module_device
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from ..display.result import Record, Table
from ..errors import InputError
from ..locate.neurons import read_outputs
from ..models.adapter import Model
from ..models.expansion import expansion
from ..texts.rows import text_of
from ..writing.counts import number_of
from .corpus_scan import ActivationScan, LayerActivations, alike, watch

CORPUS_TOKENS = 4096


@dataclass(frozen=True)
class GroupsConfig:
    """Groups of `smallest` neurons or more, cut at `distance`; of the `neurons` most often changing ones at most, for
    the tree grows with their square; on `tokens` of the scanned text; `seed` is for the control."""

    distance: float = 0.5
    smallest: int = 3
    neurons: int = 2048
    tokens: int = CORPUS_TOKENS
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.distance < 1:
            raise InputError(f"the distance is {self.distance!r}, expected a number between 0 and 1")
        for name, least in (("smallest", 2), ("neurons", 2), ("tokens", 2)):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number from {least} on")


@dataclass(frozen=True)
class Group(Record):
    """Neurons that are active together, those first that go most with the others.

    - `together`: the mean φ of their pairs; `share`: of tokens on which most of them are active.
    - `promotes`: what their value vectors, each times its mean where most are active, promote in sum.
    - `texts`: where most of the group is active, as (row, position) in the scan.
    """

    neurons: tuple[int, ...]
    together: float
    share: float
    promotes: tuple[str, ...]
    texts: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Groups(Record):
    """The groups of a layer, the largest first; `grouped` neurons of `neurons` are in one, `grouped_control` after
    the control's shifts. `tokens` were read."""

    layer: int
    groups: tuple[Group, ...]
    neurons: int
    tokens: int
    grouped: int
    grouped_control: int

    def table(self) -> Iterator[str | Table]:
        """The largest groups."""
        yield (
            f"Layer {self.layer}: {self.grouped} of {self.neurons} neurons in {number_of(len(self.groups), 'group')} "
            f"({self.grouped_control} where their activity is shifted)"
        )
        rows = [
            (
                len(group.neurons),
                f"{group.together:.2f}",
                f"{group.share:.1%}",
                " ".join(map(str, group.neurons[:6])),
                " ".join(map(repr, group.promotes[:6])),
            )
            for group in self.groups[:10]
        ]
        yield Table(("neurons", "φ", "active on", "first of them", "promote"), rows)


def groups(model: Model, scan: ActivationScan, layer: int, config: GroupsConfig | None = None) -> Groups:
    """The functional groups of one layer over the text of `scan`. Raises `InputError` for text of one token."""
    config = config or GroupsConfig()
    active, values, places = _activity(model, scan, layer, config.tokens)
    if len(active) < 2:
        raise InputError(f"the corpus has {len(active)} tokens, expected 2 or more to see what goes together")
    share = active.mean(0)
    changing = np.flatnonzero((share > 0) & (share < 1))
    spread = (share * (1 - share))[changing]
    changing = np.sort(changing[np.argsort(-spread, kind="stable")[: config.neurons]])
    clusters, phi = _cut(active[:, changing], config)
    rng = np.random.default_rng(config.seed)
    shifts = rng.integers(1, len(active), len(changing))
    turned = (np.arange(len(active))[:, None] + shifts) % len(active)
    control, _ = _cut(np.take_along_axis(active[:, changing], turned, 0), config)
    described = [_group(model, layer, changing, members, phi, active, values, places) for members in clusters]
    return Groups(
        layer=layer,
        groups=tuple(sorted(described, key=lambda group: (-len(group.neurons), group.neurons))),
        neurons=len(changing),
        tokens=len(active),
        grouped=sum(map(len, clusters)),
        grouped_control=sum(map(len, control)),
    )


def _activity(
    model: Model, scan: ActivationScan, layer: int, tokens: int
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Who is active (tokens, n_neurons) as 0 and 1, the neurons' values, and where each token stands."""
    how_made = {model.check_layer(layer): expansion(model, layer)}
    kept: list[LayerActivations] = []
    places: list[tuple[int, int]] = []
    for start, ids in alike(scan.rows, tokens):
        watch(model, ids.to(model.device), how_made, lambda _, activations: kept.append(activations))
        positions = range(ids.shape[1])[text_of(model)]
        places += [(start + row, position) for row in range(len(ids)) for position in positions]
    active = torch.cat([layer.active.flatten(0, 1) for layer in kept])[:tokens]
    values = torch.cat([layer.neurons.flatten(0, 1) for layer in kept])[:tokens]
    return active.float().cpu().numpy(), values.float().cpu().numpy(), places[:tokens]


def _cut(active: np.ndarray, config: GroupsConfig) -> tuple[list[np.ndarray], np.ndarray]:
    """The groups as indices of columns, and φ of all pairs of columns."""
    if active.shape[1] < 2:
        return [], np.ones((active.shape[1],) * 2)
    phi = np.corrcoef(active, rowvar=False)
    apart = np.clip(1 - (phi + phi.T) / 2, 0, 2)
    np.fill_diagonal(apart, 0)
    tree = hierarchy.linkage(squareform(apart, checks=False), method="average")
    labels = hierarchy.fcluster(tree, config.distance, criterion="distance")
    sizes = np.bincount(labels)
    return [np.flatnonzero(labels == label) for label in np.flatnonzero(sizes >= config.smallest)], phi


def _group(model, layer, changing, members, phi, active, values, places) -> Group:
    inside = phi[np.ix_(members, members)]
    pairs = (inside.sum(1) - 1) / (len(members) - 1)
    order = np.argsort(-pairs, kind="stable")
    indices = changing[members[order]]
    count = active[:, indices].mean(1)
    most = np.flatnonzero(count > 0.5)
    strength = count + 1e-3 * np.abs(values[:, indices]).mean(1)
    best = most[np.argsort(-strength[most], kind="stable")[:5]]
    means = values[most][:, indices].mean(0) if len(most) else np.zeros(len(indices))
    return Group(
        neurons=tuple(indices.tolist()),
        together=float(pairs.mean()),
        share=len(most) / len(active),
        promotes=_promotes(model, layer, indices, means),
        texts=tuple(places[i] for i in best),
    )


@torch.no_grad()
def _promotes(model: Model, layer: int, indices: np.ndarray, means: np.ndarray) -> tuple[str, ...]:
    weight = model.down_weight(layer).detach()
    chosen = weight[:, torch.from_numpy(indices).to(weight.device)]
    value = (chosen @ torch.from_numpy(means).to(chosen)).to(model.device)
    with align_module_device(model.unembedding):
        logits = read_outputs(model, layer, value[None]) @ model.unembedding.weight.T.to(value)
    return tuple(model.token(token) for token in logits[0].topk(8).indices.tolist())
