"""Run a prompt once, then call any block again with more rows.

A change in layer `l` at position `p` alters nothing below `l` and, in a decoder, nothing before `p`. So a
`Recording` keeps what the blocks received in one clean run of the suffix that starts at `p`, with the keys and
values of everything before it, and `Recording.block` runs one block on as many altered copies ("rows") of that
suffix as one likes. With a single changed position at the end of a prompt a row is a single token.

This is generic over architectures: a block is called with the very arguments that it got in the clean run; those
that grow with the batch (found by the probe) are repeated, and an object with the cache's `update` stands in for
the cache. A model that is not `cached` (a masked one, one with recurrent blocks) has no prefix: its rows are whole
sequences.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...hooks import differentiable, first, hooked, measuring, on_call, on_input, on_output
from ...prompts import Query
from ..adapter import Model


@dataclass
class Recording:
    """One clean run of `ids`, of which the suffix from `start` on can be run again.

    - `inputs[l]`: what block `l` received, (1, suffix, d_model).
    - `neurons[l]`: the input of its down-projection, (suffix, n_neurons).
    - `output`: what the last block gave, (1, suffix, d_model).
    """

    model: Model
    ids: tuple[int, ...]
    start: int
    inputs: list[Tensor]
    neurons: list[Tensor]
    output: Tensor
    calls: list[tuple[tuple, dict]]
    prefix: list[tuple[Tensor, Tensor] | None]

    @property
    def length(self) -> int:
        """Tokens in the suffix."""
        return len(self.ids) - self.start

    def block(self, layer: int, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Run block `layer` on `hidden` (rows, suffix, d_model): copies of the one row that there is."""
        return call_copies(self.model, layer, hidden, self.calls[layer], self.prefix)


@differentiable()
@torch.no_grad()
def record(model: Model, ids: Sequence[int], start: int = 0) -> Recording:
    """Run `ids` once and keep what is needed to run the suffix from token `start` on again.

    Where the model is not `cached`, `start` is taken as 0: in a masked model every token sees every other, and what
    recurrent blocks keep of a prefix cannot be set again.
    """
    ids = tuple(ids)
    start = start if model.cached else 0
    tokens = torch.tensor([ids], device=model.device)
    cache = None
    if start:
        cache = cache_of(model.run(tokens[:, :start], use_cache=True))
    prefix = [keys_values(cache, layer) for layer in range(model.n_layers)]
    calls, inputs, neurons, output = capture(model, tokens[:, start:], cache)
    neurons = [n.reshape(len(ids) - start, -1) for n in neurons]
    return Recording(model, ids, start, inputs, neurons, output, calls, prefix)


def recordings(model: Model, query: Query) -> list[tuple[Recording, list[int], list[int]]]:
    """What reads a query's whole target, recorded from where it is first read on, for `query.rows`.

    Each with the suffix positions of its reads, and the tokens that are read there.
    """
    parts = []
    for row in query.rows(model.masked):
        indices, tokens = (list(column) for column in zip(*row.reads, strict=True))
        recording = record(model, row.ids, min(indices))
        parts.append((recording, [index - recording.start for index in indices], tokens))
    return parts


def capture(
    model: Model, tokens: Tensor, cache=None, mask: Tensor | None = None, **more
) -> tuple[list, list[Tensor], list[Tensor], Tensor]:
    """Run `tokens` (batch, length); return each block's call, hidden input and neurons, and the last block's output.

    `mask` (batch, cached + length) marks what is no padding; `more` goes to the model as it is.
    """
    calls: list[tuple] = []
    neurons: list[Tensor] = []
    outputs: list[Tensor] = []
    hooks = [on_call(block, lambda args, kwargs: calls.append((args, kwargs))) for block in model.blocks]
    hooks += [on_input(model.down(layer), neurons.append) for layer in range(model.n_layers)]
    hooks += [on_output(model.blocks[-1], outputs.append)]
    with differentiable(), hooked(*hooks):
        if model.masked:
            model.run(tokens, attention_mask=torch.ones_like(tokens) if mask is None else mask)
        else:
            model.run(tokens, use_cache=model.cached, attention_mask=mask, **behind(model.text, cache), **more)
    inputs = [args[0] if args else kwargs["hidden_states"] for args, kwargs in calls]
    return calls, inputs, neurons, outputs[-1]


def call_block(model: Model, layer: int, hidden: Tensor, args: tuple, kwargs: dict) -> Tensor:
    """What block `layer` gives for `hidden`, with all other arguments as they were recorded."""
    block = model.blocks[layer]
    with measuring(block):
        return first(block(hidden, *args[1:], **kwargs) if args else block(**{**kwargs, "hidden_states": hidden}))


def call_copies(
    model: Model,
    layer: int,
    hidden: Tensor,
    call: tuple[tuple, dict],
    prefix: list[tuple[Tensor, Tensor] | None],
    rows: Tensor | None = None,
) -> Tensor:
    """What block `layer` gives for `hidden` (rows, suffix, d_model), copies of the `rows` of a recorded call.

    Without `rows` the call had one. Arguments that grow with the batch have an entry for each row, or several (heads).
    """
    n, dims = len(hidden), model.row_dims[layer]
    cache = PrefixCache(prefix, n, rows)

    def widen(path, leaf):
        if is_cache(leaf):
            return cache
        if path not in dims or leaf is None:  # a mask that hides nothing may be left out
            return leaf
        dim = dims[path]
        if leaf.shape[dim] == 1:
            return leaf.expand([n if d == dim else -1 for d in range(leaf.dim())])
        if rows is None:
            return leaf.repeat([n if d == dim else 1 for d in range(leaf.dim())])
        return leaf.unflatten(dim, (call_rows, -1)).index_select(dim, rows.to(leaf.device)).flatten(dim, dim + 1)

    call_rows = len(call[0][0] if call[0] else call[1]["hidden_states"])
    args, kwargs = (map_leaves(widen, part) for part in call)
    return call_block(model, layer, hidden, args, kwargs)


def map_leaves(fn: Callable, tree, path: tuple = ()):
    """`tree` (tuples, lists and dicts) with `fn(path, leaf)` for every leaf."""
    if isinstance(tree, tuple | list):
        return type(tree)(map_leaves(fn, item, (*path, i)) for i, item in enumerate(tree))
    if isinstance(tree, dict):
        return {key: map_leaves(fn, item, (*path, key)) for key, item in tree.items()}
    return fn(path, tree)


def leaves(tree) -> Iterator[tuple[tuple, Any]]:
    """The leaves of `tree` with their paths."""
    pairs = []
    map_leaves(lambda path, leaf: pairs.append((path, leaf)), tree)
    return iter(pairs)


def is_cache(leaf) -> bool:
    return hasattr(leaf, "update") and hasattr(leaf, "get_seq_length")


def behind(module: nn.Module, cache) -> dict:
    """The argument by which a model runs behind `cache`: transformers calls `cache` what was `past_key_values`."""
    known = inspect.signature(module.forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}


def cache_of(output):
    """The cache in what a model gives, under either name."""
    kept = getattr(output, "cache", None)
    return output.past_key_values if kept is None else kept


def keys_values(cache, layer: int) -> tuple[Tensor, Tensor] | None:
    if cache is None:
        return None
    kept = cache.layers[layer]
    return kept.keys, kept.values


class PrefixCache:
    """Stands in for a cache inside one block's call of `n` rows: the prefix that was kept.

    It is that of one row for all, of each row, of several in turn, or of row `rows[r]` for each row `r`.
    """

    def __init__(self, prefix: list[tuple[Tensor, Tensor] | None], n: int, rows: Tensor | None = None):
        self.prefix = prefix
        self.n = n
        self.rows = rows

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        kept = self.prefix[layer_idx]
        if kept is None:
            return keys, values
        old_keys, old_values = (self._widened(t) for t in kept)
        return torch.cat([old_keys, keys], dim=-2), torch.cat([old_values, values], dim=-2)

    def _widened(self, kept: Tensor) -> Tensor:
        if len(kept) == 1:
            return kept.expand(self.n, -1, -1, -1)
        if self.rows is not None:
            return kept.index_select(0, self.rows.to(kept.device))
        return kept if len(kept) == self.n else kept.repeat(self.n // len(kept), 1, 1, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        kept = self.prefix[layer_idx]
        return 0 if kept is None else kept[0].shape[-2]
