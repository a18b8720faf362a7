"""Value slots rewritten and erased: against the arithmetic of Dai et al.'s code, column by column."""

from dataclasses import replace

import pytest
import torch
from support.rounding import assert_near
from support.tiny import SUBJECT, tiny
from support.trained import CITIES, facts, trained

from knowedit import Fact, InputError, ModelError
from knowedit.edit.delta import weight_hash
from knowedit.edit.methods.knowledge_neurons import EraseConfig, KnowledgeNeuronsConfig, erase, knowledge_neurons
from knowedit.hooks import hooked, on_input
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import LocateConfig
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.neuron_kinds import ControlPool

NODES = AttributionConfig(nodes=8)
LOCATE = LocateConfig(attribution=NODES, select="refined", prompts=None, adjust=True)
CONFIG = KnowledgeNeuronsConfig(locate=LOCATE)
FACT = Fact("The {} is located in the city of", SUBJECT, "Paris", target_new="Rome")
NEURONS = [(2, 5), (0, 7), (2, 1), (2, 5)]


@pytest.fixture(scope="module")
def pool():
    return ControlPool(trained(), facts())


def rewritten(fact: Fact) -> Fact:
    return replace(fact, target_new=next(city for city in CITIES if city != fact.target))


def log_p(model, fact: Fact, target: str, edit=None) -> float:
    """log P(target's first token | main prompt), the edit added to a copy of the weights and taken away again."""
    kept = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    for layer in range(model.n_layers):
        if edit is not None and (delta := edit.deltas.get(model.down_path(layer))) is not None:
            model.down_weight(layer).data.add_(delta.matrix())
    query = model.query(fact.prompt, target, fact.subject)
    with torch.no_grad():
        logits = model.hf(torch.tensor([query.prompt.ids])).logits[0, query.prompt.read]
        for name, p in model.hf.named_parameters():
            p.copy_(kept[name])
    return logits.log_softmax(-1)[query.target_ids[0]].item()


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "gemma2"])
def test_update_is_the_arithmetic_of_the_paper(family):
    model = tiny(family)
    edit = knowledge_neurons(
        model, FACT, KnowledgeNeuronsConfig(lambda1=0.5, lambda2=3.0, signed=False), neurons=NEURONS
    )
    assert set(edit.deltas) == {model.down_path(0), model.down_path(2)}
    rows = model.unembedding.weight.detach()
    old, new = (
        sum(rows[i] for i in ids) / len(ids)
        for ids in (model.query(FACT.prompt, target, SUBJECT).target_ids for target in ("Paris", "Rome"))
    )
    for layer, indices in ((0, [7]), (2, [1, 5])):
        weight, delta = model.down_weight(layer).detach(), edit.deltas[model.down_path(layer)]
        wanted = weight.clone()
        for i in indices:
            norm = weight[:, i].norm()
            wanted[:, i] -= norm / old.norm() * 0.5 * old
            wanted[:, i] += norm / new.norm() * 3.0 * new
        assert delta.rank == len(indices)
        assert_near(weight + delta.matrix(), wanted, operations=2 * model.d_model)
        others = [i for i in range(model.n_neurons) if i not in indices]
        assert not delta.matrix()[:, others].any()
    assert edit.notes["neurons"] == [[2, 5], [0, 7], [2, 1]] == edit.config["neurons"]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_signs_follow_the_activations(family):
    model = tiny(family)
    signed, plain = (
        knowledge_neurons(model, FACT, KnowledgeNeuronsConfig(signed=signed), neurons=[(1, i) for i in range(8)])
        for signed in (True, False)
    )
    neurons, prompt = [], model.query(FACT.prompt, "Paris").prompt
    with torch.no_grad(), hooked(on_input(model.down(1), neurons.append)):
        model.hf(torch.tensor([prompt.ids]))
    negative = neurons[0].reshape(len(prompt.ids), -1)[prompt.read, :8] < 0
    assert 0 < negative.sum() < 8
    path = model.down_path(1)
    signs = torch.where(negative, -1.0, 1.0)
    assert torch.equal(signed.deltas[path].matrix()[:, :8], plain.deltas[path].matrix()[:, :8] * signs)


def test_locates_and_moves_the_answer(pool):
    """A gated model's neurons are often negative: to the letter of the paper half of its facts stay."""
    model, moved, to_the_letter = trained(), 0, 0
    some = [rewritten(fact) for fact in facts() if fact.relation == "home"]
    for fact in some:
        edit = knowledge_neurons(model, fact, CONFIG, pool=pool)
        assert edit.notes["neurons"] and edit.config["locate"]["adjust"] and "neurons" not in edit.config
        moved += log_p(model, fact, fact.target_new, edit) > -0.1
        plain = knowledge_neurons(model, fact, replace(CONFIG, signed=False), neurons=edit.notes["neurons"])
        to_the_letter += log_p(model, fact, fact.target_new, plain) > -0.1
    assert len(some) == 12 and moved >= 10 and to_the_letter <= 7


def test_located_as_locate_fact_does(pool):
    model, fact = trained(), rewritten(facts()[0])
    found = locate_fact(model, fact, LOCATE, pool=pool)
    edit = knowledge_neurons(model, fact, CONFIG, pool=pool)
    assert edit.notes["neurons"] == [list(site) for site in found]
    given = knowledge_neurons(model, fact, CONFIG, neurons=found)
    assert all(torch.equal(edit.deltas[path].matrix(), delta.matrix()) for path, delta in given.deltas.items())
    assert edit.factors_hash == knowledge_neurons(model, fact, CONFIG, pool=pool).factors_hash


def test_neurons_that_other_facts_share_are_left_out(pool):
    model, fact = trained(), rewritten(facts()[0])
    first, *rest = list(locate_fact(model, fact, LOCATE, pool=pool))
    assert rest
    others = [[first], [first], *[[]] * 8]  # two of ten have it
    edit = knowledge_neurons(model, fact, CONFIG, others=others, pool=pool)
    assert edit.notes["neurons"] == [list(site) for site in rest] and edit.notes["shared"] == 1
    same = knowledge_neurons(model, fact, CONFIG, others=[[first], *[[]] * 9], pool=pool)
    assert same.notes["shared"] == 0
    with pytest.raises(InputError, match=f"share all {len(rest) + 1} that were located; raise shared"):
        knowledge_neurons(model, fact, CONFIG, others=[[first, *rest]], pool=pool)
    kept = knowledge_neurons(model, fact, replace(CONFIG, shared=1), others=[[first, *rest]], pool=pool)
    assert kept.notes["neurons"] == [list(site) for site in (first, *rest)] and kept.notes["others"] == 0


def test_erases_the_commonest_neurons(pool):
    model = trained()
    relation = [f for f in facts() if f.relation == "home"][:4]
    sets = [list(locate_fact(model, f, LOCATE, pool=pool)) for f in relation]
    edit = erase(model, relation, EraseConfig(most=3, locate=LOCATE), pool=pool)
    counts = {site: sum(site in found for found in sets) for found in sets for site in found}
    sites = [tuple(site) for site in edit.notes["neurons"]]
    assert edit.notes["facts_with"] == [counts[site] for site in sites] == sorted(counts.values(), reverse=True)[:3]
    for layer in range(model.n_layers):
        indices = [i for at, i in sites if at == layer]
        assert (model.down_path(layer) in edit.deltas) == bool(indices)
        if indices:
            weight, delta = model.down_weight(layer).detach(), edit.deltas[model.down_path(layer)]
            after = weight + delta.matrix()
            assert not after[:, indices].any()
            others = [i for i in range(model.n_neurons) if i not in indices]
            assert torch.equal(after[:, others], weight[:, others])
    assert edit.facts == tuple(relation) and edit.method == "knowledge_neurons_erase"
    drops = [log_p(model, f, f.target) - log_p(model, f, f.target, edit) for f in relation]
    assert sum(drops) > 0


def test_erases_one_fact_and_given_neurons(pool):
    model, fact = trained(), facts()[0]
    found = locate_fact(model, fact, LOCATE, pool=pool)
    edit = erase(model, fact, EraseConfig(locate=LOCATE), pool=pool)
    assert edit.notes["neurons"] == [list(site) for site in found]
    given = erase(model, fact, neurons=found)
    assert given.notes["facts_with"] is None
    assert all(torch.equal(edit.deltas[path].matrix(), delta.matrix()) for path, delta in given.deltas.items())
    assert log_p(model, fact, fact.target, edit) < log_p(model, fact, fact.target)


def test_the_model_stays_as_it_was(pool):
    model, fact = trained(), rewritten(facts()[0])
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    wanted = {name: p.requires_grad for name, p in model.hf.named_parameters()}
    edit = knowledge_neurons(model, fact, CONFIG, pool=pool)
    erase(model, fact, EraseConfig(locate=LOCATE), pool=pool)
    assert all(torch.equal(p, before[name]) for name, p in model.hf.named_parameters())
    assert {name: p.requires_grad for name, p in model.hf.named_parameters()} == wanted
    assert all(dict(edit.bases)[model.down_path(layer)] == weight_hash(model.down_weight(layer))
               for layer in range(model.n_layers) if model.down_path(layer) in edit.bases)  # fmt: skip
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_refuses_what_finds_nothing(pool):
    model, fact = trained(), rewritten(facts()[0])
    nothing = LocateConfig(attribution=NODES, select="refined", drop=("fact", "relation", "answer", "general"))
    with pytest.raises(InputError, match="no neuron to rewrite .* of a kind to leave out"):
        knowledge_neurons(model, fact, KnowledgeNeuronsConfig(locate=nothing), pool=pool)
    with pytest.raises(InputError, match="no neuron to erase .* kind to leave out"):
        erase(model, [fact], EraseConfig(locate=nothing), pool=pool)
    for method in (knowledge_neurons, erase):
        with pytest.raises(InputError, match="none was given"):
            method(model, fact, neurons=[])


def test_refuses_bad_requests():
    model = tiny("gpt2")
    with pytest.raises(InputError, match="has no target_new"):
        knowledge_neurons(model, replace(FACT, target_new=None), neurons=NEURONS)
    with pytest.raises(InputError, match="the fact's own target"):
        knowledge_neurons(model, replace(FACT, target_new=" Paris"), neurons=NEURONS)
    with pytest.raises(InputError, match="neuron index 48 is out of range"):
        knowledge_neurons(model, FACT, neurons=[(0, 48)])
    with pytest.raises(InputError, match="layer 3 is out of range"):
        erase(model, FACT, neurons=[(3, 0)])
    with pytest.raises(InputError, match="no fact to erase"):
        erase(model, [])
    with pytest.raises(InputError, match="lambda2 is -1"):
        KnowledgeNeuronsConfig(lambda2=-1)
    with pytest.raises(InputError, match="shared is 2"):
        KnowledgeNeuronsConfig(shared=2)
    with pytest.raises(InputError, match="at most 0 neurons"):
        EraseConfig(most=0)


def test_refuses_embeddings_of_another_size():
    with pytest.raises(ModelError, match="have 24 coordinates, its value slots 32"):
        knowledge_neurons(tiny("opt"), FACT, neurons=[(0, 0)])
