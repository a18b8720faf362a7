"""How few neurons a layer works with: how many are active, and how many a prediction needs.

Being *active* (recall/scan.py says what that is for each nonlinearity) does not mean being needed, nor the other way
round where neurons are never quite 0. So the share of active neurons stands beside a causal test: at the positions
asked for, every layer keeps only the share of its neurons with the largest contributions

    c_i = |a_i| · ‖v_i‖

to the MLP's output, and sets the others to 0; contributions are those of the thinned run, layer by layer. What remains
of the prediction is p′/p of the token that the model says, and whether it is still its first choice, against as many
neurons kept at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..display.result import Record, Table
from ..errors import InputError
from ..models.adapter import Model
from ..models.passes.objective import at_least_float
from ..models.passes.replay import Recording, record
from ..models.passes.sweep import sweep
from ..progress import Progress, counted, silent
from ..prompts import Prompt
from ..statistics import Estimate, estimate, mean, proportion
from ..writing.counts import number_of
from .corpus_scan import ActivationScan, chosen_layers, value_norms
from .functional_groups import Groups

SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
WHERE = ("read", "all")


@dataclass(frozen=True)
class SparsityConfig:
    """`shares` of neurons are kept, in `layers` (None: all), at the read position or at `all` positions but the first,
    which holds the attention sink; random controls are drawn `draws` times by `seed`."""

    shares: tuple[float, ...] = SHARES
    layers: tuple[int, ...] | None = None
    at: str = "read"
    draws: int = 3
    seed: int = 0

    def __post_init__(self):
        if not self.shares or not all(isinstance(s, int | float) and 0 < s <= 1 for s in self.shares):
            raise InputError(f"shares are {self.shares!r}, expected one or more numbers above 0, up to 1")
        if self.at not in WHERE:
            raise InputError(f"neurons are kept at {self.at!r}, expected one of {', '.join(WHERE)}")
        if not isinstance(self.draws, int) or self.draws < 1:
            raise InputError(f"draws is {self.draws!r}, expected 1 or more")


@dataclass(frozen=True)
class Active:
    """A layer in a corpus: the `active` share of its neurons and the share that carries it (`effective`, as in
    `ActivationScan.row_effective`), means over texts; and how many neurons were never active."""

    layer: int
    active: Estimate
    effective: Estimate
    never: int

    def as_dict(self) -> dict:
        return {
            "layer": self.layer,
            "active": self.active.as_dict(),
            "effective": self.effective.as_dict(),
            "never_active": self.never,
        }


@dataclass(frozen=True)
class Kept(Record):
    """What remains of predictions when `share` of the neurons is kept.

    - `ratio`: mean p′ over mean p; `top1`: the share of prompts whose first choice stays; n counts prompts.
    - `random_ratio`, `random_top1`: the same with neurons at random, averaged over draws.
    """

    share: float
    ratio: Estimate
    top1: Estimate
    random_ratio: Estimate
    random_top1: Estimate


@dataclass(frozen=True)
class Sparsity(Record):
    """How many neurons are active, and how many a prediction needs.

    - `layers`: by layer, over a corpus; `kept`: by share of neurons, which are kept at `kept_at`, over prompts.
    - `groups` of one layer, where they were asked for.
    """

    layers: Sequence[Active]
    kept: Sequence[Kept]
    kept_at: str
    groups: Groups | None = None

    def table(self) -> Iterator[str | Table]:
        """Active neurons by layer, predictions by share of neurons, and the groups."""
        rows = [(a.layer, a.active.text("share"), a.effective.text("share"), a.never) for a in self.layers]
        yield Table(("layer", "active", "effective", "never active"), rows, "Sparsity")
        kept = [
            (f"{k.share:.0%}", *(e.text("share") for e in (k.top1, k.ratio, k.random_top1, k.random_ratio)))
            for k in self.kept
        ]
        columns = ("kept", "first choice stays", "p′/p", "random: stays", "random: p′/p")
        n = self.kept[0].ratio.n
        yield Table(columns, kept, f"Only the strongest neurons of every layer, {number_of(n, 'fact')}")
        if self.groups is not None:
            yield from self.groups.table()

    def figure(self, path: str | Path) -> Path:
        """Draw both shares."""
        from .figure import memory_figure

        return memory_figure(path, sparsity=self)


def active_by_layer(scan: ActivationScan) -> list[Active]:
    """The share of active neurons of each scanned layer."""
    return [
        Active(
            layer=layer,
            active=mean(scan.row_active[at].numpy()),
            effective=mean(scan.row_effective[at].numpy()),
            never=int((scan.active[at] == 0).sum()),
        )
        for at, layer in enumerate(scan.layers)
    ]


@torch.no_grad()
def keep_strongest(
    model: Model,
    prompts: Sequence[Prompt],
    config: SparsityConfig | None = None,
    *,
    progress: Progress = silent,
) -> list[Kept]:
    """What remains of the model's predictions for `prompts` when each layer keeps only its strongest neurons.

    One sweep a prompt answers for all shares and draws at once. `progress` counts prompts.

    Raises `InputError` without prompts.
    """
    config = config or SparsityConfig()
    if not prompts:
        raise InputError("no prompt is given, expected one or more")
    layers = chosen_layers(model, config.layers)
    norms = {layer: value_norms(model, layer).to(model.device) for layer in layers}
    before, after, first = [], [], []
    for i, prompt in enumerate(counted(prompts, progress)):
        p, rows, same_choice = _thinned(model, prompt, norms, config, np.random.SeedSequence([config.seed, i]))
        before.append(p)
        after.append(rows)
        first.append(same_choice)
    p, after, first = np.array(before), np.array(after), np.array(first)  # (prompts, shares, 1 + draws)
    return [
        Kept(
            share=share,
            ratio=_ratio(p, after[:, j, 0]),
            top1=proportion(first[:, j, 0]),
            random_ratio=_ratio(p, after[:, j, 1:].mean(1)),
            random_top1=proportion(first[:, j, 1:].mean(1)),
        )
        for j, share in enumerate(config.shares)
    ]


def _ratio(before: np.ndarray, after: np.ndarray) -> Estimate:
    return estimate(lambda b, a, axis=-1: a.mean(axis) / b.mean(axis), (before, after))


def _thinned(
    model: Model, prompt: Prompt, norms: dict[int, Tensor], config: SparsityConfig, seed: np.random.SeedSequence
) -> tuple[float, np.ndarray, np.ndarray]:
    """p of the first choice; p′ of it and whether it is still the first, both (shares, 1 + draws)."""
    recording = _recording(model, prompt, config)
    start = recording.start
    read = prompt.read - start
    places = slice(read, read + 1)
    if config.at == "all":
        places = slice(min(1, prompt.read) - start, -1 if model.masked else None)
    log_p = _log_p(model, recording.output[:, read])[0]
    said = int(log_p.argmax())
    each = 1 + config.draws
    kept = [max(1, round(share * model.n_neurons)) for share in config.shares for _ in range(each)]
    generator = torch.Generator().manual_seed(int(seed.generate_state(1)[0]))

    def patch(layer: int, neurons: Tensor) -> Tensor:
        if layer not in norms:
            return neurons
        activations = neurons[:, places]
        scores = (activations.abs() * norms[layer].to(activations)).float()
        random = torch.rand(scores.shape, generator=generator).to(scores.device)
        strongest = torch.arange(len(kept), device=scores.device) % each == 0
        order = torch.where(strongest[:, None, None], scores, random).argsort(-1, descending=True)
        first = (
            torch.arange(activations.shape[-1], device=activations.device)
            < torch.tensor(kept, device=activations.device)[:, None]
        )
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, first[:, None].expand(order.shape))
        neurons = neurons.clone()
        neurons[:, places] = activations * mask
        return neurons

    joining = [0] * model.n_layers
    joining[min(norms)] = len(kept)
    thinned = _log_p(model, sweep(recording, joining, patch)[:, read])
    shape = (len(config.shares), each)
    p = thinned[:, said].exp().double().cpu().numpy().reshape(shape)
    same_choice = (thinned.argmax(1) == said).double().cpu().numpy().reshape(shape)
    return float(log_p[said].exp()), p, same_choice


def _recording(model: Model, prompt: Prompt, config: SparsityConfig) -> Recording:
    return record(model, prompt.ids, start=prompt.read if config.at == "read" else min(1, prompt.read))


def _log_p(model: Model, hidden: Tensor) -> Tensor:
    return at_least_float(model.logits(model.normed(hidden))).log_softmax(-1)
