"""Every parameter is counted once, operations are torch's own count, and published shapes give published numbers."""

import json
import re

import pytest
import torch
from support.tiny import FAMILIES, hf, tiny
from torch.utils.flop_counter import FlopCounterMode

from knowedit import InputError, ModelError
from knowedit.mlp.accounting import SHAPES, account, account_config

# dense layers between the last block and the unembedding, and OPT's around its narrower embedding
HEADS = re.compile(r"predictions\.transform\.dense|lm_head\.dense|vocab_transform|project_(in|out)|^head\.dense")


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_once_and_operations_as_torch_counts_them(family):
    model = tiny(family, attn_implementation="eager")
    tokens = 9
    found = account(model, tokens)
    assert found.parameters == sum(p.numel() for p in model.hf.parameters())
    assert all(part.parameters >= 0 for part in found.parts.values())
    blocks = sum(p.numel() for block in model.blocks for p in block.parameters())
    inside = found.parts["mlp"].parameters + found.parts["attention"].parameters
    vectors = sum(p.numel() for block in model.blocks for p in block.parameters() if p.dim() == 1)
    assert blocks - vectors <= inside <= blocks
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ids = torch.ones(1, tokens, dtype=torch.long)
        model.hf(input_ids=ids, attention_mask=torch.ones_like(ids))
    counted = counter.get_total_flops() / tokens
    head = sum(2 * p.numel() for n, p in model.hf.named_parameters() if p.dim() == 2 and HEADS.search(n))
    rotary = counted - head - found.flops  # the angles of rotary embeddings are a product of outer vectors
    assert 0 <= rotary <= 0.02 * found.flops, (counted, head, found)


def test_a_tied_unembedding_is_counted_once():
    tied, loose = (account(tiny("llama", tie_word_embeddings=tie)) for tie in (True, False))
    assert tied.tied and not loose.tied
    assert tied.parts["unembedding"].parameters == 0
    assert loose.parts["unembedding"].parameters == loose.parts["embeddings"].parameters
    assert tied.parts["unembedding"].flops == loose.parts["unembedding"].flops > 0


def test_gpt3s_shapes_have_116_billion_in_their_mlps():
    found = account_config("gpt3")
    assert found.parts["mlp"].parameters == 96 * (2 * 12288 * 49152 + 12288 + 49152)
    assert round(found.parts["mlp"].parameters / 1e9) == 116
    assert round(found.parameters / 1e9) == 175
    assert found.parts["mlp"].parameters / found.parameters == pytest.approx(0.664, abs=1e-3)


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_alone_gives_what_the_model_gives(family, tmp_path):
    model = hf(family)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    found = account_config(str(tmp_path), 64)
    assert found.parts == account(tiny(family), 64).parts
    assert account_config(str(tmp_path / "config.json"), 64).parts == found.parts


def test_the_default_model_from_its_config_and_loaded(default_model):
    found = account(default_model)
    assert found.parts["mlp"].parameters == 79_626_240
    assert found.parameters == 134_515_008 and found.tied
    assert account_config("smollm2-135m").parts == found.parts
    json.dumps(found.as_dict(), allow_nan=False)


def test_longer_sequences_cost_more_in_the_scores_alone():
    short, long = (account(tiny("llama"), tokens) for tokens in (10, 20))
    assert long.parts["scores"].flops == 2 * short.parts["scores"].flops
    assert long.flops - short.flops == short.parts["scores"].flops


def test_what_is_no_config_is_said(tmp_path):
    with pytest.raises(InputError, match="no config is called 'gpt4'.*gpt3"):
        account_config("gpt4")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match="no config of a transformers model"):
        account_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_embd": "wide"}')
    with pytest.raises(ModelError):
        account_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match="encoder-decoder"):
        account_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(ModelError, match="mixture-of-experts"):
        account_config(str(tmp_path))
    for tokens in (0, -3, 1.5, True):
        with pytest.raises(InputError, match="1 or more"):
            account_config("gpt2", tokens)
    assert set(SHAPES) >= {"gpt3", "gpt2"}
