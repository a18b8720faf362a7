"""Facts in the place of an edit: a prompt that names a subject is asked behind its facts, and no other is."""

from dataclasses import replace

import pytest
from support.edits import same, weights
from support.rounding import LOGITS, near
from support.studies import source, study
from support.trained import trained

from knowedit.answers import ask
from knowedit.edit.methods.retrieval import RetrievalConfig, retrieved, with_facts
from knowedit.errors import InputError
from knowedit.evaluate.runs.engine import run_study
from knowedit.facts import Fact

ANN, ANNA = (
    Fact(id=name, template="{} lives in", subject=name, target="Rome", target_new=new)
    for name, new in (("Ann", "Oslo"), ("Ann Lee", "Bern"))
)
CONFIG = RetrievalConfig(template="{fact} {prompt}")


def test_a_prompt_is_asked_behind_the_facts_whose_subject_it_names():
    assert with_facts([ANN, ANNA], "It is said that Ann lives in", CONFIG) == (
        "Ann lives in Oslo. It is said that Ann lives in"
    )
    both = with_facts([ANN, ANNA], "Ann Lee lives in", CONFIG)
    assert both == "Ann Lee lives in Bern. Ann lives in Oslo. Ann Lee lives in", "the longest subject first"
    for other in ("Annette lives in", "Joann lives in", "Who lives in Oslo? It is"):
        assert with_facts([ANN, ANNA], other, CONFIG) == other


def test_the_latest_facts_of_a_subject_come_first_and_no_more_than_are_wanted():
    later = replace(ANN, id="later", template="{} works in")
    assert retrieved([ANN, later], "Ann is at work in", 4) == [later, ANN]
    assert retrieved([ANN, later], "Ann is at work in", 1) == [later]


def test_a_template_holds_what_is_asked_whatever_it_says():
    told = replace(ANN, target_new="{prompt}")
    template = RetrievalConfig(template="Known: {fact}\n{prompt}")
    assert with_facts([told], "Ann lives in {fact}", template) == "Known: Ann lives in {prompt}.\nAnn lives in {fact}"


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"template": "{fact}"}, "expected one with {fact} and {prompt}"), ({"most": 0}, "expected a number of facts")],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(InputError, match=said):
        RetrievalConfig(**settings)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_study_asks_prompts_behind_facts_and_leaves_all_others(tmp_path, sequential):
    """What is measured is what asking by hand gives; one by one and all in a row, since each subject has one fact."""
    model = trained()
    before = weights(model)
    options = {"method": "retrieval", "layer": None, "settings": {}, "perplexity": True, "generate": True}
    found = run_study(study(**options, sequential=sequential), tmp_path / "run", progress=False)
    assert same(weights(model), before)
    for row, fact in zip(found.rows(), source().facts, strict=True):
        text = f"New fact: {fact.prompt} {fact.target_new}.\n{fact.prompt}"
        new, true = ask(model, [model.query(text, target) for target in (fact.target_new, fact.target)])
        assert row["after"]["EM"] == near(new.probability - true.probability, size=LOGITS)
        assert row["after"]["EM"] != row["before"]["EM"]
        if not sequential:  # the neighbours are other facts of the sequence
            assert row["after"]["NM"] == near(row["before"]["NM"], size=LOGITS)
        assert row["after"]["perplexity"] == near(0.0, size=LOGITS)
        assert "essence" not in row["after"]
    if sequential:
        checkpoint = found.summary["checkpoints"]["3"]["metrics"]["EM"]["value"]
        first = [row["after"]["EM"] for row in found.rows()][:3]
        assert checkpoint == near(sum(first) / 3, size=LOGITS)
