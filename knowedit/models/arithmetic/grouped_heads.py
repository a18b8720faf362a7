"""Attention in which several heads of queries read one head of keys, where no keys and values are copied for it.

In float32 a CUDA device has one kernel for attention, and none for heads that share keys: torch and transformers repeat
keys and values, and what is repeated is kept for the gradient. Here the heads that share keys stand one behind the
other as queries of one head, which is the same sum:

    queries (rows, 4 · heads, length, size) → (rows, heads, 4 · length, size)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa"
PLAIN = {"position_bias", "cache", "softcap", "output_attentions"}  # what is left to transformers if it is given


@contextmanager
def grouped_heads() -> Iterator[None]:
    """Models whose attention is torch's take theirs from here while the context lasts."""
    outermost = ALL_ATTENTION_FUNCTIONS[NAME] is not _attention
    if outermost:
        ALL_ATTENTION_FUNCTIONS[NAME] = _attention
    try:
        yield
    finally:
        if outermost and ALL_ATTENTION_FUNCTIONS[NAME] is _attention:
            del ALL_ATTENTION_FUNCTIONS[NAME]  # transformers' own is beneath


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **more
) -> tuple[Tensor, None]:
    """As `sdpa_attention_forward` of transformers, which is called for all that needs no keys more than once."""
    groups, length = query.shape[1] // key.shape[1], query.shape[2]
    unmasked = attention_mask is None and length > 1  # is causal, or not, as the module says
    if groups == 1 or unmasked or any(more.get(name) is not None for name in PLAIN):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    rows, heads, _, size = query.shape
    grouped = query.reshape(rows, heads // groups, groups * length, size)
    out = scaled_dot_product_attention(
        grouped,
        key,
        value,
        attn_mask=_grouped_mask(attention_mask, groups),
        dropout_p=more.get("dropout") or 0.0,
        scale=more.get("scaling"),
    )
    return out.reshape(rows, heads, length, -1).transpose(1, 2).contiguous(), None


def _grouped_mask(mask: Tensor | None, groups: int) -> Tensor | None:
    """A mask (rows, heads or 1, length, keys) for the queries of several heads one behind the other."""
    if mask is None or (mask.shape[1] == 1 and mask.shape[2] == 1):
        return mask
    rows, heads, length, keys = mask.shape
    if heads == 1:
        return mask[:, :, None].expand(rows, 1, groups, length, keys).reshape(rows, 1, groups * length, keys)
    return mask.reshape(rows, heads // groups, groups * length, keys)
