"""Neurons taken away to zero, their mean, or a patch; neurons alone; faithfulness curves."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.rounding import near_probability
from support.tiny import tiny
from support.trained import facts, trained

import knowedit
from knowedit import InputError, NeuronSet
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import POSITIONS, LocateConfig
from knowedit.locate.fact_prompts import FactPrompts
from knowedit.locate.integration_path import BASELINES
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.ablation import ablation_values
from knowedit.locate.proof.effect import located_answers, measure_located
from knowedit.locate.proof.faithfulness import faithfulness
from knowedit.locate.proof.neuron_kinds import ControlPool
from knowedit.locate.proof.proof import prove_located, summarise
from knowedit.models.passes.scaled_answers import ScaledAnswers

PROMPT = "The capital of France is"


def asked_by_hand(model, query, change, places=None) -> float:
    """P(target) with `change(layer, neurons)` made at `places` (the read position) of every layer, by plain hooks."""
    places = [query.prompt.read] if places is None else places

    def hook(layer):
        def pre(module, inputs):
            neurons = inputs[0].clone()
            flat = neurons.view(-1, neurons.shape[-1])
            for place in places:
                flat[place] = change(layer, flat[place])
            return (neurons,)

        return pre

    handles = [model.down(layer).register_forward_pre_hook(hook(layer)) for layer in range(model.n_layers)]
    try:
        with torch.no_grad():
            logits = model.hf(torch.tensor([query.prompt.ids])).logits[0, query.prompt.read]
    finally:
        for handle in handles:
            handle.remove()
    return logits.double().softmax(-1)[query.target_ids[0]].item()


@pytest.mark.parametrize("factor", [0.0, 2.0])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_factor_is_taken_from_the_baseline(family, factor):
    model = tiny(family)
    query = model.query(PROMPT, "Paris")
    baseline = torch.randn(model.n_layers, model.n_neurons)
    sites = [(0, 3), (1, 5), (1, 7)]

    def change(layer, neurons):
        for at, index in sites:
            if at == layer:
                neurons[index] = baseline[layer, index] + factor * (neurons[index] - baseline[layer, index])
        return neurons

    ((scaled,),) = ScaledAnswers(model, [query], [baseline]).scaled([sites], factor)
    assert scaled == near_probability(asked_by_hand(model, query, change))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_neurons_that_are_kept_stand_alone_in_their_layers(family):
    model = tiny(family)
    query = model.query(PROMPT, "Paris")
    baseline = torch.randn(model.n_layers, model.n_neurons)
    mask = torch.rand(2, 1, model.n_neurons) < 0.3

    def change(layer, neurons):
        return torch.where(mask[1, 0], neurons, baseline[1]) if layer == 1 else neurons

    (kept,) = ScaledAnswers(model, [query], [baseline]).kept(mask, [1])
    assert kept[1] == near_probability(asked_by_hand(model, query, change))


def test_all_neurons_kept_are_the_model():
    model = tiny("llama")
    answers = ScaledAnswers(model, [model.query(PROMPT, "Paris")], [torch.ones(model.n_layers, model.n_neurons)])
    everything = torch.ones(1, model.n_layers, model.n_neurons, dtype=torch.bool)
    assert answers.kept(everything, range(model.n_layers))[:, 0] == near_probability(answers.probability)


PLACES = {"read": ["read"], "lookup": ["lookup"], "both": ["lookup", "read"]}


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bert"])
def test_neurons_are_scaled_where_they_were_located(family, position):
    model = tiny(family)
    query = model.query("The capital of France, as they say, is" + " [MASK]" * model.masked, "Paris", "France")
    query = replace(query, steps=query.steps[:1], target_ids=query.target_ids[:1])
    places = [query.prompt.position(place) for place in PLACES[position]]
    answers = ScaledAnswers(model, [query], position=position)

    def doubled(layer, neurons):
        if layer == 1:
            neurons[[3, 5]] *= 2
        return neurons

    def alone(layer, neurons):
        return torch.where(torch.arange(len(neurons)) < 8, neurons, torch.zeros(())) if layer == 1 else neurons

    ((scaled,),) = answers.scaled([[(1, 3), (1, 5)]], 2.0)
    assert scaled == near_probability(asked_by_hand(model, query, doubled, places))
    ((kept,),) = answers.kept((torch.arange(model.n_neurons) < 8)[None, None], [1])
    assert kept == near_probability(asked_by_hand(model, query, alone, places))


@pytest.mark.parametrize("position", POSITIONS)
def test_neurons_are_located_and_proved_at_one_position(position):
    model, fact = trained(), facts()[1]
    pool = ControlPool(model, facts())
    config = LocateConfig(attribution=AttributionConfig(nodes=8, position=position))
    located = locate_fact(model, fact, config, pool=pool)
    assert located.position == position == NeuronSet.from_dict(located.as_dict()).position
    heldout = FactPrompts.all_of(fact).heldout
    proof = prove_located(model, located, heldout, pool=pool, draws=20)

    def without(layer, neurons):
        neurons[[index for at, index in located if at == layer]] = 0
        return neurons

    for prompts, suppressed in ((located.refined_on, located.neurons[-1].suppress), (heldout, proof.suppress.value)):
        queries = [model.query(text, fact.target, fact.subject) for text in prompts]
        places = [[query.prompt.position(place) for place in PLACES[position]] for query in queries]
        left = sum(asked_by_hand(model, query, without, at) for query, at in zip(queries, places, strict=True))
        before = ScaledAnswers(model, queries).probability.sum()
        assert 1 + suppressed == near_probability(left / before)


def test_paths_at_both_positions_add_up_to_what_both_do():
    model, fact = trained(), facts()[1]
    query = model.query_of(fact)
    found = knowedit.attribute(model, query, config=AttributionConfig(position="both", nodes=64))
    places = [query.prompt.position(place) for place in PLACES["both"]]
    for layer in range(model.n_layers):
        none = asked_by_hand(model, query, lambda at, neurons, of=layer: neurons * (at != of), places)
        assert abs(found.span[layer] - (found.value - none)) < 1e-6 and found.gap[layer] < 1e-3


def test_a_negative_prompt_has_no_lookup_position():
    model, fact = trained(), facts()[1]
    config = LocateConfig(attribution=AttributionConfig(position="lookup", nodes=8), prompts=1)
    with pytest.raises(InputError, match="take the read position"):
        locate_fact(model, fact, config, negatives=["Zarn works as"], pool=ControlPool(model, facts()))


@pytest.mark.parametrize("where", ["ablation", "baseline"])
@pytest.mark.parametrize(("name", "position"), [("mean", "lookup"), ("mean", "both"), ("patch", "both")])
def test_values_of_other_positions_than_where_neurons_are_taken_away_are_refused(name, position, where):
    start = {"baseline": name} if where == "baseline" else {}
    with pytest.raises(InputError, match="take zero"):
        LocateConfig(
            attribution=AttributionConfig(position=position, **start),
            ablation=name if where == "ablation" else "zero",
        )


@pytest.mark.parametrize("position", [3, "subject"])
def test_a_position_that_paraphrases_cannot_share_is_refused(position):
    with pytest.raises(InputError, match="take read, lookup, both"):
        LocateConfig(attribution=AttributionConfig(position=position))


def test_a_patch_is_what_the_neurons_are_for_another_subject():
    model, fact = trained(), facts()[0]
    pool = ControlPool(model, facts())
    other = pool.other_subject(fact.subject, fact.target, fact.relation)
    assert other not in (None, fact.subject)
    assert other == ControlPool(model, facts()).other_subject(fact.subject, fact.target, fact.relation)
    (another,) = [f for f in facts() if f.subject == other and f.relation == fact.relation]
    assert another.target != fact.target
    prompts = FactPrompts.all_of(fact)
    patch = ablation_values("patch", pool, fact.prompt, prompts)
    same_words = model.query(fact.prompt.replace(fact.subject, other), fact.target, other)
    assert torch.equal(patch, ScaledAnswers(model, [same_words]).activations[0])
    assert torch.equal(ablation_values("mean", pool, fact.prompt, prompts), pool.mean_activation)
    assert ablation_values("zero", pool, fact.prompt, prompts) is None


@pytest.mark.parametrize("relation", [None, "no such relation"])
def test_a_patch_without_another_subject_is_refused(relation):
    model, fact = trained(), facts()[0]
    prompts = FactPrompts((fact.prompt,), fact.target, (), fact.subject, relation)
    with pytest.raises(InputError, match="take mean or zero"):
        ablation_values("patch", ControlPool(model, facts()), fact.prompt, prompts)


@pytest.mark.parametrize("ablation", BASELINES)
def test_located_neurons_are_needed_and_do_more_alone_than_random_ones(ablation):
    model, fact = trained(), facts()[1]
    pool = ControlPool(model, facts())
    config = LocateConfig(attribution=AttributionConfig(nodes=8), ablation=ablation)
    located = locate_fact(model, fact, config, pool=pool)
    answers = located_answers(model, located, FactPrompts.all_of(fact).heldout, pool)
    effect = measure_located(model, located, answers, pool=pool, draws=50)
    proof = summarise([effect])
    assert proof.suppress.high < 0 and proof.suppress.value < proof.control_suppress.value
    assert effect.alone["located"].mean() > effect.alone["drawn"].mean()
    assert located.config["ablation"] == ablation


def test_paths_from_a_patch_add_up_to_what_the_patch_does():
    model, fact = trained(), facts()[1]
    config = LocateConfig(attribution=AttributionConfig(baseline="patch", nodes=64), kinds=False, prompts=1)
    located = locate_fact(model, fact, config, pool=ControlPool(model, facts()))
    assert located.missing < 0.01 and located.config["attribution"]["baseline"] == "patch"


def test_a_negative_prompt_has_no_patch():
    model, fact = trained(), facts()[1]
    config = LocateConfig(attribution=AttributionConfig(baseline="patch", nodes=8), prompts=1)
    with pytest.raises(InputError, match="negative prompt"):
        locate_fact(model, fact, config, negatives=["Zarn works as"], pool=ControlPool(model, facts()))
    with pytest.raises(InputError, match="locate it"):
        knowedit.attribute(model, fact.prompt, fact.target, AttributionConfig(baseline="patch"))


def test_a_faithfulness_curve_goes_from_none_to_all():
    model, fact = trained(), facts()[1]
    query = model.query(fact.prompt, fact.target, fact.subject)
    answers = ScaledAnswers(model, [query])
    scores = knowedit.rank(model, query, method="ablation")
    found = faithfulness(answers, scores)
    assert found.sizes[0] == 0 and found.sizes[-1] == found.neurons == scores.numel()
    none = answers.scaled([[(a, i) for a in range(len(scores)) for i in range(scores.shape[1])]], 0.0)[0, 0]
    assert (found.kept[0], found.removed[-1]) == near_probability((none, none))
    assert (found.kept[-1], found.removed[0]) == near_probability((answers.probability[0], answers.probability[0]))
    curve = (np.array(found.kept) - found.kept[0]) / (found.kept[-1] - found.kept[0])
    by_hand = np.trapezoid(curve, np.array(found.sizes) / found.neurons)
    assert found.cpr == pytest.approx(by_hand)
    random = faithfulness(answers, torch.rand_like(scores))
    assert found.cpr > random.cpr and found.cmd < random.cmd
