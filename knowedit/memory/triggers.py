"""Shallow against semantic keys: what of a trigger makes a neuron fire (Geva et al. 2021, section 3).

A neuron's *triggers* are the prefixes of a corpus on whose last token it is largest. Each is read again without its
first tokens, without its last ones, and without as many at random in between as a control, and the neuron is read at
the new last token. What is reported of each layer is the mean of

    a′ / a − 1        and of        [a′ / a < 1/2]: the key is dead,

a the neuron on the whole trigger, a′ on what is left of it. A key that dies with the last token and lives without the
first is *shallow*: it matches how the text ends. A key that minds them little, or both alike, is *semantic*.

One prefix is a trigger of many neurons in all layers, so prefixes are drawn and not neurons: three short passes answer
for all keys that one of them triggers. Means are over prefixes, for keys with one trigger are not independent.
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
from ..progress import Progress, silent
from ..statistics import Estimate, mean, proportion
from .corpus_scan import ActivationScan, neurons_at
from .values import Agreement, Compositional, check_decoder, mean_agreement, mean_compositional

CUTS = ("first", "last", "random")
DEAD = 0.5


@dataclass(frozen=True)
class KeysConfig:
    """`prefixes` are drawn, each is read without `removed` tokens; `seed` decides which."""

    prefixes: int = 128
    removed: int = 1
    seed: int = 0

    def __post_init__(self):
        for name in ("prefixes", "removed"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected a number from 1 on")


@dataclass(frozen=True)
class Keys(Record):
    """A layer's keys: `keys` pairs of a neuron and a trigger, and by cut (`first`, `last`, `random`) the mean `change`
    of the activation and the share `dead`; n counts prefixes."""

    layer: int
    keys: int
    change: dict[str, Estimate]
    dead: dict[str, Estimate]

    @property
    def shallow(self) -> float | None:
        """How much more of the keys the last tokens kill than the first ones do."""
        last, first = self.dead["last"].value, self.dead["first"].value
        return None if last is None or first is None else last - first

    def as_dict(self) -> dict:
        return super().as_dict() | {"shallow": self.shallow}


@dataclass(frozen=True)
class KeysAndValues(Record):
    """The keys of all layers, `removed` tokens taken from their triggers, and what their values say."""

    keys: Sequence[Keys]
    agreement: Sequence[Agreement]
    compositional: Sequence[Compositional]
    removed: int

    def as_dict(self) -> dict:
        return super().as_dict() | {
            "mean_agreement": mean_agreement(self.agreement),
            "mean_compositional": mean_compositional(self.compositional).as_dict(),
        }

    def table(self) -> Iterator[str | Table]:
        """By layer: how many keys die, how often values say what follows, and how often no value says it."""
        rows = []
        for keys, agreement, compositional in zip(self.keys, self.agreement, self.compositional, strict=True):
            dead = (keys.dead[cut].text("share") for cut in CUTS)
            agrees = agreement.agree.text("share"), f"{agreement.chance:.2%}"
            rows.append((keys.layer, *dead, *agrees, compositional.share.text("share")))
        columns = ("die without first", "last", "random", "value says next", "chance", "said by no neuron")
        yield Table(("layer", *columns), rows, "Keys and values")

    def figure(self, path: str | Path) -> Path:
        """Draw a panel for each of the three."""
        from .figure import memory_figure

        return memory_figure(path, keys=self)


def keys(
    model: Model,
    scan: ActivationScan,
    config: KeysConfig | None = None,
    *,
    progress: Progress = silent,
) -> list[Keys]:
    """What removing tokens does to the keys of every layer of a scan; `progress` counts cut prefixes.

    Raises `ModelError` for masked models and `InputError` where no trigger is long enough.
    """
    config = config or KeysConfig()
    check_decoder(model)
    prefixes = _prefixes(scan, config)
    rng = np.random.default_rng(config.seed)
    rows = [cut for code in prefixes for cut in _cuts(_prefix(scan, code), config.removed, rng)]
    pairs = [(scan.places == code).nonzero() for code in prefixes]  # (layer, neuron, rank) of each prefix
    ratios = _ratios(model, scan, rows, pairs, progress)
    return [_layer(layer, at, pairs, ratios) for at, layer in enumerate(scan.layers)]


def _prefixes(scan: ActivationScan, config: KeysConfig) -> list[int]:
    """Places that are triggers, behind enough text that something is left of every cut."""
    codes = np.unique(scan.places.numpy())
    long_enough = codes[codes % scan.stride >= 3 * config.removed + 1]
    if not len(long_enough):
        raise InputError(
            f"no trigger in the corpus has more than {3 * config.removed} tokens; give longer texts or remove fewer"
        )
    rng = np.random.default_rng(config.seed)
    return sorted(rng.choice(long_enough, min(config.prefixes, len(long_enough)), replace=False).tolist())


def _prefix(scan: ActivationScan, code: int) -> tuple[int, ...]:
    row, position = scan.place(code)
    return scan.rows[row][: position + 1]


def _cuts(ids: tuple[int, ...], removed: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """`ids` without the first tokens behind the special one, without the last ones, without others at random."""
    inner = rng.choice(np.arange(1 + removed, len(ids) - removed), removed, replace=False)
    return [
        (ids[0], *ids[1 + removed :]),
        ids[:-removed],
        tuple(token for i, token in enumerate(ids) if i not in set(inner.tolist())),
    ]


def _ratios(
    model: Model, scan: ActivationScan, rows: list, pairs: list[Tensor], progress: Progress
) -> list[list[np.ndarray]]:
    """a′ / a of every prefix's keys, by cut."""
    ratios: list[list] = [[None] * len(CUTS) for _ in pairs]
    done = 0
    for chosen, neurons in neurons_at(model, rows, [len(row) - 1 for row in rows]):
        for i, of_row in zip(chosen, neurons, strict=True):
            prefix, cut = divmod(i, len(CUTS))
            layer, index, rank = pairs[prefix].T
            before = scan.values[layer, index, rank].double()
            after = of_row[torch.tensor(scan.layers)[layer], index].double()
            ratios[prefix][cut] = torch.where(before == 0, torch.ones_like(after), after / before).numpy()
        done += len(chosen)
        progress(done)
    return ratios


def _layer(layer: int, at: int, pairs: list[Tensor], ratios: list[list[np.ndarray]]) -> Keys:
    at_layer = [(of.numpy()[:, 0] == at, by_cut) for of, by_cut in zip(pairs, ratios, strict=True)]
    at_layer = [(chosen, by_cut) for chosen, by_cut in at_layer if chosen.any()]
    change, dead = {}, {}
    for j, cut in enumerate(CUTS):
        kept = [by_cut[j][chosen] for chosen, by_cut in at_layer]
        change[cut] = mean([r.mean() - 1 for r in kept])
        dead[cut] = proportion(np.array([(r < DEAD).mean() for r in kept]))
    return Keys(layer, int(sum(chosen.sum() for chosen, _ in at_layer)), change, dead)
