"""What other facts of a relation share is left out of a fact's neurons, in the Python API, `edit` and `bench edit`."""

from dataclasses import replace

import pytest
from support.edits import random_edit
from support.trained import CITIES, facts, trained

from knowedit import Fact, InputError
from knowedit.edit.apply import applied
from knowedit.edit.methods import relation_neurons
from knowedit.edit.methods.knowledge_neurons import KnowledgeNeuronsConfig, knowledge_neurons
from knowedit.edit.methods.relation_neurons import RelationNeurons
from knowedit.edit.methods.table import prepare
from knowedit.locate.attribution import AttributionConfig
from knowedit.locate.config import LocateConfig
from knowedit.locate.locate import locate_fact
from knowedit.locate.proof.neuron_kinds import ControlPool

LOCATE = LocateConfig(attribution=AttributionConfig(nodes=8), select="refined", prompts=None, adjust=True)
CONFIG = KnowledgeNeuronsConfig(locate=LOCATE, shared=0.2, others=6)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def home(subject: str) -> Fact:
    fact = next(fact for fact in facts() if fact.relation == "home" and fact.subject == subject)
    return replace(fact, target_new=next(city for city in CITIES if city != fact.target))


def located(fact: Fact) -> list[tuple[int, int]]:
    return list(locate_fact(trained(), fact, LOCATE, pool=ControlPool(trained(), ())))


def test_others_are_of_the_relation_and_about_other_subjects():
    fact = home("Zarn")
    others = RelationNeurons(trained(), facts(), LOCATE, 100).of_others(fact)
    expected = [located(other) for other in facts() if other.relation == "home" and other.subject != "Zarn"]
    assert sorted(others) == sorted(expected)


def test_others_are_the_same_whatever_was_asked_before_and_in_whichever_order_facts_come():
    fact = home("Tavo")
    first = RelationNeurons(trained(), facts(), LOCATE, 4).of_others(fact)
    relations = RelationNeurons(trained(), facts()[::-1], LOCATE, 4)
    relations.of_others(home("Zarn"))
    assert relations.of_others(fact) == first and len(first) == 4


def test_others_are_located_once_and_kept_in_the_cache(monkeypatch, cache):
    calls = []

    def counted(model, fact, *options, **named):
        calls.append(fact)
        return locate_fact(model, fact, *options, **named)

    monkeypatch.setattr(relation_neurons, "locate_fact", counted)
    first = RelationNeurons(trained(), facts(), LOCATE, 3).of_others(home("Zarn"))
    relations = RelationNeurons(trained(), facts(), LOCATE, 3)
    assert relations.of_others(home("Zarn")) == relations.of_others(home("Zarn")) == first
    assert len(calls) == 3 == len(list((cache / "neurons").glob("*.json")))
    for damaged in (cache / "neurons").glob("*.json"):
        damaged.write_text("[[99, 0]]")
    assert RelationNeurons(trained(), facts(), LOCATE, 3).of_others(home("Zarn")) == first
    RelationNeurons(trained(), facts(), replace(LOCATE, t=0.3), 3).of_others(home("Zarn"))
    assert len(calls) == 9


def test_others_are_located_on_the_model_without_its_edits(monkeypatch, tmp_path):
    fact = home("Zarn")
    with applied(trained(), random_edit(trained(), 0)):
        others = RelationNeurons(trained(), facts(), LOCATE, 3).of_others(fact)
    monkeypatch.setenv("KNOWEDIT_CACHE", str(tmp_path / "another cache"))
    assert RelationNeurons(trained(), facts(), LOCATE, 3).of_others(fact) == others


def test_a_fact_without_a_relation_has_no_others():
    assert RelationNeurons(trained(), facts(), LOCATE, 3).of_others(replace(home("Zarn"), relation=None)) == []


def test_the_editor_of_a_source_leaves_out_what_its_facts_share():
    model = trained()
    edited = [home(subject) for subject in ("Zarn", "Osk", "Lirra", "Movi")]
    shared_somewhere = 0
    for fact, edit in zip(edited, edits(CONFIG, edited), strict=True):
        others = RelationNeurons(model, facts(), LOCATE, 6).of_others(fact)
        own = [site for site in located(fact) if sum(site in sites for sites in others) <= 0.2 * 6]
        assert edit.notes["neurons"] == [list(site) for site in own]
        assert edit.notes["shared"] == len(located(fact)) - len(own) and edit.notes["others"] == 6
        shared_somewhere += edit.notes["shared"]
    assert shared_somewhere == 3
    with pytest.raises(InputError, match="share all 2 that were located; raise shared"):
        edits(CONFIG, [home("Quill")])


def test_without_the_filter_the_editor_rewrites_all_that_is_located():
    edited = [home(subject) for subject in ("Quill", "Osk", "Lirra")]
    for fact, edit in zip(edited, edits(replace(CONFIG, shared=1), edited), strict=True):
        assert edit.notes["neurons"] == [list(site) for site in located(fact)]
        assert edit.notes["shared"] == 0 == edit.notes["others"]


def edits(config: KnowledgeNeuronsConfig, some: list[Fact]):
    return prepare(trained(), "knowledge_neurons", config, facts())(some)


def test_built_in_facts_stand_beside_a_fact_by_default(monkeypatch):
    fact = home("Zarn")
    monkeypatch.setattr("knowedit.edit.methods.knowledge_neurons.builtin_facts", facts)
    edit = knowledge_neurons(trained(), fact, CONFIG)
    (same,) = edits(CONFIG, [fact])
    assert edit.notes["others"] == 6 and edit.notes["neurons"] == same.notes["neurons"]


def test_the_number_of_others_is_checked():
    with pytest.raises(InputError, match="others are 0, expected a number of facts from 1 on"):
        KnowledgeNeuronsConfig(others=0)
