"""A decoder says the same behind a cache of fixed size, whose steps a CUDA device replays, as behind one that grows."""

import pytest
import torch
from support.rounding import PASS, assert_near
from support.tiny import FAMILIES, double, tiny

from knowedit.models.passes import decoding as module
from knowedit.models.passes.decoding import decoding

DECODERS = [family for family in FAMILIES if not tiny(family).masked]
TOKENS = torch.tensor([[5, 9, 11, 7, 3, 8], [6, 9, 2, 7, 30, 8]])


def said(model):
    following = decoding(model, rows=2, tokens=6)
    with torch.no_grad():
        return following, [following(TOKENS[:, i : i + 1]).clone() for i in range(6)]


@pytest.mark.parametrize("family", DECODERS)
def test_equals_the_model_run_on_all_tokens(family, monkeypatch):
    with double():
        model = tiny(family, torch.float64)
        whole = model.hf(input_ids=TOKENS).logits.unbind(1)
        growing, plain = said(model)
        monkeypatch.setattr(module, "capturing", lambda model: True)
        monkeypatch.setattr(module, "captured", lambda work: work)
        fixed, steps = said(model)
        assert type(growing) is not type(fixed) or module._fixed(model, 6) is None
        for one, two, three in zip(whole, plain, steps, strict=True):
            assert_near(two, one, operations=PASS)
            assert_near(three, one, operations=PASS)


def test_some_models_count_in_python_and_keep_a_cache_that_grows():
    held = {
        family: module._fixed(tiny(family), 6) is not None
        for family in ("llama", "gpt2", "gpt_neo", "gemma2", "mistral")
    }
    assert held == {"llama": True, "gpt2": True, "gpt_neo": False, "gemma2": False, "mistral": False}
