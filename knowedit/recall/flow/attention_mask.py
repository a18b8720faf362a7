"""Block edges of attention: a token is kept from seeing others, in chosen layers.

    softmax(Q Kᵀ / √d + M),    M_qk = −∞ where token q may not see token k    (Geva et al. 2023, section 4)

Every family hands its blocks a mask of its own: none at all where the kernel is causal by itself, booleans with either
meaning, numbers that are added and may hold ALiBi's slopes, windows that slide, keys that a sliding cache has dropped.
The edges are blocked in whatever a block was given, so everything else about its attention stays as it is.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from ...errors import InputError, ModelError
from ...hooks import Register, hooked
from ...models.adapter import Model
from ...models.passes.replay import is_cache, leaves, record

_MASK = "attention_mask"
PROBE_TOKENS = 4
_KERNELS = ("sdpa", "eager")


def on_blocked(model: Model, layer: int, blocked: Tensor, blind: list[tuple[int, Tensor]]) -> Register:
    """Block edges in `layer`: `blocked` (rows or 1, queries, tokens), True where a query may not see a token.

    Queries are the tokens that the block is called with, the last ones of all `tokens`. For `hooks.hooked`. Each run
    adds to `blind` whether a token is left nothing to see, for `check_sight`. Raises `ModelError` where the block takes
    no mask.
    """
    block = model.blocks[model.check_layer(layer)]
    place = _place(model, block)

    def pre_hook(_, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        given_mask = args[place] if place < len(args) else kwargs.get(_MASK)
        if given_mask is None:
            cached = next((c.get_seq_length(layer) for _, c in leaves([args, kwargs]) if is_cache(c)), 0)
            given_mask = _unmasked(hidden, cached, causal=not model.masked)
        mask, seen = _with_blocked(model, given_mask, blocked.to(given_mask.device))
        blind.append((layer, ~seen.any(-1).all()))
        if place < len(args):
            return (*args[:place], mask, *args[place + 1 :]), kwargs
        return args, {**kwargs, _MASK: mask}

    return lambda bound: block.register_forward_pre_hook(bound(pre_hook), with_kwargs=True)


def check_sight(blind: list[tuple[int, Tensor]]) -> None:
    """Raise `InputError` where a token was left nothing to see: one read for all layers."""
    layers = [layer for layer, _ in blind]
    flags = torch.stack([flag.to(blind[-1][1].device) for _, flag in blind]).tolist() if blind else []
    for layer in (layer for layer, flag in zip(layers, flags, strict=True) if flag):
        raise InputError(f"the knockout leaves a token nothing to attend to in layer {layer}; block fewer tokens")


def _place(model: Model, block) -> int:
    """Where a block's call has its mask, if not by name."""
    kernel = getattr(model.hf.config, "_attn_implementation", None)
    if kernel is not None and kernel not in _KERNELS:
        raise ModelError(
            f"the attention of {model.name} is {kernel}, in which no single edge can be blocked; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
    names = list(inspect.signature(getattr(block, "_orig_mod", block).forward).parameters)  # of a compiled block's own
    if _MASK not in names:
        raise ModelError(f"the blocks of {model.name} take no {_MASK}, so no edge of their attention can be blocked")
    return names.index(_MASK)


def _unmasked(hidden: Tensor, cached: int, causal: bool) -> Tensor:
    """The mask of a block that was given none, (1, 1, queries, keys)."""
    queries = hidden.shape[1]
    seen = torch.ones(queries, cached + queries, dtype=torch.bool, device=hidden.device)
    seen = seen.tril(cached) if causal else seen
    return torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)[None, None]


def _with_blocked(model: Model, given_mask: Tensor, blocked: Tensor) -> tuple[Tensor, Tensor]:
    """A block's mask with more edges blocked, and what is left to see, (rows, 1, queries, keys)."""
    if given_mask.dim() != 4:
        raise ModelError(
            f"the attention of {model.name} has a mask of shape {tuple(given_mask.shape)}, expected one for every "
            "edge; load the model with attn_implementation='sdpa' or 'eager'"
        )
    queries, keys = blocked.shape[-2], given_mask.shape[-1]
    blocked = blocked[:, None, :, -keys:]  # a sliding cache has dropped the first keys
    if given_mask.dtype == torch.bool:
        square = given_mask.expand(*given_mask.shape[:2], queries, keys)
        sees = square.diagonal(keys - queries, -2, -1).all()  # every token sees itself: this tells what True means
        seen = (given_mask == sees) & ~blocked
        return seen == sees, seen
    least = torch.finfo(given_mask.dtype).min
    return given_mask.masked_fill(blocked, least), (given_mask > least / 2) & ~blocked


@torch.no_grad()
def check_blocking(model: Model, ids: tuple[int, ...]) -> None:
    """Raise `ModelError` unless a token that may see only itself is the same whatever the others are.

    Tried on the first of `ids`, in one layer of every kind.
    """
    recording = record(model, ids[:PROBE_TOKENS])
    length = recording.length
    if length < 2:
        return
    blocked = torch.zeros(1, length, length, dtype=torch.bool)
    blocked[:, -1, :-1] = True
    kinds = {(type(model.blocks[layer]), type(model.attention(layer))): layer for layer in range(model.n_layers)}
    for layer in kinds.values():
        hidden = recording.inputs[layer].repeat(2, 1, 1)
        hidden[1, :-1] *= -1
        with hooked(on_blocked(model, layer, blocked, [])):
            outputs = recording.block(layer, hidden)[:, -1]
        gap = (outputs[0] - outputs[1]).abs().max().item()
        scale = outputs[0].abs().max().item() or 1.0
        if not gap <= (1e-4 if model.dtype in (torch.float32, torch.float64) else 5e-2) * scale:
            raise ModelError(
                f"attention cannot be blocked in {model.name}: layer {layer} sees tokens that its mask hides; "
                "load the model with attn_implementation='eager'"
            )
