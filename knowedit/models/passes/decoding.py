"""One token after another: what a decoder makes of each, behind those that it was given before.

    following = decoding(model, rows=64, tokens=128)
    logits = following(first)           # (rows, 1) → (rows, vocabulary)
    logits = following(logits.argmax(1, keepdim=True))

On a CUDA device keys and values stand in a cache of fixed size, and one step is captured and replayed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...hooks import measuring
from ..adapter import Model
from .captured import captured, capturing
from .replay import behind, cache_of


def decoding(model: Model, rows: int, tokens: int) -> Callable[[Tensor], Tensor]:
    """What gives the logits (rows, vocabulary) behind the next token of each row (rows, 1), `tokens` times at most."""
    if capturing(model) and tokens > 2 and _agrees(model, rows, tokens):
        return _Captured(model, _fixed(model, tokens), rows)
    return _Growing(model)


def _agrees(model: Model, rows: int, tokens: int) -> bool:
    """Whether the model says the same behind a cache of fixed size: some families' versions do not, without a word."""
    fixed = _fixed(model, tokens)
    if fixed is None:
        return False
    growing, token = _Growing(model), torch.zeros(rows, 1, dtype=torch.long, device=model.device)
    for _ in range(2):
        logits = growing(token)
        try:
            others = _step(model, token, fixed).logits[:, -1]
        except (RuntimeError, ValueError, IndexError):
            return False
        allowed = torch.finfo(logits.dtype).eps ** 0.5 * logits.abs().max()
        if not (others - logits).abs().max() <= allowed:
            return False
    return True


def _fixed(model: Model, tokens: int):
    """A cache of fixed size; None where the model cannot work with one, or counts its tokens in Python."""
    from transformers.cache_utils import StaticCache, StaticLayer

    if not getattr(model.hf, "_can_compile_fullgraph", False):
        return None
    cache = StaticCache(config=model.hf.config, max_cache_len=tokens)
    return cache if all(type(layer) is StaticLayer for layer in cache.layers) else None


def _step(model: Model, tokens: Tensor, cache):
    with measuring(model.hf):
        return model.hf(input_ids=tokens, use_cache=True, **behind(model.hf, cache))


class _Growing:
    """With a cache that grows."""

    def __init__(self, model: Model):
        self.model, self.cache = model, None

    def __call__(self, tokens: Tensor) -> Tensor:
        out = _step(self.model, tokens, self.cache)
        self.cache = cache_of(out)
        return out.logits[:, -1]


class _Captured:
    """With a cache of fixed size, in which each step writes where the one before it ended."""

    def __init__(self, model: Model, cache, rows: int):
        self.model, self.cache = model, cache
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self.logits: Tensor | None = None
        self.replay: Callable[[], None] | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        if self.logits is None:
            self.logits = _step(self.model, self.tokens, self.cache).logits[:, -1].clone()
            return self.logits
        if self.replay is None:
            self.replay = captured(self._step)
        self.replay()
        return self.logits

    def _step(self) -> None:
        self.logits.copy_(_step(self.model, self.tokens, self.cache).logits[:, -1])
