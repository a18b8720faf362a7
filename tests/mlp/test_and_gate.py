"""An AND built by hand is found, an OR is not, and every family gives what its own passes give."""

import json

import numpy as np
import pytest
import torch
from support.tiny import FAMILIES, PROMPT, tiny

from knowedit import Fact, InputError
from knowedit.hooks import hooked, on_input
from knowedit.mlp.and_gate import KINDS, _kinds, and_gates, parts

FACT = Fact("The {} is located in the city of", "Eiffel Tower", "Paris")
OTHER = Fact("The {} is located in the city of", "Danielle Darrieux", "Rome")


def test_parts_are_words():
    assert parts("Eiffel Tower") == ("Eiffel", "Tower")
    assert parts(" São Tomé and Príncipe ") == ("São Tomé and", "Príncipe")
    assert parts("東京") is None and parts("Japan ") is None


def test_kinds_of_made_up_neurons():
    """whole, first, last, first with another last, another first with last"""
    rows = {
        "and": ([2.0, 0.5, 0.9, 0.0, 0.0], True),
        "and, of any longer subject": ([2.0, 0.5, 0.9, 1.5, 0.0], False),
        "first": ([2.0, 1.0, 0.0, 2.0, 0.0], False),
        "last": ([2.0, 0.0, 3.0, 0.0, 2.0], False),
        "either": ([2.0, 2.0, 2.0, 0.0, 0.0], False),
        "and, negative": ([-1.0, 1.0, 1.0, 0.0, 0.0], True),
    }
    neurons = torch.tensor([values for values, _ in rows.values()]).T[None]  # (1, 5, 6)
    top, kinds, swapped = _kinds(neurons, torch.ones(6), 6)
    found = {int(i): (k, bool(s)) for i, k, s in zip(top[0], kinds[0], swapped[0], strict=True)}
    for i, (name, (_, both)) in enumerate(rows.items()):
        assert found[i] == (name.split(",")[0], both)


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_from_its_own_passes(family):
    model = tiny(family)
    found = and_gates(model, [FACT], [OTHER], strongest=5)
    activations = []
    for subject in ("Eiffel Tower", "Eiffel", "Tower"):
        prompt = model.encode(PROMPT.replace("Eiffel Tower", subject), subject)
        kept = []
        ids = torch.tensor([prompt.ids])
        with torch.no_grad(), hooked(on_input(model.down(1), kept.append)):
            model.hf(input_ids=ids, attention_mask=torch.ones_like(ids))
        activations.append(kept[0].reshape(len(prompt.ids), -1)[prompt.lookup].double().numpy())
    whole, first, last = activations
    strength = np.abs(whole) * model.down_weight(1).detach().double().norm(dim=0).numpy()
    top = np.argsort(-strength)[:5]
    one, two = first[top] / whole[top] >= 0.5, last[top] / whole[top] >= 0.5
    wanted = {"and": ~one & ~two, "first": one & ~two, "last": ~one & two, "either": one & two}
    for kind in KINDS:
        assert found.shares[kind][1].value == pytest.approx(wanted[kind].mean())
    assert sum(found.shares[kind][1].value for kind in KINDS) == pytest.approx(1)
    assert 0 <= found.and_swapped[1].value <= found.shares["and"][1].value
    for subject, layer, index, *three in found.examples:
        assert subject == FACT.subject
        if layer == 1:
            assert three == pytest.approx([a[index] for a in activations], abs=1e-4)
    json.dumps(found.as_dict(), allow_nan=False)


def test_many_facts_have_intervals_and_single_words_are_skipped():
    model = tiny("gpt2")
    found = and_gates(model, [FACT, OTHER, Fact("The capital of {} is", "France", "Paris")])
    assert (found.facts, found.skipped) == (2, 1)
    assert found.shares["and"][0].n == 2 and found.and_swapped[0].n == 2


def test_without_another_subject_nothing_is_swapped():
    found = and_gates(tiny("gpt2"), [FACT])
    assert found.and_swapped[0].value is None and found.shares["and"][0].low is None


def test_a_subject_of_one_word_has_no_parts():
    with pytest.raises(InputError, match="two words"):
        and_gates(tiny("gpt2"), [Fact("The capital of {} is", "France", "Paris")])
