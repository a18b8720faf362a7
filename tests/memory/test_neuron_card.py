"""Cards: what they say is what a model does when it is asked by itself."""

import json

import numpy as np
import pytest
import torch
from support.commands import HOSTILE
from support.tiny import FAMILIES, tiny
from support.trained import facts, trained

import knowedit
from knowedit.display.drawing import figure
from knowedit.errors import InputError
from knowedit.locate.config import LocateConfig
from knowedit.locate.locate import locate_fact
from knowedit.memory.corpus_scan import scan
from knowedit.memory.figure import draw_texts
from knowedit.memory.neuron_card import CardConfig, Trigger, card, cards


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_says_what_the_scan_saw(family):
    model = tiny(family)
    seen = scan(model, tokens=200, top=4)
    one, other = cards(model, [(1, 5), (2, 7)], seen)
    assert (one.layer, one.index, other.layer, other.index) == (1, 5, 2, 7)
    assert one.active == seen.share(1, 5) and one.tokens == seen.tokens
    assert [t.activation for t in one.triggers] == [value for *_, value in seen.triggers(1, 5)]
    assert one.sign == (1 if sum(t.activation for t in one.triggers) > 0 else -1)
    vocabulary = knowedit.locate.neurons.vocabulary(model, 1, 5, one.sign, 12)
    assert (one.promotes, one.suppresses) == vocabulary
    assert (one.on_texts is None) == model.masked and one.on_facts is None
    json.dumps(one.as_dict(), allow_nan=False)


def test_the_effect_is_that_of_suppressing():
    model = tiny("llama")
    seen = scan(model, tokens=200, top=3)
    found = card(model, 1, 5, seen, config=CardConfig(controls=3))
    before, after = [], []
    for row, position, _ in seen.triggers(1, 5):
        ids = seen.rows[row]
        if position + 1 == len(ids):
            continue
        tokens = torch.tensor([ids[: position + 1]])
        for kept, neurons in ((before, []), (after, [(1, 5)])):
            with torch.no_grad(), knowedit.suppress(model, neurons):
                kept.append(model.hf(input_ids=tokens).logits[0, -1].softmax(-1)[ids[position + 1]].item())
    wanted = (np.mean(after) - np.mean(before)) / np.mean(before)
    assert found.on_texts.suppressed.value == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert found.on_texts.suppressed.n == found.on_texts.control.n == len(before)


def test_a_trigger_shows_its_token_between_its_text():
    model = tiny("gpt2")
    found = card(model, 0, 3, config=CardConfig(tokens=120))
    for trigger in found.triggers:
        assert isinstance(trigger, Trigger) and trigger.token
        assert trigger.next is None or trigger.after.startswith(trigger.next) or "\ufffd" in trigger.next
    with pytest.raises(InputError, match="neuron index 999"):
        card(model, 0, 999)
    assert cards(model, []) == ()


def test_hostile_text_stays_text(tmp_path):
    path = tmp_path / "hostile.jsonl"
    path.write_text(json.dumps({"text": f"{HOSTILE} <script>alert(1)</script> São 東京 " * 4}))
    found = card(tiny("gpt2"), 1, 2, str(path))
    assert any("script" in t.before + t.token + t.after for t in found.triggers)


def test_located_facts_share_their_neurons():
    model = trained()
    hashed = model.weights_hash()
    located = [
        locate_fact(model, f, LocateConfig(method="gradient", select="refined", t=0.1, p=0.5), weights_hash=hashed)
        for f in facts()[:3]
    ]
    site = next(iter(located[0]))
    shown = card(model, *site, located=located)
    assert [company.fact for company in shown.located] == sorted(
        (neurons.fact for neurons in located if site in list(neurons)),
        key=lambda name: -next(n.score for s in located if s.fact == name for n in s.neurons if n.site == site),
    )
    assert shown.on_facts.suppressed.n == len(shown.located)


def test_controls_are_others_of_the_layer_as_often_active():
    model = tiny("gpt2")
    seen = scan(model, tokens=200)
    from knowedit.memory.neuron_card import _controls

    chosen = _controls(seen, 1, 5, CardConfig(controls=4))
    assert len(set(chosen)) == 4 and (1, 5) not in chosen and {layer for layer, _ in chosen} == {1}
    gaps = (seen.active[1] - seen.active[1, 5]).abs()
    assert max(gaps[i] for _, i in chosen) <= gaps.sort().values[10]
    for wrong in ({"texts": 0}, {"words": 0}, {"controls": 0}, {"tokens": 0}):
        with pytest.raises(InputError):
            CardConfig(**wrong)


@pytest.mark.parametrize("activations", [(0.7, 0.5), (-0.7, -0.5), (0.7, -0.5), (0.0,)])
def test_a_card_draws_negative_activations_to_the_left_of_zero(activations):
    with figure() as (_, axes):
        draw_texts(axes, [Trigger("before", " it", "after", None, activation) for activation in activations])
        zero = axes.lines[0].get_xdata()[0]
        assert [bar.get_x() for bar in axes.patches] == [zero] * len(activations)  # where a bar begins
        assert [np.sign(bar.get_width()) for bar in axes.patches] == list(np.sign(activations))
        written = [text.get_text() for text in axes.texts]
        assert all(f"{activation:+.2f}" in written for activation in activations)
        assert "bold" in axes.get_title("left")
