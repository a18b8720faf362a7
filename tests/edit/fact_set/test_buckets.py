"""Values that are searched for in buckets are those of each fact alone, to the bit, and those of ROME's search."""

import random
from copy import deepcopy

import pytest
import torch
from support.fact_sets import SHORT, requests
from support.rounding import ADAM, PASS, near
from support.tiny import FAMILIES, tiny
from support.trained import exact, trained

from knowedit import wrap
from knowedit.edit.fact_set.buckets import SIZES, find_in_buckets
from knowedit.edit.methods.search_rows import Run
from knowedit.edit.methods.v_star import VStarSearch, find_v_star, request
from knowedit.facts import Fact

CONTEXTS = ("Today Zarn", "a")
UNEVEN = VStarSearch(steps=12, lr=0.2, clamp=80.0, decay=0.0, stop_probability=0.5)  # facts end at different steps


def searched(model, requests, layer=0, search=SHORT):
    found = {}
    find_in_buckets(model, requests, layer, search, found.update)
    return found


@pytest.mark.parametrize("search", [SHORT, UNEVEN], ids=["even", "uneven"])
def test_a_value_tells_nothing_of_what_shared_its_bucket(search):
    model = trained()
    asked = [request(model, fact, fact.target_new, CONTEXTS) for fact in requests()]
    together = searched(model, asked, search=search)
    order = list(range(len(asked)))
    random.Random(1).shuffle(order)
    shuffled = searched(model, [asked[i] for i in order], search=search)
    for place, i in enumerate(order):
        assert torch.equal(shuffled[place].delta, together[i].delta)
        assert torch.equal(shuffled[place].keys[0], together[i].keys[0])
    for i in order[:5]:
        (alone,) = searched(model, [asked[i]], search=search).values()
        assert torch.equal(alone.delta, together[i].delta) and alone.steps == together[i].steps
    assert search is SHORT or len({value.steps for value in together.values()}) > 2


def test_where_the_place_in_a_bucket_decides_bits_each_fact_has_one_of_its_own(monkeypatch):
    v0 = Run.v0
    monkeypatch.setattr(Run, "v0", lambda run: v0(run) * (1 + 1e-3 * torch.arange(len(run.requests))[:, None]))
    model = wrap(deepcopy(trained().hf), trained().tokenizer)  # what was found of the other one is remembered
    asked = [request(model, fact, fact.target_new, CONTEXTS) for fact in requests()[:3]]
    together, turned = searched(model, asked), searched(model, asked[::-1])
    for i, value in together.items():
        assert torch.equal(value.v0, turned[2 - i].v0) and torch.equal(value.delta, turned[2 - i].delta)


MIXED = [  # so short that the answer sees the subject through the windows of tiny models: else its gradient is noise
    Fact("{} is", "The Eiffel Tower", "Paris", target_new="Rome"),
    Fact("The capital of {} is", "Japan", "Tokyo", target_new="Paris"),
    Fact("The mother tongue of Danielle Darrieux, who was born in {} is", "Bordeaux", "French", target_new="Japan"),
    Fact("{} a", "Zürich", "Italy", target_new="France"),
]


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_romes_search(family, doubled):
    model = tiny(family, torch.float64)
    search = VStarSearch(steps=4, lr=0.1)
    asked = [request(model, fact, fact.target_new, ("The capital", "a b c d")) for fact in MIXED]
    wanted = find_v_star(model, asked, 1, search)
    for i, value in searched(model, asked, 1, search).items():
        assert value.delta.tolist() == near(wanted[i].delta, size=ADAM, operations=2 * 4 * PASS)
        assert value.keys.flatten().tolist() == near(wanted[i].keys.flatten())
        assert (value.steps, value.lookup) == (wanted[i].steps, wanted[i].lookup)


def test_more_facts_than_a_bucket_holds_take_the_places_of_those_that_end(doubled):
    model = exact(trained())
    asked = [request(model, fact, fact.target_new, ()) for fact in requests()]
    assert len(asked) > 2 * SIZES["cpu"]
    wanted = find_v_star(model, asked, 0, UNEVEN)
    found = searched(model, asked, search=UNEVEN)
    assert sorted(found) == list(range(len(asked)))
    assert [found[i].steps for i in range(len(asked))] == [value.steps for value in wanted]
