"""δ is that of ROME's algorithm written plainly; stopping, clamping and batching do what they say."""

from dataclasses import replace

import pytest
import torch
from support.counts import counted, in_a_step
from support.rounding import ADAM, PASS, assert_near, near, rounding
from support.tiny import FAMILIES, double, tiny
from support.trained import exact, facts, trained

from benchmarks.reference.rome import plain_v_star
from knowedit.edit.methods import v_star
from knowedit.edit.methods.v_star import VStarSearch, find_v_star, request
from knowedit.errors import InputError, KnoweditWarning, ModelError
from knowedit.facts import Fact
from knowedit.hooks import hooked, on_output

FACT = Fact("{} is located in the city of", "The Eiffel Tower", "Paris", target_new="Rome")
OTHERS = (
    Fact("The capital of {} is", "Japan", "Tokyo", target_new="Paris"),
    Fact("{} is the capital of", "Rome", "Italy", target_new="France"),
    Fact("The mother tongue of {} is", "Danielle Darrieux", "French", target_new="Italian and so on"),
)
CONTEXTS = ("The capital", "a b c d e f")
SEARCH = VStarSearch(steps=6, lr=0.1, stop_loss=None)
PLAIN = [family for family in FAMILIES if family in ("gpt2", "gptj", "llama", "falcon", "phi3", "granite")]


def asked(model, *facts, contexts=CONTEXTS):
    return [request(model, fact, fact.target_new, contexts) for fact in facts or (FACT,)]


@pytest.mark.parametrize("family", PLAIN)
def test_equals_the_plain_loop(family):
    with double():
        model = tiny(family, torch.float64)
        (one,) = asked(model)
        (value,) = find_v_star(model, [one], 1, SEARCH)
        plain = plain_v_star(model, one, 1, SEARCH)
        assert plain.steps == value.steps == 6
        assert_near(value.delta, plain.delta, size=ADAM, operations=2 * 6 * PASS)
        assert_near(value.v0, plain.v0)
        assert_near(value.keys, plain.keys)


@pytest.mark.parametrize("search", [SEARCH, replace(SEARCH, steps=30, stop_loss=0.5)])
def test_a_step_that_is_captured_is_the_step_that_is_not(search, doubled, monkeypatch):
    model = tiny("llama", torch.float64)
    requests = asked(model, FACT, *OTHERS)
    plain = find_v_star(model, requests, 1, search)
    kinds = []
    monkeypatch.setattr(v_star, "capturing", lambda model: True)
    monkeypatch.setattr(v_star, "captured", lambda work: kinds.append(work) or work)
    for value, same in zip(plain, find_v_star(model, requests, 1, search), strict=True):
        assert (value.steps, value.reaches, value.clamped) == (same.steps, same.reaches, same.clamped)
        assert_near(same.delta, value.delta, size=ADAM, operations=2 * search.steps * PASS)
    assert kinds, "no step was captured"


@pytest.mark.covered
@pytest.mark.parametrize("family", FAMILIES)
def test_many_facts_at_once_are_as_each_alone(family):
    with double():  # in float32 Adam's first steps turn rounding into other signs
        model = tiny(family, torch.float64)
        requests = asked(model, FACT, *OTHERS)
        together = find_v_star(model, requests, 1, SEARCH)
        shortest = min(one.suffix for one in requests)
        for one, value in zip(requests, together, strict=True):
            (alone,) = find_v_star(model, [one], 1, SEARCH)
            assert_near(alone.keys, value.keys)
            if one.suffix == shortest or family not in (
                "mistral",
                "gemma2",
            ):
                assert alone.loss == near(value.loss, size=ADAM, operations=2 * 6 * PASS)
                assert_near(alone.delta, value.delta, size=ADAM, operations=2 * 6 * PASS)


def test_a_search_lowers_the_loss_and_respects_the_clamp():
    model = tiny("llama")
    (start,) = find_v_star(model, asked(model), 1, replace(SEARCH, steps=1))
    (end,) = find_v_star(model, asked(model), 1, replace(SEARCH, steps=30))
    assert end.loss < start.loss and end.probability > start.probability
    assert start.delta.norm() == 0
    (tight,) = find_v_star(model, asked(model), 1, replace(SEARCH, steps=30, clamp=0.5))
    limit = 0.5 * tight.v0.norm()
    assert tight.delta.norm() <= limit + rounding(limit, operations=model.d_model) and tight.clamped


@pytest.fixture
def exact_model():
    model = trained()  # before float64 is on
    with double():
        yield exact(model)


def test_facts_end_when_they_are_done(exact_model):
    model = exact_model
    answers = {fact.relation: {f.target for f in facts() if f.relation == fact.relation} for fact in facts()}
    wanted = [replace(f, target_new=min(answers[f.relation] - {f.target})) for f in facts()[:8]]
    search = VStarSearch(steps=40, lr=0.2, clamp=80.0, decay=0.0, stop_loss=None, stop_probability=0.9)
    requests = asked(model, *wanted, contexts=())
    values = find_v_star(model, requests, 0, search)
    assert all(v.probability >= 0.9 for v in values if v.steps < 40)
    assert len({v.steps for v in values}) > 1, "they should not all end together"
    for one, value in zip(requests, values, strict=True):
        (alone,) = find_v_star(model, [one], 0, search)
        assert alone.steps == value.steps
        assert alone.probability == near(value.probability, size=ADAM, operations=2 * 40 * PASS)


def test_searches_end_where_they_end_however_seldom_that_is_read(exact_model, monkeypatch):
    answers = {fact.relation: {f.target for f in facts() if f.relation == fact.relation} for fact in facts()}
    wanted = [replace(f, target_new=min(answers[f.relation] - {f.target})) for f in facts()[:8]]
    search = VStarSearch(steps=40, lr=0.2, clamp=80.0, decay=0.0, stop_loss=None, stop_probability=0.9)
    requests = asked(exact_model, *wanted, contexts=())
    often = find_v_star(exact_model, requests, 0, search)
    monkeypatch.setitem(v_star.READ_EVERY, "cpu", 5)
    seldom = find_v_star(exact_model, requests, 0, search)
    for value, same in zip(often, seldom, strict=True):
        assert (value.steps, value.clamped) == (same.steps, same.clamped)
        assert value.probability == near(same.probability, size=ADAM, operations=2 * 40 * PASS)
        assert_near(value.delta, same.delta, size=ADAM, operations=2 * 40 * PASS)
    assert any(value.steps % 5 for value in often), "a read in every fifth step should miss some ends"


WINDOWS = [family for family in FAMILIES if family in ("llama", "mistral", "gemma2", "gpt_neo", "modernbert")]


@pytest.mark.parametrize("family", WINDOWS)
def test_a_search_ends_at_once_where_the_answer_does_not_depend_on_it(family):
    model = tiny(family)
    (fact_request,) = asked(model)
    row = fact_request.rows[0]
    (read, _), *_ = row.reads
    shift = 10 * torch.randn(model.d_model)

    def said(layer, shift):
        def shifted(output):
            flat = output.reshape(-1, output.shape[-1])
            return flat.index_add(0, torch.tensor([row.lookup]), shift[None]).reshape(output.shape)

        with hooked(on_output(model.down(layer), shifted)), torch.no_grad():
            return model.hf(input_ids=torch.tensor([row.ids])).logits[0, read]

    reached = []
    for layer in range(model.n_layers):
        (value,) = find_v_star(model, [fact_request], layer, replace(SEARCH, stop_loss=0.0))
        reached.append(not torch.equal(said(layer, shift), said(layer, 0 * shift)))
        assert value.reaches == reached[-1]
        assert value.steps == (6 if value.reaches else 1) and bool(value.delta.any()) == value.reaches
    assert not reached[-1], "no attention stands above the last layer"


def test_searches_that_do_not_fit_into_memory_go_on_in_halves(doubled, monkeypatch):
    model = tiny("llama", torch.float64)
    requests = asked(model, FACT, *OTHERS)
    monkeypatch.setattr(v_star, "BATCH_TOKENS", 4096)
    together = find_v_star(model, requests, 1, SEARCH)
    until_done, sizes = v_star.until_done, []

    def small(run, searches, most):
        sizes.append(searches.n)
        if searches.n > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return until_done(run, searches, most)

    monkeypatch.setattr(v_star, "until_done", small)
    room = 1
    with pytest.warns(KnoweditWarning, match="[42] searches .* do not fit .* of cpu; they go on in halves"):
        halved = find_v_star(model, requests, 1, SEARCH)
    assert sizes == [4, 2, 1, 1, 1, 1]
    for value, alone in zip(together, halved, strict=True):
        assert_near(alone.delta, value.delta, size=ADAM, operations=2 * 6 * PASS)
    room = 0
    with pytest.warns(KnoweditWarning), pytest.raises(ModelError, match="one of the searches alone does not fit"):
        find_v_star(model, requests, 1, SEARCH)


@pytest.mark.parametrize("layer", [1, 15])
def test_a_step_spares_the_calls_of_a_forward_pass_below_the_edited_layer(layer):
    model = tiny("llama", num_hidden_layers=30)  # as deep as the default model, whose counts are the same
    (fact_request,) = asked(model, OTHERS[0])
    assert not fact_request.begins_with_essence, "the essence has a row of its own"
    plain, _ = in_a_step(lambda steps: plain_v_star(model, fact_request, layer, replace(SEARCH, steps=steps)))
    ours, _ = in_a_step(lambda steps: find_v_star(model, [fact_request], layer, replace(SEARCH, steps=steps)))
    with counted() as forward:
        model.hf(input_ids=torch.tensor([fact_request.rows[0].ids]))
    assert ours <= plain - forward.calls * layer / model.n_layers


@pytest.mark.parametrize("n", [1, 4])
def test_a_step_of_many_facts_reads_as_seldom_as_one_of_one(n, monkeypatch):
    monkeypatch.setitem(v_star.READ_EVERY, "cpu", 5)
    model = tiny("llama")
    requests = asked(model, FACT, *OTHERS)[:n]
    for search, most in ((SEARCH, 0), (replace(SEARCH, stop_loss=0.0, stop_probability=0.999), 1 / 5)):
        work = lambda steps, search=search: find_v_star(model, requests, 1, replace(search, steps=steps))  # noqa: E731
        _, reads = in_a_step(work, few=6, many=21)
        assert reads <= most


def test_the_model_is_as_it_was():
    model = tiny("gpt2")
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    find_v_star(model, asked(model), 1, SEARCH)
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.hf.named_parameters())
    assert all(p.requires_grad for p in model.hf.parameters())


def test_the_rows_stand_as_drawn():
    model = tiny("llama")
    (found,) = asked(model)
    assert len(found.rows) == 2 + len(CONTEXTS)
    assert {row.ids[row.lookup] for row in found.rows} == {found.rows[0].ids[found.rows[0].lookup]}
    assert found.rows[-1].reads == () and found.rows[-1].lookup == len(found.rows[-1].ids) - 1


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"lr": 0.0}, {"clamp": -1.0}, {"kl": -1.0}, {"stop_probability": 1.5}, {"stop_loss": -1.0}]
)
def test_bad_searches_are_refused(wrong):
    with pytest.raises(InputError):
        VStarSearch(**wrong)
