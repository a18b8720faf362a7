"""Proofs: real neurons show, random ones do not, and the controls are what they are said to be."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny import tiny
from support.trained import facts, trained
from support.trained_masked import facts as masked_facts, trained_masked

from knowedit import InputError, prove, suppress
from knowedit.facts import fill
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import LocateConfig
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.draws import draw, strata
from knowedit.locate.proof.effect import Effect, measure
from knowedit.locate.proof.neuron_kinds import ControlPool
from knowedit.locate.proof.proof import summarise
from knowedit.models.passes.scaled_answers import ScaledAnswers

CONFIG = LocateConfig(attribution=AttributionConfig(nodes=8))


def heldout(model, fact):
    return [model.query(fill(t, fact.subject), fact.target, fact.subject) for t in fact.heldout]


def asked(model, queries):
    return ScaledAnswers(model, queries)


@pytest.fixture(scope="module")
def located():
    model = trained()
    pool = ControlPool(model, facts())
    return [(f, locate_fact(model, f, CONFIG, pool=pool)) for f in facts()[:8]]


def test_located_neurons_suppress_and_amplify_more_than_random_ones(located):
    model = trained()
    effects = [measure(model, found, asked(model, heldout(model, f)), draws=100) for f, found in located if len(found)]
    proof = summarise(effects)
    assert proof.unit == "facts" and proof.facts == len(effects) >= 6
    assert proof.suppress.high < 0 and proof.suppress_log_odds.value < -0.5
    assert proof.p_suppress < 0.05
    assert abs(proof.control_suppress.value) < abs(proof.suppress.value) / 3


def test_neurons_of_a_masked_model_make_its_answers_at_the_mask():
    """Its answers have .9 and more, which doubling cannot raise much; with its neurons at zero they go."""
    model, given = trained_masked(), masked_facts()
    pool = ControlPool(model, given)
    effects = []
    for fact in given[::6]:
        found = locate_fact(model, fact, CONFIG, pool=pool)
        effects.append(measure(model, found, asked(model, heldout(model, fact)), draws=40))
    proof = summarise(effects)
    assert proof.recalled == 1 and proof.significant["suppress"]
    assert proof.suppress.value < 5 * proof.control_suppress.value < 0
    fact, query = given[0], heldout(model, given[0])[0]
    found = locate_fact(model, fact, CONFIG, pool=pool)
    with suppress(model, found), torch.no_grad():
        logits = model.hf(torch.tensor([query.prompt.ids])).logits[0, query.prompt.read]
    assert effects[0].suppressed[0] == pytest.approx(logits.softmax(-1)[query.target_ids[0]].item(), rel=1e-4)


def test_one_fact_has_intervals_over_prompts(located):
    model = trained()
    fact, found = next((f, n) for f, n in located if len(n))
    proof = prove(model, found, heldout(model, fact), draws=50)
    assert (proof.unit, proof.suppress.n) == ("prompts", 2)
    single = prove(model, found, heldout(model, fact)[:1], draws=50)
    assert single.suppress.low is None and single.suppress.high is None
    assert single.control_suppress.n == 50


def test_the_effect_is_what_the_model_does(located):
    model = trained()
    fact, found = next((f, n) for f, n in located if len(n))
    query = heldout(model, fact)[0]
    effect = measure(model, found, asked(model, [query]), draws=5)
    with suppress(model, found), torch.no_grad():
        p = model.hf(torch.tensor([query.prompt.ids])).logits[0, -1].softmax(-1)[query.target_ids[0]].item()
    assert effect.suppressed[0] == pytest.approx(p, rel=1e-4)


def test_draws_have_the_composition_of_the_located_set():
    activations = torch.randn(3, 300)
    located = [(0, 5), (0, 9), (2, 1)]
    label = {layer: strata(activations[layer]) for layer in range(3)}
    for chosen in draw(located, activations, 50, np.random.default_rng(0), by_activation=True):
        assert not set(chosen) & set(located)
        assert len(set(chosen)) == 3
        assert sorted((a, label[a][i]) for a, i in chosen) == sorted((a, label[a][i]) for a, i in located)
    layers = [
        sorted(a for a, _ in s) for s in draw(located, activations, 9, np.random.default_rng(0), by_activation=False)
    ]
    assert layers == [[0, 0, 2]] * 9


def test_strata_are_ranks_of_magnitude():
    found = strata(torch.tensor([-5.0, *[0.1] * 200, 4.0]))
    assert found[0] == found[-1] == 0
    assert np.bincount(found).tolist()[:2] == [32, 64]


def test_random_sets_are_called_significant_about_as_often_as_they_should():
    model = trained()
    rng = np.random.default_rng(0)
    hits = []
    for run in range(120):
        fact = facts()[run % len(facts())]
        sites = [(int(rng.integers(3)), int(i)) for i in rng.choice(24, 3, replace=False)]
        proof = prove(model, sites, heldout(model, fact), draws=39, seed=run)  # p is a multiple of 1/40
        hits += [proof.p_suppress <= 0.05, proof.p_amplify <= 0.05]
    assert 0.01 <= np.mean(hits) <= 0.10


def test_the_same_seed_gives_the_same_proof():
    model = tiny("llama")
    queries = [model.query("The capital of France is", "Paris")]
    assert prove(model, [(1, 3)], queries, draws=20) == prove(model, [(1, 3)], queries, draws=20)


def test_effects_survive_json():
    model = tiny("llama")
    effect = measure(model, [(1, 3)], asked(model, [model.query("The capital of France is", "Paris")]), draws=4)
    again = Effect.from_dict(effect.as_dict())
    assert summarise([again]) == summarise([effect])


def test_bad_requests_are_refused():
    model = tiny("llama")
    queries = [model.query("The capital of France is", "Paris")]
    for neurons, prompts, draws in (
        ([], queries, 9),
        ([(0, 1)], [], 9),
        ([(0, 1)], queries, 0),
        ([(0, 999)], queries, 9),
    ):
        with pytest.raises(InputError):
            prove(model, neurons, prompts, draws=draws)


def test_a_small_change_is_not_called_significant(located):
    model = trained()
    fact, found = next((f, n) for f, n in located if len(n))
    effect = measure(model, found, asked(model, heldout(model, fact)), draws=50)
    tiny = replace(effect, suppressed=effect.before * 0.97, amplified=effect.before * 1.03)
    for what in ("suppressed", "amplified"):
        tiny.control["activation"][what][:] = effect.before.mean()
    proof = summarise([tiny])
    assert proof.p_suppress < 0.05 and proof.p_amplify < 0.05
    assert proof.significant == {"suppress": False, "amplify": False}
    large = replace(tiny, suppressed=effect.before * 0.8, amplified=effect.before * 1.2)
    assert summarise([large]).significant == {"suppress": True, "amplify": True}
    unknown = replace(large, recalled=0.0)
    assert summarise([unknown]).significant == {"suppress": False, "amplify": False}


def test_where_layers_without_their_neurons_keep_the_answer_nothing_is_restored(located):
    """Behind a norm the answer may even gain when whole layers go; a share of what was not lost would be any number."""
    model = trained()
    fact, found = next((f, n) for f, n in located if len(n))
    effect = measure(model, found, asked(model, heldout(model, fact)), draws=5)

    def shares(kept):
        none = effect.before * kept
        alone = {"located": (effect.before + none) / 2, "none": none, "drawn": np.full(5, none.mean())}
        proof = summarise([replace(effect, alone=alone)])
        return proof.sufficient.value, proof.control_sufficient.value

    assert shares(1.05) == shares(0.95) == shares(0.6) == (None, None)
    assert shares(0.4) == (pytest.approx(0.5), pytest.approx(0.0, abs=1e-12))
