"""Run several different rows of tokens once, then run their suffixes again from any block.

The rows of a `Batch` are what the edit of one or many facts is optimised on. All rows start to change at one token
each (their lookup positions), so they are aligned there: prefixes are padded on the left and run once, their keys and
values kept; suffixes are padded on the right. Positions are the true ones and padding is masked, so every row gives
what it gives alone. A model that is not `cached` has no prefix: its rows are whole sequences.

    column      0 1 2 | 3 4 5 6
    row 0       · · · | a b c d        lookup token a, at the start of the prompt
    row 1       x y z | a b c d        the same behind a context
    row 2       · x y | e f · ·        another fact
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapter import Model
from .batches import bytes_per_token, padded
from .replay import PrefixCache, cache_of, call_block, call_copies, capture, is_cache, keys_values, map_leaves


@dataclass
class Batch:
    """One clean run of token rows.

    - `columns[r]`: the column of row `r`'s token `starts[r]` in the suffix: 0 in a decoder.
    - `offsets[r]`: what is added to a token index of row `r` to give its column.
    - `inputs[l]`: what block `l` received, (rows, suffix, d_model); `neurons[l]`: (rows, suffix, n_neurons).
    - `output`: what the last block gave, (rows, suffix, d_model).
    """

    model: Model
    columns: Tensor
    offsets: Tensor
    inputs: list[Tensor]
    neurons: list[Tensor]
    output: Tensor
    calls: list[tuple[tuple, dict]]
    prefix: list[tuple[Tensor, Tensor] | None]
    suffix: _Suffix
    buffers: dict[int, tuple[_Buffer, _Buffer]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.columns)

    @torch.no_grad()
    def only(self, rows: Sequence[int]) -> Batch:
        """The batch of some of its rows: their prefixes stay, their suffixes are run once more."""
        return _run(self.model, self.suffix.only(list(rows)), self.columns[rows], self.offsets[rows])

    @property
    def length(self) -> int:
        """Columns of the suffix."""
        return self.inputs[0].shape[1]

    def bytes_per_row(self) -> int:
        """About how much one row keeps alive in one layer while its gradient is computed: a budget, not an account."""
        kept = self.prefix[0]
        kv = 0 if kept is None else sum(t[0].numel() for t in kept)
        return self.length * bytes_per_token(self.model) + self.model.dtype.itemsize * kv

    def block(self, layer: int, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run block `layer` on `hidden` (rows, suffix, d_model): the batch's own rows, or copies of its `rows`.

        For its own rows a block writes keys and values over those of its last call, so the gradient of one call is
        taken before the next is made.
        """
        if rows is not None:
            return call_copies(self.model, layer, hidden, self.calls[layer], self.prefix, rows)
        cache = PrefixBuffers(self.prefix, self.buffers)
        args, kwargs = map_leaves(lambda _, leaf: cache if is_cache(leaf) else leaf, self.calls[layer])
        return call_block(self.model, layer, hidden, args, kwargs)


class PrefixBuffers(PrefixCache):
    """Stands in for a cache: keys and values of a prefix stand in buffers, where those of the suffix are written."""

    def __init__(self, prefix: list[tuple[Tensor, Tensor] | None], buffers: dict[int, tuple[_Buffer, _Buffer]]):
        super().__init__(prefix, 0)
        self.buffers = buffers

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        kept = self.prefix[layer_idx]
        if kept is None:
            return keys, values
        if layer_idx not in self.buffers:
            self.buffers[layer_idx] = (_Buffer(kept[0], keys), _Buffer(kept[1], values))
        of_keys, of_values = self.buffers[layer_idx]
        return _Written.apply(keys, of_keys), _Written.apply(values, of_values)


class _Buffer:
    """Keys or values of a prefix, with room for those of a suffix: `whole`, and the room as a view of it, `end`."""

    def __init__(self, prefix: Tensor, suffix: Tensor):
        self.whole = torch.cat([prefix, suffix.detach()], -2)
        self.end = self.whole[..., prefix.shape[-2] :, :]


class _Written(torch.autograd.Function):
    """All that a buffer holds (…, width + suffix, size), when `new` (…, suffix, size) was written into it."""

    @staticmethod
    def forward(ctx, new: Tensor, buffer: _Buffer) -> Tensor:
        ctx.suffix = new.shape[-2]
        buffer.end.copy_(new)
        return buffer.whole.detach()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[..., -ctx.suffix :, :], None


@dataclass
class _Suffix:
    """What is run: `tokens` (rows, suffix) behind `width` columns of prefix, whose keys and values are in `cache`;
    `seen` (rows, width + suffix) is 1 where there is no padding; true `positions` (rows, suffix)."""

    tokens: Tensor
    seen: Tensor
    positions: Tensor
    width: int
    cache: object | None

    def only(self, rows: list[int]) -> _Suffix:
        """Some of the rows, without the columns that only others needed."""
        length = int(self.seen[rows, self.width :].sum(1).max())
        cache = _copied(self.cache)
        if cache is not None:
            cache.batch_select_indices(torch.tensor(rows, device=cache.layers[0].keys.device))
        return _Suffix(
            self.tokens[rows, :length],
            self.seen[rows, : self.width + length],
            self.positions[rows, :length],
            self.width,
            cache,
        )


def _copied(cache):
    """A cache that holds the same tensors; running tokens makes a cache hold other ones."""
    if cache is None:
        return None
    cache = copy(cache)
    cache.layers = [copy(layer) for layer in cache.layers]
    return cache


@torch.no_grad()
def record_batch(
    model: Model, rows: Sequence[Sequence[int]], starts: Sequence[int], columns: tuple[int, int] = (0, 0)
) -> Batch:
    """Run `rows` of token ids once and keep what is needed to run each again from its token `starts[r]` on.

    `columns`: of prefix and of suffix, at least. Where these are more than any row needs, what a row gives is the same
    to the bit whatever the others are, as far as the device's kernels allow.
    """
    if not model.cached:
        tokens, seen = padded(rows, columns=columns[1])
        whole = _Suffix(tokens, seen, torch.arange(tokens.shape[1]).expand_as(tokens), 0, None)
        return _run(model, whole, torch.tensor(starts), torch.zeros(len(rows), dtype=torch.long))
    lengths = torch.tensor(starts)
    width = max(columns[0], *starts)
    suffixes = [row[start:] for row, start in zip(rows, starts, strict=True)]
    tokens, seen = padded(suffixes, columns=columns[1])
    cache = None
    if width:
        prefixes = [row[:start] for row, start in zip(rows, starts, strict=True)]
        prefix, before = padded(prefixes, left=True, columns=width)
        arguments = mask_arguments(model, before, before.cumsum(1) - 1)
        cache = cache_of(model.run(prefix.to(model.device), use_cache=True, **arguments))
        seen = torch.cat([before, seen], 1)
    positions = lengths[:, None] + torch.arange(tokens.shape[1])
    suffix = _Suffix(tokens, seen, positions, width, cache)
    return _run(model, suffix, torch.zeros(len(rows), dtype=torch.long), -lengths)


def _run(model: Model, suffix: _Suffix, columns: Tensor, offsets: Tensor) -> Batch:
    cache = _copied(suffix.cache)
    tokens = suffix.tokens.to(model.device)
    if model.masked:
        calls, inputs, neurons, output = capture(model, tokens, mask=suffix.seen.to(model.device))
    else:
        arguments = mask_arguments(model, suffix.seen, suffix.positions)
        calls, inputs, neurons, output = capture(model, tokens, cache, arguments.pop("attention_mask"), **arguments)
    return Batch(
        model=model,
        columns=columns,
        offsets=offsets,
        inputs=inputs,
        neurons=[n.reshape(*tokens.shape, -1) for n in neurons],
        output=output,
        calls=[map_leaves(partial(_additive, model), call) for call in calls],
        prefix=[keys_values(suffix.cache, layer) for layer in range(model.n_layers)],
        suffix=suffix,
    )


def _additive(model: Model, path: tuple, leaf: Any) -> Any:
    """A mask of booleans (rows, 1, suffix, columns) as what attention adds for it, which it would make in each call."""
    booleans = torch.is_tensor(leaf) and leaf.dtype == torch.bool and leaf.dim() == 4
    if not booleans or model.config._attn_implementation != "sdpa":
        return leaf
    return torch.zeros_like(leaf, dtype=model.dtype).masked_fill(~leaf, -math.inf)


def mask_arguments(model: Model, mask: Tensor, positions: Tensor) -> dict:
    """The mask where anything is padding, and true positions where the model takes them (others follow the mask)."""
    arguments = {"attention_mask": None if mask.all() else mask.to(model.device)}
    if "position_ids" in inspect.signature(model.text.forward).parameters:
        arguments["position_ids"] = positions.clamp(min=0).to(model.device)
    return arguments
