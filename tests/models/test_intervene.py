"""Interventions act where they say, nest, and leave nothing behind."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from threading import Barrier, Event

import pytest
import torch
from support.commands import LIMIT
from support.rounding import near_probability
from support.tiny import tiny
from support.trained import facts, trained

import knowedit
from knowedit import InputError, amplify, ask, set_to, suppress
from knowedit.hooks import hooked, on_call, on_input
from knowedit.mlp.activations import collect, text_positions
from knowedit.models.expansion import expansions
from knowedit.models.passes.scaled_answers import ScaledAnswers

PROMPT = "The capital of France is"


def neurons_seen(model, layer, **inputs):
    seen = []
    with torch.no_grad(), hooked(on_input(model.down(layer), lambda x: seen.append(x.clone()))):
        model.hf(**inputs)
    return seen[0].reshape(*inputs["input_ids"].shape, -1)


def ids_of(model, text=PROMPT):
    return torch.tensor([model.encode(text).ids])


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bert"])
def test_only_the_read_position_changes(family):
    model = tiny(family)
    text = f"{PROMPT} [MASK]." if model.masked else PROMPT
    prompt = model.encode(text)
    ids = torch.tensor([prompt.ids])
    clean = neurons_seen(model, 1, input_ids=ids)
    for context, factor in ((suppress(model, [(1, 3), (1, 5)]), 0.0), (amplify(model, [(1, 3), (1, 5)]), 2.0)):
        wanted = clean.clone()
        wanted[:, prompt.read, [3, 5]] *= factor
        with context:
            assert torch.equal(neurons_seen(model, 1, input_ids=ids), wanted)


def test_a_read_position_that_is_not_known_is_said():
    model = tiny("llama")
    query = model.query(PROMPT, "P")
    with suppress(model, [(1, 3)]):
        for _ in range(2):  # also after a call that had one
            with pytest.raises(InputError, match="call model.hf"):
                ask(model, [query])
            model.hf(ids_of(model))
    (clean,) = ask(model, [query])
    with suppress(model, [(1, 3)], at="all"):
        (changed,) = ask(model, [query])
    assert changed.probability != clean.probability


def test_a_read_position_does_not_outlive_a_call_that_failed():
    model = tiny("llama")

    def fails(_):
        raise MemoryError

    with suppress(model, [(1, 3)]):
        with pytest.raises(MemoryError), hooked(on_input(model.down(2), fails)):
            model.hf(ids_of(model))
        with pytest.raises(InputError, match=r"call model\.hf"):
            ask(model, [model.query(PROMPT, "P")])


def test_all_positions_and_set_to():
    model = tiny("llama")
    with set_to(model, [(0, 2)], 1.5, at="all"):
        assert (neurons_seen(model, 0, input_ids=ids_of(model))[..., 2] == 1.5).all()


def test_padding_on_the_right_is_not_the_read_position():
    model = tiny("llama")
    ids = torch.cat([ids_of(model), torch.zeros(1, 2, dtype=torch.long)], 1)
    mask = torch.ones_like(ids)
    mask[:, -2:] = 0
    with set_to(model, [(0, 2)], 7.0):
        seen = neurons_seen(model, 0, input_ids=ids, attention_mask=mask)[0, :, 2]
    assert (seen == 7.0).nonzero().flatten().tolist() == [ids.shape[1] - 3]


def test_nesting_and_generation_with_a_cache():
    model = tiny("gpt2")
    ids = ids_of(model)
    with set_to(model, [(1, 0)], 3.0), amplify(model, [(1, 0)], 2.0):
        seen = []
        with hooked(on_input(model.down(1), lambda x: seen.append(x[0, -1, 0].item()))):
            model.hf.generate(ids, max_new_tokens=3, do_sample=False)
    assert seen == [6.0, 6.0, 6.0]


def test_every_thread_generates_with_the_neurons_altered_each_at_its_own_read_positions():
    model = tiny("gpt2")
    prompts = [ids_of(model), ids_of(model, f"{PROMPT} not")]
    half_way = Barrier(2, timeout=LIMIT)

    def seen_by(ids, meet):
        """The neuron's values; with `meet` both threads are inside of a call at once."""
        hooks = [on_call(model.blocks[0], lambda *_: half_way.wait())] if meet else []
        with hooked(*hooks):
            return neurons_seen(model, 1, input_ids=ids)

    with suppress(model, [(1, 3)]):
        wanted = [seen_by(ids, meet=False) for ids in prompts]
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(seen_by, prompts, [True, True]))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert all(values[0, -1, 3] == 0 and values[0, :-1, 3].all() for values in found)


def test_a_model_is_measured_while_another_thread_generates_with_it():
    """As a served model is: a measurement changes forward passes and ends them early, but only its own."""
    model = trained()
    query = model.query(facts()[0].prompt, facts()[0].target)
    ids = torch.tensor([query.prompt.ids])
    stop, generated = Event(), []

    def generate():
        return model.hf.generate(ids, max_new_tokens=4, do_sample=False)

    def measured():
        scores = knowedit.attribute(model, query).scores
        hooks = expansions(model)
        neurons = collect(model, [query.prompt], partial(text_positions, model), hooks)  # ends passes early
        return [scores, *(values for stages in neurons.values() for values in stages.values())]

    def serve():
        while not stop.is_set():
            generated.append(generate())

    answer, wanted = generate(), measured()
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        try:
            found = [measured() for _ in range(3)]
        finally:
            stop.set()
        serving.result(timeout=LIMIT)
    assert all(torch.equal(a, b) for again in found for a, b in zip(again, wanted, strict=True))
    assert generated and all(torch.equal(tokens, answer) for tokens in generated)


def test_an_exception_leaves_the_model_as_it_was():
    model = tiny("llama")
    before = {k: v.clone() for k, v in model.hf.state_dict().items()}
    logits = model.hf(ids_of(model)).logits
    with pytest.raises(ZeroDivisionError), suppress(model, [(0, 1)]):
        1 / 0  # noqa: B018
    assert torch.equal(model.hf(ids_of(model)).logits, logits)
    assert all(torch.equal(v, before[k]) for k, v in model.hf.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.hf.modules())


def test_bad_neurons_and_positions_are_refused():
    model = tiny("llama")
    for neurons, at in (([(99, 0)], "read"), ([(0, 10**6)], "read"), ([(-1, 0)], "read"), ([(0, 0)], "lookup")):
        with pytest.raises(InputError), suppress(model, neurons, at=at):
            pass


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_a_response_equals_the_model_inside_the_context(factor):
    model = trained()
    fact = facts()[0]
    query = model.query(fact.prompt, fact.target)
    sets = [[(2, 5)], [(0, 1), (1, 7), (2, 9)], [], [(1, i) for i in range(20)]]
    (fast,) = ScaledAnswers(model, [query]).scaled(sets, factor)
    for neurons, found in zip(sets, fast, strict=True):
        with amplify(model, neurons, factor), torch.no_grad():
            logits = model.hf(torch.tensor([query.prompt.ids])).logits[0, -1]
        assert found == near_probability(logits.softmax(-1)[query.target_ids[0]].item())


def test_suppressed_and_amplified_are_what_one_factor_gives_at_a_time():
    model = trained()
    answers = ScaledAnswers(model, [model.query_of(fact) for fact in facts()[:3]])
    sets = [[(2, 5)], [], [(0, 1), (1, 7), (2, 9)]]
    for values, factor in zip(answers.suppressed_and_amplified(sets), (0.0, 2.0), strict=True):
        assert values == near_probability(answers.scaled(sets, factor))


def test_each_neuron_of_a_set_may_have_a_factor_of_its_own():
    model = trained()
    query = model.query_of(facts()[0])
    sets, factors = [[(0, 1), (2, 5)], [(1, 7)]], [[0.0, 3.0], [0.5]]
    (fast,) = ScaledAnswers(model, [query]).scaled(sets, factors)
    for neurons, of_set, found in zip(sets, factors, fast, strict=True):
        with ExitStack() as on, torch.no_grad():
            for neuron, factor in zip(neurons, of_set, strict=True):
                on.enter_context(amplify(model, [neuron], factor))
            logits = model.hf(torch.tensor([query.prompt.ids])).logits[0, -1]
        assert found == near_probability(logits.softmax(-1)[query.target_ids[0]].item())


def test_a_response_multiplies_the_tokens_of_a_target():
    model = tiny("llama")
    query = model.query(PROMPT, "Paris and Rome")
    assert len(query.target_ids) > 2
    neurons = [(0, 3), (2, 8)]
    ids = torch.tensor([query.steps[-1].ids])

    def scaled_reads(x):
        x = x.clone()
        for step in query.steps:
            for layer, index in neurons:
                if layer == at:
                    x[:, step.read, index] *= 2
        return x

    hooks = []
    for at_layer in range(model.n_layers):

        def altered(x, at_layer=at_layer):
            nonlocal at
            at = at_layer
            return scaled_reads(x)

        hooks.append(on_input(model.down(at_layer), altered))
    at = 0
    with hooked(*hooks), torch.no_grad():
        p = model.hf(ids).logits[0].softmax(-1)
    wanted = 1.0
    for step, token in zip(query.steps, query.target_ids, strict=True):
        wanted *= p[step.read, token].item()
    assert ScaledAnswers(model, [query]).scaled([neurons], 2.0)[0, 0] == near_probability(wanted)
