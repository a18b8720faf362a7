"""Patterns of attention are distributions over what a token may see, and leave the model as it was."""

import pytest
import torch
from support.tiny import FAMILIES, PROMPT, SUBJECT, tiny

from knowedit import ModelError
from knowedit.recall.flow import attention_pattern


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_each_head_shares_itself_out_over_what_it_may_see(family):
    model = tiny(family)
    prompt = model.encode(PROMPT, SUBJECT)
    kernel = model.hf.config._attn_implementation
    ids = torch.tensor([prompt.ids])
    before = model.hf(ids).logits
    if family == "falcon":  # whose plain kernel in transformers sees what comes later
        with pytest.raises(ModelError, match="does not give out"):
            attention_pattern(model, prompt, 1)
        return
    for position in ("read", 2):
        place = prompt.position(position)
        pattern = attention_pattern(model, prompt, 1, position)
        assert pattern.shape == (model.n_heads, len(prompt.ids)) and (pattern >= 0).all()
        assert torch.allclose(pattern.sum(1), torch.ones(model.n_heads), atol=1e-5)
        if not model.masked:
            assert not pattern[:, place + 1 :].any()
    assert model.hf.config._attn_implementation == kernel and torch.equal(model.hf(ids).logits, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())
