"""Drift of plain text and of the essence under many edits is that of the model with each edit applied."""

from dataclasses import replace

import pytest
import torch
from support.edits import FACT, random_edit
from support.rounding import LOGITS, near
from support.tiny import DECODERS, tiny
from support.trained import trained

from knowedit.edit.apply import applied
from knowedit.evaluate.edits.drift import Drift
from knowedit.evaluate.edits.scoring import score_edits


def plain(model, edit, subject):
    """KL(P_edited ‖ P) at the subject's last token, each distribution from a run by itself."""
    prompt = model.encode(f"{subject} is a", subject)

    def next_token():
        with torch.no_grad():
            return model.hf(input_ids=torch.tensor([prompt.ids])).logits[0, prompt.lookup].float().log_softmax(-1)

    before = next_token()
    with applied(model, edit):
        after = next_token()
    return (after.exp() * (after - before)).sum().item()


@pytest.mark.covered
@pytest.mark.parametrize("family", DECODERS)
def test_essence_is_that_of_each_edit_applied(family, doubled):
    model = tiny(family, torch.float64)
    facts = [FACT, replace(FACT, subject="Zürich"), replace(FACT, subject="The Lord of the Rings"), FACT]
    edits = [random_edit(model, 1, seed=1), random_edit(model, 0, seed=2), random_edit(model, 2, seed=3, rank=0), None]
    found = Drift(model).essence(facts, edits)
    for value, fact, edit in zip(found[:3], facts, edits, strict=False):
        assert value == near(plain(model, edit, fact.subject), size=LOGITS)
    assert found[0] > 1e-4 and found[3] == near(0.0, size=LOGITS)


def test_edits_that_are_applied_drift_as_those_that_are_not(doubled):
    model = tiny("llama", torch.float64)
    edit = random_edit(model, 1, scale=0.5)
    drift = Drift(model)
    (essence,), (none, rise) = drift.essence([FACT], [edit]), drift.perplexity([None, edit])
    assert none == near(0.0, size=LOGITS) and abs(rise) > 1e-3
    with applied(model, edit):
        fresh = Drift(model)  # what it compares with is the model without its edits all the same
        assert fresh.essence([FACT], [None])[0] == near(essence, size=LOGITS)
        assert fresh.perplexity([None])[0] == near(rise, size=LOGITS)


def test_perplexity_by_itself():
    model = tiny("gpt2")
    edit = random_edit(model, 0, seed=5)
    drift = Drift(model)
    ((after,),) = score_edits(model, [edit], [[drift._text]])
    ((before,),) = score_edits(model, [None], [[drift._text]])
    ratio = torch.tensor(after.nll - before.nll, dtype=torch.float64).exp().item()
    assert drift.perplexity([edit])[0] == near(ratio - 1, size=LOGITS)


def test_masked_models_have_no_essence():
    model = tiny("bert")
    edit = random_edit(model, 1, scale=0.5)
    assert Drift(model).essence([FACT], [edit]) == [None]
    assert abs(Drift(model).perplexity([edit])[0]) > 1e-3


def test_words_that_the_tokenizer_does_not_know_are_left_out_of_the_text(monkeypatch):
    model = trained()  # its few words are nearly none of the text
    first, rest = Drift(model)._text
    assert "<unk>" not in f"{first} {rest}".split() and len(rest.split()) < 40
    assert Drift(model).perplexity([None])[0] == near(0.0, size=LOGITS)
    monkeypatch.setattr(model.tokenizer, "decode", lambda ids: "")
    assert Drift(model).perplexity([None, None]) == [None, None]
