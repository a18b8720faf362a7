"""A row with its own edit gives what the model with that edit in its weights gives."""

from dataclasses import replace

import pytest
import torch
from support.edits import FACT, random_edit, same, weights
from support.rounding import assert_near
from support.tiny import FAMILIES, tiny

from knowedit.edit.apply import applied
from knowedit.errors import InputError, ModelError
from knowedit.evaluate.edits.row_edits import check_edits, row_edits


def tokens_of(model, rows=5, length=7):
    tokens = torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    if model.masked:
        tokens[:, -2] = model.tokenizer.mask_token_id
    return tokens


@torch.no_grad()
def logits(model, tokens):
    return model.hf(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_is_as_with_its_edit_in_the_weights(family):
    model = tiny(family)
    before = weights(model)
    edits = [
        random_edit(model, 1, seed=1),
        None,
        random_edit(model, 0, 2, seed=2, rank=3),
        random_edit(model, 2),
        random_edit(model, 1, seed=3, rank=0),
    ]
    rows = (2, 1, 0, 3, 4)
    tokens = tokens_of(model)
    plain = logits(model, tokens)
    with row_edits(model, edits, rows):
        found = logits(model, tokens)
    assert torch.equal(found[1], plain[1])
    for r, edit in enumerate(edits[i] for i in rows):
        if edit is not None:
            with applied(model, edit):
                wanted = logits(model, tokens[r : r + 1])[0]
            assert (wanted - plain[r]).abs().max() > 0.01  # the edit does something
            assert_near(found[r], wanted)
    assert torch.equal(logits(model, tokens), plain) and same(weights(model), before)


@pytest.mark.parametrize("rank", [1, 3, 0])
def test_tokens_of_a_row_can_have_edits_of_their_own(rank):
    model = tiny("llama")
    layer = model.n_layers - 1  # nothing attends to what is changed there
    edits = [None, *(random_edit(model, layer, seed=seed, rank=rank) for seed in (1, 2))]
    tokens = tokens_of(model, rows=2)
    owner = torch.tensor([[0, 1, 1, 2, 2, 2, 0], [2, 2, 0, 0, 0, 1, 1]])
    alone = []
    for i in range(3):
        with row_edits(model, edits, (i, i)):
            alone.append(logits(model, tokens))
    with row_edits(model, edits, owner):
        found = logits(model, tokens)
    wanted = torch.stack(alone).gather(0, owner[None, ..., None].expand(1, -1, -1, found.shape[-1]))[0]
    assert_near(found, wanted)
    assert not torch.allclose(found, alone[1], atol=1e-2)


def test_without_rows_each_edit_has_one():
    model = tiny("llama")
    edits, tokens = [None, random_edit(model, 1)], tokens_of(model, rows=2)
    with row_edits(model, edits, (0, 1)):
        wanted = logits(model, tokens)
    with row_edits(model, edits):
        assert torch.equal(logits(model, tokens), wanted)


def test_they_add_to_edits_that_are_applied():
    model = tiny("llama")
    first, second = random_edit(model, 1, seed=1), random_edit(model, 1, seed=2)
    tokens = tokens_of(model, rows=2)
    with applied(model, first):
        with applied(model, second):
            wanted = logits(model, tokens)
        with row_edits(model, [second], (0, 0)):
            found = logits(model, tokens)
    assert_near(found, wanted)


def test_bfloat16_differs_by_its_rounding_only():
    model = tiny("llama", dtype=torch.bfloat16)
    edit, tokens = random_edit(model, 1), tokens_of(model, rows=2)
    plain = logits(model, tokens)
    with applied(model, edit):
        wanted = logits(model, tokens)
    with row_edits(model, [edit], (0, 0)):
        found = logits(model, tokens)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).abs().max() < 0.1 * (wanted - plain).abs().max()


def test_what_cannot_be_done_is_refused():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="rows, expected 3"), row_edits(model, [random_edit(model, 0)], (0, 0, 0)):
        logits(model, tokens_of(model))
    with pytest.raises(InputError, match="no down-projection"):
        with row_edits(model, [random_edit(tiny("llama"), 0)], (0,)):
            pass
    assert not model.down(0)._forward_hooks


def test_edits_of_other_weights_are_refused():
    model = tiny("gpt2")
    good, other = random_edit(model, 0), random_edit(tiny("gpt2", seed=1), 0)
    check_edits(model, [good, None, good])
    with pytest.raises(ModelError, match="not the one that this edit"):
        check_edits(model, [good, other])
    with pytest.raises(InputError, match="no down-projection"):
        check_edits(model, [random_edit(tiny("llama"), 0)])


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_an_edit_of_many_facts_is_shared_by_its_rows(family):
    """It is held once, whatever its rank, beside edits of one row each; also where it is named twice."""
    model = tiny(family)
    many = random_edit(model, 0, 2, seed=4, rank=20, scale=0.05, facts=(FACT, replace(FACT, target_new="Berlin")))
    edits = [many, random_edit(model, 2, seed=5), None, many]
    tokens = tokens_of(model, rows=6)
    rows = (0, 1, 2, 3, 0, 1)
    with row_edits(model, edits, rows):
        found = logits(model, tokens)
    plain = logits(model, tokens)
    for r, edit in enumerate(edits[i] for i in rows):
        if edit is None:
            assert torch.equal(found[r], plain[r])
            continue
        with applied(model, edit):
            wanted = logits(model, tokens[r : r + 1])[0]
        assert (wanted - plain[r]).abs().max() > 0.01
        assert_near(found[r], wanted)
