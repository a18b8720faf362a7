"""Knockouts: what an answer becomes when some tokens may not be attended to, or a sublayer writes nothing.

*Attention knockout* (Geva et al. 2023, section 5) blocks the edges from a set of tokens to the read position in a
window of layers around each layer l. *Sublayer knockout* (their section 6) sets what the MLPs, or the attention, of
such a window write at a token to zero. Both are told by the relative change of the target's probability, p′/p − 1.

    found = attention_knockout(model, model.query("The capital of France is", "Paris", "France"))
    found.change("subject")            # by layer, the centre of the window

All windows and sets run in one growing sweep: a row joins at the first layer of its window, and begins at the first
token that it changes. Blocking what the last token sees changes the last token only, so such a row is one token. A
target of several tokens counts as a whole, its read positions blocked together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError, did_you_mean
from ...hooks import Register, hooked, on_output
from ...models.adapter import Model
from ...models.length import check_length
from ...models.passes.batches import fitting_tokens, halving
from ...models.passes.objective import Objective, read_rows
from ...models.passes.replay import Recording, record
from ...models.passes.sweep import counts, sweep
from ...prompts import Query, Row
from .attention_mask import check_blocking, check_sight, on_blocked

SHARE = 0.18  # of the layers in a window: the paper's 9 of 48 (GPT-2 XL) and 5 of 28 (GPT-J)
SWEEP_TOKENS = 2048  # that go through a layer at once
SUBLAYERS = ("mlp", "attention")
Values = TypeVar("Values")


@dataclass(frozen=True)
class AttentionKnockout:
    """One knockout: in `layers`, no token of `queries` sees any of `sources` (token indices)."""

    layers: tuple[int, ...]
    queries: tuple[int, ...]
    sources: tuple[int, ...]

    @property
    def start(self) -> int:
        return min(self.queries)


@dataclass(frozen=True)
class SublayerKnockout:
    """One knockout: in `layers`, the sublayer `mlp` or `attention` writes nothing at `positions` (token indices)."""

    layers: tuple[int, ...]
    sublayer: str
    positions: tuple[int, ...]

    def __post_init__(self):
        if self.sublayer not in SUBLAYERS:
            raise InputError(f"sublayer {self.sublayer!r} is not {' or '.join(SUBLAYERS)}")

    @property
    def start(self) -> int:
        return min(self.positions)


Cut = AttentionKnockout | SublayerKnockout


@dataclass(frozen=True)
class Knockout:
    """The target's probability after knockouts, by layer.

    - `probability`: of the target, nothing knocked out.
    - `window`: layers in a window; `after[name][l]` is the probability with the window around layer `l` knocked out.
    - `tokens[name]`: the token indices that a set's name stands for.
    """

    probability: float
    window: int
    tokens: dict[str, tuple[int, ...]]
    after: dict[str, tuple[float, ...]]

    def change(self, name: str) -> list[float | None]:
        """p′/p − 1 by layer; None where the target had no probability to lose."""
        if name not in self.after:
            names = ", ".join(self.after)
            raise InputError(f"no knockout is called {name!r}{did_you_mean(name, self.after)}; there are {names}")
        return [p / self.probability - 1 if self.probability else None for p in self.after[name]]

    def worst(self, name: str) -> tuple[int, float | None]:
        """The layer around which the knockout costs most, and its change."""
        layer = int(np.argmin(self.after[name]))
        return layer, self.change(name)[layer]

    def as_dict(self) -> dict:
        sets = {
            name: {"tokens": list(self.tokens[name]), "probability": list(p), "change": self.change(name)}
            for name, p in self.after.items()
        }
        return {"probability": self.probability, "window": self.window, "sets": sets}


def attention_knockout(
    model: Model,
    query: Query,
    *,
    sources: Mapping[str, Sequence[int]] | None = None,
    queries: Sequence[int] | None = None,
    window: int | None = None,
) -> Knockout:
    """Block what the read position sees, one set of `sources` at a time, around every layer.

    **Arguments:**

    - `sources`: token indices by name; `source_sets(query)` unless given.
    - `queries`: the token indices whose view is blocked; the read positions unless given.
    - `window`: layers in a window; some 18 % of all unless given.

    Raises `InputError` for a wrong window or token, a prompt without subject where `sources` are not given, a prompt
    longer than the context, and a set that leaves nothing to attend to; `ModelError` where attention cannot be blocked.
    """
    width = check_window(model, window)
    sets = {name: check_tokens(query, s) for name, s in (source_sets(query) if sources is None else sources).items()}
    seeing = check_tokens(query, [step.read for step in query.steps] if queries is None else queries)
    cuts = [
        AttentionKnockout(layers, seeing, tokens)
        for tokens in sets.values()
        for layers in windows(model.n_layers, width)
    ]
    return _knockout(model, query, width, sets, cuts)


def sublayer_knockout(
    model: Model, query: Query, *, positions: Sequence[int] | None = None, window: int | None = None
) -> Knockout:
    """Let the MLPs, then the attention, write nothing at `positions` (the lookup position) around every layer.

    Raises `InputError` as `attention_knockout` does.
    """
    width = check_window(model, window)
    positions_cut = check_tokens(query, [query.prompt.position("lookup")] if positions is None else positions)
    cuts = [
        SublayerKnockout(layers, name, positions_cut) for name in SUBLAYERS for layers in windows(model.n_layers, width)
    ]
    return _knockout(model, query, width, dict.fromkeys(SUBLAYERS, positions_cut), cuts)


def source_sets(query: Query) -> dict[str, tuple[int, ...]]:
    """The paper's sets: `subject`, `relation` (every other token before) and `last` (the read positions themselves).

    `first`, the prompt's first token alone, is there besides: many models rest their attention on it, and it belongs to
    one of the others. A set without tokens is left out. Raises `InputError` for a prompt without subject.
    """
    prompt = query.prompt
    if prompt.subject is None:
        raise InputError("knocking out the subject needs a subject: name it with --subject (or subject=)")
    last = tuple(step.read for step in query.steps)
    subject = tuple(i for i in range(*prompt.subject) if i not in last)
    relation = tuple(i for i in range(len(query.steps[-1].ids)) if i not in last and i not in subject)
    first = (0,) if 0 not in last else ()
    sets = {"subject": subject, "relation": relation, "last": last, "first": first}
    return {name: tokens for name, tokens in sets.items() if tokens}


def windows(n_layers: int, width: int) -> list[tuple[int, ...]]:
    """The window of at most `width` layers around every layer, cut off at the ends of the model."""
    starts = [layer - width // 2 for layer in range(n_layers)]
    return [tuple(range(max(0, start), min(n_layers, start + width))) for start in starts]


def check_window(model: Model, window: int | None) -> int:
    """`window`, or by default some 18 % of the layers. Raises `InputError` where the model has not so many."""
    if window is None:
        return max(1, round(SHARE * model.n_layers))
    if not isinstance(window, int) or not 1 <= window <= model.n_layers:
        raise InputError(f"a window of {window!r} layers, expected 1 to {model.n_layers}, what {model.name} has")
    return window


def check_tokens(query: Query, tokens: Sequence[int]) -> tuple[int, ...]:
    """`tokens` in order. Raises `InputError` where there are none or the prompt has not so many."""
    length = len(query.steps[-1].ids)
    if not len(tokens) or not all(isinstance(i, int) and 0 <= i < length for i in tokens):
        raise InputError(f"tokens {list(tokens)!r} are not indices into the prompt's {length} tokens")
    return tuple(sorted(set(tokens)))


def _knockout(model: Model, query: Query, width: int, sets: dict, cuts: Sequence[Cut]) -> Knockout:
    clean, after = knocked_out(model, query, cuts)
    rows = after.reshape(len(sets), model.n_layers).tolist()
    return Knockout(clean, width, sets, {name: tuple(row) for name, row in zip(sets, rows, strict=True)})


def knocked_out(model: Model, query: Query, cuts: Sequence[Cut]) -> tuple[float, np.ndarray]:
    """The target's probability, and with each of any `cuts`, (cuts,). One that cuts nothing changes nothing."""
    check_length(model, query.steps[-1].ids)
    if any(isinstance(cut, AttentionKnockout) for cut in cuts):
        check_blocking(model, query.prompt.ids)
    parts = [_run(model, row, cuts) for row in query.rows(model.masked)]
    clean, after = (np.prod(values, axis=0) for values in zip(*parts, strict=True))
    return float(clean), after


@torch.no_grad()
def _run(model: Model, row: Row, cuts: Sequence[Cut]) -> tuple[float, np.ndarray]:
    reads = [index for index, _ in row.reads]
    objectives = [Objective("probability", token) for _, token in row.reads]
    by_start: dict[int, list[int]] = {reads[0]: []}
    for i, cut in enumerate(cuts):
        if cut.layers:
            by_start.setdefault(min(cut.start, reads[0]) if model.cached else 0, []).append(i)
    clean, after = None, np.zeros(len(cuts))
    for start, chosen in by_start.items():
        recording = record(model, row.ids, start)
        at = [read - recording.start for read in reads]
        if clean is None:
            clean = read_rows(model, recording.output, at, objectives).value.item()
            after[:] = clean
        read = partial(read_rows, model, reads=at, objectives=objectives)
        for rows, knocked in swept(recording, cuts, chosen, read):
            after[rows] = knocked.value.double().cpu().numpy()
    return clean, after


def swept(
    recording: Recording,
    cuts: Sequence[Cut],
    chosen: Sequence[int],
    read: Callable[[Tensor], Values],
    extra: Sequence[Register] = (),
) -> Iterator[tuple[list[int], Values]]:
    """Run the `chosen` of `cuts` upward; yield (which, what `read` makes of their states) part by part.

    `read` is given the last block's output (rows, suffix, d_model), rows in the order in which they join. `extra` hooks
    are there during each sweep.
    """

    def work(part: list[int]) -> Values:
        batch = [cuts[i] for i in part]
        joining = counts([min(cut.layers) for cut in batch], recording.model.n_layers)
        blind: list[tuple[int, Tensor]] = []
        with hooked(*_hooks(recording, batch, np.cumsum(joining), blind), *extra):
            hidden = sweep(recording, joining, lambda _, neurons: neurons)
            check_sight(blind)
        return read(hidden)

    order = sorted(chosen, key=lambda i: min(cuts[i].layers))
    size = max(1, fitting_tokens(recording.model, SWEEP_TOKENS) // recording.length)
    parts = (order[first : first + size] for first in range(0, len(order), size))
    yield from halving(recording.model, parts, work, "knockouts")


def _hooks(
    recording: Recording, cuts: list[Cut], joined: np.ndarray, blind: list[tuple[int, Tensor]]
) -> list[Register]:
    """The hooks of all layers; of `cuts`, the first `joined[l]` have joined by layer `l`."""
    model, length, start = recording.model, recording.length, recording.start
    active = np.zeros((model.n_layers, len(cuts)), bool)
    edges = np.zeros((len(cuts), length, len(recording.ids)), bool)
    silent = {name: np.zeros((len(cuts), length), bool) for name in SUBLAYERS}
    for row, cut in enumerate(cuts):
        active[list(cut.layers), row] = True
        if isinstance(cut, SublayerKnockout):
            silent[cut.sublayer][row, [i - start for i in cut.positions]] = True
        else:
            edges[row, [[i - start] for i in cut.queries], list(cut.sources)] = True
    hooks = []
    for layer in range(model.n_layers):
        on = active[layer, : joined[layer]]
        blocked = edges[: len(on)] & on[:, None, None]
        if blocked.any():
            hooks.append(on_blocked(model, layer, torch.from_numpy(blocked), blind))
        for name, module in (("mlp", model.down), ("attention", model.heads)):
            zero = silent[name][: len(on)] & on[:, None]
            if zero.any():
                hooks.append(on_output(module(layer), _zeroing(torch.from_numpy(zero))))
    return hooks


def _zeroing(zero: Tensor):
    def patch(x: Tensor) -> Tensor:  # some families flatten rows and tokens
        return x.masked_fill(zero.to(x.device).reshape(*x.shape[:-1], 1), 0)

    return patch
