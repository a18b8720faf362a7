"""From facts to neuron sets: thresholds, refinement, negatives, kinds, and files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny import PROMPT, tiny
from support.trained import facts, trained

from knowedit import DataError, Fact, InputError, NeuronSet, ask
from knowedit.locate.attribution import INCOMPLETE, AttributionConfig, attribute
from knowedit.locate.config import LocateConfig
from knowedit.locate.fact_prompts import FactPrompts
from knowedit.locate.integration_path import mean_activation
from knowedit.locate.locate import locate_fact, locate_prompts, score_prompts
from knowedit.locate.neurons import KINDS, vocabulary
from knowedit.locate.proof.neuron_kinds import CONTROLS, ControlPool, Controls, kinds
from knowedit.locate.rankings import RANKINGS
from knowedit.locate.refinement import adjusted_p, coarse, select, shared, strongest
from knowedit.models.adapter import Model
from knowedit.models.intervene import scale
from knowedit.models.passes.scaled_answers import ScaledAnswers

NODES = AttributionConfig(nodes=8)
CAUSAL = LocateConfig(attribution=NODES)
REFINED = LocateConfig(attribution=NODES, select="refined")


@pytest.fixture(scope="module")
def found():
    model = trained()
    return locate_fact(model, facts()[0], REFINED, pool=ControlPool(model, facts()))


@pytest.fixture(scope="module")
def selected():
    model = trained()
    return locate_fact(model, facts()[0], CAUSAL, pool=ControlPool(model, facts()))


def test_coarse_and_shared():
    scores = torch.tensor([[1.0, 0.2, 0.19], [-3.0, 0.5, 0.0]])
    sets = [coarse(scores, 0.2), coarse(scores.flip(1), 0.2), coarse(scores, 0.4)]
    assert set(sets[0]) == {(0, 0), (0, 1), (1, 1)}
    assert shared(sets, 0.7) == {(1, 1): 1.0}
    assert set(shared(sets, 0.6)) == {(0, 0), (0, 1), (1, 1)}
    assert set(coarse(scores, 0.2, layers=[1])) == {(1, 1)}
    assert coarse(-scores.abs(), 0.2) == {}


def test_adjusting_p_moves_towards_two_to_five():
    many = [{(0, i): 1.0 for i in range(10)}] * 3 + [{(0, 0): 1.0, (0, 1): 1.0}]
    assert len(shared(many, 0.7)) == 10
    assert len(shared(many, adjusted_p(many, 0.7))) == 2


@pytest.mark.parametrize("p", [0.75, 0.85, 0.95, 1.0])
def test_adjusting_p_does_not_ask_for_more_than_all_prompts(p):
    """Six neurons in every prompt are more than five at any p; above 1 there would be none."""
    assert adjusted_p([{(0, i): 1.0 for i in range(6)}] * 3, p) == 1.0


def test_located_neurons_are_ordered_and_described(found):
    assert len(found) > 0
    scores = [n.score for n in found.neurons]
    assert scores == sorted(scores, reverse=True)
    assert all(n.kind in ("fact", "relation", "answer", "general") for n in found.neurons)
    assert all(len(n.promotes) == 8 and 0.7 <= n.prompts <= 1 for n in found.neurons)
    assert found.probability > 0.9
    assert found.refined_on == ("Zarn lives in", "The home of Zarn is", "You will find Zarn in")


def test_without_kinds_the_neurons_are_the_same(found):
    model = trained()
    plain = locate_fact(model, facts()[0], replace(REFINED, kinds=False))
    assert list(plain) == list(found) and {neuron.kind for neuron in plain.neurons} == {None}
    with pytest.raises(InputError, match="not told without kinds"):
        LocateConfig(kinds=False, drop=("general",))


def test_neuron_sets_survive_json_and_know_their_model(found, tmp_path):
    path = tmp_path / "set.json"
    found.save(path)
    assert NeuronSet.load(path, trained()) == found
    with pytest.raises(DataError, match="schema"):
        (tmp_path / "other.json").write_text(json.dumps({"schema": "x"}))
        NeuronSet.load(tmp_path / "other.json")
    with pytest.raises(DataError, match="damaged"):
        (tmp_path / "cut.json").write_text(path.read_text()[:200])
        NeuronSet.load(tmp_path / "cut.json")
    record = json.loads(path.read_text())
    record["weights_hash"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="other weights"):
        NeuronSet.load(path, trained())


def test_a_selection_says_what_its_neurons_do_together(selected):
    model, fact = trained(), facts()[0]
    queries = [model.query(text, fact.target, fact.subject) for text in selected.refined_on]
    before = sum(target_probability(model, query) for query in queries)
    assert 1 <= len(selected) <= 10
    for n, neuron in enumerate(selected.neurons, 1):
        for factor, change in ((0.0, neuron.suppress), (2.0, neuron.amplify)):
            with scale(model, list(selected)[:n], factor):
                after = sum(target_probability(model, query) for query in queries)
            # probabilities in float32, a sum of a few of them
            assert after / before - 1 == pytest.approx(change, abs=64 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("prompts, select_on, asked", [(1, None, 3), (3, None, 3), (1, 2, 2), (3, 1, 3)])
def test_a_selection_asks_prompts_that_are_not_scored(prompts, select_on, asked):
    """What its neurons do together is said of those that it asked, whichever were scored."""
    model, fact = trained(), facts()[0]
    config = replace(CAUSAL, prompts=prompts, select_on=select_on, kinds=False)
    found = locate_fact(model, fact, config, pool=ControlPool(model, facts()))
    assert found.refined_on == FactPrompts.all_of(fact).locating[:asked]
    selecting = found.refined_on[: select_on or asked]
    answers = ScaledAnswers(model, [model.query(text, fact.target, fact.subject) for text in selecting])
    before, after = answers.probability.sum(), answers.scaled([list(found)], 2.0).sum()
    last = found.neurons[-1].amplify
    assert after / before - 1 == pytest.approx(last, abs=64 * torch.finfo(torch.float32).eps)
    assert all(neuron.prompts * prompts == round(neuron.prompts * prompts) for neuron in found.neurons)


@torch.no_grad()
def target_probability(model, query) -> float:
    (target,) = query.target_ids
    return model.hf(torch.tensor([query.prompt.ids])).logits[0, query.prompt.read].softmax(-1)[target].item()


def test_each_neuron_that_is_taken_raises_the_joint_effect_most():
    """Of three candidates the second round's best is not the one that is best alone."""
    gains = {frozenset(): 0.5, frozenset("a"): 0.6, frozenset("b"): 0.55, frozenset("c"): 0.4}
    gains |= {frozenset("ab"): 0.62, frozenset("ac"): 0.8, frozenset("abc"): 0.7}
    taken = select(Table(gains), ["a", "b", "c"], most=3)
    assert [step.site for step in taken] == ["a", "c"]
    assert [round(step.amplify, 6) for step in taken] == [0.2, 0.6]
    assert [step.suppress for step in taken] == [0.0, 0.0]


def test_a_selection_without_a_neuron_that_helps_is_empty():
    harmful = {frozenset(): 0.5, frozenset("a"): 0.4}
    assert select(Table(harmful), ["a"], most=3) == []
    assert select(Table(harmful), [], most=3) == []


def test_the_last_neurons_of_a_selection_that_add_nearly_nothing_are_left_out():
    gains = {frozenset(): 0.5, frozenset("a"): 0.6, frozenset("b"): 0.5005, frozenset("ab"): 0.6005}
    assert [step.site for step in select(Table(gains), ["a", "b"], most=2)] == ["a"]


class Table:
    """Stands in for one prompt's answer: by the set of neurons that is doubled its probability; none falls at zero."""

    def __init__(self, amplified):
        self.amplified, self.probability = amplified, np.array([amplified[frozenset()]])

    def suppressed_and_amplified(self, sets):
        return np.full((1, len(sets)), self.probability), np.array([[self.amplified[frozenset(s)] for s in sets]])


def test_strongest_are_above_zero_and_in_the_layers():
    scores = torch.tensor([[1.0, 0.2, 0.0], [-3.0, 0.5, 0.3]])
    assert strongest(scores, 3) == [(0, 0), (1, 1), (1, 2)]
    assert strongest(scores, 9, layers=[1]) == [(1, 1), (1, 2)]


def test_a_selection_leaves_out_what_is_coarse_for_a_negative_prompt(selected):
    model = trained()
    negative = selected.refined_on[:1]
    (scored,) = score_prompts(model, FactPrompts(negative, "Aldor"), CAUSAL, ControlPool(model, facts()))
    left = locate_prompts(
        model, FactPrompts(negative, "Aldor"), CAUSAL, negatives=negative, pool=ControlPool(model, facts())
    )
    assert not set(left) & set(coarse(scored.scores, CAUSAL.t))


def test_a_specific_selection_disturbs_other_facts_of_the_relation_less(selected):
    model, fact = trained(), facts()[0]
    pool = ControlPool(model, facts())
    others = pool.controls(fact.subject, fact.target, fact.relation, 2 * CONTROLS).relation
    others = others.only(range(CONTROLS, len(others)))
    assert len(others)
    plain, specific = (
        locate_fact(model, fact, replace(CAUSAL, specific=specific), pool=pool) for specific in (False, True)
    )

    def disturbed(neurons) -> float:
        changed = others.suppressed_and_amplified([list(neurons)])
        return sum(abs(values[:, 0] - others.probability).sum() for values in changed)

    assert len(specific) and disturbed(specific) < disturbed(plain)
    few = ControlPool(model, [f for f in facts() if f.relation == fact.relation][:4])
    with pytest.raises(InputError, match="needs more than 8 other facts of the relation"):
        locate_fact(model, fact, replace(CAUSAL, specific=True), pool=few)


def test_what_a_selection_or_ranking_does_not_use_is_refused():
    with pytest.raises(InputError, match="a baseline is where the paths of ig start, gradient has none"):
        LocateConfig(method="gradient", attribution=AttributionConfig(baseline="mean"))
    with pytest.raises(InputError, match="specific is a causal selection"):
        LocateConfig(select="refined", specific=True)
    with pytest.raises(InputError, match="set select to refined"):
        LocateConfig(adjust=True)
    with pytest.raises(InputError, match="did you mean 'causal'"):
        LocateConfig(select="casual")
    with pytest.raises(InputError, match="candidates is 0"):
        LocateConfig(candidates=0)
    with pytest.raises(InputError, match="select_on is 0"):
        LocateConfig(select_on=0)
    with pytest.raises(InputError, match="candidates and select_on are of a causal selection"):
        LocateConfig(select="refined", select_on=4)


def test_ways_to_ask_that_are_not_given_are_made_and_said():
    """Neutral openings before the prompt; of a built-in fact the templates of its relation."""
    made = FactPrompts.in_words("My home town is called", "Bexum")
    assert made.locating[0] == "My home town is called" and len(made.locating) == 4 and len(made.heldout) == 3
    assert all(text.endswith("My home town is called") for text in (*made.locating, *made.heldout))
    assert not set(made.locating) & set(made.heldout)
    assert "neutral openings 3 locate and 3 prove" in made.remark
    builtin = FactPrompts.in_words("The capital of Venezuela is the city of", "Caracas")
    assert builtin.subject == "Venezuela" and builtin.relation is not None and len(builtin.heldout) > 0
    assert "templates of its relation" in builtin.remark
    assert FactPrompts.in_words("法国的首都是", "巴黎").remark is None


def test_ways_to_ask_that_are_given_are_used_as_they_are():
    given = FactPrompts.in_words("{} lives in", "Bexum", "Zarn", ["The home of {} is", "{} dwells in"])
    assert given.locating == ("Zarn lives in", "The home of Zarn is") and given.heldout == ("Zarn dwells in",)
    assert given.remark is None
    one = FactPrompts.in_words("{} lives in", "Bexum", "Zarn", ["The home of {} is"])
    assert one.heldout == ("The home of Zarn is",) and len(one.locating) == 4


def test_negative_prompts_remove_their_own_neurons(found):
    model = trained()
    # its own prompt as a negative one: everything is coarse for it too, and the answer says so
    left = locate_prompts(
        model, FactPrompts(found.refined_on[:1], "Aldor"), REFINED,
        negatives=found.refined_on[:1], pool=ControlPool(model, facts()),
    )  # fmt: skip
    assert len(left) == 0
    assert "negative" in left.note


def test_paraphrases_that_share_nothing_say_so():
    model = tiny("gpt2")
    prompts = FactPrompts(("The capital of France is", "Paris", "z y x w v u", "Rome is a city in"), "Tokyo")
    found = locate_prompts(model, prompts, replace(REFINED, t=1.0, p=1.0))
    assert len(found) == 0
    assert "share none" in found.note


def test_a_fact_that_the_model_does_not_know_is_said():
    model = trained()
    fact = Fact("{} lives in", "Zarn", "Bexum")
    found = locate_fact(model, fact, LocateConfig(attribution=NODES), pool=ControlPool(model, facts()))
    answer = ask(model, [model.query(fact.prompt, fact.target)])[0]
    word, chance = answer.top[0]
    assert found.note == (
        f"the model does not say this: it says {word!r} (p of its first token = {chance:.3f}), "
        f"and this answer is its choice number {answer.rank}"
    )
    assert found.rank == answer.rank > 1
    assert all(neuron.share is None for neuron in found.neurons)


def test_an_unknown_answer_that_no_neuron_raises_is_both():
    model = trained()
    config = LocateConfig(attribution=NODES, drop=KINDS)
    found = locate_fact(model, Fact("{} lives in", "Zarn", "Bexum"), config, pool=ControlPool(model, facts()))
    assert len(found) == 0 and "does not say this" in found.note and "; every neuron that" in found.note


@pytest.mark.parametrize("method", RANKINGS[1:])
def test_other_rankings_locate_too(method):
    model = trained()
    found = locate_fact(model, facts()[0], LocateConfig(method=method), pool=ControlPool(model, facts()))
    assert found.method == method
    assert all(n.share is None for n in found.neurons)


class Needs:
    """Stands in for controls: the answer of each is halved without any of the neurons it needs."""

    def __init__(self, *needed):
        self.needed, self.probability = needed, np.full(len(needed), 0.8)

    def __len__(self):
        return len(self.needed)

    def scaled(self, sets, factor):
        return np.array([[0.4 if set(neurons) & set(of_one) else 0.8 for neurons in sets] for of_one in self.needed])

    def suppressed_and_amplified(self, sets):
        return self.scaled(sets, 0.0), self.scaled(sets, 2.0)


@pytest.mark.parametrize(
    ("general", "relation", "answer", "kind"),
    [
        ([1, 1, 0, 0], [1, 1, 1, 1], [1], "general"),  # half of the others is enough
        ([1, 0, 0, 0], [1, 1, 0], [1], "relation"),
        ([0, 0], [1, 0, 0], [1, 1], "answer"),
        ([0, 0], [1, 0, 0], [1, 0, 0], "fact"),
        ([], [1, 0, 0], [0], "fact"),
        ([0, 0], [], [0], "fact"),
        ([], [], [1], "answer"),
        ([], [], [0], None),  # no other fact can be tried: it may be of the relation, or general
    ],
)
def test_kinds_follow_their_tests(general, relation, answer, kind):
    site, other = (1, 3), (2, 7)
    groups = [Needs(*((site, other) if hit else (other,) for hit in hits)) for hits in (general, relation, answer)]
    model = tiny("llama")
    assert kinds(model, [site], [1.0], 5, Controls(*groups))[0] == kind


def test_a_set_says_which_known_facts_were_not_there_to_tell_kinds_by(found):
    lacking = "no known fact of other relations or of the same relation"
    assert found.untried is None and replace(found, tests={}).untried is None
    pool = ControlPool(trained(), [fact for fact in facts() if fact.target == "Aldor"])
    alone = locate_fact(trained(), facts()[0], REFINED, pool=pool)
    assert alone.tests["controls"]["general"] == alone.tests["controls"]["relation"] == 0
    assert lacking in alone.untried and {neuron.kind for neuron in alone.neurons} <= {"answer", None}


def test_without_controls_of_the_answer_the_value_vector_tells():
    model = tiny("llama")
    token = model.query("The capital of France is", "Paris").target_ids[0]
    with torch.no_grad():
        model.down(1).weight[:, 3] = model.unembedding.weight[token] / model.hf.model.norm.weight
    assert kinds(model, [(1, 3), (1, 3)], [1.0, -1.0], token, Controls(Needs(()), Needs(), Needs())) == [
        "answer",
        "fact",
    ]


def test_controls_never_ask_about_the_same_subject_and_are_known():
    model = trained()
    controls = ControlPool(model, facts()).controls("Zarn", "Aldor", "home")
    assert controls.counts()["general"] and controls.counts()["relation"] and controls.counts()["answer"]
    for name in ("general", "relation", "answer"):
        answers = getattr(controls, name)
        assert answers.known.all()
        assert not any("Zarn" in query.prompt.text for query in answers.queries)


def test_what_a_model_does_not_know_is_asked_once_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path))
    model, asked, query_of = trained(), [], Model.query_of
    monkeypatch.setattr(Model, "query_of", lambda self, fact: asked.append(fact) or query_of(self, fact))
    wrong = [replace(fact, target="Bexum" if fact.target != "Bexum" else "Cirra") for fact in facts()]

    def counted(weights_hash):
        asked.clear()
        counts = (
            ControlPool(model, wrong, facts(), weights_hash=weights_hash).controls("Zarn", "Aldor", "home").counts()
        )
        return counts, len(asked)

    counts, first = counted("one")
    assert first > sum(counts.values()) > 0  # facts that it does not know were asked, too
    assert counted("one") == (counts, sum(counts.values()))
    assert counted("another") == (counts, first)
    for kept in (tmp_path / "unknown").iterdir():
        kept.write_text('{"damaged": 1')
    assert counted("one") == (counts, first)


def test_vocabulary_follows_the_sign():
    model = tiny("llama")
    promotes, suppresses = vocabulary(model, 1, 3, sign=1.0)
    assert vocabulary(model, 1, 3, sign=-1.0) == (suppresses, promotes)


def test_vocabulary_finds_a_planted_token():
    model = tiny("llama")
    token = model.query("The capital of France is", "Paris").target_ids[0]
    with torch.no_grad():
        model.down(1).weight[:, 4] = model.unembedding.weight[token] / model.hf.model.norm.weight
    assert model.tokenizer.decode([token]) in vocabulary(model, 1, 4)[0][:2]


def test_a_mean_baseline_starts_the_paths_there():
    model = trained()
    baseline = mean_activation(model, [f.prompt for f in facts()[:4]])
    assert baseline.shape == (3, 24)
    from knowedit import attribute

    found = attribute(model, "Zarn lives in", "Aldor", AttributionConfig(baseline=baseline))
    assert (found.gap <= 1e-3).all()
    assert not torch.allclose(found.scores, attribute(model, "Zarn lives in", "Aldor").scores)


@pytest.mark.parametrize("bad", [{"t": 0}, {"p": 1.5}, {"method": "igg"}, {"most": 0}])
def test_bad_options_are_refused(bad):
    with pytest.raises(InputError):
        LocateConfig(**bad)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"nodes": 2}, "let nodes be auto"),
        ({"budget": 1, "quadrature": "gauss-legendre"}, "the budget of gradients ended the search; raise it"),
    ],
)
def test_scores_that_do_not_add_up_are_warned_of(options, remedy):
    prompts = FactPrompts((PROMPT,), "Paris")
    model = tiny("olmo2")
    config = LocateConfig(attribution=AttributionConfig(**options), kinds=False)
    neurons = locate_prompts(model, prompts, config)
    scored = attribute(model, PROMPT, "Paris", config.attribution)
    assert neurons.missing == scored.missing.max() > INCOMPLETE
    assert f"miss {neurons.missing:.0%} of what they should add up to" in neurons.warning
    assert neurons.warning.endswith(remedy)
    assert NeuronSet.from_dict(json.loads(json.dumps(neurons.as_dict()))) == neurons
    fine = locate_prompts(model, prompts, replace(config, attribution=AttributionConfig()))
    assert fine.missing <= INCOMPLETE and fine.warning is None


def test_only_layers_that_were_searched_are_warned_of():
    model = tiny("olmo2")
    config = AttributionConfig(nodes=2)
    missing = attribute(model, PROMPT, "Paris", config).missing
    layer = missing.argmin().item()
    neurons = locate_prompts(
        model, FactPrompts((PROMPT,), "Paris"), LocateConfig(attribution=config, kinds=False, layers=(layer,))
    )
    assert neurons.missing == missing[layer] < missing.max()


def test_a_share_is_part_of_its_layer_or_none():
    """In a random model the neurons of a layer take back what others give."""
    neurons = locate_prompts(tiny("gemma2"), FactPrompts((PROMPT,), "Paris"), LocateConfig(kinds=False)).neurons
    assert neurons and all(n.share is None or 0 < n.share <= 1 for n in neurons)
    assert any(n.share is None for n in neurons)
