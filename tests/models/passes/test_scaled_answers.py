"""Neurons scaled after many prompts in one sweep: what each prompt gives alone, of whatever family and length."""

import numpy as np
import pytest
import torch
from support.counts import counted
from support.rounding import near_probability
from support.tiny import FAMILIES, tiny

from knowedit.models.passes.scaled_answers import ScaledAnswers

ASKED = (("The capital of France is", "Paris", "France"), ("Rome lies in", "Italy", "Rome"))
ASKED += (("As everybody has known for long, the Eiffel Tower is in the city of", "Rome", "Eiffel Tower"),)
SETS = [[(1, 3)], [], [(0, 2), (1, 5), (1, 7)]]


def queries(model):
    return [model.query(text + " [MASK]" * model.masked, target, subject) for text, target, subject in ASKED]


@pytest.mark.parametrize("position", ["read", "lookup", "both"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_together_give_what_each_gives_alone(family, position):
    model = tiny(family)
    asked = queries(model)
    generator = torch.Generator().manual_seed(0)
    baselines = [None, torch.randn(model.n_layers, model.n_neurons, generator=generator), None]
    masks = torch.rand(4, 2, model.n_neurons, generator=generator) < 0.5
    factors = [[0.5] * len(neurons) for neurons in SETS]
    together = ScaledAnswers(model, asked, baselines, position)
    assert len({len(query.prompt.ids) for query in asked}) == len(together) == len(asked)
    for prompt, (query, baseline) in enumerate(zip(asked, baselines, strict=True)):
        alone, part = ScaledAnswers(model, [query], [baseline], position), together.only([prompt])
        for answers in (alone, part):
            assert together.probability[[prompt]] == near_probability(answers.probability)
            assert together.scaled(SETS, factors)[[prompt]] == near_probability(answers.scaled(SETS, factors))
            assert together.kept(masks, [0, 1])[[prompt]] == near_probability(answers.kept(masks, [0, 1]))
            assert (together.top[prompt], together.rank[prompt]) == (answers.top[0], answers.rank[0])
            assert together.activations[prompt].numpy() == pytest.approx(answers.activations[0].numpy(), abs=1e-4)
    turned = together.only([2, 0])
    assert turned.queries == (asked[2], asked[0])
    assert turned.scaled(SETS, 2.0) == near_probability(together.scaled(SETS, 2.0)[[2, 0]])


def test_a_set_of_no_neurons_leaves_the_answers_as_they_are():
    answers = ScaledAnswers(tiny("llama"), queries(tiny("llama")))
    assert np.array_equal(answers.scaled([[]], 0.0)[:, 0], answers.probability)


def test_no_prompts_are_none():
    answers = ScaledAnswers(tiny("llama"), [])
    assert len(answers) == 0 and answers.probability.shape == (0,) and not answers.known.size
    assert answers.top == answers.rank == []
    assert ScaledAnswers(tiny("llama"), queries(tiny("llama"))).only([]).known.shape == (0,)


def test_many_prompts_cost_hardly_more_calls_than_one():
    model = tiny("llama")

    def calls(asked):
        answers = ScaledAnswers(model, asked)
        with counted() as counts:
            answers.scaled(SETS, 0.0)
        return counts.calls

    assert calls(queries(model)) <= 1.5 * calls(queries(model)[:1])
