"""Heads that share keys, as queries of one head: what transformers gives, whatever the mask."""

from types import SimpleNamespace

import pytest
import torch
from support.rounding import assert_near
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from knowedit.models.arithmetic import grouped_heads as module
from knowedit.models.arithmetic.grouped_heads import grouped_heads


def tensors(length: int, keys: int, heads: int = 2):
    torch.manual_seed(length)
    shapes = (3, 6, length, 8), (3, heads, keys, 8), (3, heads, keys, 8)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def mask(heads: int, length: int, keys: int) -> torch.Tensor:
    hidden = torch.rand(3, heads, length, keys) < 0.4
    hidden[..., 0] = False
    return torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -torch.inf)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("heads_of_mask", [None, 1, 6])
def test_attention_and_its_gradient_are_those_of_transformers(length, heads_of_mask):
    block = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    masks = None if heads_of_mask is None else mask(heads_of_mask, length, 9)
    results = []
    for attention in (sdpa_attention_forward, module._attention):
        inputs = tensors(length, 9)
        out, _ = attention(block, *inputs, masks, scaling=0.3, dropout=0.0, sliding_window=None)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for one, plain in zip(results[1], results[0], strict=True):
        assert_near(one, plain)


def test_keys_are_read_where_they_are(monkeypatch):
    read = []
    original = module.scaled_dot_product_attention
    monkeypatch.setattr(
        module, "scaled_dot_product_attention", lambda q, k, v, **m: read.append(k) or original(q, k, v, **m)
    )
    block = SimpleNamespace(num_key_value_groups=3, is_causal=True)
    query, key, value = tensors(1, 9)
    module._attention(block, query, key, value, None)
    assert read[0] is key


def test_they_are_torch_s_for_as_long_as_the_context_lasts():
    with grouped_heads():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is module._attention
        with grouped_heads():
            pass
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is module._attention
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
