"""transformers 5.24 calls `cache` what was `past_key_values`; both names are taken."""

from types import SimpleNamespace

import pytest
from torch import nn

from knowedit.models.passes.replay import behind, cache_of


class Older(nn.Module):
    def forward(self, input_ids, past_key_values=None): ...


class Newer(nn.Module):
    def forward(self, input_ids, cache=None, **kwargs): ...


@pytest.mark.parametrize("module, name", [(Older(), "past_key_values"), (Newer(), "cache")])
def test_a_cache_goes_in_and_comes_out_by_its_name(module, name):
    kept = object()
    assert behind(module, kept) == {name: kept}
    assert cache_of(SimpleNamespace(**{name: kept})) is kept
