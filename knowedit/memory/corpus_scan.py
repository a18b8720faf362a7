"""One pass over a corpus: how often each neuron of many layers is active, how strongly, and where most.

    found = scan(model, "builtin", tokens=8192)
    found.share(24, 1005)          # of the tokens on which neuron 24/1005 is active
    found.triggers(24, 1005)       # where it was largest: (row, position, activation)

What *active* means depends on how a layer's neurons are made (models/expansion.py). Let x be what goes into the
nonlinearity: the up-projection's output in a plain MLP, the gate's in a gated one. The neuron is active where x > 0:

    ReLU, plain or gated    elsewhere it is exactly 0
    GELU, SiLU              elsewhere it is what is left of the nonlinearity's tail: at most 0.17 or 0.28 in size, times
                            the up-projection in a gated MLP, where an active neuron has either sign
    others (tanh, none)     nothing is switched off: a neuron is active where it is not 0

Texts are rows of tokens (texts/rows.py), and special tokens are left out: the first position of a row holds an
attention sink, whose neurons are like no others. Memory does not grow with the corpus but for its token ids: each
layer is reduced as it comes, and of each neuron only a running top k is kept. With the hash of the model's weights each
layer's part is kept in the cache, and read where it is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from ..errors import InputError, ModelError
from ..hooks import Enough, ending_early, hooked, on_input, on_output, unaltered
from ..models.adapter import Model
from ..models.cache import cache_root, key_of
from ..models.expansion import Expansion, Seen, expansion, expansions, watching
from ..models.passes.batches import batches, halving, padded
from ..models.tensor_cache import TensorCache
from ..progress import Progress, silent
from ..texts.corpus import Corpus, corpus, kept_for
from ..texts.rows import text_of
from ..texts.sources import BuiltinText

CORPUS_TOKENS = 8192
TOP = 10
BATCH_TOKENS = 1024  # with one layer at a time, some 50 MB on the default model

Place = tuple[int, int]
"""(row, position in it) of a token."""


@dataclass(frozen=True)
class LayerActivations:
    """A layer on the text tokens of some rows: `neurons` and `active` (rows, text, n_neurons), `output` of its
    down-projection (rows, text, d_model)."""

    neurons: Tensor
    active: Tensor
    output: Tensor


@dataclass(frozen=True)
class ActivationScan:
    """What a pass found; layers are those of `layers`, in that order.

    - `source`: what the corpus says of itself; `rows`: its token ids, special tokens included.
    - `active`: on how many of `tokens` tokens each neuron is active; `mean`, `deviation` of its values, all
      (layers, n_neurons).
    - `values`, `places`: its largest values by size, with their sign, (layers, n_neurons, k), and where: row times
      `stride` plus position.
    - `row_active`: the share of a layer's neurons that is active, a mean over each row's tokens, (layers, rows).
    - `row_effective`: the share of neurons that carries the layer, (Σc)² / (n Σc²) with c = |a|·‖v‖: 1 where all
      contribute alike, 1/n where one does; (layers, rows).
    - `definition`: what active means here.
    """

    model: str
    source: dict
    layers: tuple[int, ...]
    definition: str
    tokens: int
    rows: tuple[tuple[int, ...], ...]
    stride: int
    active: Tensor
    mean: Tensor
    deviation: Tensor
    values: Tensor
    places: Tensor
    row_active: Tensor
    row_effective: Tensor

    def at(self, layer: int) -> int:
        """Where `layer` is among `layers`. Raises `InputError` where it was not looked at."""
        if layer not in self.layers:
            raise InputError(f"layer {layer!r} was not looked at; there are {list(self.layers)}")
        return self.layers.index(layer)

    def share(self, layer: int, index: int) -> float:
        """The share of tokens on which a neuron is active."""
        return self.active[self.at(layer), index].item() / self.tokens

    def place(self, code: int) -> Place:
        return divmod(code, self.stride)

    def triggers(self, layer: int, index: int) -> list[tuple[int, int, float]]:
        """Where a neuron was largest in size: (row, position, activation), the largest first."""
        values, places = self.values[self.at(layer), index].tolist(), self.places[self.at(layer), index].tolist()
        return [(*self.place(code), value) for code, value in zip(places, values, strict=True)]


@torch.no_grad()
def scan(
    model: Model,
    source: str | Corpus = "builtin",
    *,
    layers: Sequence[int] | None = None,
    tokens: int = CORPUS_TOKENS,
    top: int = TOP,
    seed: int = 0,
    weights_hash: str | None = None,
    progress: Progress = silent,
) -> ActivationScan:
    """Read `tokens` tokens of a corpus, or somewhat more, or all that there are.

    `source` is `builtin` (sentences of the built-in facts, all relations mixed), `samples` (what a decoder says by
    itself, by `seed`), a .txt or .jsonl file, or a data set of the Hub; with `weights_hash`, that of the model, the
    cache keeps each layer's part; `progress` counts tokens that are read anew. Raises `InputError` for a source that
    holds no text, `DataError` for one that is not text, and `LayoutError` for MLPs that could not be understood.
    """
    if not isinstance(tokens, int) or tokens < 1 or not isinstance(top, int) or top < 1:
        raise InputError(f"{tokens!r} tokens and the {top!r} strongest are wanted, expected numbers from 1 on")
    weights_hash = unaltered(model.hf, weights_hash)
    text = BuiltinText(mixed=True) if source == "builtin" else kept_for(corpus(source, seed=seed), weights_hash)
    identity = text.identity(model)
    chosen = chosen_layers(model, layers)
    layer_expansions = expansions(model) if len(chosen) > 1 else {chosen[0]: expansion(model, chosen[0])}
    definitions = {layer: definition(layer_expansions[layer]) for layer in chosen}
    parts_of_text = [part for b in text.batches(model, tokens) for part in b.split(max(1, BATCH_TOKENS // b.shape[1]))]
    rows = [tuple(row) for part in parts_of_text for row in part.tolist()]
    done = sum(part[:, text_of(model)].numel() for part in parts_of_text)
    if not done:
        raise InputError(f"the corpus {source!r} holds no text; give one that does")
    running = {layer: _Running(model, layer, top) for layer in chosen}
    keys = {}
    if weights_hash is not None:
        request = {"weights": weights_hash, "dtype": str(model.dtype), "rows": rows, "top": top}
        keys = {layer: key_of({**request, "layer": layer, "active": definitions[layer]}) for layer in chosen}
    cache = TensorCache(cache_root() / "scans")
    missing = [layer for layer in chosen if layer not in keys or not running[layer].read(cache, keys[layer], rows)]

    def work(part: list[int]) -> dict[int, _Running]:
        tokens = torch.tensor([rows[i] for i in part])
        places = torch.tensor(part)[:, None], torch.arange(tokens.shape[1])[text_of(model)]
        after: dict[int, _Running] = {}

        def take(layer: int, glimpse: LayerActivations) -> None:
            after[layer] = running[layer].plus(glimpse, places)

        watch(model, tokens, {layer: layer_expansions[layer] for layer in missing}, take)
        return after

    ends = list(accumulate(map(len, parts_of_text)))
    numbers = (list(range(end - len(part), end)) for end, part in zip(ends, parts_of_text, strict=True))
    seen = 0
    for chosen_rows, after in halving(model, numbers if missing else (), work, "rows of text"):
        running |= after
        seen += sum(len(rows[i][text_of(model)]) for i in chosen_rows)
        progress(seen)
    for layer in missing if keys else ():
        running[layer].write(cache, keys[layer])
    parts = [running[layer] for layer in chosen]
    mean = torch.stack([part.total for part in parts]) / done
    square = torch.stack([part.square for part in parts]) / done
    stride = max(map(len, rows))
    places = torch.stack([part.rows * stride + part.positions for part in parts])
    return ActivationScan(
        model=model.name,
        source=identity,
        layers=chosen,
        definition=definitions[chosen[0]],
        tokens=done,
        rows=tuple(rows),
        stride=stride,
        active=torch.stack([part.active for part in parts]),
        mean=mean,
        deviation=(square - mean**2).clamp(min=0).sqrt(),
        values=torch.stack([part.values for part in parts]),
        places=places,
        row_active=torch.stack([part.row_active for part in parts]),
        row_effective=torch.stack([part.row_effective for part in parts]),
    )


def chosen_layers(model: Model, layers: Sequence[int] | None) -> tuple[int, ...]:
    """`layers` checked, in order and once each; all where None."""
    if layers is None:
        return tuple(range(model.n_layers))
    if not layers:
        raise InputError("no layer is named; leave layers out to take all")
    return tuple(sorted({model.check_layer(layer) for layer in layers}))


class _Running:
    """The statistics of one layer, batch by batch; the largest values are merged with those of before."""

    _KEPT = ("active", "total", "square", "values", "rows", "positions", "row_active", "row_effective")

    def __init__(self, model: Model, layer: int, top: int):
        n = model.n_neurons
        self.top = top
        self.norms = value_norms(model, layer)
        self.active = torch.zeros(n, dtype=torch.long)
        self.total, self.square = torch.zeros(2, n, dtype=torch.float64)
        self.values = torch.zeros(n, 0)
        self.rows, self.positions = torch.zeros(2, n, 0, dtype=torch.long)
        self.row_active, self.row_effective = torch.zeros(2, 0)

    def read(self, cache: TensorCache, key: str, rows: Sequence) -> bool:
        """Take what is kept of another scan of these rows; whether there is something."""
        one, each = self.active.shape, (len(self.active), min(self.top, sum(map(len, rows))))
        shapes = dict.fromkeys(self._KEPT, one) | dict.fromkeys(("values", "rows", "positions"), each)
        kept = cache.read(key, shapes | dict.fromkeys(("row_active", "row_effective"), (len(rows),)), torch.float64)
        for name, values in kept[1].items() if kept else ():
            setattr(self, name, values.to(getattr(self, name).dtype))
        return kept is not None

    def write(self, cache: TensorCache, key: str) -> None:
        """Keep it, in float64, which holds all of it exactly; a cache that cannot be written keeps nothing."""
        with suppress(ModelError):
            cache.write(key, {}, {name: getattr(self, name).double() for name in self._KEPT})

    def plus(self, glimpse: LayerActivations, places: tuple[Tensor, Tensor]) -> _Running:
        """These statistics with those of some more rows."""
        after = copy(self)
        after._add(glimpse, places)
        return after

    def _add(self, glimpse: LayerActivations, places: tuple[Tensor, Tensor]) -> None:
        neurons = glimpse.neurons.float()
        flat = neurons.flatten(0, 1)  # (tokens, n_neurons)
        self.active = self.active + glimpse.active.flatten(0, 1).sum(0).cpu()
        self.total = self.total + flat.sum(0, dtype=torch.float64).cpu()
        self.square = self.square + flat.square().sum(0, dtype=torch.float64).cpu()
        self.row_active = torch.cat([self.row_active, glimpse.active.float().mean((1, 2)).cpu()])
        c = neurons.abs() * self.norms.to(neurons)
        spread = c.sum(-1) ** 2 / (c.shape[-1] * c.square().sum(-1)).clamp(min=1e-30)
        self.row_effective = torch.cat([self.row_effective, spread.mean(1).cpu()])
        self._merge(flat, places)

    def _merge(self, flat: Tensor, places: tuple[Tensor, Tensor]) -> None:
        rows, positions = (index.reshape(-1) for index in torch.broadcast_tensors(*places))
        columns = flat.T.contiguous()
        best = columns.abs().topk(min(self.top, columns.shape[1]), dim=1).indices
        values = torch.cat([self.values, columns.gather(1, best).cpu()], 1)
        best = best.cpu()
        order = values.abs().topk(min(self.top, values.shape[1]), dim=1).indices
        self.values = values.gather(1, order)
        self.rows = torch.cat([self.rows, rows[best]], 1).gather(1, order)
        self.positions = torch.cat([self.positions, positions[best]], 1).gather(1, order)


def watch(
    model: Model, rows: Tensor, expansions: dict[int, Expansion], take: Callable[[int, LayerActivations], object]
) -> None:
    """Run rows of token ids (rows, tokens) and call `take(layer, glimpse)` for every layer of `expansions` as it comes.

    Nothing of a layer is kept for the next one, and the pass ends behind the last of them.
    """
    text, last = text_of(model), max(expansions)

    def arrived(seen: dict[int, Seen], layer: int, output: Tensor) -> None:
        expansion, part = expansions[layer], seen[layer]

        def shaped(values: Tensor) -> Tensor:
            return values.reshape(*rows.shape, -1)[:, text]

        active = is_active(expansion, part)
        take(layer, LayerActivations(shaped(part.neurons), shaped(active), shaped(part.output)))
        for name in vars(part):  # let go of it
            setattr(part, name, None)
        if layer == last:
            raise Enough

    with watching(model, expansions) as seen:
        hooks = [on_output(model.down(layer), partial(arrived, seen, layer)) for layer in expansions]
        with torch.no_grad(), ending_early(), hooked(*hooks):
            options = {} if model.masked else {"use_cache": False}
            model.run(rows, attention_mask=torch.ones_like(rows), **options)


def alike(rows: Sequence[Sequence[int]], tokens: int) -> Iterator[tuple[int, Tensor]]:
    """Rows one after the other, those of one length together, until they hold `tokens` tokens: (first row, ids)."""
    start = 0
    while start < len(rows) and tokens > 0:
        length = len(rows[start])
        most = start + max(1, min(BATCH_TOKENS, tokens) // length)
        end = start + 1
        while end < min(most, len(rows)) and len(rows[end]) == length:
            end += 1
        yield start, torch.tensor(rows[start:end])
        tokens -= (end - start) * length
        start = end


def is_active(expansion: Expansion, seen: Seen) -> Tensor:
    """Which neurons are active, as the top of this file says; the shape of `seen.neurons`."""
    if not rectifies(expansion.act):
        return seen.neurons != 0
    return (seen.gate if expansion.gated else seen.up) > 0


def rectifies(act: Callable[[Tensor], Tensor]) -> bool:
    """Whether a nonlinearity lets what is above 0 through and next to nothing below, as ReLU, GELU and SiLU do."""
    x = torch.linspace(-8, 8, 129)
    y = act(x)
    return bool(y[-1] > 4 and y[x < 0].abs().max() < 0.1 * y[-1])


def definition(expansion: Expansion) -> str:
    """What active means for neurons that are made so, in words."""
    if not rectifies(expansion.act):
        return "not 0: the nonlinearity switches nothing off"
    below = expansion.act(torch.linspace(-8, 0, 1025)).abs().max().item()
    otherwise = "exactly 0 elsewhere" if below == 0 else f"elsewhere the nonlinearity gives at most {below:.2f} in size"
    return f"{'the gate' if expansion.gated else 'the up-projection'} gives more than 0; {otherwise}"


def value_norms(model: Model, layer: int) -> Tensor:
    """‖v‖ of every neuron of a layer, (n_neurons,)."""
    return model.down_weight(layer).detach().float().norm(dim=0).cpu()


@torch.no_grad()
def neurons_at(
    model: Model, rows: Sequence[Sequence[int]], positions: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """The neurons of all layers at one position of each row: indices of some rows, (those rows, n_layers, n_neurons).

    Rows of about one length share a pass. They are padded on the right, which a decoder does not see.
    """
    for batch in batches([len(row) for row in rows], tokens=BATCH_TOKENS):
        yield batch, _neurons_at(model, [rows[i] for i in batch], [positions[i] for i in batch])


def _neurons_at(model: Model, rows: list[Sequence[int]], positions: list[int]) -> Tensor:
    tokens, seen = (t.to(model.device) for t in padded(rows))
    mask = seen if model.masked else torch.ones_like(tokens)
    kept: list[Tensor] = []

    def keep(neurons: Tensor) -> None:
        neurons = neurons.reshape(*tokens.shape, -1)
        kept.append(neurons[torch.arange(len(rows)), positions].float().cpu())
        if len(kept) == model.n_layers:
            raise Enough

    with ending_early(), hooked(*(on_input(model.down(layer), keep) for layer in range(model.n_layers))):
        options = {} if model.masked else {"use_cache": False}
        model.run(tokens, attention_mask=mask, **options)
    return torch.stack(kept, 1)
