"""The growing sweep gives what a run of the whole model gives for each layer and each set of dimensions."""

import pytest
import torch
from support.rounding import near
from support.tiny import FAMILIES, PROMPT, SUBJECT, TARGET, tiny
from support.trained import facts, trained

from benchmarks.reference.imputation import plain_imputation
from knowedit import InputError
from knowedit.mlp.imputation import ImputationConfig, _random, impute, impute_facts
from knowedit.prompts import Query


@pytest.mark.usefixtures("doubled")
@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_plain_loop(family):
    model = tiny(family, torch.float64)
    whole = model.query(PROMPT, TARGET, SUBJECT)
    query = Query(whole.steps[:1], whole.target_ids[:1])
    config = ImputationConfig(draws=3, seed=5)
    found = impute(model, query, TARGET, config)
    step = query.steps[0]
    wanted = plain_imputation(
        model, step.ids, step.read, query.target_ids[0], [[None, *sets] for sets in _random(model, 3, config)]
    )
    assert found.dimensions == 3  # 8 % of 32, rounded
    for layer, (top, *random) in enumerate(wanted):
        assert found.highest[layer] == near(top)
        assert found.random[layer] == near(random)
    assert len({round(x, 9) for x in (found.log_probability, *found.highest)}) == 1 + model.n_layers  # each matters


def test_all_dimensions_imputed_is_the_same_whichever_were_chosen():
    model = tiny("gpt2")
    found = impute(model, model.query(PROMPT, TARGET), TARGET, ImputationConfig(share=1.0, draws=2))
    for layer in range(model.n_layers):
        assert found.random[layer] == near([found.highest[layer]] * 2)
        assert found.moved[layer] == near(found.moved_random[layer])
        assert 0 < found.moved[layer] <= 1  # a vector less its mean is no longer than the vector


def test_the_highest_are_signed_not_by_magnitude():
    """An output whose largest magnitudes are negative loses its highest values, not those."""
    model = tiny("gpt2")
    with torch.no_grad():
        model.down(0).weight.zero_()
        model.down(0).bias.zero_()
        model.down(0).bias[:3] = torch.tensor([1.0, 1.0, 1.0])
        model.down(0).bias[3] = -9.0
    found = impute(model, model.query(PROMPT, TARGET), TARGET, ImputationConfig(draws=0))
    mean = (3 - 9) / 32
    assert found.moved[0] == near((3 * (1 - mean) ** 2) ** 0.5 / (3 + 81) ** 0.5)


def test_a_target_of_several_tokens_counts_as_a_whole():
    model = tiny("llama")
    query = model.query(PROMPT, TARGET)
    assert len(query.target_ids) > 1
    found = impute(model, query, TARGET, ImputationConfig(draws=0))
    with torch.no_grad():
        logits = model.hf(input_ids=torch.tensor([query.steps[-1].ids])).logits[0].log_softmax(-1)
    whole = sum(logits[s.read, t].item() for s, t in zip(query.steps, query.target_ids, strict=True))
    assert found.log_probability == near(whole)
    assert found.random == ((),) * model.n_layers and found.control()[0].value is None


def test_the_same_seed_gives_the_same_and_another_one_another():
    model = tiny("llama")
    query = model.query(PROMPT, TARGET)
    one, same, other = (impute(model, query, TARGET, ImputationConfig(draws=2, seed=s)) for s in (1, 1, 2))
    assert one == same
    assert one.highest == other.highest and one.random != other.random


def test_draws_in_several_sweeps_are_those_of_one(monkeypatch):
    model = tiny("bert")
    query = model.query(PROMPT, TARGET)
    whole = impute(model, query, TARGET, ImputationConfig(draws=5))
    monkeypatch.setattr("knowedit.mlp.imputation.SWEEP_TOKENS", 2 * model.n_layers * len(query.steps[0].ids))
    parts = impute(model, query, TARGET, ImputationConfig(draws=5))
    for layer in range(model.n_layers):
        assert parts.random[layer] == near(whole.random[layer])


def test_many_facts_have_intervals_over_facts():
    chosen = facts()[:6]
    found = impute_facts(trained(), chosen, ImputationConfig(share=0.25, draws=2))
    assert len(found.each) == 6
    first = found.highest[0]
    changes = [one.highest[0] - one.log_probability for one in found.each]
    assert first.n == 6 and first.value == pytest.approx(sum(changes) / 6) and first.low <= first.value <= first.high
    both = found.highest[0].value - found.random[0].value
    assert found.difference[0].value == pytest.approx(both)
    assert impute_facts(trained(), chosen[:1]).highest[0].low is None


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan"), "half"])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match="fraction"):
        ImputationConfig(share=share)


def test_no_fact_and_no_draws_are_said():
    with pytest.raises(InputError, match="no fact"):
        impute_facts(trained(), [])
    with pytest.raises(InputError, match="0 or more"):
        ImputationConfig(draws=-1)
